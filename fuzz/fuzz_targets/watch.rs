// SPDX-License-Identifier: Apache-2.0
//! Notifications of nftables, and entries of legacy iptables as `getsockopt` returns them.
#![no_main]

use kube_proxy_rs::dataplane::iptables;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| iptables::fuzz(bytes));
