// SPDX-License-Identifier: Apache-2.0
//! iptables of both backends, and flows, on this machine's kernel, in fresh network namespaces. The
//! guest's kernel has no `nat` table of nft, so these tests are not in `kernel_netfilter`.
#![cfg(test)]

use std::process::ExitCode;

mod netfilter;

fn main() -> ExitCode {
    netfilter::main(false)
}
