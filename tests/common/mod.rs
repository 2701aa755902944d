// SPDX-License-Identifier: Apache-2.0
//! What the tests with real packets share, and the demo: a small cluster of network namespaces,
//! servers and clients in them, manifests, the proxy as a process, and other programs' view of the
//! kernel. Nothing here knows how the proxy works inside.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "every test program is a crate of its own and uses a part of this"
)]
#![allow(
    clippy::indexing_slicing,
    reason = "clippy.toml allows it in tests; the demo is not built as one"
)]

pub mod few_rights;
pub mod flows;
pub mod load;
pub mod manifests;
pub mod namespace;
pub mod oracle;
pub mod proxy;
pub mod requirements;
pub mod rollout;
pub mod steady_load;
pub mod topology;
pub mod traffic;
pub mod wait;
