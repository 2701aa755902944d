// SPDX-License-Identifier: Apache-2.0
//! The proxy in IPVS mode on a node of a real cluster: it runs in a guest kernel as kube-proxy's
//! user, `kubectl` changes objects in a real kube-apiserver, and `ipvsadm`, `ipset`, `ip` and
//! `iptables-save` say what came of it.
//!
//! `KPR_TESTBED` names the folder that `hack/testbed/up --with-kcm` made; without it every test
//! reads *ignored*. This program runs on the machine that has the API server and starts the guest
//! itself. The tests share guest and proxy and run one after the other.
#![cfg(test)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use kpr_testkit::agent;
use libtest_mimic::{Arguments, Trial};

use world::World;

mod monitoring;
mod objects;
mod oracle;
mod outages;
mod rights;
mod wanted;
mod world;

/// A test: its name and what it does.
type Test = (&'static str, fn(&mut World));

fn main() -> ExitCode {
    let own: Vec<String> = std::env::args().skip(1).collect();
    if agent::play(&own) {
        return ExitCode::SUCCESS;
    }
    let mut arguments = Arguments::from_args();
    // One API server, one guest and one proxy for all.
    arguments.test_threads = Some(1);
    let testbed = std::env::var_os("KPR_TESTBED").map(PathBuf::from);
    if testbed.is_none() {
        eprintln!("KPR_TESTBED is not set: see hack/testbed/up");
    }
    let world: Arc<Mutex<Option<World>>> = Arc::default();
    let trial = |(name, test): Test| {
        let directory = testbed.clone();
        let world = world.clone();
        Trial::test(name, move || {
            let directory = directory.ok_or("KPR_TESTBED is not set")?;
            // A test that failed is no reason for the next one to fail.
            let mut world = world.lock().unwrap_or_else(PoisonError::into_inner);
            if world.is_none() {
                *world = Some(World::start(&directory)?);
            }
            let world = world.as_mut().ok_or("it was made just now")?;
            world.clear();
            world.start_proxy();
            world.agree();
            test(world);
            world.agree_in_everything();
            Ok(())
        })
        .with_ignored_flag(testbed.is_none())
    };
    let tests = [
        objects::TESTS,
        outages::TESTS,
        rights::TESTS,
        monitoring::TESTS,
    ]
    .concat();
    let conclusion = libtest_mimic::run(&arguments, tests.into_iter().map(trial).collect());
    drop(world.lock().unwrap_or_else(PoisonError::into_inner).take());
    conclusion.exit_code()
}
