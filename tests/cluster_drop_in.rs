// SPDX-License-Identifier: Apache-2.0
//! The proxy in kube-proxy's place on a node of a real cluster: with kubeadm's ConfigMap and command line, as kube-proxy's
//! user, beside a real kube-proxy with the same objects, and before and after it. Each proxy has a network namespace of this
//! machine, iptables mode, and a link to the API server.
//!
//! `KPR_TESTBED` names the folder that `hack/testbed/up` made; without it every test reads *ignored*.
#![cfg(test)]

use std::process::ExitCode;

use testbed::Test;

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

fn main() -> ExitCode {
    testbed::run(&[start::TESTS, node::TESTS, metrics::TESTS, takeover::TESTS].concat())
}
