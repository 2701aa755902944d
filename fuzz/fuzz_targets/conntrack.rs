// SPDX-License-Identifier: Apache-2.0
//! Flows of the conntrack table.
#![no_main]

use kube_proxy_rs::dataplane::conntrack;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|datagram: &[u8]| {
    for (kind, payload) in kpr_fuzz::messages(datagram) {
        conntrack::fuzz(kind, payload);
    }
});
