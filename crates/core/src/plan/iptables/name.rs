// SPDX-License-Identifier: Apache-2.0
//! PURE: names of chains. Those of a Service port are kube-proxy's, because operators look for
//! them.

use std::net::SocketAddr;

use sha2::{Digest as _, Sha256};

use crate::model::Protocol;
use crate::plan::ruleset::ChainName;

/// Endpoints for traffic policy Cluster.
pub const CLUSTER: &str = "KUBE-SVC-";
/// Endpoints for traffic policy Local.
pub const LOCAL: &str = "KUBE-SVL-";
/// Traffic to an external address or a node port.
pub const EXTERNAL: &str = "KUBE-EXT-";
/// Traffic to a load balancer with source ranges.
pub const FIREWALL: &str = "KUBE-FW-";
/// One endpoint; used only with affinity.
pub const ENDPOINT: &str = "KUBE-SEP-";

/// Prefixes of the chains of Service ports, kube-proxy's included.
pub const SERVICE_PREFIXES: [&str; 5] = [CLUSTER, LOCAL, EXTERNAL, FIREWALL, ENDPOINT];

const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// The part that the chains of a Service port share. `text` is the port's name.
pub fn service_hash(text: &str, protocol: Protocol) -> String {
    hash(&[text, protocol.lowercase()])
}

/// The chain of one endpoint.
pub fn endpoint_chain(text: &str, protocol: Protocol, endpoint: SocketAddr) -> ChainName {
    let hash = hash(&[text, protocol.lowercase(), &endpoint.to_string()]);
    ChainName::composed(format!("{ENDPOINT}{hash}"))
}

/// The first 16 characters of the base32 form of the SHA-256 of the concatenated texts.
pub fn hash(texts: &[&str]) -> String {
    let mut digest = Sha256::new();
    for text in texts {
        digest.update(text.as_bytes());
    }
    // 16 characters of 5 bits are the first 80 bits.
    let bits = digest
        .finalize()
        .iter()
        .take(10)
        .fold(0_u128, |bits, byte| (bits << 8) | u128::from(*byte));
    (0..16)
        .rev()
        .filter_map(|at| {
            let digit = usize::try_from((bits >> (at * 5)) & 31).ok()?;
            BASE32.get(digit).copied().map(char::from)
        })
        .collect()
}
