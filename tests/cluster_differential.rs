// SPDX-License-Identifier: Apache-2.0
//! The real kube-proxy and ours in iptables mode, with the same objects of a real API server: see [`differential`].
//!
//! `KPR_TESTBED` names the folder that `hack/testbed/up` made; without it every test reads *ignored*.
#![cfg(test)]

use std::process::ExitCode;

use differential::case::Size;
use differential::exceptions::Pair;

mod common;
mod differential;
#[path = "cluster/testbed.rs"]
mod testbed;

fn main() -> ExitCode {
    differential::main(&[Pair::Iptables], Size::FAST, 3)
}
