// SPDX-License-Identifier: Apache-2.0
//! The proxy in kube-proxy's place on a node of a real cluster: with kubeadm's ConfigMap and
//! command line, as kube-proxy's user, beside a real kube-proxy with the same objects, and before
//! and after it. Each proxy has a network namespace of this machine, iptables mode, and a link to
//! the API server.
//!
//! `KPR_TESTBED` names the folder that `hack/testbed/up` made; without it every test reads
//! *ignored*.
#![cfg(test)]

use std::path::PathBuf;
use std::process::ExitCode;

use kpr_testkit::testbed::{self, Test};

mod metrics;
mod node;
mod probes;
mod silence;
mod start;
mod takeover;

/// The program under test.
fn ours() -> PathBuf {
    env!("CARGO_BIN_EXE_kube-proxy-rs").into()
}

fn main() -> ExitCode {
    let tests = [
        start::TESTS,
        node::TESTS,
        metrics::TESTS,
        silence::TESTS,
        probes::TESTS,
        takeover::TESTS,
    ];
    testbed::run(&tests.concat())
}
