// SPDX-License-Identifier: Apache-2.0
//! PURE: computes the plan that turns Believed into Desired.
//!
//! There is one comparison; a full plan merely marks everything dirty. So a sequence of small plans
//! leads where one full plan leads.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use crate::model::Protocol;
use crate::plan::context::{Context, IpvsRules};
use crate::plan::ipvs::Plan;
use crate::plan::ipvs::desired::{Desired, Dirty};
use crate::plan::ipvs::object::{
    RealServer, RealServerKey, SyncRole, VirtualServer, VirtualServerKey,
};
use crate::plan::ipvs::port_objects::WantedServer;
use crate::plan::ipvs::ramps::{self, Ramps};
use crate::plan::ipvs::set::{self, DEFAULT_MAX_ENTRIES, SetEntry, SetId, SetName, SetSpec};
use crate::plan::ipvs::state::{State, VirtualServerState};
use crate::plan::ipvs::static_rules::{self, FixedRules};
use crate::plan::ipvs::step::{Phase, Step};
use crate::plan::ipvs::sysctl;
use crate::plan::leftovers::modes::Modes;
use crate::plan::leftovers::stale_rules;
use crate::plan::ruleset::{ChainId, Edit, RuleBatch};

/// The desired state, to compare with the believed one.
pub struct Comparison<'a> {
    pub context: &'a Context,
    pub desired: &'a Desired,
    pub believed: &'a State,
    pub(super) ramps: &'a Ramps,
    /// Whether an unwanted virtual server is ours to remove.
    pub owns: &'a dyn Fn(&VirtualServerKey) -> bool,
}

impl fmt::Debug for Comparison<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Comparison")
            .field("family", &self.context.family)
            .finish_non_exhaustive()
    }
}

/// Whether the end of its connections is visible. UDP has none: its flows must move at once.
pub fn drains(vs: &VirtualServerKey) -> bool {
    matches!(vs.protocol(), Some(Protocol::Tcp | Protocol::Sctp))
}

/// Whether a real server that its virtual server no longer wants may keep its connections.
pub fn drains_beside(vs: &VirtualServerKey, wanted: &VirtualServer) -> bool {
    drains(vs) && wanted.passes_over_weight_0()
}

impl Comparison<'_> {
    /// Everything wanted, and everything of ours in the kernel.
    pub fn everything(&self) -> Dirty {
        let mut dirty = Dirty::default();
        let wanted = self.desired.virtual_servers().map(|(key, _)| key);
        dirty.virtual_servers.extend(wanted);
        let present = self.believed.virtual_servers.keys();
        dirty
            .virtual_servers
            .extend(present.filter(|key| (self.owns)(key)));
        dirty.addresses.extend(self.desired.addresses());
        dirty.addresses.extend(&self.believed.addresses);
        for id in SetId::ALL {
            let wanted = self.desired.entries(id);
            dirty.entries.extend(wanted.map(|entry| (id, *entry)));
            if let Some(set) = self.believed.sets.get(&id.name(self.context.family)) {
                let present = set.entries.iter();
                dirty.entries.extend(present.map(|entry| (id, *entry)));
            }
        }
        // What drains needs its entries in a set that is new as well.
        let bound = self.believed.addresses.iter();
        let bound = bound.map(|address| (SetId::IpvsIps, SetEntry::Ip(*address)));
        dirty.entries.extend(bound);
        let id = SetId::NodePort;
        if let Some(set) = self.believed.other_sets.get(&id.name(self.context.family)) {
            let listed = set.entries.iter();
            dirty.entries.extend(listed.map(|entry| (id, *entry)));
        }
        dirty
    }

    /// What every Service needs before it can be served: sysctls, link, sets, rules. Its cost does
    /// not depend on the number of Services. `is_tried`: of sysctls.
    pub fn foundation(&self, rules: &FixedRules, is_tried: impl Fn(&'static str) -> bool) -> Plan {
        let mut plan = Plan::default();
        let (context, node) = (self.context, &self.believed.node);
        if context.owns_node {
            for (key, value) in sysctl::wanted(context) {
                let is_met = node.sysctls.get(key).is_some_and(|found| *found == value);
                if !is_met && is_tried(key) {
                    plan.push(Phase::Node, Step::SetSysctl { key, value });
                }
            }
            if !context.timeouts.satisfied_by(node.timeouts) {
                plan.push(Phase::Node, Step::SetTimeouts(context.timeouts));
            }
        }
        // Both families need the link; for the second one the kernel answers that it exists.
        if !node.link_exists {
            plan.push(Phase::Node, Step::CreateLink);
        }
        for id in SetId::of(context.ipvs_rules) {
            let name = id.name(context.family);
            let replacement = name.replacement();
            // Left over from an interrupted replacement.
            if self.believed.sets.contains_key(&replacement) {
                plan.push(Phase::Sets, Step::DestroySet { set: replacement });
            }
            if !self.believed.sets.contains_key(&name) {
                let max_entries = match context.ipvs_rules {
                    IpvsRules::Iptables => wanted_size(self.desired.entries(id).len()),
                    IpvsRules::Nftables => u32::MAX,
                };
                let spec = SetSpec::new(id, context.family, max_entries);
                plan.push(Phase::Sets, Step::CreateSet(spec));
            }
        }
        for set in set::retired(context.family) {
            if self.believed.sets.contains_key(&set) {
                plan.push(Phase::OldSets, Step::DestroySet { set });
            }
        }
        let mut edits = static_rules::edits(rules, &self.believed.rules);
        if stale_rules::serves(&self.believed.rules) {
            edits.retain(|edit| !is_dispatch(edit));
        }
        if !edits.is_empty() {
            let edits = self.batch(edits);
            plan.push(Phase::Rules, Step::EditRules(edits));
        }
        plan
    }

    fn batch(&self, edits: Vec<Edit>) -> RuleBatch {
        let chains = &self.believed.rules.chains;
        let before = |id: &ChainId| chains.get(id).map(Vec::len);
        RuleBatch::growing(self.context.family, edits, before)
    }

    /// Adds the removal of iptables mode to a plan, if a proxy of that mode left rules. They
    /// translate packets before IPVS sees them, so all virtual servers exist before the rules are
    /// removed, and every connection meets one or the other.
    pub fn switch(&self, plan: &mut Plan, rules: &FixedRules) {
        let present = &self.believed.rules;
        let mut edits = Vec::new();
        if stale_rules::serves(present) {
            let all = static_rules::edits(rules, present);
            edits.extend(all.into_iter().filter(is_dispatch));
        }
        let rewritten = rules.chains.chains.keys().cloned().collect();
        // Where our rules are not iptables', those of IPVS mode go as well.
        let goes = |modes| match self.context.ipvs_rules {
            IpvsRules::Iptables => modes == Modes::Iptables,
            IpvsRules::Nftables => true,
        };
        edits.extend(stale_rules::removal(present, goes, &rewritten).edits);
        if self.context.ipvs_rules == IpvsRules::Iptables {
            edits.extend(stale_rules::foreign_jumps(present, Modes::Iptables));
        }
        if !edits.is_empty() {
            let edits = self.batch(edits);
            plan.push(Phase::Switch, Step::EditRules(edits));
        }
        if self.believed.has_nftables_table {
            let family = self.context.family;
            plan.push(Phase::Switch, Step::DeleteNftablesTable { family });
        }
        for set in self.believed.client_sets.keys().cloned() {
            plan.push(Phase::OldSets, Step::DestroyOtherSet { set });
        }
        match self.context.ipvs_rules {
            IpvsRules::Iptables if self.believed.has_own_table => {
                let family = self.context.family;
                plan.push(Phase::Switch, Step::DeleteOwnTable { family });
            }
            IpvsRules::Iptables => {}
            IpvsRules::Nftables => {
                for set in self.believed.other_sets.keys().cloned() {
                    plan.push(Phase::OldSets, Step::DestroyOtherSet { set });
                }
            }
        }
    }

    /// Adds the steps for the sync daemons to a plan. The kernel cannot change one that runs, and
    /// those of other programs stay unless ours take their place.
    pub(super) fn daemons(&self, plan: &mut Plan, is_tried: impl Fn(SyncRole) -> bool) {
        if !self.context.owns_node {
            return;
        }
        let wanted = self.context.sync.as_ref();
        let running = |role: &SyncRole| self.believed.node.daemons.get(role);
        let is_met = |role: &SyncRole| match (wanted, running(role)) {
            (Some(wanted), running) => running.is_some_and(|it| wanted.is_met_by(it)),
            (None, running) => running.is_none_or(|it| it.link.is_none()),
        };
        let mut roles = SyncRole::ALL.to_vec();
        roles.retain(|role| !is_met(role) && is_tried(*role));
        // All stop first: what says which are ours says one thing of both.
        for role in roles.iter().copied().filter(|it| running(it).is_some()) {
            plan.push(Phase::Daemons, Step::StopSyncDaemon { role });
        }
        for role in roles {
            if let Some(daemon) = wanted.cloned() {
                plan.push(Phase::Daemons, Step::StartSyncDaemon { role, daemon });
            }
        }
    }

    /// Adds the steps for the dirty objects to a plan; of one virtual server so many at most.
    pub(super) fn compare(
        &self,
        plan: &mut Plan,
        dirty: &Dirty,
        part: Option<(VirtualServerKey, usize)>,
    ) {
        self.compare_entries(plan, &dirty.entries);
        for key in &dirty.virtual_servers {
            let most = part.filter(|(of, _)| of == key).map(|(_, most)| most);
            for (phase, step) in self.steps_of(*key).take(most.unwrap_or(usize::MAX)) {
                plan.push(phase, step);
            }
        }
        for address in &dirty.addresses {
            let address = *address;
            let present = self.believed.addresses.contains(&address);
            if self.desired.wants_address(&address) {
                // Its entry may be one that the kernel refuses.
                if !present && self.is_protected(address, dirty) {
                    plan.push(Phase::Addresses, Step::AddAddress { address });
                }
            } else if present && !self.is_drained_at(address, |_| true) {
                plan.push(Phase::OldAddresses, Step::DeleteAddress { address });
            }
        }
    }

    /// The steps for a virtual server: itself, then what it gets, then what it loses, so that the
    /// first of them by themselves leave it serving. One with twice as many real servers as are
    /// wanted loses some first, or it would grow for as long as it changes faster than it is
    /// followed.
    pub(super) fn steps_of(
        &self,
        vs: VirtualServerKey,
    ) -> impl Iterator<Item = (Phase, Step)> + use<'_> {
        let wanted = self.desired.virtual_server(&vs);
        let present = self.believed.virtual_servers.get(&vs);
        let present = present.filter(|_| wanted.is_some() || (self.owns)(&vs));
        // An unwanted one stays until its connections have ended. It rejects new ones: all of its
        // real servers have weight 0.
        let is_gone = wanted.is_none() && present.is_some_and(|it| !outlives_its_service(&vs, it));
        let itself = match (wanted.map(|wanted| &wanted.server), present) {
            (Some(server), None) => Some(Step::AddVirtualServer {
                key: vs,
                server: server.clone(),
            }),
            (Some(server), Some(present)) if present.server != *server => {
                Some(Step::SetVirtualServer {
                    key: vs,
                    server: server.clone(),
                })
            }
            _ => None,
        };
        let itself = itself.map(|step| (Phase::Servers, step));
        let deleted = is_gone.then_some((Phase::OldServers, Step::DeleteVirtualServer { key: vs }));
        let starts_slowly = self.desired.slow_start(&vs).is_some()
            && wanted.is_some_and(|wanted| has_others(wanted, present));
        let new = wanted.into_iter().flat_map(|it| it.real_servers.iter());
        let new = new.filter_map(move |(key, server)| {
            let present = present.and_then(|present| present.real_servers.get(key));
            let step = self.wanted_real_server(vs, *key, *server, present, starts_slowly)?;
            Some((Phase::Servers, step))
        });
        let keeps = wanted.is_none_or(|wanted| drains_beside(&vs, &wanted.server));
        let old = present.filter(|_| !is_gone).into_iter();
        let old = old.flat_map(|present| present.real_servers.iter());
        let old = old.filter_map(move |(key, server)| {
            let is_wanted = wanted.is_some_and(|it| it.real_servers.contains_key(key));
            let step = match (is_wanted, keeps) {
                (true, _) => return None,
                (false, true) => drain(vs, *key, *server)?,
                (false, false) => Step::DeleteRealServer { vs, key: *key },
            };
            Some((Phase::OldServers, step))
        });
        let (count, most) = (
            present.map_or(0, |present| present.real_servers.len()),
            wanted.map_or(0, |wanted| wanted.real_servers.len()),
        );
        let is_crowded = count > most.saturating_mul(2);
        let old_if = |is_now| old.clone().take(if is_now { usize::MAX } else { 0 });
        let (first, last) = (old_if(is_crowded), old_if(!is_crowded));
        let itself = itself.into_iter().chain(deleted);
        itself.chain(first).chain(new).chain(last)
    }

    /// The step for a wanted real server, if it is not as it should be.
    fn wanted_real_server(
        &self,
        vs: VirtualServerKey,
        key: RealServerKey,
        mut server: RealServer,
        present: Option<&RealServer>,
        starts_slowly: bool,
    ) -> Option<Step> {
        let is_new = present.is_none_or(|present| present.weight == 0);
        match self.ramps.step_of(&(vs, key)) {
            Some(step) => server.weight = ramps::weight_at(step, server.weight),
            None if starts_slowly && is_new => {
                server.weight = ramps::weight_at(1, server.weight);
            }
            None => {}
        }
        match present {
            None => Some(Step::AddRealServer { vs, key, server }),
            Some(present) if *present != server => Some(Step::SetRealServer { vs, key, server }),
            Some(_) => None,
        }
    }

    /// Whether the entry that rejects unknown ports of an address exists or is about to.
    fn is_protected(&self, address: IpAddr, dirty: &Dirty) -> bool {
        let (id, entry) = (SetId::IpvsIps, SetEntry::Ip(address));
        let set = self.believed.sets.get(&id.name(self.context.family));
        dirty.entries.contains(&(id, entry)) || set.is_some_and(|set| set.entries.contains(&entry))
    }

    /// What is deleted once the given real servers have drained.
    pub fn drained(&self, servers: &BTreeMap<VirtualServerKey, Vec<RealServerKey>>) -> Plan {
        let mut plan = Plan::default();
        let mut gone = BTreeSet::new();
        for (vs, keys) in servers {
            let present = self.believed.virtual_servers.get(vs);
            let is_last = present.is_some_and(|vs| vs.real_servers.len() == keys.len());
            if is_last && self.desired.virtual_server(vs).is_none() {
                plan.push(Phase::OldServers, Step::DeleteVirtualServer { key: *vs });
                gone.insert(*vs);
            } else {
                for key in keys {
                    let (vs, key) = (*vs, *key);
                    plan.push(Phase::OldServers, Step::DeleteRealServer { vs, key });
                }
            }
        }
        let addresses: BTreeSet<IpAddr> =
            gone.iter().filter_map(VirtualServerKey::address).collect();
        for address in addresses {
            let is_bound = self.believed.addresses.contains(&address);
            let is_free = !self.desired.wants_address(&address)
                && !self.is_drained_at(address, |key| !gone.contains(key));
            if is_bound && is_free {
                plan.push(Phase::OldAddresses, Step::DeleteAddress { address });
                let set = SetId::IpvsIps.name(self.context.family);
                self.remove_entry(&mut plan, SetId::IpvsIps, &set, SetEntry::Ip(address));
            }
        }
        let set = SetId::NodePort.name(self.context.family);
        let present = self.believed.sets.get(&set);
        for entry in gone.iter().filter_map(SetEntry::of_node_port) {
            let is_there = present.is_some_and(|set| set.entries.contains(&entry));
            if is_there && !self.desired.wants_entry(SetId::NodePort, &entry) {
                self.remove_entry(&mut plan, SetId::NodePort, &set, entry);
            }
        }
        plan
    }

    /// Whether a virtual server at the address is no longer wanted, but its connections continue:
    /// without the address, packets of its clients would not be delivered to this node. `counts`
    /// selects the virtual servers to consider.
    pub fn is_drained_at(
        &self,
        address: IpAddr,
        counts: impl Fn(&VirtualServerKey) -> bool,
    ) -> bool {
        let key = |port, protocol| VirtualServerKey::Address {
            address,
            port,
            protocol,
        };
        self.believed
            .virtual_servers
            .range(key(0, Protocol::Tcp)..=key(u16::MAX, Protocol::Sctp))
            .any(|(key, _)| self.is_drained(key) && counts(key))
    }

    /// Whether a virtual server is no longer wanted, but its connections continue.
    fn is_drained(&self, key: &VirtualServerKey) -> bool {
        let present = self.believed.virtual_servers.get(key);
        self.desired.virtual_server(key).is_none()
            && present.is_some_and(|state| outlives_its_service(key, state))
            && (self.owns)(key)
    }

    /// In the orders for which [`SetId`] gives the reasons.
    fn compare_entries(&self, plan: &mut Plan, dirty: &BTreeSet<(SetId, SetEntry)>) {
        let dirty = &*self.with_related(dirty);
        let of = |id| {
            let first = (id, SetEntry::FIRST);
            let entries = dirty.range(first..).take_while(move |(of, _)| *of == id);
            entries.map(|(_, entry)| entry)
        };
        let ids: Vec<SetId> = SetId::ALL
            .into_iter()
            .filter(|id| of(*id).next().is_some())
            .collect();
        let mut replaced = BTreeSet::new();
        let mut gone = BTreeSet::new();
        let refuses = |id: &&SetId| **id == SetId::IpvsIps;
        let admit = ids.iter().rev().filter(|id| !refuses(id));
        for id in admit.chain(ids.iter().filter(refuses)).copied() {
            let name = id.name(self.context.family);
            let present = self.believed.sets.get(&name);
            let missing: Vec<&SetEntry> = of(id)
                .filter(|entry| self.wants_entry(id, entry) || self.is_in_use(id, entry))
                .filter(|entry| !present.is_some_and(|set| set.entries.contains(entry)))
                .collect();
            // New entries are added before old ones are deleted, so there must be room for both.
            if let Some(present) = present
                && id.set_type().is_hash()
                && count(present.entries.len() + missing.len()) > present.max_entries
            {
                let entries = present.entries.len() + missing.len();
                self.replace_set(plan, id, wanted_size(entries));
                replaced.insert(id);
                continue;
            }
            for entry in missing {
                let (set, entry) = (name.clone(), *entry);
                let mut clashing = match present {
                    Some(present) => self.clashing(present, &entry),
                    None => Vec::new(),
                };
                clashing.retain(|old| gone.insert((id, *old)));
                plan.push(
                    Phase::Entries,
                    if clashing.is_empty() {
                        Step::AddEntry { set, entry }
                    } else {
                        let (old, new) = (clashing, entry);
                        Step::ReplaceEntries { set, old, new }
                    },
                );
            }
        }
        for id in ids.into_iter().filter(|id| !replaced.contains(id)) {
            let name = id.name(self.context.family);
            let Some(present) = self.believed.sets.get(&name) else {
                continue;
            };
            for entry in of(id).filter(|entry| present.entries.contains(entry)) {
                if !gone.contains(&(id, *entry))
                    && !self.wants_alternative(id, entry)
                    && !self.is_in_use(id, entry)
                {
                    self.remove_entry(plan, id, &name, *entry);
                }
            }
        }
    }

    /// Whether an entry must stay: the one that rejects unknown ports of an address does as long as
    /// the address is there; that of a node port as long as connections to it go on, because a next
    /// process knows by nothing else that the virtual server is ours.
    fn is_in_use(&self, id: SetId, entry: &SetEntry) -> bool {
        match entry {
            SetEntry::Ip(address) if id == SetId::IpvsIps => {
                self.believed.addresses.contains(address) && self.is_drained_at(*address, |_| true)
            }
            SetEntry::IpPort(address, protocol, port) if id == SetId::NodePort => {
                let key = VirtualServerKey::Address {
                    address: *address,
                    port: *port,
                    protocol: *protocol,
                };
                self.is_drained(&key)
            }
            _ => false,
        }
    }

    fn remove_entry(&self, plan: &mut Plan, id: SetId, set: &SetName, entry: SetEntry) {
        let phase = match entry {
            SetEntry::Ip(_) if id == SetId::IpvsIps => Phase::OldAddressEntries,
            SetEntry::IpPort(..) if id == SetId::NodePort => Phase::OldServerEntries,
            // A server that drains refuses, so that nothing may lead to it any more.
            SetEntry::IpPortMark(.., mark) if !self.drains_by_mark(mark) => Phase::OldServerEntries,
            _ => Phase::OldEntries,
        };
        let set = set.clone();
        plan.push(phase, Step::DeleteEntry { set, entry });
    }

    fn drains_by_mark(&self, mark: u32) -> bool {
        let family = self.context.family;
        self.is_drained(&VirtualServerKey::Mark { mark, family })
    }

    /// The size of a set cannot be changed: a larger one is filled and replaces it in one step.
    fn replace_set(&self, plan: &mut Plan, id: SetId, max_entries: u32) {
        let name = id.name(self.context.family);
        let replacement = name.replacement();
        let spec = SetSpec {
            name: replacement.clone(),
            ..SetSpec::new(id, self.context.family, max_entries)
        };
        plan.push(Phase::Sets, Step::CreateSet(spec));
        let in_use = self.believed.sets.get(&name).into_iter();
        let in_use = in_use
            .flat_map(|set| &set.entries)
            .filter(|entry| !self.desired.wants_entry(id, entry) && self.is_in_use(id, entry));
        let wanted = self.desired.entries(id);
        let wanted = wanted.filter(|entry| self.desired.wants_entry(id, entry));
        for entry in wanted.chain(in_use) {
            let set = replacement.clone();
            plan.push(Phase::Sets, Step::AddEntry { set, entry: *entry });
        }
        plan.push(
            Phase::Sets,
            Step::SwapSets {
                a: replacement.clone(),
                b: name,
            },
        );
        plan.push(Phase::Sets, Step::DestroySet { set: replacement });
    }
}

/// Whether the edit hands packets over to the virtual servers.
fn is_dispatch(edit: &Edit) -> bool {
    let (table, chain) = stale_rules::DISPATCH;
    edit.table() == table && edit.chain().as_str() == chain
}

fn count(entries: usize) -> u32 {
    u32::try_from(entries).unwrap_or(u32::MAX)
}

/// The `maxelem` for a number of entries.
fn wanted_size(entries: usize) -> u32 {
    count(entries)
        .checked_next_power_of_two()
        .unwrap_or(u32::MAX)
        .max(DEFAULT_MAX_ENTRIES)
}

/// Whether a real server that is new to a virtual server joins one that serves and goes on serving.
fn has_others(wanted: &WantedServer, present: Option<&VirtualServerState>) -> bool {
    let stays = |(key, server): (&RealServerKey, &RealServer)| {
        let wanted = wanted.real_servers.get(key);
        server.weight > 0 && wanted.is_some_and(|wanted| wanted.weight > 0)
    };
    present.is_some_and(|present| present.real_servers.iter().any(stays))
}

fn outlives_its_service(key: &VirtualServerKey, state: &VirtualServerState) -> bool {
    drains(key) && !state.real_servers.is_empty()
}

/// A server with connections gets no new ones and is deleted when they have ended; an unwanted
/// server of weight 0 is already waiting for that.
fn drain(vs: VirtualServerKey, key: RealServerKey, server: RealServer) -> Option<Step> {
    let weight = 0;
    let changed = RealServer { weight, ..server };
    (server.weight > 0).then_some(Step::SetRealServer {
        vs,
        key,
        server: changed,
    })
}

mod clashes;
#[cfg(test)]
mod tests;
