// SPDX-License-Identifier: Apache-2.0
//! IPVS mode, ours beside kube-proxy's and beside our iptables mode, with the same objects of a
//! real API server: see [`differential`]. It runs in a guest that reaches the API server:
//! `hack/guest --env KPR_TESTBED=DIR $(hack/testbed/tap DIR) -- PROGRAM`.
#![cfg(test)]

use std::path::Path;
use std::process::ExitCode;

use kpr_testkit::differential;
use kpr_testkit::differential::case::Size;
use kpr_testkit::differential::exceptions::Pair;

fn main() -> ExitCode {
    let binary = Path::new(env!("CARGO_BIN_EXE_kube-proxy-rs"));
    differential::main(binary, &[Pair::Modes, Pair::Ipvs], Size::SLOW, 1)
}
