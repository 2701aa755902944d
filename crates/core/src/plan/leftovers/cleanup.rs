// SPDX-License-Identifier: Apache-2.0
//! PURE: `--cleanup`: removes everything that kube-proxy or this program created, in both modes and
//! both families, and nothing else.
//!
//! Plans, made in this order so that nothing is in use when it is removed:
//! 1. [`servers`]: first the link with its addresses (clients must not reach the host's own ports
//!    there), then virtual servers;
//! 2. [`rules`], for each backend of iptables, and the table of nftables mode;
//! 3. [`client_sets`] and [`sets`], which none of our rules reference any more.
//!
//! If one of them fails, the next run still finds the rest: sets identify addresses and virtual
//! servers, and chains and sets are identified by name.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::{IpFamily, PortRange};
use crate::plan::iptables;
use crate::plan::iptables::static_rules::{ROUTE_LOCALNET, SHARED_CHAIN, localnet_rule};
use crate::plan::ipvs::Plan;
use crate::plan::ipvs::marks;
use crate::plan::ipvs::object::VirtualServerKey;
use crate::plan::ipvs::set::{SetEntry, SetId, SetName, lists_node_port, retired};
use crate::plan::ipvs::state::State;
use crate::plan::ipvs::step::{Phase, Step};
use crate::plan::leftovers::modes::Modes;
use crate::plan::leftovers::stale_rules::{Kept, removal};
use crate::plan::ruleset::RuleBatch;
use crate::plan::ruleset::{ChainId, ChainName, Edit, Rule, Ruleset, Table};

/// Chains of table `mangle` that only kubelet creates.
const KUBELET: [&str; 2] = ["KUBE-KUBELET-CANARY", "KUBE-IPTABLES-HINT"];

/// Evidence of which virtual servers are ours, besides the state of the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Addresses on links other than ours.
    pub node_addresses: BTreeSet<IpAddr>,
    /// Ranges that the operator excluded as foreign.
    pub exclude_cidrs: Vec<IpNet>,
    /// The cluster's range of node ports, if the operator says so.
    pub node_port_range: Option<PortRange>,
}

/// The link and the virtual servers.
pub fn servers(observed: &State, facts: &Facts) -> Plan {
    let mut plan = Plan::default();
    stop_daemons(observed, &mut plan);
    if observed.node.link_exists {
        plan.push(Phase::OldServers, Step::DeleteLink);
    }
    for key in observed.virtual_servers.keys() {
        if owns(key, observed, facts) {
            let key = *key;
            plan.push(Phase::OldServers, Step::DeleteVirtualServer { key });
        }
    }
    plan
}

/// Our link says which sync daemons are ours, so it goes after them.
pub(super) fn stop_daemons(observed: &State, plan: &mut Plan) {
    for (role, daemon) in &observed.node.daemons {
        if daemon.link.is_some() {
            plan.push(Phase::Daemons, Step::StopSyncDaemon { role: *role });
        }
    }
}

/// A virtual server is ours if one of our sets has its address and port, if its address is on our
/// link, or if it is a node port: one in our set or kube-proxy's or, where those sets are gone, one
/// in the range that the operator says.
pub fn owns(key: &VirtualServerKey, observed: &State, facts: &Facts) -> bool {
    let family = key.family();
    let (address, port, protocol) = match key {
        VirtualServerKey::Address {
            address,
            port,
            protocol,
        } => (address, port, protocol),
        VirtualServerKey::Mark { mark, .. } => {
            return marks::in_use(observed, family).contains(mark);
        }
    };
    let has = |id: SetId, entry: SetEntry| {
        let mut sets = observed.all_sets(&id.name(family));
        sets.any(|set| set.entries.contains(&entry))
    };
    let is_listed = [
        SetId::ClusterIp,
        SetId::ExternalIp,
        SetId::ExternalIpLocal,
        SetId::LoadBalancer,
        SetId::LoadBalancerLocal,
        SetId::NodePort,
    ]
    .into_iter()
    .any(|id| has(id, SetEntry::IpPort(*address, *protocol, *port)));
    if is_listed {
        return true;
    }
    if facts
        .exclude_cidrs
        .iter()
        .any(|range| range.contains(address))
    {
        return false;
    }
    let is_service_address =
        observed.addresses.contains(address) || has(SetId::IpvsIps, SetEntry::Ip(*address));
    let is_node_port = lists_node_port(observed, key).unwrap_or_else(|| {
        // Without any other evidence of ipvs mode we do not guess.
        let was_ipvs = observed.node.link_exists
            || !observed.sets.is_empty()
            || !observed.other_sets.is_empty();
        was_ipvs
            && facts
                .node_port_range
                .is_some_and(|range| range.contains(*port))
    });
    is_service_address || (is_node_port && facts.node_addresses.contains(address))
}

/// Objects of one family and backend that other programs use and that therefore stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// A chain that a foreign rule jumps to. It is flushed.
    Chain(Kept),
    /// A set that a foreign rule references.
    Set { set: SetName, user: ChainId },
}

impl std::fmt::Display for Obstacle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (what, user) = match self {
            Self::Chain(Kept { chain, user }) => (format!("chain {}/{}", chain.0, chain.1), user),
            Self::Set { set, user } => (format!("set {set}"), user),
        };
        write!(f, "{what} is used by a rule of chain {}/{}", user.0, user.1)
    }
}

/// The rules of one family and backend, and the table of nftables mode.
pub fn rules(observed: &iptables::State, family: IpFamily) -> (iptables::Plan, Vec<Obstacle>) {
    let mut plan = iptables::Plan::default();
    let present = &observed.rules;
    let localnet = observed.settings.sysctls.get(ROUTE_LOCALNET);
    if observed.settings.has_nftables_table {
        plan.push(
            iptables::Phase::Node,
            iptables::Step::DeleteNftablesTable { family },
        );
    }
    let removal = removal(present, |_| true, &BTreeSet::new());
    let shared = localnet_edits(present);
    if family == IpFamily::V4
        && !shared.is_empty()
        && localnet.is_some_and(|value| value.trim() != "0")
    {
        // Without the rule, neighbours could reach services that listen on loopback addresses only.
        let (key, value) = (ROUTE_LOCALNET, "0");
        plan.push(
            iptables::Phase::Node,
            iptables::Step::SetSysctl { key, value },
        );
    }
    for edits in [removal.edits, shared] {
        if !edits.is_empty() {
            let edits = RuleBatch::new(family, edits);
            plan.push(iptables::Phase::OldRules, iptables::Step::EditRules(edits));
        }
    }
    let mut obstacles: Vec<Obstacle> = removal.kept.into_iter().map(Obstacle::Chain).collect();
    let foreign = present
        .chains
        .iter()
        .filter(|(id, _)| Modes::of(id).is_none());
    for (id, rules) in foreign {
        let ours = SetId::ALL.map(|set| set.name(family));
        for set in ours.into_iter().chain(retired(family)) {
            let refers = |rule: &Rule| rule.sets().any(|other| other == set.as_str());
            if rules.iter().any(refers) {
                let user = id.clone();
                obstacles.push(Obstacle::Set { set, user });
            }
        }
    }
    (plan, obstacles)
}

/// The sets of clients of one family, once the rules of all backends are gone. One that a foreign
/// rule uses stays.
pub fn client_sets(sets: &iptables::Sets) -> iptables::Plan {
    let mut plan = iptables::Plan::default();
    for set in sets.keys().cloned() {
        plan.push(iptables::Phase::OldSets, iptables::Step::DestroySet { set });
    }
    plan
}

/// `KUBE-FIREWALL` belongs to kubelet where kubelet has it. Elsewhere our rule is deleted, and with
/// the last rule the chain.
fn localnet_edits(present: &Ruleset) -> Vec<Edit> {
    let is_kubelet_here = present
        .table(Table::Mangle)
        .any(|(chain, _)| KUBELET.contains(&chain.as_str()));
    let table = Table::Filter;
    let chain = ChainName::composed(SHARED_CHAIN.to_owned());
    let rule = localnet_rule();
    let rules = present.rules(table, &chain).unwrap_or_default();
    let ours = rules.iter().filter(|other| **other == rule).count();
    // kube-proxy creates the chain for IPv6 too, without a rule.
    if is_kubelet_here
        || (ours == 0 && !rules.is_empty())
        || !present.chains.contains_key(&(table, chain.clone()))
    {
        return Vec::new();
    }
    let users: Vec<(&ChainName, &Rule)> = present
        .table(table)
        .flat_map(|(user, rules)| rules.iter().map(move |rule| (user, rule)))
        .filter(|(_, rule)| rule.target() == Some(SHARED_CHAIN))
        .collect();
    let is_used = users.iter().any(|(user, _)| !table.has_built_in(user));
    if ours < rules.len() || is_used {
        let delete = Edit::Delete { table, chain, rule };
        return vec![delete; ours];
    }
    let jumps = users.into_iter().map(|(user, rule)| Edit::Delete {
        table,
        chain: user.clone(),
        rule: rule.clone(),
    });
    jumps
        .chain([Edit::DeleteChain {
            table,
            chain: chain.clone(),
        }])
        .collect()
}

/// The sets of one family, except for those that other programs use, and our table with its sets.
pub fn sets(observed: &State, family: IpFamily, obstacles: &[Obstacle]) -> Plan {
    let mut plan = Plan::default();
    let is_used = |name: &SetName| {
        let uses = |other: &Obstacle| matches!(other, Obstacle::Set { set, .. } if set == name);
        obstacles.iter().any(uses)
    };
    let ours = SetId::ALL.map(|id| id.name(family)).into_iter();
    let ours = ours.flat_map(|name| [name.replacement(), name]);
    let names = ours.chain(retired(family)).filter(|set| !is_used(set));
    destroy_sets(&mut plan, observed, family, names);
    plan
}

/// Adds the removal of sets with these names, and of our table, to a plan.
pub(super) fn destroy_sets(
    plan: &mut Plan,
    observed: &State,
    family: IpFamily,
    names: impl Iterator<Item = SetName>,
) {
    if observed.has_own_table {
        plan.push(Phase::OldSets, Step::DeleteOwnTable { family });
    }
    for set in names {
        if observed.other_sets.contains_key(&set) {
            let set = set.clone();
            plan.push(Phase::OldSets, Step::DestroyOtherSet { set });
        }
        // Those of our table are gone with it.
        if observed.sets.contains_key(&set) && !observed.has_own_table {
            plan.push(Phase::OldSets, Step::DestroySet { set });
        }
    }
}

#[cfg(test)]
mod tests;
