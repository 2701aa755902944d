// SPDX-License-Identifier: Apache-2.0
//! The node of a real cluster changes between the real kube-proxy and ours, in both modes, or the pods of a Service are
//! replaced, and clients must not notice. The node is a guest kernel that has IPVS; clients and pods are on this machine, so that
//! all that the guest has to carry is packets.
//!
//! `KPR_TESTBED` names the folder that `hack/testbed/up` made; without it every test reads *ignored*.
#![cfg(test)]

use std::path::PathBuf;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

use testbed::Testbed;
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
    let mut arguments = Arguments::from_args();
    // One API server for all.
    arguments.test_threads = Some(1);
    let testbed = std::env::var_os("KPR_TESTBED").map(PathBuf::from);
    let trial = |(name, test): Test| {
        let directory = testbed.clone();
        let run = move || {
            let directory = directory.ok_or("KPR_TESTBED is not set")?;
            let testbed = Testbed::open(&directory)?;
            let mut world =
                World::new(&testbed).map_err(|error| Failed::from(format!("{error:?}")))?;
            test(&mut world).map_err(|error| Failed::from(format!("{error:?}\n{}", world.logs())))
        };
        Trial::test(name, run).with_ignored_flag(testbed.is_none())
    };
    let tests = [rollout::TESTS, swaps::TESTS].concat();
    libtest_mimic::run(&arguments, tests.into_iter().map(trial).collect()).exit_code()
}
