// SPDX-License-Identifier: Apache-2.0
//! PURE: what the sync loop asks of a mode's planner. A mode is a type that implements [`Planner`];
//! what only some modes can do is a capability that the others do not have.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use crate::model::{ServiceName, ServicePortName, ServiceView, Tracker};
use crate::plan::context::Context;
use crate::plan::ipvs;
use crate::plan::ipvs::object::{RealServers, VirtualServerKey};
use crate::plan::ipvs::planner::RealServerOf;
use crate::plan::ipvs::state::VirtualServerState;
use crate::plan::report::Report;
use crate::plan::ruleset::{ChainId, ChainName, InvalidChainName, Ruleset, Table};
use crate::plan::shown::ServiceState;
use crate::plan::step::{Plan, Step};
use crate::plan::unmet::Unmet;

/// One family's wanted and believed state in one mode, kept up to date by changes and reports.
///
/// Object-safe once the types are named: `Box<dyn Planner<Step = S, State = T>>`.
pub trait Planner: fmt::Debug + Send {
    /// What this mode does to a kernel.
    type Step: Step;
    /// What it observes of one.
    type State;

    fn context(&self) -> &Context;

    /// Takes in another node or other settings; everything is computed anew.
    fn set_context(&mut self, context: Context, tracker: &Tracker) -> Result<(), InvalidChainName>;

    /// Computes what a changed Service wants anew. Costs what that Service costs.
    fn update(&mut self, changed: &ServiceView<'_>, tracker: &Tracker);

    /// Computes what all Services want anew.
    fn update_all(&mut self, tracker: &Tracker) {
        for service in tracker.services() {
            let family = self.context().family;
            self.update(&ServiceView::of(tracker, &service.name, family), tracker);
        }
    }

    /// Replaces belief by what was observed; the next plan is a full one.
    fn observed(&mut self, state: Self::State);

    /// Belief is in doubt: the kernel must be observed before the next plan.
    fn needs_observation(&self) -> bool;

    /// There is something to plan.
    fn is_pending(&self) -> bool;

    /// The next plan looks at everything, not at what changed only.
    fn is_full(&self) -> bool;

    /// The steps from Believed to Desired, for what changed.
    fn plan(&self) -> Plan<Self::Step>;

    /// The steps that serve the given Services before all others, where a mode can do them apart.
    fn plan_first(&self, _services: &[ServiceName]) -> Option<Plan<Self::Step>> {
        None
    }

    /// The settings of the kernel that this mode needs, whether they are so already or not.
    fn settings(&self) -> Plan<Self::Step>;

    /// Takes in what became of [`Self::plan`]; nothing else may have been taken in since.
    fn report(&mut self, plan: &Plan<Self::Step>, report: &Report);

    /// Takes in what became of a plan that was only a part of what is pending.
    fn report_part(&mut self, plan: &Plan<Self::Step>, report: &Report);

    /// The Service port that a step is for; `None` if it is for all, or removes what no Service
    /// wants any more.
    fn owner(&self, step: &Self::Step) -> Option<&ServicePortName>;

    /// Changes whenever [`Self::conflicts`] or [`Self::unmet`] may have.
    fn revision(&self) -> u64;

    /// Claims that lost. Costs what is contested.
    fn conflicts(&self) -> BTreeSet<Conflict>;

    /// What Services ask for and do not get. Costs as many as there are.
    fn unmet(&self) -> BTreeSet<(ServicePortName, Unmet)>;

    /// Number of Services with a Local policy and no endpoint on this node: internal, external.
    fn no_local_endpoints(&self) -> (usize, usize);

    /// What one Service has and should have. Costs what that Service costs.
    fn state_of(&self, service: &ServiceName) -> ServiceState;

    /// Rules are a part of what this mode believes.
    fn rules(&mut self) -> Option<&mut dyn RuleBelief> {
        None
    }

    /// Virtual servers can be observed one by one, and audited in slices.
    fn sliced_audit(&mut self) -> Option<&mut dyn SlicedAudit> {
        None
    }

    /// Removed endpoints keep their connections for a while.
    fn drains(&self) -> Option<&dyn Drains<Step = Self::Step>> {
        None
    }

    /// The planner looks for what the kernel rejects in a batch that it takes or refuses as a
    /// whole.
    fn isolation(&self) -> Option<&dyn Isolation> {
        None
    }
}

/// A mode that writes iptables rules.
pub trait RuleBelief {
    /// Replaces belief about the rules by what was observed; the next plan compares them.
    fn observed_rules(&mut self, rules: Ruleset);

    /// Whether the kernel is believed to have a chain.
    fn has_chain(&self, table: Table, chain: &ChainName) -> bool;

    /// Number of rules in our chains of a table, where the mode counts them.
    fn rule_count(&self, table: Table) -> Option<usize>;
}

/// A mode whose state is too large to be read at once while changes wait. Its unit is the virtual
/// server.
pub trait SlicedAudit {
    /// Replaces belief by what was observed, except for rules and real servers, which were not; the
    /// next plan is a full one. Returns the virtual servers that are new: they must be observed
    /// before that plan.
    fn observed_summary(&mut self, state: ipvs::State) -> BTreeSet<VirtualServerKey>;

    /// The virtual servers whose real servers an audit has to look at.
    fn audited(&self) -> BTreeSet<VirtualServerKey>;

    /// Whether a virtual server is believed to have just these real servers.
    fn believes(&self, key: &VirtualServerKey, real_servers: &RealServers) -> bool;

    /// Takes in what an audit found; says whether it is not as believed.
    fn observed_real_servers(&mut self, found: BTreeMap<VirtualServerKey, RealServers>) -> bool;

    /// Virtual servers that must be observed before the next plan, because a step about them
    /// failed. Hands them out once.
    fn take_doubtful(&mut self) -> BTreeSet<VirtualServerKey>;

    /// Replaces belief about some virtual servers; absent ones do not exist.
    fn observed_virtual_servers(
        &mut self,
        states: BTreeMap<VirtualServerKey, Option<VirtualServerState>>,
    );
}

/// A mode in which a removed endpoint stays until its connections have ended.
pub trait Drains {
    type Step: Step;

    /// The real servers that drain.
    fn draining(&self) -> &BTreeSet<RealServerOf>;

    /// Those of one virtual server.
    fn draining_of(&self, vs: &VirtualServerKey) -> Vec<RealServerOf>;

    /// How long the removed real servers of a virtual server may keep their connections.
    fn drain_limit(&self, key: &VirtualServerKey) -> Duration;

    /// The steps that delete drained real servers.
    fn plan_drained(&self, idle: &BTreeSet<RealServerOf>) -> Plan<Self::Step>;

    /// The real server that a step changes.
    fn real_server_of(&self, step: &Self::Step) -> Option<RealServerOf>;
}

/// A mode whose batches the kernel takes or refuses as a whole.
pub trait Isolation {
    /// The next plan bisects the rejected batch and should follow at once.
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
    /// The virtual server or frontend, as the mode names it.
    pub place: String,
}
