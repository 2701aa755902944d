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
    base32(service_bits(text, protocol))
}

/// The same as a number.
pub fn service_bits(text: &str, protocol: Protocol) -> u128 {
    bits(&[hashed_part(text), protocol.lowercase()])
}

/// In tests two texts have one hash if they are equal up to a character that no name has: to find
/// such texts otherwise takes days.
#[cfg(any(test, feature = "testing"))]
fn hashed_part(text: &str) -> &str {
    text.split_once('~').map_or(text, |(start, _)| start)
}

#[cfg(not(any(test, feature = "testing")))]
const fn hashed_part(text: &str) -> &str {
    text
}

/// The chain of one endpoint.
pub fn endpoint_chain(text: &str, protocol: Protocol, endpoint: SocketAddr) -> ChainName {
    let hash = hash(&[text, protocol.lowercase(), &endpoint.to_string()]);
    ChainName::composed(format!("{ENDPOINT}{hash}"))
}

/// The first 16 characters of the base32 form of the SHA-256 of the concatenated texts.
pub fn hash(texts: &[&str]) -> String {
    base32(bits(texts))
}

/// The first 80 bits of the SHA-256 of the concatenated texts: 16 characters of 5 bits.
fn bits(texts: &[&str]) -> u128 {
    let mut digest = Sha256::new();
    for text in texts {
        digest.update(text.as_bytes());
    }
    digest
        .finalize()
        .iter()
        .take(10)
        .fold(0_u128, |bits, byte| (bits << 8) | u128::from(*byte))
}

fn base32(bits: u128) -> String {
    (0..16)
        .rev()
        .filter_map(|at| {
            let digit = usize::try_from((bits >> (at * 5)) & 31).ok()?;
            BASE32.get(digit).copied().map(char::from)
        })
        .collect()
}
