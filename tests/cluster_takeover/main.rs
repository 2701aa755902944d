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
mod swaps;
mod world;

/// A test: its name and what it does.
type Test = (&'static str, fn(&mut World) -> anyhow::Result<()>);

fn main() -> ExitCode {
    let own: Vec<String> = std::env::args().skip(1).collect();
    if agent::play(&own) || node_load::play(&own) {
        return ExitCode::SUCCESS;
    }
    testbed::run_each(&[rollout::TESTS, swaps::TESTS].concat(), |testbed, test| {
        let mut world = World::new(testbed)?;
        test(&mut world).map_err(|error| error.context(world.logs()))
    })
}
