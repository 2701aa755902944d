// SPDX-License-Identifier: Apache-2.0
//! IPVS mode, ours beside kube-proxy's and beside our iptables mode, with the same objects of a real API server: see
//! [`differential`]. It runs in a guest that reaches the API server:
//! `hack/guest --env KPR_TESTBED=DIR $(hack/testbed/tap DIR) -- PROGRAM`.
#![cfg(test)]

use std::process::ExitCode;

use differential::case::Size;
use differential::exceptions::Pair;

mod common;
mod differential;
#[path = "cluster/testbed.rs"]
mod testbed;

fn main() -> ExitCode {
    differential::main(&[Pair::Modes, Pair::Ipvs], Size::SLOW, 1)
}
