// SPDX-License-Identifier: Apache-2.0
//! What the kernels of both modes do alike: rules, addresses of the node, costs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{iptables_failure_kind, outcome, unobserved};
use crate::dataplane::iptables::{Iptables, IptablesError};
use crate::dataplane::kernel::{Cost, ObserveError};
use crate::dataplane::links::{Address, Links, Scope};
use crate::dataplane::netlink::SocketStats;
use crate::model::IpFamily;
use crate::plan::Outcome;
use crate::plan::ruleset::{Ruleset, Table};
use crate::plan::step::{LINK, RuleEdits};

/// The tables that have rules of ours.
const TABLES: [Table; 3] = [Table::Mangle, Table::Nat, Table::Filter];

pub(super) fn observe_rules(
    iptables: &BTreeMap<IpFamily, Iptables>,
    family: IpFamily,
) -> Result<Ruleset, IptablesError> {
    let Some(iptables) = iptables.get(&family) else {
        return Ok(Ruleset::new());
    };
    let mut rules = iptables.save(&TABLES)?;
    // What others have is of no interest, and may be a hundred thousand rules; but a chain or a set of ours that
    // they use cannot be deleted.
    rules.chains.retain(|(table, chain), rules| {
        if table.has_built_in(chain) || chain.as_str().starts_with("KUBE-") {
            return true;
        }
        rules.retain(|rule| rule.as_str().contains(" KUBE-"));
        !rules.is_empty()
    });
    Ok(rules)
}

pub(super) fn apply_rules(iptables: &BTreeMap<IpFamily, Iptables>, edits: &RuleEdits) -> Outcome {
    match iptables.get(&edits.family) {
        Some(iptables) => outcome(&iptables.restore(&edits.edits), iptables_failure_kind),
        None => Outcome::NotTried,
    }
}

pub(super) fn cost_of(sockets: &[SocketStats]) -> Cost {
    let mut cost = Cost::default();
    for stats in sockets {
        cost.round_trips += stats.round_trips;
        cost.messages_sent += stats.messages_sent;
        cost.messages_received += stats.messages_received;
        cost.bytes_sent += stats.bytes_sent;
        cost.bytes_received += stats.bytes_received;
    }
    cost
}

/// The addresses of this node on links other than ours, without loopback and link-local ones.
pub fn node_addresses(links: &mut Links) -> Result<BTreeSet<IpAddr>, ObserveError> {
    let failed = |error| unobserved("addresses of the node", error);
    let addresses = links.addresses().map_err(failed)?;
    let ours = links.find(LINK).map_err(failed)?.map(|link| link.index);
    let counts = |address: &&Address| {
        Some(address.link) != ours
            && address.scope == Scope::Global
            && !address.is_tentative
            && !address.ip.is_loopback()
    };
    Ok(addresses
        .iter()
        .filter(counts)
        .map(|address| address.ip)
        .collect())
}
