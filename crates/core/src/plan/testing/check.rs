// SPDX-License-Identifier: Apache-2.0
//! PURE: invariants of every plan. Tests check them on every plan that they make.

use std::collections::BTreeSet;

use crate::model::IpFamily;
use crate::plan::ipvs::Plan;
use crate::plan::ipvs::object::VirtualServerKey;
use crate::plan::ipvs::set::{SetEntry, SetId};
use crate::plan::ipvs::state::{SetState, State};
use crate::plan::ipvs::step::Step;
use crate::plan::report::Refusal;
use crate::plan::ruleset::{Edit, Growth, RuleBatch, Ruleset, Table};

/// A plan that must not be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("step {0:?} comes after a later phase")]
    Order(String),
    #[error("step {0:?} changes nothing")]
    Idle(String),
    #[error("step {step:?} would be refused: {refusal}")]
    Refused { step: String, refusal: Refusal },
    #[error("step {0:?} makes a table grow by something else than it says")]
    Growth(String),
    #[error("after step {step:?} {breach}")]
    Unsafe { step: String, breach: Breach },
}

/// A state that must not exist, not even between two steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Breach {
    #[error("a bound address lacks the entry that makes its unknown ports refuse")]
    AddressWithoutEntry,
    #[error("an address is bound before the rule that makes its unknown ports refuse")]
    AddressWithoutRules,
    #[error("a virtual server is there before the rules that masquerade its packets")]
    ServerWithoutRules,
    #[error("a load balancer is closed to all sources")]
    ClosedLoadBalancer,
    #[error("the cluster IP of a virtual server is not masqueraded")]
    ServerWithoutEntry,
    #[error("a set of nftables has networks that overlap")]
    Overlap,
    #[error("a port that is served refuses until its entry is there")]
    RefusedServer,
    #[error("a virtual server that is to be deleted loses the entry that shows that it is ours")]
    UnknownServer,
}

/// Checks the order of a plan, that a kernel in the state `believed` would accept every step, that
/// every step changes something, and that no step leaves a gap. Costs one copy of the state.
pub fn check(plan: &Plan, believed: &State) -> Result<(), Violation> {
    let mut state = believed.clone();
    let mut last = None;
    for (index, (phase, step)) in plan.phases().iter().enumerate() {
        let text = || step.to_string();
        if last.is_some_and(|last| last > *phase) {
            return Err(Violation::Order(text()));
        }
        last = Some(*phase);
        let was_done = is_done(step, &state);
        let is_batch = matches!(step, Step::EditRules(_));
        let before = is_batch.then(|| state.rules.clone());
        state.apply(step).map_err(|refusal| Violation::Refused {
            step: text(),
            refusal,
        })?;
        if was_done {
            return Err(Violation::Idle(text()));
        }
        if let (Step::EditRules(batch), Some(before)) = (step, &before)
            && !grows_as_it_says(batch, before, &state.rules)
        {
            return Err(Violation::Growth(text()));
        }
        let found = breach(step, &state).or_else(|| exclusion(step, &state));
        let rest = || plan.steps().skip(index + 1);
        let found = found.or_else(|| closure(step, rest(), &state));
        if let Some(breach) = found.or_else(|| oblivion(step, rest())) {
            let step = text();
            return Err(Violation::Unsafe { step, breach });
        }
    }
    Ok(())
}

/// Whether a batch grows its tables as announced: otherwise another program wrote to them as well.
fn grows_as_it_says(batch: &RuleBatch, before: &Ruleset, after: &Ruleset) -> bool {
    let size = |rules: &Ruleset, table| {
        let of_table = rules
            .table(table)
            .filter(|(chain, _)| !table.has_built_in(chain));
        let count = |rules: usize| i64::try_from(rules).unwrap();
        let all = rules.table(table).map(|(_, rules)| rules.len()).sum();
        (count(of_table.count()), count(all))
    };
    let tables: BTreeSet<Table> = batch.edits.iter().map(Edit::table).collect();
    tables.into_iter().all(|table| {
        let (chains, rules) = size(before, table);
        let (more_chains, more_rules) = size(after, table);
        let growth = Growth {
            chains: more_chains - chains,
            rules: more_rules - rules,
        };
        batch.growth.get(&table) == Some(&growth)
    })
}

/// Whether a kernel in this state would accept the step and not change.
fn is_done(step: &Step, state: &State) -> bool {
    let has = |set, entry| {
        let set: Option<&SetState> = state.sets.get(set);
        set.is_some_and(|set| set.entries.contains(entry))
    };
    match step {
        Step::SetSysctl { key, value } => state
            .node
            .sysctls
            .get(key)
            .is_some_and(|found| found == value),
        Step::SetTimeouts(timeouts) => timeouts.satisfied_by(state.node.timeouts),
        Step::AddEntry { set, entry } => has(set, entry),
        Step::DeleteEntry { set, entry } => !has(set, entry),
        Step::AddAddress { address } => state.addresses.contains(address),
        Step::DeleteAddress { address } => !state.addresses.contains(address),
        Step::ReplaceEntries { set, old, new } => {
            has(set, new) && !old.iter().any(|entry| has(set, entry))
        }
        Step::DeleteNftablesTable { .. } => !state.has_nftables_table,
        Step::DeleteOwnTable { .. } => !state.has_own_table,
        Step::SetVirtualServer { key, server } => {
            let present = state.virtual_servers.get(key);
            present.is_some_and(|present| present.server == *server)
        }
        Step::SetRealServer { vs, key, server } => {
            let present = state.virtual_servers.get(vs);
            present.is_some_and(|present| present.real_servers.get(key) == Some(server))
        }
        Step::EditRules(rules) => rules.edits.iter().all(|edit| match edit {
            Edit::Replace {
                table,
                chain,
                rules,
            } => state.rules.rules(*table, chain) == Some(rules.as_slice()),
            _ => false,
        }),
        // The kernel rejects a repetition of these.
        Step::CreateLink
        | Step::DeleteLink
        | Step::StartSyncDaemon { .. }
        | Step::StopSyncDaemon { .. }
        | Step::CreateSet(_)
        | Step::SwapSets { .. }
        | Step::DestroySet { .. }
        | Step::DestroyOtherSet { .. }
        | Step::AddVirtualServer { .. }
        | Step::DeleteVirtualServer { .. }
        | Step::AddRealServer { .. }
        | Step::DeleteRealServer { .. } => false,
    }
}

/// The violations in a state just after a step.
pub fn breach(step: &Step, state: &State) -> Option<Breach> {
    let has_one = |chains: [(Table, &str); 2]| {
        let mut chains = chains.into_iter();
        chains.any(|(table, chain)| has_chain(state, table, chain))
    };
    let is_filtered = || {
        let rejecting = [
            (Table::Filter, "KUBE-IPVS-FILTER"),
            (Table::Own, "unserved"),
        ];
        has_one(rejecting)
    };
    let is_masqueraded = || {
        let masquerading = [
            (Table::Nat, "KUBE-POSTROUTING"),
            (Table::Own, "postrouting"),
        ];
        has_one(masquerading)
    };
    match step {
        Step::AddAddress { .. } if !is_filtered() => Some(Breach::AddressWithoutRules),
        Step::AddAddress { address }
        | Step::DeleteEntry {
            entry: SetEntry::Ip(address),
            ..
        } => lacks_entry(state, address),
        Step::SwapSets { .. } => state
            .addresses
            .iter()
            .find_map(|address| lacks_entry(state, address)),
        Step::AddVirtualServer { .. } if !is_masqueraded() => Some(Breach::ServerWithoutRules),
        Step::AddVirtualServer { key, .. } => lacks_admission(state, key),
        Step::AddEntry {
            set,
            entry: entry @ SetEntry::IpPort(address, ..),
        } => {
            let family = IpFamily::of(*address);
            (*set == SetId::LoadBalancerFw.name(family) && !is_open_to_some(state, entry))
                .then_some(Breach::ClosedLoadBalancer)
        }
        Step::DeleteEntry {
            entry: SetEntry::IpPortNet(address, protocol, port, _),
            ..
        } => {
            let entry = SetEntry::IpPort(*address, *protocol, *port);
            let is_closed = has_entry(state, SetId::LoadBalancerFw, *address, &entry);
            (is_closed && !is_open_to_some(state, &entry)).then_some(Breach::ClosedLoadBalancer)
        }
        _ => None,
    }
}

/// nftables refuses networks that overlap.
fn exclusion(step: &Step, state: &State) -> Option<Breach> {
    let (Step::AddEntry { set, entry }
    | Step::ReplaceEntries {
        set, new: entry, ..
    }) = step
    else {
        return None;
    };
    let set = state
        .sets
        .get(set)
        .filter(|set| set.max_entries == u32::MAX)?;
    let SetEntry::IpPortNet(address, protocol, port, network) = entry else {
        return None;
    };
    let overlaps = |other: &SetEntry| match other {
        SetEntry::IpPortNet(at, of, to, net) => {
            (at, of, to) == (address, protocol, port)
                && net != network
                && (net.contains(network) || network.contains(net))
        }
        _ => false,
    };
    set.entries.iter().any(overlaps).then_some(Breach::Overlap)
}

fn has_chain(state: &State, table: Table, name: &str) -> bool {
    state
        .rules
        .table(table)
        .any(|(chain, rules)| chain.as_str() == name && !rules.is_empty())
}

fn has_entry(state: &State, id: SetId, address: std::net::IpAddr, entry: &SetEntry) -> bool {
    state
        .sets
        .get(&id.name(IpFamily::of(address)))
        .is_some_and(|set| set.entries.contains(entry))
}

fn lacks_entry(state: &State, address: &std::net::IpAddr) -> Option<Breach> {
    let is_bound = state.addresses.contains(address);
    let entry = SetEntry::Ip(*address);
    (is_bound && !has_entry(state, SetId::IpvsIps, *address, &entry))
        .then_some(Breach::AddressWithoutEntry)
}

/// An address that is served already, because rules of another kind admit its ports, gets the entry
/// that makes unknown ports refuse only after those of its ports.
fn closure<'a>(
    step: &Step,
    mut rest: impl Iterator<Item = &'a Step>,
    state: &State,
) -> Option<Breach> {
    let Step::AddEntry {
        entry: SetEntry::Ip(address),
        ..
    } = step
    else {
        return None;
    };
    let is_served = |step: &Step| {
        let Step::AddEntry {
            entry: SetEntry::IpPort(at, protocol, port),
            ..
        } = *step
        else {
            return false;
        };
        let key = VirtualServerKey::Address {
            address: at,
            port,
            protocol,
        };
        at == *address && state.virtual_servers.contains_key(&key)
    };
    let is_bound = state.addresses.contains(address);
    (is_bound && rest.any(is_served)).then_some(Breach::RefusedServer)
}

/// If the process dies before it deletes a virtual server, the next one has to know it.
fn oblivion<'a>(step: &Step, mut rest: impl Iterator<Item = &'a Step>) -> Option<Breach> {
    let Step::DeleteEntry { set, entry } = step else {
        return None;
    };
    let key = match *entry {
        SetEntry::IpPort(address, protocol, port)
            if *set == SetId::NodePort.name(IpFamily::of(address)) =>
        {
            VirtualServerKey::Address {
                address,
                port,
                protocol,
            }
        }
        SetEntry::IpPortMark(address, .., mark) => VirtualServerKey::Mark {
            family: IpFamily::of(address),
            mark,
        },
        _ => return None,
    };
    let is_deletion =
        |step: &Step| matches!(step, Step::DeleteVirtualServer { key: of } if *of == key);
    rest.any(is_deletion).then_some(Breach::UnknownServer)
}

/// A new virtual server is in a set that determines how its packets are masqueraded.
fn lacks_admission(state: &State, key: &VirtualServerKey) -> Option<Breach> {
    let VirtualServerKey::Address {
        address,
        port,
        protocol,
    } = *key
    else {
        return None;
    };
    let frontend = SetEntry::IpPort(address, protocol, port);
    let sets = [
        SetId::ClusterIp,
        SetId::ExternalIp,
        SetId::ExternalIpLocal,
        SetId::LoadBalancer,
        SetId::NodePort,
    ];
    let is_known = sets
        .into_iter()
        .any(|id| has_entry(state, id, address, &frontend));
    (!is_known).then_some(Breach::ServerWithoutEntry)
}

fn is_open_to_some(state: &State, frontend: &SetEntry) -> bool {
    let SetEntry::IpPort(address, protocol, port) = *frontend else {
        return false;
    };
    let family = IpFamily::of(address);
    let set = state.sets.get(&SetId::LoadBalancerSourceCidr.name(family));
    set.into_iter().flat_map(|set| &set.entries).any(|entry| {
        matches!(entry, SetEntry::IpPortNet(of, with, at, _)
            if (*of, *with, *at) == (address, protocol, port))
    })
}

#[cfg(test)]
mod tests;
