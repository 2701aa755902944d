// SPDX-License-Identifier: Apache-2.0
//! Sets, links, rules and kernel settings against the guest's kernel, with `ipset`, `ip` and `iptables-save` as the
//! independent readers. Run it with `hack/guest -- PATH_OF_THIS_PROGRAM`; most of it runs on other kernels too.
#![cfg(test)]

use std::process::{ExitCode, Output};

use harness::{Inner, Need, RUN_ONE, Test, output_of, run};

#[path = "kernel_netfilter/flows.rs"]
mod flows;
#[path = "kernel_netfilter/harness.rs"]
mod harness;
#[path = "kernel_netfilter/ipset.rs"]
mod ipset;
#[path = "kernel_netfilter/iptables.rs"]
mod iptables;
#[path = "kernel_netfilter/links.rs"]
mod links;
#[path = "kernel_netfilter/settings.rs"]
mod settings;
#[path = "kernel_netfilter/watch.rs"]
mod watch;

fn main() -> ExitCode {
    let tests = [
        ipset::TESTS,
        links::TESTS,
        iptables::LEGACY,
        settings::TESTS,
        flows::TESTS,
        watch::LEGACY,
    ]
    .concat();
    harness::main("REQUIRE_KERNEL", tests, ipset::INNER)
}

/// The same without the right to change the network.
fn run_without_capability(name: &str) -> Output {
    let own = std::env::current_exe().unwrap();
    let own = own.to_str().unwrap();
    let caps = ["--bounding-set=-net_admin", "--inh-caps=-net_admin"];
    output_of("setpriv", &[&caps[..], &[own, RUN_ONE, name][..]].concat()).unwrap()
}

fn sorted<T: Ord>(items: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut items: Vec<T> = items.into_iter().collect();
    items.sort();
    items
}
