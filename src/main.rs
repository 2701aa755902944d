// SPDX-License-Identifier: Apache-2.0
//! The `kube-proxy-rs` binary.

fn main() {}
