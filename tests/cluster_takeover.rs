// SPDX-License-Identifier: Apache-2.0
//! The node of a real cluster changes between the real kube-proxy and ours, in both modes, or the pods of a Service are
//! replaced, and clients must not notice. The node is a guest kernel that has IPVS; clients and pods are on this machine, so that
//! all that the guest has to carry is packets.
//!
//! `KPR_TESTBED` names the folder that `hack/testbed/up` made; without it every test reads *ignored*.
#![cfg(test)]

use std::process::ExitCode;

use world::World;

#[path = "cluster_ipvs/agent.rs"]
mod agent;
#[path = "cluster_ipvs/guest.rs"]
#[allow(dead_code, reason = "the other program uses more of it")]
mod guest;
#[path = "cluster_takeover/kernel.rs"]
mod kernel;
#[path = "cluster_takeover/neighbours.rs"]
mod neighbours;
#[path = "cluster_takeover/node_load.rs"]
mod node_load;
#[path = "cluster_takeover/rollout.rs"]
mod rollout;
#[path = "cluster_takeover/swaps.rs"]
mod swaps;
#[path = "cluster/testbed.rs"]
mod testbed;
#[path = "cluster_ipvs/wait.rs"]
#[allow(dead_code, reason = "the other program uses more of it")]
mod wait;
#[path = "cluster_takeover/world.rs"]
mod world;

mod common;

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
