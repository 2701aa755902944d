// SPDX-License-Identifier: Apache-2.0
//! PURE: the planner of IPVS mode as the sync loop sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use super::{Planner, RealServerOf};
use crate::model::{ServiceName, ServicePortName, ServiceView, Tracker};
use crate::plan::context::Context;
use crate::plan::cuts::Cuts;
use crate::plan::explain::Place;
use crate::plan::ipvs::desired::Dirty;
use crate::plan::ipvs::mark::MarkRange;
use crate::plan::ipvs::marks::Marks;
use crate::plan::ipvs::object::{RealServerKey, RealServers, SyncRole, Timeouts, VirtualServerKey};
use crate::plan::ipvs::port_objects::needs_mark;
use crate::plan::ipvs::set::{SetId, SetName};
use crate::plan::ipvs::set_aside::Object;
use crate::plan::ipvs::state::{SetState, VirtualServerState};
use crate::plan::ipvs::static_rules::fixed_rules;
use crate::plan::ipvs::step::{Phase, Step};
use crate::plan::ipvs::{State, pass, sysctl};
use crate::plan::mode::{Conflict, Drains, LinkBelief, RuleBelief, SlicedAudit};
use crate::plan::report::{Outcome, Report};
use crate::plan::ruleset::{ChainName, InvalidChainName, Ruleset, Table};
use crate::plan::shown::{ObjectState, PortState, ServiceState, port_name};
use crate::plan::step::Plan;
use crate::plan::unmet::Unmet;

impl crate::plan::Planner for Planner {
    type Step = Step;
    type State = State;

    fn context(&self) -> &Context {
        &self.context
    }

    fn set_context(&mut self, context: Context, tracker: &Tracker) -> Result<(), InvalidChainName> {
        if context == self.context {
            return Ok(());
        }
        self.rules = fixed_rules(&context)?;
        if context.masquerade_mark != self.context.masquerade_mark {
            self.marks = Marks::new(MarkRange::beside(context.masquerade_mark));
        }
        self.desired.set_pass(pass::virtual_server(&context));
        self.context = context;
        self.is_full = true;
        self.update_all(tracker);
        self.find_owned();
        Ok(())
    }

    fn update(&mut self, changed: &ServiceView<'_>, tracker: &Tracker) {
        let marked = changed.ports.iter().filter(|port| needs_mark(port));
        let marked = marked.map(|port| port.name.clone()).collect();
        let created = changed.service.map_or(0, |service| service.created);
        let lacked = self.marks.lacks_any();
        let moved = self.marks.replace_service(changed.name, created, &marked);
        if lacked || self.marks.lacks_any() {
            self.marks_revision += 1;
        }
        self.cuts.update(changed);
        self.replace_port_objects(changed);
        let Context { family, budget, .. } = self.context;
        for name in &moved {
            let view = ServiceView::within(tracker, name, family, &budget);
            self.replace_port_objects(&view);
        }
    }

    fn observed(&mut self, mut state: State) {
        state.rules.recall(&self.believed.rules);
        let before = std::mem::replace(&mut self.believed, state);
        self.is_full = true;
        self.is_foundation_due = false;
        self.needs_observation = false;
        self.doubtful.clear();
        self.draining.clear();
        self.find_owned();
        self.find_ramps(&before.virtual_servers);
    }

    fn set_time(&mut self, now: Duration) {
        self.dirty.virtual_servers.append(&mut self.ramps.pass(now));
    }

    fn time_due(&self) -> Option<Duration> {
        self.ramps.due()
    }

    fn is_full(&self) -> bool {
        self.is_full
    }

    fn is_pending(&self) -> bool {
        self.is_full || self.is_foundation_due || !self.dirty.is_empty() || !self.waiting.is_empty()
    }

    fn goes_on(&self) -> bool {
        !self.waiting.is_empty()
    }

    fn needs_observation(&self) -> bool {
        self.needs_observation
    }

    fn plan(&self) -> Plan<Step> {
        let owns = |key: &VirtualServerKey| self.owns(key);
        let due = self.due();
        let mut plan = match self.turn(&due) {
            Some(turn) => self.compare(&turn.compared, turn.part),
            None => self.compare(&due, None),
        };
        self.comparison(&owns).switch(&mut plan, &self.rules);
        let is_tried = |role| self.is_full || !self.set_aside.contains(&Object::SyncDaemon(role));
        self.comparison(&owns).daemons(&mut plan, is_tried);
        plan.ordered()
    }

    fn plan_first(&self, services: &[ServiceName]) -> Option<Plan<Step>> {
        let mut dirty = Dirty::default();
        for service in services {
            dirty.extend(self.desired.dirty_of(service));
        }
        Some(self.compare(&dirty, None))
    }

    fn settings(&self) -> Plan<Step> {
        let mut plan = Plan::default();
        for (key, value) in sysctl::wanted(&self.context) {
            plan.push(Phase::Node, Step::SetSysctl { key, value });
        }
        if self.context.timeouts != Timeouts::default() {
            plan.push(Phase::Node, Step::SetTimeouts(self.context.timeouts));
        }
        plan
    }

    fn report(&mut self, plan: &Plan<Step>, report: &Report) {
        self.is_foundation_due = false;
        let settled = self.settle();
        let was_full = std::mem::take(&mut self.is_full) && self.waiting.is_empty();
        let refused = report.failures(plan).filter_map(|(step, why)| {
            Object::of(step, &self.context).filter(|object| object.may_be_refused(why.kind))
        });
        self.set_aside
            .compared((!was_full).then_some(&settled), &refused.collect());
        self.report_part(plan, report);
        if self.set_aside.take_news() {
            self.find_set_aside();
        }
        for key in settled.virtual_servers {
            self.share_real_servers(&key);
            let exists = self.believed.virtual_servers.contains_key(&key);
            if !exists
                && !self.doubtful.contains(&key)
                && self.desired.virtual_server(&key).is_none()
            {
                self.owned.remove(&key);
                self.last_limits.remove(&key);
            }
        }
        if !crate::plan::Planner::is_pending(self) {
            self.cut_from_now_on();
        }
    }

    fn took(&mut self, steps: usize, time: Duration) {
        self.pace(steps, time);
    }

    fn report_part(&mut self, plan: &Plan<Step>, report: &Report) {
        let mut gone = BTreeSet::new();
        let mut outcomes = report.outcomes.iter();
        for step in plan.steps() {
            self.count(step);
            match outcomes.next() {
                Some(Outcome::Done) if self.believed.apply(step).is_ok() => {
                    self.follow(step, &mut gone);
                }
                // Without an outcome the step was not tried.
                None | Some(Outcome::NotTried) => {
                    if !self.is_blocked(step) {
                        self.keep_pending(step);
                    }
                }
                // The kernel accepted what it should have rejected, so it was not as believed.
                Some(Outcome::Done) => self.doubt(step, None),
                Some(Outcome::Failed(failure)) => self.refuse(step, failure.kind),
            }
        }
        for key in &gone {
            self.release_node_port(key);
        }
        let addresses: BTreeSet<IpAddr> =
            gone.iter().filter_map(VirtualServerKey::address).collect();
        for address in addresses {
            self.release_address(address);
        }
    }

    fn owner(&self, step: &Step) -> Option<&ServicePortName> {
        match step {
            Step::DeleteVirtualServer { key } | Step::DeleteRealServer { vs: key, .. } => {
                self.desired.claims().winner(key)
            }
            _ => self.owner_of(&Object::of(step, &self.context)?),
        }
    }

    fn set_aside(&self) -> &BTreeSet<ServicePortName> {
        &self.set_aside_ports
    }

    fn is_set_aside(&self, step: &Step) -> bool {
        Object::of(step, &self.context).is_some_and(|object| self.set_aside.contains(&object))
    }

    fn revision(&self) -> u64 {
        let desired = self.desired.claims().revision() + self.desired.unmet_revision();
        desired + self.marks_revision + self.cuts.revision()
    }

    fn conflicts(&self) -> BTreeSet<Conflict> {
        let lost = self.desired.claims().lost();
        lost.map(|(key, loser, winner)| Conflict {
            loser: loser.clone(),
            winner: winner.clone(),
            by: self.desired.claims().reason(key, loser),
            place: key.to_string(),
        })
        .collect()
    }

    fn unmet(&self) -> BTreeSet<(ServicePortName, Unmet)> {
        let mut unmet = self.desired.unmet();
        let without = self.marks.without();
        unmet.extend(without.map(|name| (name.clone(), Unmet::NoMark)));
        let beyond = self.marks.beyond_share();
        unmet.extend(beyond.map(|name| (name.clone(), Unmet::MarkShareUsed)));
        unmet
    }

    fn cuts(&self) -> Option<&Cuts> {
        Some(&self.cuts)
    }

    fn refused_sysctls(&self) -> BTreeSet<&'static str> {
        let objects = self.set_aside.objects().iter();
        let key = |object: &Object| match object {
            Object::Sysctl(key) => Some(*key),
            _ => None,
        };
        objects.filter_map(key).collect()
    }

    fn sync_daemons(&self) -> BTreeSet<SyncRole> {
        let running = self.believed.node.daemons.iter();
        let ours = running.filter(|(_, daemon)| daemon.link.is_some());
        ours.map(|(role, _)| *role).collect()
    }

    fn no_local_endpoints(&self) -> (usize, usize) {
        self.desired.no_local_endpoints()
    }

    fn state_of(&self, service: &ServiceName) -> ServiceState {
        let mut view = ServiceState {
            pending: self.plan_of(service).steps().map(Step::to_string).collect(),
            ..ServiceState::default()
        };
        let desired = &self.desired;
        for (name, port_objects) in desired.by_port().of(service) {
            let mut port = PortState::default();
            for (key, wanted) in port_objects.virtual_servers.iter() {
                // An older Service may hold it.
                if desired.claims().winner(key) != Some(name) {
                    continue;
                }
                let object = ObjectState::virtual_server(&wanted.server, &wanted.real_servers);
                port.desired.insert(key.to_string(), object);
                if let Some(present) = self.believed.virtual_servers.get(key) {
                    let object =
                        ObjectState::virtual_server(&present.server, &present.real_servers);
                    port.believed.insert(key.to_string(), object);
                }
            }
            view.ports.insert(port_name(name), port);
        }
        view
    }

    fn server_of(&self, place: Place, is_outside: bool) -> Option<VirtualServerKey> {
        let Place {
            address,
            port,
            protocol,
        } = place;
        let key = VirtualServerKey::Address {
            address,
            port,
            protocol,
        };
        let name = self.desired.claims().winner(&key)?;
        let servers = &self.desired.by_port().get(name)?.virtual_servers;
        let is_marked = |(set, _): &(SetId, _)| *set == SetId::LocalPolicyMark;
        if is_outside || !servers.get(&key)?.entries.iter().any(is_marked) {
            return Some(key);
        }
        let is_mark = |key: &&VirtualServerKey| matches!(key, VirtualServerKey::Mark { .. });
        Some(*servers.keys().find(is_mark).unwrap_or(&key))
    }

    fn servers_of(&self, service: &ServiceName) -> Vec<(ServicePortName, VirtualServerKey)> {
        let (by_port, claims) = (self.desired.by_port(), self.desired.claims());
        let servers = by_port.of(service).flat_map(|(name, objects)| {
            let keys = objects.virtual_servers.keys();
            keys.map(move |key| (name, key))
        });
        servers
            .filter(|(name, key)| claims.winner(key) == Some(*name))
            .map(|(name, key)| (name.clone(), *key))
            .collect()
    }

    fn rules(&mut self) -> Option<&mut dyn RuleBelief> {
        Some(self)
    }

    fn sliced_audit(&mut self) -> Option<&mut dyn SlicedAudit> {
        Some(self)
    }

    fn unread_tables(&self) -> BTreeSet<Table> {
        self.believed.rules.unread.keys().copied().collect()
    }

    fn link(&mut self) -> Option<&mut dyn LinkBelief> {
        Some(self)
    }

    fn drains(&self) -> Option<&dyn Drains<Step = Step>> {
        Some(self)
    }
}

impl LinkBelief for Planner {
    fn has_any(&self, addresses: &BTreeSet<IpAddr>) -> bool {
        !addresses.is_disjoint(&self.believed.addresses)
    }

    fn observed_link(&mut self, exists: bool, addresses: BTreeSet<IpAddr>) {
        let before = std::mem::replace(&mut self.believed.addresses, addresses);
        let differing = before.symmetric_difference(&self.believed.addresses);
        self.dirty.addresses.extend(differing);
        self.is_foundation_due |= self.believed.node.link_exists && !exists;
        self.believed.node.link_exists = exists;
    }
}

impl RuleBelief for Planner {
    fn observed_rules(&mut self, mut rules: Ruleset) {
        rules.recall(&self.believed.rules);
        self.believed.rules = rules;
        self.is_foundation_due = true;
    }

    fn observed_sets(&mut self, sets: BTreeMap<SetName, SetState>) {
        let before = std::mem::replace(&mut self.believed.sets, sets);
        for id in SetId::ALL {
            let name = id.name(self.context.family);
            let of = |sets: &BTreeMap<SetName, SetState>| {
                let set = sets.get(&name);
                set.map(|set| set.entries.clone()).unwrap_or_default()
            };
            let (before, now) = (of(&before), of(&self.believed.sets));
            let differing = before.symmetric_difference(&now);
            let differing = differing.map(|entry| (id, *entry));
            self.dirty.entries.extend(differing);
        }
    }

    fn has_chain(&self, table: Table, chain: &ChainName) -> bool {
        self.believed.rules.rules(table, chain).is_some()
    }

    /// The rules are static.
    fn rule_count(&self, _table: Table) -> Option<usize> {
        None
    }
}

impl SlicedAudit for Planner {
    fn observed_summary(&mut self, mut state: State) -> BTreeSet<VirtualServerKey> {
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
        state.client_sets = std::mem::take(&mut self.believed.client_sets);
        let needs_observation = self.needs_observation;
        crate::plan::Planner::observed(self, state);
        // The rest was not observed, so nothing more is known about it.
        self.needs_observation = needs_observation;
        news
    }

    fn observed_outline(&mut self, mut state: State) -> BTreeSet<VirtualServerKey> {
        state.addresses = std::mem::take(&mut self.believed.addresses);
        self.observed_summary(state)
    }

    fn audited(&self) -> BTreeSet<VirtualServerKey> {
        let present = self.believed.virtual_servers.keys();
        present.filter(|key| self.owns(key)).copied().collect()
    }

    fn believes(&self, key: &VirtualServerKey, real_servers: &RealServers) -> bool {
        let believed = self.believed.virtual_servers.get(key);
        believed.is_some_and(|believed| *believed.real_servers == *real_servers)
    }

    fn observed_real_servers(&mut self, observed: BTreeMap<VirtualServerKey, RealServers>) -> bool {
        let mut differs = false;
        for (key, real_servers) in observed {
            if let Some(believed) = self.believed.virtual_servers.get_mut(&key)
                && *believed.real_servers != real_servers
            {
                let before = std::mem::replace(&mut believed.real_servers, real_servers.into());
                self.find_ramps_of(&key, Some(&before));
                self.find_draining(&key);
                self.dirty.virtual_servers.insert(key);
                differs = true;
            }
        }
        differs
    }

    fn observed_virtual_servers(
        &mut self,
        states: BTreeMap<VirtualServerKey, Option<VirtualServerState>>,
    ) {
        for (key, state) in states {
            let before = match state {
                Some(state) => self.believed.virtual_servers.insert(key, state),
                None => self.believed.virtual_servers.remove(&key),
            };
            self.find_ramps_of(&key, before.as_ref().map(|before| &*before.real_servers));
            self.find_draining(&key);
            self.dirty.virtual_servers.insert(key);
        }
    }

    fn take_doubtful(&mut self) -> BTreeSet<VirtualServerKey> {
        std::mem::take(&mut self.doubtful)
    }
}

impl Drains for Planner {
    type Step = Step;

    fn draining(&self) -> &BTreeSet<RealServerOf> {
        &self.draining
    }

    fn draining_of(&self, vs: &VirtualServerKey) -> Vec<RealServerOf> {
        self.draining_at(vs).collect()
    }

    fn drain_limit(&self, key: &VirtualServerKey) -> Duration {
        let limit = match self.desired.virtual_server(key) {
            Some(_) => self.desired.drain_limit(key),
            None => self.last_limits.get(key).copied(),
        };
        limit.unwrap_or(self.context.drain_limit)
    }

    fn plan_drained(&self, idle: &BTreeSet<RealServerOf>) -> Plan<Step> {
        let owns = |key: &VirtualServerKey| self.owns(key);
        let mut servers: BTreeMap<VirtualServerKey, Vec<RealServerKey>> = BTreeMap::new();
        for (vs, key) in self.draining.intersection(idle) {
            servers.entry(*vs).or_default().push(*key);
        }
        self.comparison(&owns).drained(&servers).ordered()
    }

    fn real_server_of(&self, step: &Step) -> Option<RealServerOf> {
        match step {
            Step::AddRealServer { vs, key, .. }
            | Step::SetRealServer { vs, key, .. }
            | Step::DeleteRealServer { vs, key } => Some((*vs, *key)),
            _ => None,
        }
    }
}
