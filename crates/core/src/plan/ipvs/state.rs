// SPDX-License-Identifier: Apache-2.0
//! PURE: the state of one family's kernel objects in IPVS mode, observed or believed, and the
//! effect of steps on it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::plan::iptables;
use crate::plan::ipvs::object::{
    RealServers, SyncDaemon, SyncRole, Timeouts, VirtualServer, VirtualServerKey,
};
use crate::plan::ipvs::set::{SetEntry, SetName, SetType};
use crate::plan::ipvs::step::Step;
use crate::plan::report::Refusal;
use crate::plan::ruleset::{Rule, Ruleset, Table};

/// The kernel's state of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub node: NodeState,
    pub rules: Ruleset,
    pub sets: BTreeMap<SetName, SetState>,
    pub virtual_servers: BTreeMap<VirtualServerKey, VirtualServerState>,
    /// Host addresses on the link.
    pub addresses: BTreeSet<IpAddr>,
    /// The table of kube-proxy's nftables mode exists. It translates packets until it is deleted.
    pub has_nftables_table: bool,
    /// Sets that were left when fixed rules were held in the other way: ipsets, or those of our
    /// table.
    pub other_sets: BTreeMap<SetName, SetState>,
    /// The sets of clients that iptables mode left.
    pub client_sets: iptables::Sets,
    /// Our nftables table exists. Where the fixed rules are iptables', it is left from before.
    pub has_own_table: bool,
}

/// Our link, as one family sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkState {
    pub exists: bool,
    /// Host addresses on the link.
    pub addresses: BTreeSet<IpAddr>,
    /// Those of them that lack a route in the table `local`.
    pub undelivered: BTreeSet<IpAddr>,
}

/// What both families share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeState {
    pub link_exists: bool,
    /// Values by path under `/proc/sys`; unreadable ones are absent.
    pub sysctls: BTreeMap<&'static str, String>,
    pub timeouts: Timeouts,
    /// Those that run; ours have a link.
    pub daemons: BTreeMap<SyncRole, SyncDaemon>,
}

impl NodeState {
    fn start_daemon(&mut self, role: SyncRole, daemon: &SyncDaemon) -> Result<(), Refusal> {
        if !self.link_exists {
            return Err(Refusal::NotFound);
        }
        if self.daemons.contains_key(&role) {
            return Err(Refusal::AlreadyExists);
        }
        self.daemons.insert(role, daemon.clone());
        Ok(())
    }

    /// The link is gone, which says which daemons are ours.
    fn forget_daemons(&mut self) {
        for daemon in self.daemons.values_mut() {
            daemon.link = None;
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetState {
    pub set_type: SetType,
    pub max_entries: u32,
    pub entries: BTreeSet<SetEntry>,
}

impl SetState {
    fn add(&mut self, entry: SetEntry) -> Result<(), Refusal> {
        let full = self.set_type.is_hash()
            && self.entries.len() >= usize::try_from(self.max_entries).unwrap_or(usize::MAX);
        let (first, last) = entry.alternatives();
        let replaced = self.entries.range(first..=last).next().copied();
        match replaced {
            Some(replaced) => {
                self.entries.remove(&replaced);
            }
            None if full => return Err(Refusal::Full),
            None => {}
        }
        self.entries.insert(entry);
        Ok(())
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualServerState {
    pub server: VirtualServer,
    /// Shared with the desired state where both are equal: most of what a planner remembers.
    pub real_servers: Arc<RealServers>,
}

impl VirtualServerState {
    /// Its own from now on.
    pub fn real_servers_mut(&mut self) -> &mut RealServers {
        Arc::make_mut(&mut self.real_servers)
    }
}

impl State {
    /// The sets of a name: ours, and what was left of the other way to hold them.
    pub fn all_sets<'a>(&'a self, name: &SetName) -> impl Iterator<Item = &'a SetState> + use<'a> {
        let ours = self.sets.get(name).into_iter();
        ours.chain(self.other_sets.get(name))
    }

    /// Applies a step as the kernel does. Belief follows successful steps through this, and it is
    /// the whole of the fake kernel.
    pub fn apply(&mut self, step: &Step) -> Result<(), Refusal> {
        match step {
            Step::SetSysctl { key, value } => {
                self.node.sysctls.insert(key, value.clone().into_owned());
            }
            Step::SetTimeouts(timeouts) => self.node.timeouts.merge(*timeouts),
            Step::CreateLink => {
                if std::mem::replace(&mut self.node.link_exists, true) {
                    return Err(Refusal::AlreadyExists);
                }
            }
            Step::DeleteLink => {
                if !std::mem::replace(&mut self.node.link_exists, false) {
                    return Err(Refusal::NotFound);
                }
                self.addresses.clear();
                self.node.forget_daemons();
            }
            Step::StartSyncDaemon { role, daemon } => {
                return self.node.start_daemon(*role, daemon);
            }
            Step::StopSyncDaemon { role } => {
                self.node.daemons.remove(role).ok_or(Refusal::NotFound)?;
            }
            Step::CreateSet(_)
            | Step::AddEntry { .. }
            | Step::DeleteEntry { .. }
            | Step::ReplaceEntries { .. }
            | Step::SwapSets { .. }
            | Step::DestroySet { .. }
            | Step::DestroyOtherSet { .. } => self.apply_to_sets(step)?,
            Step::EditRules(rules) => {
                // A batch is atomic.
                let mut edited = self.rules.clone();
                for edit in &rules.edits {
                    edited.apply(edit)?;
                }
                edited.check_targets()?;
                self.check_sets(&edited)?;
                self.rules = edited;
            }
            Step::AddVirtualServer { key, server } => {
                let state = VirtualServerState {
                    server: server.clone(),
                    real_servers: Arc::default(),
                };
                if self.virtual_servers.contains_key(key) {
                    return Err(Refusal::AlreadyExists);
                }
                self.virtual_servers.insert(*key, state);
            }
            Step::SetVirtualServer { key, server } => {
                self.virtual_server(key)?.server = server.clone();
            }
            Step::DeleteVirtualServer { key } => {
                self.virtual_servers.remove(key).ok_or(Refusal::NotFound)?;
            }
            Step::AddRealServer { vs, key, server } => {
                let servers = self.real_servers(vs)?;
                if servers.contains_key(key) {
                    return Err(Refusal::AlreadyExists);
                }
                servers.insert(*key, *server);
            }
            Step::SetRealServer { vs, key, server } => {
                let servers = self.real_servers(vs)?;
                *servers.get_mut(key).ok_or(Refusal::NotFound)? = *server;
            }
            Step::DeleteRealServer { vs, key } => {
                self.real_servers(vs)?
                    .remove(key)
                    .ok_or(Refusal::NotFound)?;
            }
            Step::AddAddress { address } => {
                if !self.node.link_exists {
                    return Err(Refusal::NotFound);
                }
                self.addresses.insert(*address);
            }
            Step::DeleteAddress { address } => {
                self.addresses.remove(address);
            }
            Step::DeleteNftablesTable { .. } => self.has_nftables_table = false,
            Step::DeleteOwnTable { .. } => {
                self.has_own_table = false;
                if self.rules.table(Table::Own).next().is_some() {
                    self.rules
                        .chains
                        .retain(|(table, _), _| *table != Table::Own);
                    self.sets.clear();
                } else {
                    self.other_sets.clear();
                }
            }
        }
        Ok(())
    }

    /// Applies a step about sets or their entries; others change nothing.
    fn apply_to_sets(&mut self, step: &Step) -> Result<(), Refusal> {
        match step {
            Step::CreateSet(spec) => {
                let state = SetState {
                    set_type: spec.set_type,
                    max_entries: spec.max_entries,
                    entries: BTreeSet::new(),
                };
                if self.sets.contains_key(&spec.name) {
                    return Err(Refusal::AlreadyExists);
                }
                self.sets.insert(spec.name.clone(), state);
            }
            Step::AddEntry { set, entry } => {
                let set = self.sets.get_mut(set).ok_or(Refusal::NotFound)?;
                set.add(*entry)?;
            }
            Step::DeleteEntry { set, entry } => {
                let set = self.sets.get_mut(set).ok_or(Refusal::NotFound)?;
                set.entries.remove(entry);
            }
            Step::ReplaceEntries { set, old, new } => {
                let set = self.sets.get_mut(set).ok_or(Refusal::NotFound)?;
                for entry in old {
                    set.entries.remove(entry);
                }
                set.add(*new)?;
            }
            Step::SwapSets { a, b } => self.swap(a, b)?,
            Step::DestroySet { set } => {
                if refers_to_set(&self.rules, set) {
                    return Err(Refusal::Busy);
                }
                self.sets.remove(set).ok_or(Refusal::NotFound)?;
            }
            Step::DestroyOtherSet { set } => {
                if refers_to_set(&self.rules, set) {
                    return Err(Refusal::Busy);
                }
                let other = self.other_sets.remove(set).map(|_| ());
                let client = self.client_sets.remove(set).map(|_| ());
                other.or(client).ok_or(Refusal::NotFound)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn virtual_server(
        &mut self,
        key: &VirtualServerKey,
    ) -> Result<&mut VirtualServerState, Refusal> {
        self.virtual_servers.get_mut(key).ok_or(Refusal::NotFound)
    }

    fn real_servers(&mut self, key: &VirtualServerKey) -> Result<&mut RealServers, Refusal> {
        Ok(self.virtual_server(key)?.real_servers_mut())
    }

    fn swap(&mut self, a: &SetName, b: &SetName) -> Result<(), Refusal> {
        let of_a = self.sets.get(a).ok_or(Refusal::NotFound)?.clone();
        let of_b = self.sets.get(b).ok_or(Refusal::NotFound)?.clone();
        if of_a.set_type != of_b.set_type {
            return Err(Refusal::Mismatch);
        }
        self.sets.insert(a.clone(), of_b);
        self.sets.insert(b.clone(), of_a);
        Ok(())
    }

    /// Rules may name only existing sets. Those of iptables name ipsets, whichever way is ours.
    fn check_sets(&self, rules: &Ruleset) -> Result<(), Refusal> {
        let known = |name: &str| {
            let others = self.other_sets.keys().chain(self.client_sets.keys());
            let mut all = self.sets.keys().chain(others);
            all.any(|set| set.as_str() == name)
        };
        let mut named = rules.chains.values().flatten().flat_map(Rule::sets);
        if named.all(known) {
            Ok(())
        } else {
            Err(Refusal::NotFound)
        }
    }
}

impl Timeouts {
    /// 0 keeps the current value, as in the kernel.
    fn merge(&mut self, wanted: Self) {
        let pick = |wanted, kept| if wanted == 0 { kept } else { wanted };
        self.tcp = pick(wanted.tcp, self.tcp);
        self.tcp_fin = pick(wanted.tcp_fin, self.tcp_fin);
        self.udp = pick(wanted.udp, self.udp);
    }

    /// Whether setting these would change nothing.
    pub fn satisfied_by(self, present: Self) -> bool {
        let mut merged = present;
        merged.merge(self);
        merged == present
    }
}

fn refers_to_set(rules: &Ruleset, set: &SetName) -> bool {
    rules
        .chains
        .values()
        .flatten()
        .any(|rule| rule.sets().any(|name| name == set.as_str()))
}
