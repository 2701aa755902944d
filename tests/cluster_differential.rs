// SPDX-License-Identifier: Apache-2.0
//! The real kube-proxy and ours in iptables mode, with the same objects of a real API server: see
//! [`differential`].
//!
//! `KPR_TESTBED` names the folder that `hack/testbed/up` made; without it every test reads
//! *ignored*.
#![cfg(test)]

use std::path::Path;
use std::process::ExitCode;

use kpr_testkit::differential;
use kpr_testkit::differential::case::Size;
use kpr_testkit::differential::exceptions::Pair;

fn main() -> ExitCode {
    let binary = Path::new(env!("CARGO_BIN_EXE_kube-proxy-rs"));
    differential::main(binary, &[Pair::Iptables], Size::FAST, 3)
}
