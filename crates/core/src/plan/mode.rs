// SPDX-License-Identifier: Apache-2.0
//! PURE: one planner, whichever mode it is for. The sync loop knows no other.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use crate::model::{IpFamily, ServiceName, ServicePortName, Tracker};
use crate::plan::context::Context;
use crate::plan::iptables::desired::Conflict as FrontendConflict;
use crate::plan::iptables::{Planner as IptablesPlanner, port_rules::Frontend};
use crate::plan::ipvs::object::{RealServers, VirtualServerKey};
use crate::plan::ipvs::planner::{Planner, RealServerOf};
use crate::plan::ipvs::sysctl;
use crate::plan::report::Report;
use crate::plan::ruleset::{ChainId, ChainName, InvalidChainName, Ruleset, Table};
use crate::plan::state::{State, VirtualServerState};
use crate::plan::step::{Phase, Plan, Step};
use crate::plan::unmet::Unmet;

/// The planner of a mode.
#[derive(Debug)]
pub enum ModePlanner {
    Ipvs(Box<Planner>),
    Iptables(Box<IptablesPlanner>),
}

/// Two Service ports claim one place; the second does not get it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conflict {
    pub loser: ServicePortName,
    pub winner: ServicePortName,
    pub place: Place,
}

/// What can be claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    VirtualServer(VirtualServerKey),
    Frontend(Frontend),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::VirtualServer(key) => key.fmt(f),
            Self::Frontend(frontend) => frontend.fmt(f),
        }
    }
}

/// The kernel settings and time-outs of a mode, whether they are so already or not.
pub fn settings(is_ipvs: bool, context: &Context) -> Plan {
    let mut plan = Plan::default();
    let sysctls = if is_ipvs {
        sysctl::wanted(context)
    } else {
        crate::plan::iptables::static_rules::sysctls(context)
    };
    for (key, value) in sysctls {
        plan.push(Phase::Node, Step::SetSysctl { key, value });
    }
    if is_ipvs && context.timeouts != crate::plan::ipvs::object::Timeouts::default() {
        plan.push(Phase::Node, Step::SetTimeouts(context.timeouts));
    }
    plan
}

impl ModePlanner {
    pub fn ipvs(context: Context) -> Result<Self, InvalidChainName> {
        Ok(Self::Ipvs(Box::new(Planner::new(context)?)))
    }

    pub fn iptables(context: Context) -> Self {
        Self::Iptables(Box::new(IptablesPlanner::new(context)))
    }

    pub fn family(&self) -> IpFamily {
        match self {
            Self::Ipvs(planner) => planner.context().family,
            Self::Iptables(planner) => planner.context().family,
        }
    }

    pub fn set_context(
        &mut self,
        context: Context,
        tracker: &Tracker,
    ) -> Result<(), InvalidChainName> {
        match self {
            Self::Ipvs(planner) => planner.set_context(context, tracker),
            Self::Iptables(planner) => {
                planner.set_context(context, tracker);
                Ok(())
            }
        }
    }

    /// Computes what one Service wants anew.
    pub fn update(&mut self, tracker: &Tracker, service: &ServiceName) {
        match self {
            Self::Ipvs(planner) => planner.update(tracker, service),
            Self::Iptables(planner) => planner.update(tracker, service),
        }
    }

    /// An audit need not read the rules: no Service changes them, and what else tells of drift costs less.
    pub fn audits_without_rules(&self) -> bool {
        matches!(self, Self::Ipvs(_))
    }

    /// Replaces belief by what was observed.
    pub fn observed(&mut self, state: State) {
        match self {
            Self::Ipvs(planner) => planner.observed(state),
            Self::Iptables(planner) => planner.observed(state),
        }
    }

    /// Replaces belief about rules by what was observed.
    pub fn observed_rules(&mut self, rules: Ruleset) {
        match self {
            Self::Ipvs(planner) => planner.observed_rules(rules),
            Self::Iptables(planner) => planner.observed_rules(&rules),
        }
    }

    /// What an audit begins with; see [`Planner::observed_summary`].
    pub fn observed_summary(&mut self, state: State) -> BTreeSet<VirtualServerKey> {
        match self {
            Self::Ipvs(planner) => planner.observed_summary(state),
            Self::Iptables(_) => BTreeSet::new(),
        }
    }

    /// The virtual servers whose real servers an audit has to look at.
    pub fn audited(&self) -> BTreeSet<VirtualServerKey> {
        match self {
            Self::Ipvs(planner) => planner.audited(),
            Self::Iptables(_) => BTreeSet::new(),
        }
    }

    /// Whether a virtual server is believed to have just these real servers.
    pub fn believes(&self, key: &VirtualServerKey, real_servers: &RealServers) -> bool {
        match self {
            Self::Ipvs(planner) => planner.believes(key, real_servers),
            Self::Iptables(_) => false,
        }
    }

    /// What an audit found; says whether it is not as believed.
    pub fn observed_real_servers(
        &mut self,
        found: BTreeMap<VirtualServerKey, RealServers>,
    ) -> bool {
        match self {
            Self::Ipvs(planner) => planner.observed_real_servers(found),
            Self::Iptables(_) => false,
        }
    }

    /// Replaces belief about some virtual servers; absent ones do not exist.
    pub fn observed_virtual_servers(
        &mut self,
        states: BTreeMap<VirtualServerKey, Option<VirtualServerState>>,
    ) {
        if let Self::Ipvs(planner) = self {
            planner.observed_virtual_servers(states);
        }
    }

    pub fn needs_observation(&self) -> bool {
        match self {
            Self::Ipvs(planner) => planner.needs_observation(),
            Self::Iptables(planner) => planner.needs_observation(),
        }
    }

    pub fn is_pending(&self) -> bool {
        match self {
            Self::Ipvs(planner) => planner.is_pending(),
            Self::Iptables(planner) => planner.is_pending(),
        }
    }

    /// The next plan looks at everything, not at what changed only.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Ipvs(planner) => planner.is_full(),
            Self::Iptables(planner) => planner.is_full(),
        }
    }

    /// Plans look for what the kernel refuses: the next one should follow at once.
    pub fn is_isolating(&self) -> bool {
        matches!(self, Self::Iptables(planner) if planner.is_isolating())
    }

    /// Service ports that the kernel refused.
    pub fn quarantined(&self) -> BTreeSet<ServicePortName> {
        match self {
            Self::Ipvs(_) => BTreeSet::new(),
            Self::Iptables(planner) => planner.quarantined().clone(),
        }
    }

    /// Chains that nobody wants and the kernel does not let us delete.
    pub fn undeletable_chains(&self) -> BTreeSet<ChainId> {
        match self {
            Self::Ipvs(_) => BTreeSet::new(),
            Self::Iptables(planner) => planner.undeletable(),
        }
    }

    /// The steps that serve the given Services before all others. One batch of rules serves all Services at once.
    pub fn plan_first(&self, services: &[ServiceName]) -> Plan {
        match self {
            Self::Ipvs(planner) => planner.plan_first(services),
            Self::Iptables(_) => Plan::default(),
        }
    }

    /// The steps from Believed to Desired, for what changed.
    pub fn plan(&self) -> Plan {
        match self {
            Self::Ipvs(planner) => planner.plan(),
            Self::Iptables(planner) => planner.plan(),
        }
    }

    /// Takes in what became of [`Self::plan`]. Returns the virtual servers about which belief is in doubt.
    pub fn report(&mut self, plan: &Plan, report: &Report) -> BTreeSet<VirtualServerKey> {
        match self {
            Self::Ipvs(planner) => planner.report(plan, report),
            Self::Iptables(planner) => {
                planner.report(plan, report);
                BTreeSet::new()
            }
        }
    }

    /// The same for a plan that was only a part of what is pending.
    pub fn report_part(&mut self, plan: &Plan, report: &Report) -> BTreeSet<VirtualServerKey> {
        match self {
            Self::Ipvs(planner) => planner.report_part(plan, report),
            // There are no such plans.
            Self::Iptables(_) => BTreeSet::new(),
        }
    }

    /// The real servers that are waited for. Rules need nobody to wait: conntrack keeps open connections.
    pub fn draining(&self) -> &BTreeSet<RealServerOf> {
        static NONE: BTreeSet<RealServerOf> = BTreeSet::new();
        match self {
            Self::Ipvs(planner) => planner.draining(),
            Self::Iptables(_) => &NONE,
        }
    }

    /// Those of one virtual server.
    pub fn draining_of(&self, vs: &VirtualServerKey) -> Vec<RealServerOf> {
        match self {
            Self::Ipvs(planner) => planner.draining_of(vs).collect(),
            Self::Iptables(_) => Vec::new(),
        }
    }

    /// How long the removed real servers of a virtual server may keep their connections.
    pub fn drain_limit(&self, key: &VirtualServerKey) -> Duration {
        match self {
            Self::Ipvs(planner) => planner.drain_limit(key),
            Self::Iptables(planner) => planner.context().drain_limit,
        }
    }

    /// What Services ask of this mode and do not get.
    pub fn unmet(&self) -> BTreeSet<(ServicePortName, Unmet)> {
        match self {
            Self::Ipvs(planner) => planner.unmet(),
            Self::Iptables(_) => BTreeSet::new(),
        }
    }

    /// The steps that delete drained real servers.
    pub fn plan_drained(&self, idle: &BTreeSet<RealServerOf>) -> Plan {
        match self {
            Self::Ipvs(planner) => planner.plan_drained(idle),
            Self::Iptables(_) => Plan::default(),
        }
    }

    /// Number of Services with a Local policy and no endpoint on this node: internal, external.
    pub fn no_local_endpoints(&self) -> (usize, usize) {
        match self {
            Self::Ipvs(planner) => planner.desired().no_local_endpoints(),
            Self::Iptables(planner) => planner.desired().no_local_endpoints(),
        }
    }

    /// Claims that lost.
    pub fn conflicts(&self) -> BTreeSet<Conflict> {
        match self {
            Self::Ipvs(planner) => {
                let conflicts = planner.desired().conflicts().into_iter();
                let of = |conflict: crate::plan::ipvs::desired::Conflict| Conflict {
                    loser: conflict.loser,
                    winner: conflict.winner,
                    place: Place::VirtualServer(conflict.key),
                };
                conflicts.map(of).collect()
            }
            Self::Iptables(planner) => {
                let conflicts = planner.desired().conflicts().into_iter();
                let of = |conflict: FrontendConflict| Conflict {
                    loser: conflict.loser,
                    winner: conflict.winner,
                    place: Place::Frontend(conflict.frontend),
                };
                conflicts.map(of).collect()
            }
        }
    }

    /// Whether the kernel is believed to have a chain.
    pub fn has_chain(&self, table: Table, chain: &ChainName) -> bool {
        match self {
            Self::Ipvs(planner) => planner.believed().rules.rules(table, chain).is_some(),
            Self::Iptables(planner) => planner.believed().contains(&(table, chain.clone())),
        }
    }

    /// Number of rules in our chains of a table, where the mode counts them.
    pub fn rule_count(&self, table: Table) -> Option<usize> {
        match self {
            Self::Ipvs(_) => None,
            Self::Iptables(planner) => Some(planner.believed().rule_count(table)),
        }
    }
}
