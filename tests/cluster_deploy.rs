// SPDX-License-Identifier: Apache-2.0
//! What `deploy/` holds, in the hands of those who use it: real Helm, kubeadm and kubectl before a real API server, and
//! the pods that come of it, with the image's file tree, in network namespaces and, in IPVS mode, in a guest
//! kernel.
//!
//! `KPR_TESTBED` names the folder that `hack/testbed/up` made; without it every test reads *ignored*.
#![cfg(test)]

use std::process::ExitCode;

use testbed::Test;

#[path = "cluster_ipvs/agent.rs"]
#[allow(dead_code, reason = "another program uses more of it")]
mod agent;
#[path = "cluster_ipvs/guest.rs"]
#[allow(dead_code, reason = "another program uses more of it")]
mod guest;
#[path = "cluster_deploy/guest_nodes.rs"]
mod guest_nodes;
#[path = "cluster_deploy/helm.rs"]
mod helm;
#[path = "cluster_deploy/kubeadm.rs"]
mod kubeadm;
#[path = "cluster_deploy/manifests.rs"]
mod manifests;
#[path = "cluster_takeover/neighbours.rs"]
#[allow(dead_code, reason = "another program uses more of it")]
mod neighbours;
#[path = "cluster_deploy/nodes.rs"]
mod nodes;
#[path = "cluster_deploy/pod.rs"]
mod pod;
#[path = "cluster/testbed.rs"]
mod testbed;
#[path = "cluster_ipvs/wait.rs"]
#[allow(dead_code, reason = "another program uses more of it")]
mod wait;

mod common;

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
        helm::TESTS,
        kubeadm::TESTS,
        nodes::TESTS,
        guest_nodes::TESTS,
    ];
    testbed::run(&tests.concat())
}
