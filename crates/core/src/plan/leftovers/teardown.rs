// SPDX-License-Identifier: Apache-2.0
//! PURE: removal of IPVS mode's objects while iptables mode already serves.
//!
//! Rules of iptables mode translate the first packet of a connection before IPVS sees it, so new
//! connections no longer need virtual servers. Open ones do: their packets still reach IPVS through
//! the address on our link, and break with their real server. So real servers get weight 0 and are
//! deleted when their connections have ended. With the last of them go the virtual server and its
//! address, and finally everything else. Unlike for a deleted Service this holds for UDP too.
//!
//! Each step starts from the observed state, so no progress has to be remembered.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::IpFamily;
use crate::plan::ipvs::Plan;
use crate::plan::ipvs::nft_rules;
use crate::plan::ipvs::object::{RealServer, VirtualServerKey};
use crate::plan::ipvs::planner::RealServerOf;
use crate::plan::ipvs::set::{SetEntry, SetId, retired};
use crate::plan::ipvs::state::{State, VirtualServerState};
use crate::plan::ipvs::static_rules;
use crate::plan::ipvs::step::{Phase, Step};
use crate::plan::leftovers::cleanup::{Facts, destroy_sets, owns, stop_daemons};
use crate::plan::leftovers::modes::Modes;
use crate::plan::leftovers::stale_rules;
use crate::plan::ruleset::RuleBatch;
use crate::plan::ruleset::{ChainName, Edit, Table};

/// The chain that rejects packets without a virtual server.
const GUARD: (Table, &str) = (Table::Filter, "KUBE-IPVS-FILTER");

/// Whether anything of IPVS mode is left.
pub fn is_due(observed: &State, facts: &Facts) -> bool {
    observed.node.link_exists
        || !observed.sets.is_empty()
        || !observed.other_sets.is_empty()
        || observed.has_own_table
        || servers(observed, facts).next().is_some()
}

/// The real servers whose connections must end first.
pub fn candidates(observed: &State, facts: &Facts) -> BTreeSet<RealServerOf> {
    servers(observed, facts)
        .flat_map(|(vs, state)| state.real_servers.keys().map(move |key| (*vs, *key)))
        .collect()
}

fn servers<'a>(
    observed: &'a State,
    facts: &'a Facts,
) -> impl Iterator<Item = (&'a VirtualServerKey, &'a VirtualServerState)> {
    let all = observed.virtual_servers.iter();
    all.filter(|(key, _)| owns(key, observed, facts))
}

/// The next steps. `idle`: the real servers without connections.
pub fn steps(
    observed: &State,
    family: IpFamily,
    facts: &Facts,
    idle: &BTreeSet<RealServerOf>,
) -> Plan {
    let mut plan = Plan::default();
    let mut addresses = observed.addresses.clone();
    let mut is_over = addresses.is_empty();
    for (vs, state) in servers(observed, facts) {
        let is_idle = |key| idle.contains(&(*vs, key));
        if state.real_servers.keys().all(|key| is_idle(*key)) {
            plan.push(Phase::OldServers, Step::DeleteVirtualServer { key: *vs });
            continue;
        }
        is_over = false;
        if let Some(address) = vs.address() {
            addresses.remove(&address);
        }
        for (key, server) in state.real_servers.iter() {
            let (vs, key) = (*vs, *key);
            if is_idle(key) {
                plan.push(Phase::OldServers, Step::DeleteRealServer { vs, key });
            } else if server.weight > 0 {
                let server = RealServer {
                    weight: 0,
                    ..*server
                };
                plan.push(Phase::Servers, Step::SetRealServer { vs, key, server });
            }
        }
    }
    for address in addresses {
        plan.push(Phase::OldAddresses, Step::DeleteAddress { address });
        let set = SetId::IpvsIps.name(family);
        let entry = SetEntry::Ip(address);
        if observed
            .sets
            .get(&set)
            .is_some_and(|set| set.entries.contains(&entry))
        {
            let step = Step::DeleteEntry { set, entry };
            plan.push(Phase::OldAddressEntries, step);
        }
    }
    // As long as addresses exist, the host's own ports must not be reachable there.
    let is_guarded = !observed.addresses.is_empty();
    let edits = rule_edits(observed, family, is_guarded);
    if !edits.is_empty() {
        let edits = RuleBatch::new(family, edits);
        plan.push(Phase::Rules, Step::EditRules(edits));
    }
    // Until then they identify our virtual servers.
    if is_over {
        let names = SetId::ALL.map(|id| id.name(family)).into_iter();
        let names = names.chain(retired(family));
        let names = names.flat_map(|name| [name.replacement(), name]);
        destroy_sets(&mut plan, observed, family, names);
    }
    plan.ordered()
}

fn rule_edits(observed: &State, family: IpFamily, is_guarded: bool) -> Vec<Edit> {
    let (table, name) = GUARD;
    let guard = (table, ChainName::composed(name.to_owned()));
    let mut present = observed.rules.clone();
    let mut edits = Vec::new();
    if is_guarded && let Some(rules) = present.chains.remove(&guard) {
        let refusal = vec![static_rules::refusal(family)];
        if rules != refusal {
            let (table, chain) = guard.clone();
            edits.push(Edit::Replace {
                table,
                chain,
                rules: refusal,
            });
        }
    }
    if is_guarded {
        edits.extend(nft_rules::guard_edits(&present, family));
    }
    let removal = stale_rules::removal(&present, |modes| modes == Modes::Ipvs, &BTreeSet::new());
    edits.extend(removal.edits);
    edits.extend(stale_rules::foreign_jumps(&present, Modes::Ipvs));
    edits
}

/// Deletes the link once no family has an address on it.
pub fn link(observed: &BTreeMap<IpFamily, State>) -> Plan {
    let mut plan = Plan::default();
    let mut states = observed.values();
    let exists = observed.values().any(|state| state.node.link_exists);
    if exists && states.all(|state| state.addresses.is_empty()) {
        // All see the same.
        if let Some(state) = observed.values().next() {
            stop_daemons(state, &mut plan);
        }
        plan.push(Phase::OldAddresses, Step::DeleteLink);
    }
    plan
}

#[cfg(test)]
mod tests;
