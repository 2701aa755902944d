// SPDX-License-Identifier: Apache-2.0
//! The rounds of one family.

mod auditing;
mod done;
mod flows;
pub(super) mod link;
mod report;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use tracing::{debug, error, info, warn};

pub(super) use done::Done;

use super::audit::Audit;
use super::drain::DrainQueue;
use super::observer::{Applied, Observer, Round};
use super::service_errors::ServiceErrors;
use crate::clock::Clock;
use crate::dataplane::kernel::{AuditDepth, Kernel, ObserveError};
use crate::line_limit::LineLimit;
use crate::reported_once::ReportedOnce;
use crate::telemetry::ErrorChain;
use kpr_core::model::{Changes, Cut, IpFamily, ServiceName, ServicePortName, ServiceView, Tracker};
use kpr_core::plan::conntrack::flows::Flows;
use kpr_core::plan::mode::{Conflict, Isolation};
use kpr_core::plan::ruleset::{ChainId, Edit, InvalidChainName, Table};
use kpr_core::plan::unmet::Unmet;
use kpr_core::plan::{Context, Drift, FailureKind, Plan, Planner, Report, Step};

/// Maximum number of failed steps logged for one plan.
const LOGGED_FAILURES: usize = 10;

/// Maximum number of endpoints logged whose connections are cut at one time.
const LOGGED_CUTS: usize = 10;

/// How long real servers are read before waiting changes get their turn.
const SLICE: Duration = Duration::from_millis(5);

/// Re-reading rules that other programs may have changed may use one part in this many of the time,
/// if they turn out unchanged.
const LOOK_SHARE: u32 = 20;

/// The same if they did change: repeatedly flushed rules are restored soon, but not at the cost of
/// a whole CPU.
const REPAIR_SHARE: u32 = 4;

/// Number of virtual servers between two checks of the clock.
const CHECKED_AT_ONCE: usize = 8;

/// The Services that every other part of a cluster needs; they are served before all others.
fn first_services() -> [ServiceName; 3] {
    [
        ServiceName::new("default", "kubernetes"),
        ServiceName::new("kube-system", "kube-dns"),
        ServiceName::new("kube-system", "coredns"),
    ]
}

/// The reason for a round.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trigger<'a> {
    /// The round is an audit.
    pub(super) audit: Option<AuditDepth>,
    pub(super) changes: &'a Changes,
}

/// Maximum number of plans in one round to find what the kernel rejects, and how long they may take
/// before changes that wait get their turn: a batch that does not end takes a minute or more.
const MAX_ISOLATION: usize = 32;
const ISOLATION_TIME: Duration = Duration::from_secs(5);

/// The environment of a round.
pub(super) struct Surroundings<'a, K> {
    pub(super) kernel: &'a mut K,
    pub(super) clock: &'a Clock,
    pub(super) observer: &'a dyn Observer,
}

/// The extent of an observation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ObserveScope {
    /// Everything that a plan may change.
    Everything,
    /// The first part of a sliced audit, or all that it is if it is of an outline.
    Summary(AuditDepth),
    /// Everything but rules that nobody seems to have changed.
    Audit,
    /// iptables rules only.
    Rules,
    /// Our link and its addresses only.
    Link,
}

/// Number of rules by table.
#[derive(Clone, Copy, Debug, Default)]
struct RuleCounts {
    nat: usize,
    filter: usize,
}

impl RuleCounts {
    fn add<S: Step>(&mut self, plan: &Plan<S>) {
        for step in plan.steps() {
            for edit in step.edits() {
                let count = match edit {
                    Edit::Replace { rules, .. } => rules.len(),
                    Edit::Prepend { .. } | Edit::Append { .. } => 1,
                    Edit::Delete { .. } | Edit::DeleteChain { .. } => 0,
                };
                match edit.table() {
                    Table::Nat => self.nat += count,
                    Table::Filter => self.filter += count,
                    Table::Raw | Table::Mangle | Table::Security | Table::Own => {}
                }
            }
        }
    }
}

/// One family's planner and what is known of its kernel.
#[derive(Debug)]
pub(super) struct Family<P: Planner> {
    pub(super) planner: P,
    flows: Flows,
    /// Earliest time of the next search for stale flows.
    next_cleanup: Duration,
    /// The same, if a round did not search because it was too early.
    cleanup_left: Option<Duration>,
    /// The kernel must be observed before the next plan.
    pub(super) is_unknown: bool,
    /// No round has succeeded yet.
    is_first: bool,
    audit: Audit,
    drains: DrainQueue,
    /// The planner's revision when conflicts and unmet requests were last reported.
    reported: Option<u64>,
    pub(super) conflicts: ReportedOnce<Conflict>,
    pub(super) unmet: ReportedOnce<(ServicePortName, Unmet)>,
    pub(super) cuts: ReportedOnce<(ServiceName, Cut)>,
    /// Of what is reported about Services.
    lines: LineLimit,
    quarantined: ReportedOnce<ServicePortName>,
    undeletable: ReportedOnce<ChainId>,
    pub(super) errors: ServiceErrors,
    /// Another program may have changed rules.
    is_suspect: bool,
    /// Earliest time to read rules again because of that.
    next_look: Duration,
    /// Our link, and the addresses on it.
    link: link::LinkWatch,
    /// When drift was last found.
    drifted: Option<Duration>,
    /// Number of rules written by the present round.
    written: RuleCounts,
    /// How long the last plan took to apply.
    apply_time: Duration,
}

impl<P: Planner> Family<P> {
    pub(super) fn new(planner: P) -> Self {
        let context = planner.context();
        Self {
            flows: Flows::new(context.family, context.node_port_addresses.clone()),
            next_cleanup: Duration::ZERO,
            cleanup_left: None,
            planner,
            is_unknown: true,
            is_first: true,
            audit: Audit::default(),
            drains: DrainQueue::default(),
            reported: None,
            conflicts: ReportedOnce::default(),
            unmet: ReportedOnce::default(),
            cuts: ReportedOnce::default(),
            lines: LineLimit::default(),
            quarantined: ReportedOnce::default(),
            undeletable: ReportedOnce::default(),
            errors: ServiceErrors::default(),
            is_suspect: false,
            next_look: Duration::ZERO,
            link: link::LinkWatch::default(),
            drifted: None,
            written: RuleCounts::default(),
            apply_time: Duration::ZERO,
        }
    }

    pub(super) fn context(&self) -> &Context {
        self.planner.context()
    }

    pub(super) fn family(&self) -> IpFamily {
        self.context().family
    }

    pub(super) fn set_context(
        &mut self,
        context: Context,
        tracker: &Tracker,
    ) -> Result<(), InvalidChainName> {
        self.flows
            .set_node_port_addresses(&context.node_port_addresses);
        self.planner.set_context(context, tracker)
    }

    pub(super) fn update(&mut self, changed: &ServiceView<'_>, tracker: &Tracker) {
        self.planner.update(changed, tracker);
        self.flows.update(changed);
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining() > 0
    }

    pub(super) fn draining(&self) -> usize {
        let drains = self.planner.drains();
        drains.map_or(0, |drains| drains.draining().len())
    }

    pub(super) fn is_pending(&self) -> bool {
        self.planner.is_pending()
    }

    /// Whether the next plan goes on with the work of the last one.
    pub(super) fn goes_on(&self) -> bool {
        self.planner.goes_on()
    }

    fn is_isolating(&self) -> bool {
        self.planner
            .isolation()
            .is_some_and(Isolation::is_isolating)
    }

    /// Replaces belief by the state of the kernel.
    pub(super) fn observe<K: Kernel<P>>(
        &mut self,
        kernel: &mut K,
        scope: ObserveScope,
    ) -> Result<(), ObserveError> {
        let family = self.family();
        match scope {
            ObserveScope::Audit => {
                let belief = self.planner.rules().filter(|_| !self.is_suspect);
                if let (Some(belief), Some(kernel)) = (belief, kernel.rules())
                    && let Some(settings) = kernel.observe_settings(family)?
                {
                    belief.observed_settings(settings);
                } else {
                    self.observe(kernel, ObserveScope::Everything)?;
                }
            }
            ObserveScope::Everything => {
                self.planner.observed(kernel.observe(family)?);
                self.audit.stop();
                self.is_unknown = false;
                self.is_suspect = false;
                self.link.is_suspect = false;
            }
            ObserveScope::Link => {
                if let (Some(belief), Some(kernel)) = (self.planner.link(), kernel.servers()) {
                    let found = kernel.observe_link(family)?;
                    let addresses = self.link.served(&found, family);
                    belief.observed_link(found.exists, addresses);
                }
            }
            ObserveScope::Rules => {
                if let (Some(belief), Some(kernel)) = (self.planner.rules(), kernel.rules()) {
                    belief.observed_rules(kernel.observe_rules(family)?);
                    if let Some(sets) = kernel.observe_sets(family)? {
                        belief.observed_sets(sets);
                    }
                }
                self.is_suspect = false;
            }
            ObserveScope::Summary(depth) => {
                if let (Some(belief), Some(servers)) =
                    (self.planner.sliced_audit(), kernel.servers())
                {
                    let state = servers.observe_summary(family, depth)?;
                    let new = match depth {
                        AuditDepth::Outline => belief.observed_outline(state),
                        AuditDepth::Everything => belief.observed_summary(state),
                    };
                    if !new.is_empty() {
                        belief.observed_virtual_servers(servers.observe_virtual_servers(&new)?);
                    }
                    if depth == AuditDepth::Everything {
                        self.audit.begin(servers, family, belief.audited());
                    }
                }
            }
        }
        Ok(())
    }

    /// Plans and applies.
    pub(super) fn round<K: Kernel<P>>(
        &mut self,
        around: &mut Surroundings<'_, K>,
        trigger: Trigger<'_>,
    ) -> Done {
        let (family, start) = (self.family(), around.clock.monotonic());
        around.observer.round_started(family);
        self.planner.set_time(start);
        let scope = if self.is_unknown {
            Some(ObserveScope::Everything)
        } else {
            let is_sliced =
                self.planner.sliced_audit().is_some() && around.kernel.servers().is_some();
            trigger.audit.map(|depth| {
                if is_sliced {
                    ObserveScope::Summary(depth)
                } else {
                    ObserveScope::Audit
                }
            })
        };
        let is_full = scope.is_some() || self.planner.is_full();
        self.written = RuleCounts::default();
        let is_audit = trigger.audit.is_some() && trigger.changes.is_empty();
        let mut done = self.observe_and_apply(around, is_audit, scope);
        // Bisects the batch to find the rule that the kernel rejects; other Services wait.
        for _ in 0..MAX_ISOLATION {
            let elapsed = around.clock.monotonic().saturating_sub(start);
            if !self.is_isolating() || elapsed > ISOLATION_TIME {
                break;
            }
            let scope = self.is_unknown.then_some(ObserveScope::Everything);
            done = self.observe_and_apply(around, false, scope);
        }
        self.report_findings(around.clock, around.observer);
        self.report_quarantined(around.clock, around.observer);
        let written = self.written;
        let rules = self.planner.rules();
        let count = |table, written| Some((rules.as_ref()?.rule_count(table)?, written));
        let rules = count(Table::Nat, written.nat).zip(count(Table::Filter, written.filter));
        around.observer.round(&Round {
            family,
            duration: around.clock.monotonic().saturating_sub(start),
            is_full,
            succeeded: done != Done::Nothing,
            changes: trigger.changes,
            no_local_endpoints: self.planner.no_local_endpoints(),
            set_aside: self.planner.set_aside().len(),
            rules,
        });
        if self.clean_flows(around, done == Done::Everything && !self.is_pending()) {
            done
        } else {
            done.min(Done::Most)
        }
    }

    /// Checks whether another program may have changed rules.
    pub(super) fn watch_rules<K: Kernel<P>>(&mut self, kernel: &mut K) {
        // If the kernel is unknown it will be observed anyway.
        if !self.is_unknown
            && let Some(rules) = kernel.rules()
        {
            self.is_suspect |= rules.rules_have_changed(self.family());
        }
    }

    /// When to re-read rules that another program may have changed; `None` if there are none.
    pub(super) fn look_due(&self) -> Option<Duration> {
        (self.is_suspect && !self.is_unknown).then_some(self.next_look)
    }

    /// Re-reads rules that another program may have changed, and repairs them. Returns whether the
    /// kernel is as desired afterwards.
    pub(super) fn look_at_rules<K: Kernel<P>>(&mut self, around: &mut Surroundings<'_, K>) -> bool {
        let start = around.clock.monotonic();
        let done = self.observe_and_apply(around, true, Some(ObserveScope::Rules));
        let end = around.clock.monotonic();
        let share = if self.has_drifted_since(start) {
            REPAIR_SHARE
        } else {
            LOOK_SHARE
        };
        self.next_look = end + end.saturating_sub(start) * share;
        done == Done::Everything
    }

    /// `reports_drift`: every difference is the work of another program.
    fn observe_and_apply<K: Kernel<P>>(
        &mut self,
        around: &mut Surroundings<'_, K>,
        reports_drift: bool,
        scope: Option<ObserveScope>,
    ) -> Done {
        let reports_drift = reports_drift && !self.is_unknown && !self.planner.is_pending();
        match scope.map_or(Ok(()), |scope| self.observe(around.kernel, scope)) {
            Ok(()) => self.plan_and_apply(around, reports_drift),
            Err(error) => {
                error!(error = %ErrorChain(&error), "failed to read kernel state");
                Done::Nothing
            }
        }
    }

    fn plan_and_apply<K: Kernel<P>>(
        &mut self,
        around: &mut Surroundings<'_, K>,
        reports_drift: bool,
    ) -> Done {
        if self.is_first
            && let Some(plan) = self.planner.plan_first(&first_services())
        {
            let report = self.apply(around, &plan);
            self.planner.report_part(&plan, &report);
            self.finish(around, plan, &report);
            if self.is_unknown {
                return Done::Nothing;
            }
        }
        let plan = self.planner.plan();
        let report = self.apply(around, &plan);
        let differs = |planner: &P| plan.steps().any(|step| !planner.is_set_aside(step));
        if reports_drift && differs(&self.planner) {
            let drift = Drift::of(&mut self.planner, &plan, &report);
            warn!(found = ?drift.found, "kernel state was changed by another program");
            around.observer.drift(self.family(), &drift);
            self.drifted = Some(around.clock.monotonic());
            self.flows.recheck();
        }
        self.planner.report(&plan, &report);
        self.report_errors(around.clock, around.observer, &plan, &report);
        let mut done = Done::of(&self.planner, &plan, &report);
        self.finish(around, plan, &report);
        if done == Done::Everything && self.is_unknown {
            done = Done::Nothing;
        }
        self.is_first &= done == Done::Nothing;
        done
    }

    fn apply<K: Kernel<P>>(
        &mut self,
        around: &mut Surroundings<'_, K>,
        plan: &Plan<P::Step>,
    ) -> Report {
        if plan.is_empty() {
            return Report::default();
        }
        for step in plan.steps() {
            debug!(%step, "step");
            if step.edits().len() > 1 {
                for edit in step.edits() {
                    debug!(%edit, "edit");
                }
            }
        }
        self.written.add(plan);
        let start = around.clock.monotonic();
        let report = around.kernel.apply(plan);
        self.apply_time = around.clock.monotonic().saturating_sub(start);
        let mut failed = 0;
        for (step, failure) in report.failures(plan) {
            failed += 1;
            if failed <= LOGGED_FAILURES {
                let error = &failure.message;
                if self.planner.is_set_aside(step) {
                    debug!(%step, error, "the kernel still refuses this step");
                // An operator must grant missing privileges.
                } else if failure.kind == FailureKind::Permission {
                    error!(%step, error, "step failed");
                } else {
                    warn!(%step, error, "step failed");
                }
            }
        }
        if failed > LOGGED_FAILURES {
            warn!(
                failed,
                logged = LOGGED_FAILURES,
                "not all failed steps are logged"
            );
        }
        info!(steps = plan.len(), failed, "plan applied");
        report
    }

    /// Follows up on a plan that the planner has taken in: drains, doubt, what is shown.
    fn finish<K: Kernel<P>>(
        &mut self,
        around: &mut Surroundings<'_, K>,
        plan: Plan<P::Step>,
        report: &Report,
    ) {
        around.observer.alive();
        self.planner.took(plan.len(), self.apply_time);
        let now = around.clock.monotonic();
        if let Some(drains) = self.planner.drains() {
            self.drains.follow(drains, plan.steps(), now);
        }
        if !plan.is_empty() {
            let applied = Applied::new(plan, report);
            around.observer.applied(self.family(), applied);
        }
        self.observe_doubtful(around.kernel);
        self.is_unknown |= self.planner.needs_observation();
    }

    /// Observes the virtual servers about which belief is in doubt.
    fn observe_doubtful<K: Kernel<P>>(&mut self, kernel: &mut K) {
        let (Some(belief), Some(kernel)) = (self.planner.sliced_audit(), kernel.servers()) else {
            return;
        };
        let doubtful = belief.take_doubtful();
        if doubtful.is_empty() {
            return;
        }
        match kernel.observe_virtual_servers(&doubtful) {
            Ok(states) => belief.observed_virtual_servers(states),
            Err(error) => {
                warn!(error = %ErrorChain(&error), "failed to read virtual servers");
                self.is_unknown = true;
            }
        }
    }

    /// Whether draining real servers are being polled.
    pub(super) fn is_looking_at_draining(&self) -> bool {
        self.drains.is_looking()
    }

    /// Starts to poll all draining real servers.
    pub(super) fn look_at_draining(&mut self, clock: &Clock) {
        if let Some(drains) = self.planner.drains() {
            self.drains.look_at_all(drains, clock.monotonic());
        }
    }

    /// Polls draining real servers for a short time and deletes those whose connections have ended
    /// or whose limit is over.
    pub(super) fn drain_slice<K: Kernel<P>>(&mut self, around: &mut Surroundings<'_, K>) {
        let start = around.clock.monotonic();
        while self.drains.is_looking() && around.clock.monotonic().saturating_sub(start) < SLICE {
            let (Some(drains), Some(kernel)) = (self.planner.drains(), around.kernel.servers())
            else {
                return self.drains.stop_looking();
            };
            let servers = self.drains.next(drains, CHECKED_AT_ONCE);
            if servers.is_empty() {
                continue;
            }
            let mut done = match kernel.idle(&servers) {
                Ok(idle) => idle,
                Err(error) => {
                    warn!(
                        error = %ErrorChain(&error),
                        "failed to read connection counts of draining endpoints"
                    );
                    return self.drains.stop_looking();
                }
            };
            let overdue = self
                .drains
                .overdue(drains, &servers, around.clock.monotonic());
            let cut = || overdue.difference(&done);
            for (vs, rs) in cut().take(LOGGED_CUTS) {
                info!(%vs, %rs, "drain limit reached, cutting connections");
            }
            if cut().nth(LOGGED_CUTS).is_some() {
                let (all, logged) = (cut().count(), LOGGED_CUTS);
                info!(all, logged, "cutting connections of more endpoints");
            }
            done.extend(overdue);
            let plan = drains.plan_drained(&done);
            let report = self.apply(around, &plan);
            self.planner.report_part(&plan, &report);
            self.finish(around, plan, &report);
        }
    }
}
