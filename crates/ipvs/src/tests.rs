// SPDX-License-Identifier: Apache-2.0
//! Tests of the codec and of the client; those against a kernel are in `tests/kernel_netlink.rs`.

mod captured;
mod client;
mod connections;
mod listing;
mod properties;
mod text;
mod wire;
