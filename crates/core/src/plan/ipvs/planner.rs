// SPDX-License-Identifier: Apache-2.0
//! PURE: one family's desired and believed state in IPVS mode, kept up to date by changes and
//! reports.
//!
//! ```text
//! changed Services -> update -> dirty objects -> plan -> (kernel) -> report -> Believed
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::model::{ServiceName, ServicePortName, ServiceView};
use crate::plan::context::Context;
use crate::plan::cuts::Cuts;
use crate::plan::ipvs::Plan;
use crate::plan::ipvs::desired::{Desired, Dirty};
use crate::plan::ipvs::diff::{self, Comparison};
use crate::plan::ipvs::mark::MarkRange;
use crate::plan::ipvs::marks::{self, Marks};
use crate::plan::ipvs::object::{RealServerKey, VirtualServerKey};
use crate::plan::ipvs::pass;
use crate::plan::ipvs::port_objects::{PortObjects, port_objects};
use crate::plan::ipvs::ramps::Ramps;
use crate::plan::ipvs::set::{SetEntry, SetId, SetName, SetSpec, lists_node_port};
use crate::plan::ipvs::set_aside::{Object, SetAside};
use crate::plan::ipvs::state::{SetState, State};
use crate::plan::ipvs::static_rules::{FixedRules, fixed_rules};
use crate::plan::ipvs::step::Step;
use crate::plan::report::FailureKind;
use crate::plan::ruleset::InvalidChainName;
use turn::{Pace, Waiting};

/// Maximum number of refused objects whose Service is searched for among all.
const SEARCHED: usize = 100;

/// A real server of a virtual server.
pub type RealServerOf = (VirtualServerKey, RealServerKey);

/// See the module.
#[derive(Clone, Debug)]
pub struct Planner {
    context: Context,
    rules: FixedRules,
    desired: Desired,
    marks: Marks,
    cuts: Cuts,
    believed: State,
    /// Changed since the last successful plan.
    dirty: Dirty,
    /// How many changes of servers one plan may make.
    pace: Pace,
    /// Real servers added by plans whose time is not known yet, and those deleted since then.
    added: usize,
    deleted: usize,
    /// Dirty as well, but too much for the plans until now.
    waiting: Waiting,
    /// Virtual servers that some Service has wanted since this process started, and those that were
    /// found to be ours.
    owned: BTreeSet<VirtualServerKey>,
    /// Believed real servers of weight 0 that are unwanted: deleted when their connections have
    /// ended.
    draining: BTreeSet<RealServerOf>,
    /// Real servers that get their weight in steps.
    ramps: Ramps,
    /// Drain limits of virtual servers whose Service is gone, where the Service set one.
    last_limits: BTreeMap<VirtualServerKey, Duration>,
    /// The next plan compares everything.
    is_full: bool,
    /// Something that belongs to no Service is not as desired.
    is_foundation_due: bool,
    needs_observation: bool,
    /// Virtual servers about which belief is in doubt.
    doubtful: BTreeSet<VirtualServerKey>,
    /// Revision of the set of Service ports without a mark.
    marks_revision: u64,
    /// What the kernel refuses, and the Service ports that it is of.
    set_aside: SetAside,
    set_aside_ports: BTreeSet<ServicePortName>,
}

impl Planner {
    pub fn new(context: Context) -> Result<Self, InvalidChainName> {
        let mut desired = Desired::default();
        desired.set_pass(pass::virtual_server(&context));
        Ok(Self {
            rules: fixed_rules(&context)?,
            marks: Marks::new(MarkRange::beside(context.masquerade_mark)),
            context,
            cuts: Cuts::default(),
            desired,
            believed: State::default(),
            dirty: Dirty::default(),
            pace: Pace::UNLIMITED,
            added: 0,
            deleted: 0,
            waiting: Waiting::default(),
            owned: BTreeSet::new(),
            draining: BTreeSet::new(),
            ramps: Ramps::default(),
            last_limits: BTreeMap::new(),
            is_full: true,
            is_foundation_due: false,
            needs_observation: false,
            doubtful: BTreeSet::new(),
            marks_revision: 0,
            set_aside: SetAside::default(),
            set_aside_ports: BTreeSet::new(),
        })
    }

    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    pub fn believed(&self) -> &State {
        &self.believed
    }

    fn replace_port_objects(&mut self, changed: &ServiceView<'_>) {
        let name = changed.name;
        let objects = changed.ports.iter().map(|port| {
            let (endpoints, mark) = (changed.endpoints_of(port), self.marks.of(&port.name));
            let objects = port_objects(port, endpoints, &self.context, mark);
            (port.name.clone(), objects)
        });
        let by_port: BTreeMap<ServicePortName, PortObjects> = objects.collect();
        let mut dirty = Dirty::default();
        self.last_limits.extend(self.desired.drain_limits(name));
        self.desired.replace_service(name, by_port, &mut dirty);
        let (desired, limits) = (&self.desired, &mut self.last_limits);
        limits.retain(|key, _| desired.virtual_server(key).is_none());
        self.owned.extend(&dirty.virtual_servers);
        for key in &dirty.virtual_servers {
            self.find_draining(key);
            self.end_ramps(key);
        }
        self.pace_ramps(name);
        self.dirty.extend(dirty);
    }

    /// Finds everything that is ours: the evidence may be deleted before the virtual server is.
    fn find_owned(&mut self) {
        let marks = marks::in_use(&self.believed, self.context.family);
        let keys: Vec<VirtualServerKey> = self.believed.virtual_servers.keys().copied().collect();
        for key in keys {
            let is_marked =
                matches!(&key, VirtualServerKey::Mark { mark, .. } if marks.contains(mark));
            if is_marked || self.owns(&key) {
                self.owned.insert(key);
            }
            self.find_draining(&key);
        }
    }

    /// The steps for one Service, without what all Services share.
    pub fn plan_of(&self, service: &ServiceName) -> Plan {
        let owns = |key: &VirtualServerKey| self.owns(key);
        let mut plan = Plan::default();
        self.comparison(&owns)
            .compare(&mut plan, &self.desired.dirty_of(service), None);
        plan.ordered()
    }

    fn comparison<'a>(&'a self, owns: &'a dyn Fn(&VirtualServerKey) -> bool) -> Comparison<'a> {
        Comparison {
            context: &self.context,
            desired: &self.desired,
            believed: &self.believed,
            ramps: &self.ramps,
            owns,
        }
    }

    /// The foundation is compared in every plan, because that is cheap. `part`: of one virtual
    /// server so many steps at most.
    fn compare(&self, dirty: &Dirty, part: Option<(VirtualServerKey, usize)>) -> Plan {
        let owns = |key: &VirtualServerKey| self.owns(key);
        let comparison = self.comparison(&owns);
        let is_tried = |key| self.is_full || !self.set_aside.contains(&Object::Sysctl(key));
        let mut plan = comparison.foundation(&self.rules, is_tried);
        comparison.compare(&mut plan, dirty, part);
        plan.ordered()
    }

    /// A virtual server is ours if a Service has wanted it, or if there is evidence that a
    /// kube-proxy or an earlier process of ours created it: its address is on our link, is a
    /// Service address, or a set or the operator says that it is a node port. The range of node
    /// ports is the cluster's to choose, and none is assumed.
    fn owns(&self, key: &VirtualServerKey) -> bool {
        if self.owned.contains(key) {
            return true;
        }
        let VirtualServerKey::Address { address, port, .. } = key else {
            return false;
        };
        let within = |ranges: &[ipnet::IpNet]| ranges.iter().any(|range| range.contains(address));
        if within(&self.context.exclude_cidrs) || key.family() != self.context.family {
            return false;
        }
        self.believed.addresses.contains(address)
            || within(&self.context.service_cidrs)
            || self.is_node_port(key, *address, *port)
    }

    fn is_node_port(&self, key: &VirtualServerKey, address: IpAddr, port: u16) -> bool {
        let context = &self.context;
        let is_ours = context.node_addresses.contains(&address)
            || context.node_port_addresses.contains(&address);
        let in_range = context.node_port_range;
        // It has the address, too: the node may have lost that while connections go on.
        let ours = SetId::NodePort.name(context.family);
        let is_listed = |set: &SetState| {
            SetEntry::of_node_port(key).is_some_and(|entry| set.entries.contains(&entry))
        };
        if self.believed.sets.get(&ours).is_some_and(is_listed) {
            return true;
        }
        is_ours
            && (in_range.is_some_and(|range| range.contains(port))
                || lists_node_port(&self.believed, key) == Some(true))
    }

    /// The draining real servers of a virtual server.
    fn draining_at(&self, vs: &VirtualServerKey) -> impl Iterator<Item = RealServerOf> + use<'_> {
        let key = |address, port| (*vs, RealServerKey { address, port });
        let (first, last) = (
            key(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
            key(IpAddr::V6(Ipv6Addr::from_bits(u128::MAX)), u16::MAX),
        );
        self.draining.range(first..=last).copied()
    }

    /// Finds the draining real servers of a virtual server: of weight 0, and unwanted.
    fn find_draining(&mut self, vs: &VirtualServerKey) {
        let old: Vec<RealServerOf> = self.draining_at(vs).collect();
        for real_server in &old {
            self.draining.remove(real_server);
        }
        let Some(present) = self.believed.virtual_servers.get(vs) else {
            return;
        };
        let wanted = self.desired.virtual_server(vs);
        let drains = match wanted {
            Some(wanted) => diff::drains_beside(vs, &wanted.server),
            None => diff::drains(vs) && self.owns(vs),
        };
        if !drains {
            return;
        }
        let drained = present
            .real_servers
            .iter()
            .filter(|(_, server)| server.weight == 0)
            .filter(|(key, _)| !wanted.is_some_and(|wanted| wanted.real_servers.contains_key(*key)))
            .map(|(key, _)| (*vs, *key));
        self.draining.extend(drained);
    }

    /// Keeps what the kernel has as wanted once.
    fn share_real_servers(&mut self, vs: &VirtualServerKey) {
        if let Some(wanted) = self.desired.virtual_server(vs)
            && let Some(present) = self.believed.virtual_servers.get_mut(vs)
            && present.real_servers == wanted.real_servers
        {
            present.real_servers = wanted.real_servers.clone();
        }
    }

    /// Updates what is derived from belief after belief has taken in a step.
    fn follow(&mut self, step: &Step, gone: &mut BTreeSet<VirtualServerKey>) {
        match step {
            Step::AddRealServer { vs, key, server } | Step::SetRealServer { vs, key, server } => {
                let wanted = self.desired.virtual_server(vs);
                let is_wanted = wanted.is_some_and(|vs| vs.real_servers.contains_key(key));
                if server.weight == 0 && !is_wanted && diff::drains(vs) {
                    self.draining.insert((*vs, *key));
                } else {
                    self.draining.remove(&(*vs, *key));
                }
                self.find_ramp(*vs, *key, server.weight);
            }
            Step::DeleteRealServer { vs, key } => {
                self.draining.remove(&(*vs, *key));
                self.share_real_servers(vs);
                let left = self.believed.virtual_servers.get(vs);
                let is_empty = left.is_some_and(|left| left.real_servers.is_empty());
                if is_empty && self.desired.virtual_server(vs).is_none() {
                    self.dirty.virtual_servers.insert(*vs);
                    gone.insert(*vs);
                }
            }
            Step::DeleteVirtualServer { key } => {
                self.find_draining(key);
                self.last_limits.remove(key);
                if self.desired.virtual_server(key).is_none() {
                    self.owned.remove(key);
                    gone.insert(*key);
                }
            }
            _ => {}
        }
    }

    /// Marks the entry of a node port that nothing drains at any more as dirty.
    fn release_node_port(&mut self, key: &VirtualServerKey) {
        let Some(entry) = SetEntry::of_node_port(key) else {
            return;
        };
        let set = self
            .believed
            .sets
            .get(&SetId::NodePort.name(self.context.family));
        if set.is_some_and(|set| set.entries.contains(&entry)) {
            self.dirty.entries.insert((SetId::NodePort, entry));
        }
    }

    /// Marks an address that is bound for no reason any more as dirty.
    fn release_address(&mut self, address: IpAddr) {
        let owns = |key: &VirtualServerKey| self.owns(key);
        let is_drained = self.comparison(&owns).is_drained_at(address, |_| true);
        let is_wanted = is_drained || self.desired.wants_address(&address);
        if self.believed.addresses.contains(&address) && !is_wanted {
            self.dirty.addresses.insert(address);
            let entry = (SetId::IpvsIps, SetEntry::Ip(address));
            self.dirty.entries.insert(entry);
        }
    }

    /// Takes in a step that the kernel refused. What it refuses again is set aside.
    fn refuse(&mut self, step: &Step, why: FailureKind) {
        let object = Object::of(step, &self.context).filter(|object| object.may_be_refused(why));
        let is_over = object.is_some_and(|object| self.set_aside.refuse(object));
        if !is_over {
            self.doubt(step, Some(why));
        }
    }

    /// Whether a step was not tried because something else is set aside.
    fn is_blocked(&mut self, step: &Step) -> bool {
        let Some(object) = Object::of(step, &self.context) else {
            return false;
        };
        let rejecting = |address| Object::Entry(SetId::IpvsIps, SetEntry::Ip(address));
        if let Step::AddAddress { address } = step
            && self.set_aside.contains(&rejecting(*address))
        {
            self.set_aside.add(object);
        }
        self.set_aside.contains(&object)
    }

    /// The Service port that an object is for, as cheap as possible.
    fn owner_of(&self, object: &Object) -> Option<&ServicePortName> {
        let claims = self.desired.claims();
        let at = |address| {
            let (first, last) = VirtualServerKey::all_at(address);
            claims.claimants_within(first, last)
        };
        let of = |name: &ServicePortName| self.desired.by_port().get(name);
        match object {
            Object::Server(key) => claims.winner(key),
            Object::Address(address) => at(*address)
                .find(|name| of(name).is_some_and(|objects| objects.addresses.contains(address))),
            Object::Entry(id, entry) => {
                let wants =
                    |objects: &PortObjects| objects.entries_of_all().any(|it| *it == (*id, *entry));
                let found = entry
                    .address()
                    .and_then(|address| at(address).find(|name| of(name).is_some_and(wants)));
                // Entries that are about endpoints or ports.
                found.or_else(|| {
                    let mut all = self.desired.by_port().iter();
                    all.find(|(_, objects)| wants(objects))
                        .map(|(name, _)| name)
                })
            }
            Object::SyncDaemon(_) | Object::Sysctl(_) => None,
        }
    }

    /// Finds the Service ports of what is set aside.
    fn find_set_aside(&mut self) {
        let objects = self.set_aside.objects().iter();
        // Only entries about endpoints cost a walk over all Services.
        let costs = |object: &&Object| matches!(object, Object::Entry(SetId::LoopBack, _));
        let (costly, cheap): (Vec<_>, Vec<_>) = objects.partition(costs);
        let found = cheap.into_iter().chain(costly.into_iter().take(SEARCHED));
        let ports = found.filter_map(|object| self.owner_of(object).cloned());
        self.set_aside_ports = ports.collect();
    }

    /// Takes in a failed step, and records what must be observed because of it.
    fn doubt(&mut self, step: &Step, why: Option<FailureKind>) {
        use FailureKind::{Busy, Permission, Unsupported};
        self.keep_pending(step);
        if matches!(why, Some(Busy | Permission | Unsupported)) {
            // Nothing happened, and nothing suggests that belief is wrong.
            return;
        }
        match step {
            Step::AddVirtualServer { key, .. }
            | Step::SetVirtualServer { key, .. }
            | Step::DeleteVirtualServer { key }
            | Step::AddRealServer { vs: key, .. }
            | Step::SetRealServer { vs: key, .. }
            | Step::DeleteRealServer { vs: key, .. } => {
                self.doubtful.insert(*key);
            }
            // Wanted as long as this process runs, and harmless to repeat.
            Step::SetSysctl { .. }
            | Step::SetTimeouts(_)
            | Step::CreateLink
            | Step::DeleteLink
            | Step::DeleteNftablesTable { .. }
            | Step::DeleteOwnTable { .. } => {}
            Step::AddAddress { .. }
            | Step::DeleteAddress { .. }
            | Step::AddEntry { .. }
            | Step::DeleteEntry { .. }
            | Step::ReplaceEntries { .. }
            | Step::CreateSet(_)
            | Step::SwapSets { .. }
            | Step::DestroySet { .. }
            | Step::DestroyOtherSet { .. }
            | Step::StartSyncDaemon { .. }
            | Step::StopSyncDaemon { .. }
            | Step::EditRules(_) => self.needs_observation = true,
        }
    }

    /// Marks the subject of a step as dirty for the next plan.
    fn keep_pending(&mut self, step: &Step) {
        let family = self.context.family;
        let id_of = |name: &SetName| SetId::ALL.into_iter().find(|id| id.name(family) == *name);
        match step {
            Step::AddVirtualServer { key, .. }
            | Step::SetVirtualServer { key, .. }
            | Step::DeleteVirtualServer { key }
            | Step::AddRealServer { vs: key, .. }
            | Step::SetRealServer { vs: key, .. }
            | Step::DeleteRealServer { vs: key, .. } => {
                self.dirty.virtual_servers.insert(*key);
            }
            Step::AddAddress { address } | Step::DeleteAddress { address } => {
                self.dirty.addresses.insert(*address);
            }
            Step::AddEntry { set, entry } | Step::DeleteEntry { set, entry } => match id_of(set) {
                Some(id) => {
                    self.dirty.entries.insert((id, *entry));
                }
                // A set that was to replace another.
                None => self.is_full = true,
            },
            Step::ReplaceEntries { set, old, new } => {
                let entries = old.iter().chain([new]);
                let id = id_of(set);
                let all = entries.filter_map(|entry| Some((id?, *entry)));
                self.dirty.entries.extend(all);
            }
            Step::CreateSet(SetSpec { name, .. }) | Step::DestroySet { set: name } => {
                if id_of(name).is_some() {
                    self.is_foundation_due = true;
                } else {
                    self.is_full = true;
                }
            }
            Step::SwapSets { .. } => self.is_full = true,
            Step::SetSysctl { .. }
            | Step::SetTimeouts(_)
            | Step::CreateLink
            | Step::DeleteLink
            | Step::StartSyncDaemon { .. }
            | Step::StopSyncDaemon { .. }
            | Step::DeleteNftablesTable { .. }
            | Step::DestroyOtherSet { .. }
            | Step::DeleteOwnTable { .. }
            | Step::EditRules(_) => self.is_foundation_due = true,
        }
    }
}

mod interface;
mod slow_start;
#[cfg(test)]
mod tests;
mod turn;
