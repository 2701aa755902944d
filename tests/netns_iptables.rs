// SPDX-License-Identifier: Apache-2.0
//! iptables of both backends, and flows, on this machine's kernel, in fresh network namespaces. The guest's kernel has no `nat`
//! table of nft, so these tests are not in `kernel_netfilter`.
#![cfg(test)]

use std::process::ExitCode;

use harness::{Need, Test, run};

#[path = "kernel_netfilter/flows.rs"]
mod flows;
#[path = "kernel_netfilter/harness.rs"]
mod harness;
#[path = "kernel_netfilter/iptables.rs"]
mod iptables;
#[path = "kernel_netfilter/iptables_mode.rs"]
mod iptables_mode;
#[path = "kernel_netfilter/watch.rs"]
mod watch;

fn main() -> ExitCode {
    let tests = [
        iptables::LEGACY,
        iptables::NFT,
        iptables::BOTH,
        iptables_mode::TESTS,
        watch::LEGACY,
        watch::NFT,
        flows::TESTS,
        flows::ZONES,
    ]
    .concat();
    harness::main("REQUIRE_NETNS", tests, &[])
}
