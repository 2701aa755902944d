// SPDX-License-Identifier: Apache-2.0
//! PURE: what the sync loop requires of a mode's planner. A mode is a type that implements
//! [`Planner`]; what only some modes can do is a capability that the others lack.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use crate::model::{ServiceName, ServicePortName, ServiceView, Tracker};
use crate::plan::claim::Right;
use crate::plan::context::Context;
use crate::plan::cuts::Cuts;
use crate::plan::explain::Place;
use crate::plan::ipvs::object::{RealServers, SyncRole, VirtualServerKey};
use crate::plan::ipvs::planner::RealServerOf;
use crate::plan::ipvs::set::SetName;
use crate::plan::ipvs::state::{SetState, VirtualServerState};
use crate::plan::report::Report;
use crate::plan::ruleset::{ChainId, ChainName, InvalidChainName, Ruleset, Table};
use crate::plan::shown::ServiceState;
use crate::plan::step::{Plan, Step};
use crate::plan::unmet::Unmet;
use crate::plan::{iptables, ipvs};

/// One family's desired and believed state in one mode, kept up to date by changes and reports.
///
/// Object-safe once the types are fixed: `Box<dyn Planner<Step = S, State = T>>`.
pub trait Planner: fmt::Debug + Send {
    /// A change that this mode makes to a kernel.
    type Step: Step;
    /// The state that this mode observes of a kernel.
    type State;

    fn context(&self) -> &Context;

    /// Replaces node and settings; everything is recomputed.
    fn set_context(&mut self, context: Context, tracker: &Tracker) -> Result<(), InvalidChainName>;

    /// Recomputes what a changed Service wants. Costs what that Service costs.
    fn update(&mut self, changed: &ServiceView<'_>, tracker: &Tracker);

    /// Recomputes what all Services want.
    fn update_all(&mut self, tracker: &Tracker) {
        for service in tracker.services() {
            let Context { family, budget, .. } = *self.context();
            let view = ServiceView::within(tracker, &service.name, family, &budget);
            self.update(&view, tracker);
        }
    }

    /// Replaces belief by the observed state; the next plan is a full one.
    fn observed(&mut self, state: Self::State);

    /// Whether belief is in doubt: the kernel must be observed before the next plan.
    fn needs_observation(&self) -> bool;

    /// Whether there is anything to plan.
    fn is_pending(&self) -> bool;

    /// Whether the next plan makes changes that had to wait for the last one, in modes where
    /// changes take turns. It should follow at once.
    fn goes_on(&self) -> bool {
        false
    }

    /// The time that has come, from any fixed start: what is due by it becomes part of the next
    /// plan.
    fn set_time(&mut self, _now: Duration) {}

    /// Applying so many steps took so long: later plans have as many as others can wait for.
    fn took(&mut self, _steps: usize, _time: Duration) {}

    /// When something becomes due without a change.
    fn time_due(&self) -> Option<Duration> {
        None
    }

    /// Whether the next plan compares everything, not only what changed.
    fn is_full(&self) -> bool;

    /// The steps from Believed to Desired, for what changed.
    fn plan(&self) -> Plan<Self::Step>;

    /// The steps that serve the given Services before all others, in modes that can separate them.
    fn plan_first(&self, _services: &[ServiceName]) -> Option<Plan<Self::Step>> {
        None
    }

    /// The kernel settings that this mode needs, whether already set or not.
    fn settings(&self) -> Plan<Self::Step>;

    /// Takes in the report of [`Self::plan`]; nothing else may have been taken in since.
    fn report(&mut self, plan: &Plan<Self::Step>, report: &Report);

    /// Takes in the report of a plan that covered only a part of what is pending.
    fn report_part(&mut self, plan: &Plan<Self::Step>, report: &Report);

    /// Tables whose rules could not be read when they were last observed.
    fn unread_tables(&self) -> BTreeSet<Table> {
        BTreeSet::new()
    }

    /// The Service port that a step is for; `None` if it is for all, or removes what no Service
    /// wants any more.
    fn owner(&self, step: &Self::Step) -> Option<&ServicePortName>;

    /// Service ports of which the kernel refused something, for a reason that does not pass by
    /// itself. The rest is served without that; it is tried again when it changes, and in audits.
    fn set_aside(&self) -> &BTreeSet<ServicePortName> {
        static NONE: BTreeSet<ServicePortName> = BTreeSet::new();
        &NONE
    }

    /// Whether a step is for such an object alone.
    fn is_set_aside(&self, _step: &Self::Step) -> bool {
        false
    }

    /// Changes whenever the result of [`Self::conflicts`], [`Self::unmet`] or [`Self::cuts`] may
    /// have changed.
    fn revision(&self) -> u64;

    /// Claims that lost. Costs what is contested.
    fn conflicts(&self) -> BTreeSet<Conflict>;

    /// What Services request and do not get. Costs the length of the result.
    fn unmet(&self) -> BTreeSet<(ServicePortName, Unmet)>;

    /// What the budget left out of Services.
    fn cuts(&self) -> Option<&Cuts> {
        None
    }

    /// The kernel settings of [`Context::sysctls`] that the kernel refuses.
    fn refused_sysctls(&self) -> BTreeSet<&'static str> {
        BTreeSet::new()
    }

    /// The sync daemons of ours that run, in modes that have any.
    fn sync_daemons(&self) -> BTreeSet<SyncRole> {
        BTreeSet::new()
    }

    /// Number of Services with a Local policy and no endpoint on this node: internal, external.
    fn no_local_endpoints(&self) -> (usize, usize);

    /// The desired and believed state of one Service. Costs what that Service costs.
    fn state_of(&self, service: &ServiceName) -> ServiceState;

    /// The virtual server that serves clients outside or inside the cluster at a place, in modes
    /// that have virtual servers.
    fn server_of(&self, _place: Place, _is_outside: bool) -> Option<VirtualServerKey> {
        None
    }

    /// The virtual servers of each port of a Service that its ports have, not those that others
    /// won. Costs what that Service costs.
    fn servers_of(&self, _service: &ServiceName) -> Vec<(ServicePortName, VirtualServerKey)> {
        Vec::new()
    }

    /// The mode, if its belief includes iptables rules.
    fn rules(&mut self) -> Option<&mut dyn RuleBelief> {
        None
    }

    /// The mode, if its virtual servers can be observed one by one and audited in slices.
    fn sliced_audit(&mut self) -> Option<&mut dyn SlicedAudit> {
        None
    }

    /// The mode, if it binds addresses to a link of its own.
    fn link(&mut self) -> Option<&mut dyn LinkBelief> {
        None
    }

    /// The mode, if removed endpoints keep their connections for a while.
    fn drains(&self) -> Option<&dyn Drains<Step = Self::Step>> {
        None
    }

    /// The mode, if it searches a rejected batch, which the kernel applies as a whole or not at
    /// all, for the cause.
    fn isolation(&self) -> Option<&dyn Isolation> {
        None
    }
}

/// A mode that writes iptables rules.
pub trait RuleBelief {
    /// Replaces belief about the rules by what was observed; the next plan compares them.
    fn observed_rules(&mut self, rules: Ruleset);

    /// Replaces belief about the sets of those rules by what was observed, in modes that have any;
    /// the next plan compares what differs.
    fn observed_sets(&mut self, _sets: BTreeMap<SetName, SetState>) {}

    /// Replaces belief about the node's settings by what an audit observed that had no reason to
    /// read rules, in modes that have such audits.
    fn observed_settings(&mut self, _settings: iptables::Settings) {}

    /// Whether the kernel is believed to have a chain.
    fn has_chain(&self, table: Table, chain: &ChainName) -> bool;

    /// Number of rules in our chains of a table, where the mode counts them.
    fn rule_count(&self, table: Table) -> Option<usize>;
}

/// A mode that binds addresses to a link of its own.
pub trait LinkBelief {
    /// Whether the link is believed to have one of these addresses.
    fn has_any(&self, addresses: &BTreeSet<IpAddr>) -> bool;

    /// Replaces belief about the link and the addresses that it serves by what was observed; the
    /// next plan compares them.
    fn observed_link(&mut self, exists: bool, addresses: BTreeSet<IpAddr>);
}

/// A mode whose state is too large to be read in one go while changes wait. Its unit is the virtual
/// server.
pub trait SlicedAudit {
    /// Replaces belief by what was observed, except for rules and real servers, which were not; the
    /// next plan is a full one. Returns the virtual servers that are new: they must be observed
    /// before that plan.
    fn observed_summary(&mut self, state: ipvs::State) -> BTreeSet<VirtualServerKey>;

    /// The same where addresses were not observed either.
    fn observed_outline(&mut self, state: ipvs::State) -> BTreeSet<VirtualServerKey>;

    /// The virtual servers whose real servers an audit must check.
    fn audited(&self) -> BTreeSet<VirtualServerKey>;

    /// Whether a virtual server is believed to have exactly these real servers.
    fn believes(&self, key: &VirtualServerKey, real_servers: &RealServers) -> bool;

    /// Takes in what an audit observed; returns whether it differs from belief.
    fn observed_real_servers(&mut self, found: BTreeMap<VirtualServerKey, RealServers>) -> bool;

    /// Virtual servers that must be observed before the next plan, because a step for them failed.
    /// Returns each once.
    fn take_doubtful(&mut self) -> BTreeSet<VirtualServerKey>;

    /// Replaces belief about some virtual servers; `None` means that one does not exist.
    fn observed_virtual_servers(
        &mut self,
        states: BTreeMap<VirtualServerKey, Option<VirtualServerState>>,
    );
}

/// A mode in which a removed endpoint stays until its connections have ended.
pub trait Drains {
    type Step: Step;

    /// The draining real servers.
    fn draining(&self) -> &BTreeSet<RealServerOf>;

    /// The draining real servers of one virtual server.
    fn draining_of(&self, vs: &VirtualServerKey) -> Vec<RealServerOf>;

    /// How long the removed real servers of a virtual server may keep their connections.
    fn drain_limit(&self, key: &VirtualServerKey) -> Duration;

    /// The steps that delete drained real servers.
    fn plan_drained(&self, idle: &BTreeSet<RealServerOf>) -> Plan<Self::Step>;

    /// The real server that a step changes.
    fn real_server_of(&self, step: &Self::Step) -> Option<RealServerOf>;
}

/// A mode whose batches the kernel applies as a whole or not at all.
pub trait Isolation {
    /// Whether the next plan bisects the rejected batch; it should follow at once.
    fn is_isolating(&self) -> bool;

    /// Service ports whose rules the kernel rejected.
    fn quarantined(&self) -> &BTreeSet<ServicePortName>;

    /// Unreferenced chains that cannot be deleted because a foreign rule jumps to them.
    fn undeletable_chains(&self) -> BTreeSet<ChainId>;
}

/// Two Service ports claim one address and port; the loser does not get it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conflict {
    pub loser: ServicePortName,
    pub winner: ServicePortName,
    /// By what the winner has it; `None`: by its age.
    pub by: Option<Right>,
    /// The virtual server or frontend, as the mode names it.
    pub place: String,
}
