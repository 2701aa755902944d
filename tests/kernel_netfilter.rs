// SPDX-License-Identifier: Apache-2.0
//! Sets, links, rules and kernel settings against the guest's kernel. Run it with
//! `hack/guest -- PATH_OF_THIS_PROGRAM`; most of it runs on other kernels too.
#![cfg(test)]

use std::process::ExitCode;

mod netfilter;

fn main() -> ExitCode {
    netfilter::main(true)
}
