// SPDX-License-Identifier: Apache-2.0
//! The node of a real cluster changes between the real kube-proxy and ours, in both modes, or the
//! pods of a Service are replaced, and clients must not notice. The node is a guest kernel that has
//! IPVS; clients and pods are on this machine, so that all that the guest has to carry is packets.
//!
//! `KPR_TESTBED` names the folder that `hack/testbed/up` made; without it every test reads
//! *ignored*.
#![cfg(test)]

use std::process::ExitCode;

use kpr_testkit::{agent, testbed};

use world::World;

mod kernel;
mod node_load;
mod rollout;
mod rules;
mod swaps;
mod world;

/// A test: its name, the options of `hack/guest` that choose its kernel, and what it does.
type Test = (
    &'static str,
    (
        &'static [&'static str],
        fn(&mut World) -> anyhow::Result<()>,
    ),
);

/// User-mode Linux.
const UML: &[&str] = &[];
/// An emulated machine, which has all of nftables.
const QEMU: &[&str] = &["--kernel", "qemu", "--mem", "3G"];

fn main() -> ExitCode {
    let own: Vec<String> = std::env::args().skip(1).collect();
    if agent::play(&own) || node_load::play(&own) {
        return ExitCode::SUCCESS;
    }
    // An emulated machine needs minutes for it.
    let is_long = std::env::var_os("KPR_TAKEOVER_TO_NFTABLES").is_some();
    let more = if is_long { rules::TESTS } else { &[] };
    let tests = [rollout::TESTS, swaps::TESTS, more].concat();
    testbed::run_each(&tests, |testbed, (kernel, test)| {
        let mut world = World::new(testbed, kernel)?;
        test(&mut world).map_err(|error| error.context(world.logs()))
    })
}
