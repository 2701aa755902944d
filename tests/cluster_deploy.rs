// SPDX-License-Identifier: Apache-2.0
//! What `deploy/` holds, in the hands of those who use it: real Helm, kubeadm and kubectl before a real API server, and
//! the pods that come of it, with the image's file tree, in network namespaces.
//!
//! `KPR_TESTBED` names the folder that `hack/testbed/up` made; without it every test reads *ignored*.
#![cfg(test)]

use std::process::ExitCode;

use testbed::Test;

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

/// A path below `deploy/`.
fn deploy(path: &str) -> String {
    format!("{}/deploy/{path}", env!("CARGO_MANIFEST_DIR"))
}

fn main() -> ExitCode {
    testbed::run(&[manifests::TESTS, helm::TESTS, kubeadm::TESTS, nodes::TESTS].concat())
}
