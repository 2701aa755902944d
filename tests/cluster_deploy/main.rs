// SPDX-License-Identifier: Apache-2.0
//! What `deploy/` holds, in the hands of those who use it: real Helm, kubeadm and kubectl before a
//! real API server, and the pods that come of it, with the image's file tree, in network namespaces
//! and, in IPVS mode, in a guest kernel.
//!
//! `KPR_TESTBED` names the folder that `hack/testbed/up` made; without it every test reads
//! *ignored*.
#![cfg(test)]

use std::process::ExitCode;

use kpr_testkit::agent;
use kpr_testkit::testbed::{self, Test};

mod guest_nodes;
mod helm;
mod kubeadm;
mod manifests;
mod nodes;
mod pod;
mod policies;

/// A path below `deploy/`.
fn deploy(path: &str) -> String {
    format!("{}/deploy/{path}", env!("CARGO_MANIFEST_DIR"))
}

fn main() -> ExitCode {
    let own: Vec<String> = std::env::args().skip(1).collect();
    if agent::play(&own) {
        return ExitCode::SUCCESS;
    }
    let tests = [
        manifests::TESTS,
        policies::TESTS,
        helm::TESTS,
        kubeadm::TESTS,
        nodes::TESTS,
        guest_nodes::TESTS,
    ];
    testbed::run(&tests.concat())
}
