// SPDX-License-Identifier: Apache-2.0
//! What `deploy/` holds, in the hands of those who use it: real Helm, kubeadm and kubectl before a real API server, and
//! the pods that come of it, with the image's file tree, in network namespaces.
//!
//! `KPR_TESTBED` names the folder that `hack/testbed/up` made; without it every test reads *ignored*.
#![cfg(test)]

use std::path::PathBuf;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

use testbed::Testbed;

#[path = "cluster_deploy/helm.rs"]
mod helm;
#[path = "cluster_deploy/kubeadm.rs"]
mod kubeadm;
#[path = "cluster_deploy/manifests.rs"]
mod manifests;
#[path = "cluster_deploy/nodes.rs"]
mod nodes;
#[path = "cluster_deploy/pod.rs"]
mod pod;
#[path = "cluster/testbed.rs"]
mod testbed;

mod common;

/// A test: its name and what it does.
type Test = (&'static str, fn(&Testbed) -> anyhow::Result<()>);

/// A path below `deploy/`.
fn deploy(path: &str) -> String {
    format!("{}/deploy/{path}", env!("CARGO_MANIFEST_DIR"))
}

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
    let tests = [manifests::TESTS, helm::TESTS, kubeadm::TESTS, nodes::TESTS].concat();
    libtest_mimic::run(&arguments, tests.into_iter().map(trial).collect()).exit_code()
}
