// SPDX-License-Identifier: Apache-2.0
//! The proxy in kube-proxy's place on a node of a real cluster: with kubeadm's ConfigMap and command line, as kube-proxy's
//! user, beside a real kube-proxy with the same objects, and before and after it. Each proxy has a network namespace of this
//! machine, iptables mode, and a link to the API server.
//!
//! `KPR_TESTBED` names the folder that `hack/testbed/up` made; without it every test reads *ignored*.
#![cfg(test)]

use std::path::PathBuf;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

use testbed::Testbed;

#[path = "cluster_drop_in/metrics.rs"]
mod metrics;
#[path = "cluster_drop_in/node.rs"]
mod node;
#[path = "cluster_drop_in/start.rs"]
mod start;
#[path = "cluster_drop_in/takeover.rs"]
mod takeover;
#[path = "cluster/testbed.rs"]
mod testbed;
#[path = "cluster_drop_in/world.rs"]
mod world;

mod common;

/// A test: its name and what it does.
type Test = (&'static str, fn(&Testbed) -> anyhow::Result<()>);

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One API server for all.
    arguments.test_threads = Some(1);
    let testbed = std::env::var_os("KPR_TESTBED").map(PathBuf::from);
    let trial = |(name, test): Test| {
        let directory = testbed.clone();
        let run = move || {
            let directory = directory.ok_or("KPR_TESTBED is not set")?;
            let testbed = Testbed::open(&directory)?;
            test(&testbed).map_err(|error| Failed::from(format!("{error:?}")))
        };
        Trial::test(name, run).with_ignored_flag(testbed.is_none())
    };
    let tests = [start::TESTS, node::TESTS, metrics::TESTS, takeover::TESTS].concat();
    libtest_mimic::run(&arguments, tests.into_iter().map(trial).collect()).exit_code()
}
