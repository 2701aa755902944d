// SPDX-License-Identifier: Apache-2.0
//! PURE: one family's wanted and believed state in IPVS mode, kept up to date by changes and
//! reports.
//!
//! ```text
//! changed Services -> update -> dirty objects -> plan -> (kernel) -> report -> Believed
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::model::{ServiceName, ServicePort, ServicePortName, Tracker};
use crate::plan::context::Context;
use crate::plan::ipvs::desired::{Desired, Dirty};
use crate::plan::ipvs::diff::{self, Comparison};
use crate::plan::ipvs::mark::MarkRange;
use crate::plan::ipvs::marks::{self, Marks};
use crate::plan::ipvs::object::{RealServerKey, RealServers, VirtualServerKey};
use crate::plan::ipvs::port_objects::{PortObjects, needs_mark, port_objects};
use crate::plan::ipvs::set::{SetEntry, SetId, SetName, SetSpec};
use crate::plan::ipvs::static_rules::{FixedRules, fixed_rules};
use crate::plan::report::{FailureKind, Outcome, Report};
use crate::plan::ruleset::{InvalidChainName, Ruleset};
use crate::plan::state::{State, VirtualServerState};
use crate::plan::step::{Plan, Step};
use crate::plan::unmet::Unmet;

/// The ports that the API server hands out as node ports by default.
pub const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;

/// A real server of a virtual server.
pub type RealServerOf = (VirtualServerKey, RealServerKey);

/// See the module.
#[derive(Debug)]
pub struct Planner {
    context: Context,
    rules: FixedRules,
    desired: Desired,
    marks: Marks,
    believed: State,
    /// Changed since the last plan that worked.
    dirty: Dirty,
    /// Virtual servers that some Service wants or wanted since we started, and those that were found
    /// to be ours.
    owned: BTreeSet<VirtualServerKey>,
    /// Believed real servers of weight 0 that nobody wants: deleted when their connections ended.
    draining: BTreeSet<RealServerOf>,
    /// How long connections may last to virtual servers whose Service is gone, where it said so.
    last_limits: BTreeMap<VirtualServerKey, Duration>,
    /// The next plan looks at everything.
    is_full: bool,
    /// What does not belong to a Service is not as it should be.
    is_foundation_due: bool,
    needs_observation: bool,
}

impl Planner {
    pub fn new(context: Context) -> Result<Self, InvalidChainName> {
        Ok(Self {
            rules: fixed_rules(&context)?,
            marks: Marks::new(MarkRange::beside(context.masquerade_mark)),
            context,
            desired: Desired::default(),
            believed: State::default(),
            dirty: Dirty::default(),
            owned: BTreeSet::new(),
            draining: BTreeSet::new(),
            last_limits: BTreeMap::new(),
            is_full: true,
            is_foundation_due: false,
            needs_observation: false,
        })
    }

    pub fn context(&self) -> &Context {
        &self.context
    }

    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    pub fn believed(&self) -> &State {
        &self.believed
    }

    /// The real servers that are waited for.
    pub fn draining(&self) -> &BTreeSet<RealServerOf> {
        &self.draining
    }

    /// Those of one virtual server.
    pub fn draining_of(
        &self,
        vs: &VirtualServerKey,
    ) -> impl Iterator<Item = RealServerOf> + use<'_> {
        let key = |address, port| (*vs, RealServerKey { address, port });
        let (first, last) = (
            key(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
            key(IpAddr::V6(Ipv6Addr::from_bits(u128::MAX)), u16::MAX),
        );
        self.draining.range(first..=last).copied()
    }

    /// How long the removed real servers of a virtual server may keep their connections.
    pub fn drain_limit(&self, key: &VirtualServerKey) -> Duration {
        let limit = match self.desired.virtual_server(key) {
            Some(_) => self.desired.drain_limit(key),
            None => self.last_limits.get(key).copied(),
        };
        limit.unwrap_or(self.context.drain_limit)
    }

    /// The next plan looks at everything.
    pub fn is_full(&self) -> bool {
        self.is_full
    }

    /// There is something to plan.
    pub fn is_pending(&self) -> bool {
        self.is_full || self.is_foundation_due || !self.dirty.is_empty()
    }

    /// Belief about addresses, sets or rules is in doubt: the kernel must be observed before the
    /// next plan.
    pub fn needs_observation(&self) -> bool {
        self.needs_observation
    }

    /// Takes in another node or other settings; everything is computed anew.
    pub fn set_context(
        &mut self,
        context: Context,
        tracker: &Tracker,
    ) -> Result<(), InvalidChainName> {
        if context == self.context {
            return Ok(());
        }
        self.rules = fixed_rules(&context)?;
        if context.masquerade_mark != self.context.masquerade_mark {
            self.marks = Marks::new(MarkRange::beside(context.masquerade_mark));
        }
        self.context = context;
        self.is_full = true;
        for service in tracker.services() {
            self.update(tracker, &service.name);
        }
        self.find_owned();
        Ok(())
    }

    /// Computes the by_port of one Service anew, and those of Services whose marks that moves. Costs what that
    /// Service costs: there are few that have marks, and marks seldom move.
    pub fn update(&mut self, tracker: &Tracker, name: &ServiceName) {
        let mut ports = BTreeSet::new();
        let service = tracker.service(name);
        let of_service = service.map_or_else(Vec::new, |service| {
            ServicePort::of(service, self.context.family)
        });
        for port in of_service.into_iter().filter(needs_mark) {
            ports.insert(port.name);
        }
        let created = service.map_or(0, |service| service.created);
        let moved = self.marks.replace_service(name, created, &ports);
        for name in std::iter::once(name).chain(&moved) {
            self.replace_port_objects(tracker, name);
        }
    }

    fn replace_port_objects(&mut self, tracker: &Tracker, name: &ServiceName) {
        let mut by_port: BTreeMap<ServicePortName, PortObjects> = BTreeMap::new();
        if let Some(service) = tracker.service(name) {
            let endpoints = tracker.endpoints(name, self.context.family);
            for port in ServicePort::of(service, self.context.family) {
                let key = (port.name.port.clone(), port.name.protocol);
                let endpoints = endpoints.get(&key).map_or(&[][..], Vec::as_slice);
                let mark = self.marks.of(&port.name);
                let port_objects = port_objects(&port, endpoints, &self.context, mark);
                by_port.insert(port.name, port_objects);
            }
        }
        let mut dirty = Dirty::default();
        self.last_limits.extend(self.desired.drain_limits(name));
        self.desired.replace_service(name, by_port, &mut dirty);
        let (desired, limits) = (&self.desired, &mut self.last_limits);
        limits.retain(|key, _| desired.virtual_server(key).is_none());
        self.owned.extend(&dirty.virtual_servers);
        for key in &dirty.virtual_servers {
            self.find_draining(key);
        }
        self.dirty.extend(dirty);
    }

    /// What Services ask for and do not get.
    pub fn unmet(&self) -> BTreeSet<(ServicePortName, Unmet)> {
        let mut unmet = self.desired.unmet();
        let without = self.marks.without();
        unmet.extend(without.map(|name| (name.clone(), Unmet::NoMark)));
        unmet
    }

    /// Replaces belief by what was observed; the next plan is a full one.
    pub fn observed(&mut self, state: State) {
        self.believed = state;
        self.is_full = true;
        self.is_foundation_due = false;
        self.needs_observation = false;
        self.draining.clear();
        self.find_owned();
    }

    /// Finds all that is ours: what shows it now may go before the virtual server does.
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

    /// Replaces belief by what was observed, except for rules and real servers, which were not; the
    /// next plan is a full one. Returns the virtual servers that are news: nothing is known of
    /// their real servers, so they must be observed before that plan.
    pub fn observed_summary(&mut self, mut state: State) -> BTreeSet<VirtualServerKey> {
        let mut news = BTreeSet::new();
        for (key, present) in &mut state.virtual_servers {
            match self.believed.virtual_servers.remove(key) {
                Some(before) => {
                    present.real_servers = before.real_servers;
                    if present.server == before.server {
                        // It shares the scheduler's name with others.
                        present.server = before.server;
                    }
                }
                None => {
                    news.insert(*key);
                }
            }
        }
        state.rules = std::mem::take(&mut self.believed.rules);
        state.has_nftables_table = self.believed.has_nftables_table;
        let needs_observation = self.needs_observation;
        self.observed(state);
        // Of what was not looked at, nothing new is known.
        self.needs_observation = needs_observation;
        news
    }

    /// Replaces belief about the rules by what was observed; the next plan compares them.
    pub fn observed_rules(&mut self, rules: Ruleset) {
        self.believed.rules = rules;
        self.is_foundation_due = true;
    }

    /// The virtual servers whose real servers an audit looks at.
    pub fn audited(&self) -> BTreeSet<VirtualServerKey> {
        let present = self.believed.virtual_servers.keys();
        present.filter(|key| self.owns(key)).copied().collect()
    }

    /// Whether a virtual server is believed to have just these real servers.
    pub fn believes(&self, key: &VirtualServerKey, real_servers: &RealServers) -> bool {
        let believed = self.believed.virtual_servers.get(key);
        believed.is_some_and(|believed| believed.real_servers == *real_servers)
    }

    /// Replaces belief about the real servers of some virtual servers. Says whether any were not as
    /// believed.
    pub fn observed_real_servers(
        &mut self,
        observed: BTreeMap<VirtualServerKey, RealServers>,
    ) -> bool {
        let mut differs = false;
        for (key, real_servers) in observed {
            if let Some(believed) = self.believed.virtual_servers.get_mut(&key)
                && believed.real_servers != real_servers
            {
                believed.real_servers = real_servers;
                self.find_draining(&key);
                self.dirty.virtual_servers.insert(key);
                differs = true;
            }
        }
        differs
    }

    /// Replaces belief about some virtual servers; absent ones do not exist.
    pub fn observed_virtual_servers(
        &mut self,
        states: BTreeMap<VirtualServerKey, Option<VirtualServerState>>,
    ) {
        for (key, state) in states {
            match state {
                Some(state) => self.believed.virtual_servers.insert(key, state),
                None => self.believed.virtual_servers.remove(&key),
            };
            self.find_draining(&key);
            self.dirty.virtual_servers.insert(key);
        }
    }

    /// The steps that serve the given Services, before all others.
    pub fn plan_first(&self, services: &[ServiceName]) -> Plan {
        let mut dirty = Dirty::default();
        for service in services {
            dirty.extend(self.desired.dirty_of(service));
        }
        self.compare(&dirty)
    }

    /// The steps that one Service lacks, without what all share.
    pub fn plan_of(&self, service: &ServiceName) -> Plan {
        let owns = |key: &VirtualServerKey| self.owns(key);
        let mut plan = Plan::default();
        self.comparison(&owns)
            .compare(&mut plan, &self.desired.dirty_of(service));
        plan.ordered()
    }

    /// The steps from Believed to Desired, for what changed.
    pub fn plan(&self) -> Plan {
        let owns = |key: &VirtualServerKey| self.owns(key);
        let mut plan = if self.is_full {
            self.compare(&self.comparison(&owns).everything())
        } else {
            self.compare(&self.dirty)
        };
        self.comparison(&owns).switch(&mut plan, &self.rules);
        plan.ordered()
    }

    /// The steps that delete drained real servers whose connections have ended. With the last of
    /// them goes a virtual server that nobody wants, and its address.
    pub fn plan_drained(&self, idle: &BTreeSet<RealServerOf>) -> Plan {
        let owns = |key: &VirtualServerKey| self.owns(key);
        let mut servers: BTreeMap<VirtualServerKey, Vec<RealServerKey>> = BTreeMap::new();
        for (vs, key) in self.draining.intersection(idle) {
            servers.entry(*vs).or_default().push(*key);
        }
        self.comparison(&owns).drained(&servers).ordered()
    }

    /// Takes in what became of [`Self::plan`]; nothing else may have been taken in since. Returns the
    /// virtual servers about which belief is in doubt: they must be observed before the next
    /// plan. See also [`Self::needs_observation`].
    pub fn report(&mut self, plan: &Plan, report: &Report) -> BTreeSet<VirtualServerKey> {
        self.is_full = false;
        self.is_foundation_due = false;
        let settled = std::mem::take(&mut self.dirty);
        let doubtful = self.report_part(plan, report);
        for key in settled.virtual_servers {
            let exists = self.believed.virtual_servers.contains_key(&key);
            if !exists && !doubtful.contains(&key) && self.desired.virtual_server(&key).is_none() {
                self.owned.remove(&key);
                self.last_limits.remove(&key);
            }
        }
        doubtful
    }

    /// The same for a plan that was only a part of what is pending.
    pub fn report_part(&mut self, plan: &Plan, report: &Report) -> BTreeSet<VirtualServerKey> {
        let mut doubtful = BTreeSet::new();
        let mut gone = BTreeSet::new();
        let mut outcomes = report.outcomes.iter();
        for step in plan.steps() {
            match outcomes.next() {
                Some(Outcome::Done) if self.believed.apply(step).is_ok() => {
                    self.follow(step, &mut gone);
                }
                // Without an outcome it was not tried.
                None | Some(Outcome::NotTried) => self.keep_pending(step),
                // The kernel took what it should have refused: it was not as believed.
                Some(Outcome::Done) => doubtful.extend(self.doubt(step, None)),
                Some(Outcome::Failed(failure)) => {
                    doubtful.extend(self.doubt(step, Some(failure.kind)));
                }
            }
        }
        for address in gone {
            self.release_address(address);
        }
        doubtful
    }

    fn comparison<'a>(&'a self, owns: &'a dyn Fn(&VirtualServerKey) -> bool) -> Comparison<'a> {
        Comparison {
            context: &self.context,
            desired: &self.desired,
            believed: &self.believed,
            owns,
        }
    }

    /// The foundation is compared in every plan, it costs little.
    fn compare(&self, dirty: &Dirty) -> Plan {
        let owns = |key: &VirtualServerKey| self.owns(key);
        let comparison = self.comparison(&owns);
        let mut plan = comparison.foundation(&self.rules);
        comparison.compare(&mut plan, dirty);
        plan.ordered()
    }

    /// A virtual server is ours if a Service wants or wanted it, or if something tells that a kube-proxy
    /// or an earlier self made it: its address is on our link, is a Service address, or it
    /// is a node port.
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
            || (NODE_PORTS.contains(port)
                && (self.context.node_addresses.contains(address)
                    || self.context.node_port_addresses.contains(address)))
    }

    /// Finds the real servers of a virtual server that are waited for: of weight 0, and unwanted.
    fn find_draining(&mut self, vs: &VirtualServerKey) {
        let former: Vec<RealServerOf> = self.draining_of(vs).collect();
        for real_server in &former {
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

    /// Keeps what depends on belief up with a step that belief has taken in.
    fn follow(&mut self, step: &Step, gone: &mut BTreeSet<IpAddr>) {
        match step {
            Step::AddRealServer { vs, key, server } | Step::SetRealServer { vs, key, server } => {
                let wanted = self.desired.virtual_server(vs);
                let is_wanted = wanted.is_some_and(|vs| vs.real_servers.contains_key(key));
                if server.weight == 0 && !is_wanted && diff::drains(vs) {
                    self.draining.insert((*vs, *key));
                } else {
                    self.draining.remove(&(*vs, *key));
                }
            }
            Step::DeleteRealServer { vs, key } => {
                self.draining.remove(&(*vs, *key));
                let left = self.believed.virtual_servers.get(vs);
                let is_empty = left.is_some_and(|left| left.real_servers.is_empty());
                if is_empty && self.desired.virtual_server(vs).is_none() {
                    self.dirty.virtual_servers.insert(*vs);
                    gone.extend(vs.address());
                }
            }
            Step::DeleteVirtualServer { key } => {
                self.find_draining(key);
                self.last_limits.remove(key);
                if self.desired.virtual_server(key).is_none() {
                    self.owned.remove(key);
                    gone.extend(key.address());
                }
            }
            _ => {}
        }
    }

    /// Touches an address that is bound for no reason any more.
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

    /// Takes in a step that failed. Returns the virtual server that must be looked at for that.
    fn doubt(&mut self, step: &Step, why: Option<FailureKind>) -> Option<VirtualServerKey> {
        use FailureKind::{Busy, Permission, Unsupported};
        self.keep_pending(step);
        if matches!(why, Some(Busy | Permission | Unsupported)) {
            // Nothing happened, and nothing says that belief is wrong.
            return None;
        }
        match step {
            Step::AddVirtualServer { key, .. }
            | Step::SetVirtualServer { key, .. }
            | Step::DeleteVirtualServer { key }
            | Step::AddRealServer { vs: key, .. }
            | Step::SetRealServer { vs: key, .. }
            | Step::DeleteRealServer { vs: key, .. } => return Some(*key),
            // Wanted as long as we run, and made again without harm.
            Step::SetSysctl { .. }
            | Step::SetTimeouts(_)
            | Step::CreateLink
            | Step::DeleteLink
            | Step::DeleteNftablesTable { .. } => {}
            Step::AddAddress { .. }
            | Step::DeleteAddress { .. }
            | Step::AddEntry { .. }
            | Step::DeleteEntry { .. }
            | Step::CreateSet(_)
            | Step::SwapSets { .. }
            | Step::DestroySet { .. }
            | Step::EditRules(_) => self.needs_observation = true,
        }
        None
    }

    /// Keeps what a step is about for the next plan.
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
                // Of a set that was to replace another.
                None => self.is_full = true,
            },
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
            | Step::DeleteNftablesTable { .. }
            | Step::EditRules(_) => self.is_foundation_due = true,
        }
    }
}

#[cfg(test)]
mod tests;
