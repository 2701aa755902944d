// SPDX-License-Identifier: Apache-2.0
//! Links, addresses and routes of route netlink, as answers and as notifications.
#![no_main]

use kube_proxy_rs::dataplane::links;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|datagram: &[u8]| {
    for (kind, payload) in kpr_fuzz::messages(datagram) {
        links::fuzz(kind, payload);
    }
});
