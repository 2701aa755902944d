// SPDX-License-Identifier: Apache-2.0
//! Packet counters of nfnetlink_acct.
#![no_main]

use kube_proxy_rs::dataplane::nfacct;
use libfuzzer_sys::fuzz_target;

// From `struct nfgenmsg` on.
fuzz_target!(|payload: &[u8]| nfacct::fuzz(payload));
