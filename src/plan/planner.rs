// SPDX-License-Identifier: Apache-2.0
//! PURE: one family's wanted and believed state in IPVS mode, kept up to date by changes and
//! reports.
//!
//! ```text
//! changed Services -> update -> touched objects -> plan -> (kernel) -> report -> Believed
//! ```

use std::collections::{BTreeMap, BTreeSet};

use super::context::Context;
use super::desired::{Desired, Touched};
use super::diff;
use super::fragment::{Fragment, fragment};
use super::object::{RealServerKey, VirtualServerKey};
use super::report::{Outcome, Report};
use super::rules::{FixedRules, fixed_rules};
use super::ruleset::InvalidChainName;
use super::set::SetId;
use super::state::{State, VirtualServerState};
use super::step::{Plan, Step};
use crate::model::{ServiceName, ServicePort, ServicePortName, Tracker};

/// The ports that the API server hands out as node ports by default.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;

/// A real server of a virtual server.
pub type RealServerOf = (VirtualServerKey, RealServerKey);

/// See the module.
#[derive(Debug)]
pub struct Planner {
    context: Context,
    rules: FixedRules,
    desired: Desired,
    believed: State,
    /// Changed since the last plan that worked.
    touched: Touched,
    /// Virtual servers that some Service wants or wanted since we started.
    owned: BTreeSet<VirtualServerKey>,
    /// Believed real servers of weight 0 that nobody wants: deleted when their connections ended.
    draining: BTreeSet<RealServerOf>,
    /// The next plan looks at everything.
    is_full: bool,
}

impl Planner {
    pub fn new(context: Context) -> Result<Self, InvalidChainName> {
        Ok(Self {
            rules: fixed_rules(&context)?,
            context,
            desired: Desired::default(),
            believed: State::default(),
            touched: Touched::default(),
            owned: BTreeSet::new(),
            draining: BTreeSet::new(),
            is_full: true,
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

    /// There is something to plan.
    pub fn is_pending(&self) -> bool {
        self.is_full || !self.touched.is_empty()
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
        self.context = context;
        self.is_full = true;
        for service in tracker.services() {
            self.update(tracker, &service.name);
        }
        Ok(())
    }

    /// Computes the fragments of one Service anew. Costs what that Service costs.
    pub fn update(&mut self, tracker: &Tracker, name: &ServiceName) {
        let mut fragments: BTreeMap<ServicePortName, Fragment> = BTreeMap::new();
        if let Some(service) = tracker.service(name) {
            let endpoints = tracker.endpoints(name, self.context.family);
            for port in ServicePort::of(service, self.context.family) {
                let key = (port.name.port.clone(), port.name.protocol);
                let endpoints = endpoints.get(&key).map_or(&[][..], Vec::as_slice);
                fragments.insert(port.name.clone(), fragment(&port, endpoints, &self.context));
            }
        }
        let mut touched = Touched::default();
        self.desired.replace_service(name, fragments, &mut touched);
        self.owned.extend(&touched.virtual_servers);
        self.touched.extend(touched);
    }

    /// Replaces belief by what was observed; the next plan is a full one.
    pub fn observed(&mut self, state: State) {
        self.believed = state;
        self.is_full = true;
        self.draining = self
            .believed
            .virtual_servers
            .iter()
            .filter(|(key, _)| self.owns(key))
            .flat_map(|(vs, state)| {
                let drained = state
                    .real_servers
                    .iter()
                    .filter(|(_, server)| server.weight == 0);
                drained.map(|(key, _)| (*vs, *key))
            })
            .filter(|(vs, key)| diff::drains(vs) && !self.wants(vs, key))
            .collect();
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
        }
    }

    /// The steps that serve the given Services, before all others.
    pub fn plan_first(&self, services: &[ServiceName]) -> Plan {
        let mut plan = self.foundation();
        let mut touched = Touched::default();
        for service in services {
            touched.extend(self.desired.touched_by(service));
        }
        self.compare(&mut plan, &touched);
        plan.ordered()
    }

    /// The steps from Believed to Desired, for what changed.
    pub fn plan(&self) -> Plan {
        if !self.is_full {
            let mut plan = Plan::default();
            self.compare(&mut plan, &self.touched);
            return plan.ordered();
        }
        let mut plan = self.foundation();
        let everything = diff::everything(&self.desired, &self.believed, |key| self.owns(key));
        self.compare(&mut plan, &everything);
        plan.ordered()
    }

    /// The steps that delete drained real servers whose connections have ended.
    pub fn plan_drained(&self, idle: &BTreeSet<RealServerOf>) -> Plan {
        let mut plan = Plan::default();
        for (vs, key) in self.draining.intersection(idle) {
            let step = Step::DeleteRealServer { vs: *vs, key: *key };
            plan.push(super::step::Phase::OldServers, step);
        }
        plan
    }

    /// Takes in what became of [`Self::plan`]. Returns the virtual servers about which belief is in
    /// doubt: they must be observed before the next plan.
    pub fn report(&mut self, plan: &Plan, report: &Report) -> BTreeSet<VirtualServerKey> {
        self.is_full = false;
        self.touched = Touched::default();
        self.report_part(plan, report)
    }

    /// The same for a plan that was only a part of what is pending.
    pub fn report_part(&mut self, plan: &Plan, report: &Report) -> BTreeSet<VirtualServerKey> {
        let mut doubtful = BTreeSet::new();
        let mut outcomes = report.outcomes.iter();
        for step in plan.steps() {
            // A step without an outcome was not tried.
            if matches!(outcomes.next(), Some(Outcome::Done)) {
                self.believe(step);
            } else {
                doubtful.extend(self.doubt(step));
            }
        }
        doubtful
    }

    fn foundation(&self) -> Plan {
        diff::foundation(&self.context, &self.rules, &self.desired, &self.believed)
    }

    fn compare(&self, plan: &mut Plan, touched: &Touched) {
        diff::compare(
            plan,
            self.context.family,
            &self.desired,
            &self.believed,
            touched,
        );
    }

    fn wants(&self, vs: &VirtualServerKey, key: &RealServerKey) -> bool {
        self.desired
            .virtual_server(vs)
            .is_some_and(|server| server.real_servers.contains_key(key))
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
        if within(&self.context.exclude_cidrs) {
            return false;
        }
        self.believed.addresses.contains(address)
            || within(&self.context.service_cidrs)
            || (NODE_PORTS.contains(port) && self.context.node_addresses.contains(address))
    }

    fn believe(&mut self, step: &Step) {
        // A refusal here means that the kernel was not as believed and is now as the step says.
        let _refused = self.believed.apply(step).is_err();
        match step {
            Step::SetRealServer { vs, key, server } => {
                if server.weight == 0 && !self.wants(vs, key) {
                    self.draining.insert((*vs, *key));
                } else {
                    self.draining.remove(&(*vs, *key));
                }
            }
            Step::AddRealServer { vs, key, .. } | Step::DeleteRealServer { vs, key } => {
                self.draining.remove(&(*vs, *key));
            }
            Step::DeleteVirtualServer { key } => {
                self.draining.retain(|(vs, _)| vs != key);
                if self.desired.virtual_server(key).is_none() {
                    self.owned.remove(key);
                }
            }
            _ => {}
        }
    }

    /// Keeps what a failed step was about for the next plan.
    fn doubt(&mut self, step: &Step) -> Option<VirtualServerKey> {
        match step {
            Step::AddVirtualServer { key, .. }
            | Step::SetVirtualServer { key, .. }
            | Step::DeleteVirtualServer { key }
            | Step::AddRealServer { vs: key, .. }
            | Step::SetRealServer { vs: key, .. }
            | Step::DeleteRealServer { vs: key, .. } => {
                self.touched.virtual_servers.insert(*key);
                return Some(*key);
            }
            Step::AddAddress { address } | Step::DeleteAddress { address } => {
                self.touched.addresses.insert(*address);
            }
            Step::AddEntry { set, entry } | Step::DeleteEntry { set, entry } => {
                match SetId::ALL
                    .into_iter()
                    .find(|id| id.name(self.context.family) == *set)
                {
                    Some(id) => {
                        self.touched.entries.insert((id, *entry));
                    }
                    // Of a set that was to replace another.
                    None => self.is_full = true,
                }
            }
            Step::SetSysctl { .. }
            | Step::SetTimeouts(_)
            | Step::CreateLink
            | Step::CreateSet(_)
            | Step::SwapSets { .. }
            | Step::DestroySet { .. }
            | Step::EditRules(_) => self.is_full = true,
        }
        None
    }
}
