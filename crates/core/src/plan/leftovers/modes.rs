// SPDX-License-Identifier: Apache-2.0
//! PURE: which mode an iptables chain belongs to, by its name.

use crate::plan::iptables::name;
use crate::plan::iptables::tree::TreeId;
use crate::plan::ruleset::{ChainId, Table};

/// Chains of IPVS mode only.
const OF_IPVS: [(Table, &str); 13] = [
    (Table::Security, "KUBE-IPVS-MARK"),
    (Table::Mangle, "KUBE-IPVS-PASS"),
    (Table::Mangle, "KUBE-IPVS-SAVE"),
    (Table::Mangle, "KUBE-IPVS-UNMARK"),
    (Table::Mangle, "KUBE-IPVS-MARK"),
    (Table::Mangle, "KUBE-IPVS-OUT-FILTER"),
    (Table::Mangle, "KUBE-SOURCE-RANGES-FIREWALL"),
    (Table::Nat, "KUBE-LOAD-BALANCER"),
    (Table::Nat, "KUBE-NODE-PORT"),
    (Table::Filter, "KUBE-NODE-PORT"),
    (Table::Filter, "KUBE-SOURCE-RANGES-FIREWALL"),
    (Table::Filter, "KUBE-IPVS-FILTER"),
    (Table::Filter, "KUBE-IPVS-OUT-FILTER"),
];

/// Chains of both modes.
const OF_BOTH: [(Table, &str); 5] = [
    (Table::Nat, "KUBE-SERVICES"),
    (Table::Nat, "KUBE-POSTROUTING"),
    (Table::Nat, "KUBE-MARK-MASQ"),
    (Table::Filter, "KUBE-FORWARD"),
    (Table::Filter, "KUBE-PROXY-FIREWALL"),
];

/// The modes that use a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Modes {
    Iptables,
    Ipvs,
    Both,
}

impl Modes {
    /// `None`: the chain is not kube-proxy's, or not its alone.
    pub fn of(id: &ChainId) -> Option<Self> {
        let (table, chain) = id;
        let is_in = |chains: &[(Table, &str)]| chains.contains(&(*table, chain.as_str()));
        if is_in(&OF_BOTH) {
            return Some(Self::Both);
        }
        if is_in(&OF_IPVS) {
            return Some(Self::Ipvs);
        }
        let is_root = TreeId::ALL
            .into_iter()
            .any(|tree| tree.table() == *table && tree.root() == chain.as_str());
        (is_root || is_of_a_service(id)).then_some(Self::Iptables)
    }
}

/// kube-proxy detects by it that its rules were flushed. We detect that without it.
const CANARY: &str = "KUBE-PROXY-CANARY";

/// Whether only iptables mode, ours or kube-proxy's, creates the chain for Services. Such a chain
/// is deleted when no longer wanted.
pub fn is_of_a_service((table, chain): &ChainId) -> bool {
    let begins = |prefix: &str| chain.as_str().starts_with(prefix);
    chain.as_str() == CANARY
        || (*table == Table::Nat && name::SERVICE_PREFIXES.into_iter().any(begins))
        || TreeId::ALL.into_iter().any(|tree| {
            let is_optional = tree.is_of_node_addresses() && chain.as_str() == tree.root();
            tree.table() == *table && (begins(tree.branch()) || is_optional)
        })
}

#[cfg(test)]
mod tests;
