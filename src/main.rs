// SPDX-License-Identifier: Apache-2.0
//! The `kube-proxy-rs` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    kube_proxy_rs::app::main(std::env::args_os())
}
