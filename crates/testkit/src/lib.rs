// SPDX-License-Identifier: Apache-2.0
//! What the test programs share, and the demo: a small cluster of network namespaces, servers and
//! clients in them, manifests, the proxy as a process, other programs' view of the kernel, a real
//! API server, guests, and the tests that several programs run. Nothing here knows how the proxy
//! works inside; its path is passed in.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::missing_fields_in_debug,
    missing_debug_implementations,
    reason = "this is test code, though it is not built as such"
)]

pub mod agent;
pub mod balancer;
pub mod cases;
pub mod cni;
pub mod dashboard;
pub mod differential;
pub mod few_rights;
pub mod flows;
pub mod guest;
pub mod isolated;
pub mod kernel;
pub mod kubelet;
pub mod load;
pub mod machine;
pub mod manifests;
pub mod namespace;
pub mod native;
pub mod neighbours;
pub mod oracle;
pub mod packets;
pub mod prometheus;
pub mod protobuf;
pub mod proxy;
pub mod requirements;
pub mod rollout;
pub mod steady_load;
pub mod testbed;
pub mod topology;
pub mod traffic;
pub mod wait;

use std::path::Path;

/// The top of the repository.
pub fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}
