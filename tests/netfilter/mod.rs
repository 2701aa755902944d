// SPDX-License-Identifier: Apache-2.0
//! Sets, links, rules and kernel settings against a real kernel, with `ipset`, `ip` and
//! `iptables-save` as the independent readers.

use std::process::{ExitCode, Output};

use kpr_testkit::isolated::{self, RUN_ONE, output_of};

mod flows;
mod ipset;
mod iptables;
mod iptables_mode;
mod links;
mod settings;
mod watch;

/// Runs all tests for the guest's kernel, which has no `nat` table of nft, or for this machine's.
pub(crate) fn main(in_guest: bool) -> ExitCode {
    let guest = [
        ipset::TESTS,
        links::TESTS,
        iptables::LEGACY,
        settings::TESTS,
        flows::TESTS,
        watch::LEGACY,
    ];
    let machine = [
        iptables::LEGACY,
        iptables::NFT,
        iptables::BOTH,
        iptables_mode::TESTS,
        watch::LEGACY,
        watch::NFT,
        flows::TESTS,
        flows::ZONES,
    ];
    if in_guest {
        isolated::main("REQUIRE_KERNEL", guest.concat(), ipset::INNER)
    } else {
        isolated::main("REQUIRE_NETNS", machine.concat(), &[])
    }
}

/// The same, without the capability to change the network.
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
