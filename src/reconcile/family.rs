// SPDX-License-Identifier: Apache-2.0
//! The rounds of one family.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use tracing::{debug, error, info, warn};

use super::audit::Audit;
use super::drain::Waiting;
use super::observer::{Observer, Round};
use super::troubles::{Refused, Troubles};
use crate::clock::Clock;
use crate::dataplane::kernel::{Kernel, ObserveError, ObserveScope};
use crate::events::{Event, action, reason};
use crate::telemetry::ErrorChain;
use kpr_core::model::ProxyMode;
use kpr_core::model::{Changes, IpFamily, ServiceName, ServicePortName, Tracker};
use kpr_core::plan::conntrack::flows::Flows;
use kpr_core::plan::ipvs::object::VirtualServerKey;
use kpr_core::plan::mode::{Conflict, ModePlanner};
use kpr_core::plan::ruleset::{ChainId, Edit, InvalidChainName, Table};
use kpr_core::plan::step::RuleEdits;
use kpr_core::plan::unmet::Unmet;
use kpr_core::plan::{Context, Drift, FailureKind, Plan, Report, Step};

/// Most failed steps that are logged for one plan.
const LOGGED_FAILURES: usize = 10;

/// How long real servers are looked at before changes are let through.
const SLICE: Duration = Duration::from_millis(5);

/// To read rules that others may have changed may take one part in so many of the time, if they have not changed.
const LOOK_SHARE: u32 = 20;

/// The same if they have: who flushes rules again and again gets them back soon, but not the whole processor.
const REPAIR_SHARE: u32 = 4;

/// Virtual servers between two looks at the clock.
const LOOKED_AT_AT_ONCE: usize = 8;

/// The Services that every other part of a cluster needs; they are served before all others.
fn first_services() -> [ServiceName; 3] {
    [
        ServiceName::new("default", "kubernetes"),
        ServiceName::new("kube-system", "kube-dns"),
        ServiceName::new("kube-system", "coredns"),
    ]
}

/// Why a round happens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trigger<'a> {
    pub(super) is_audit: bool,
    pub(super) changes: &'a Changes,
}

/// Most plans that one round makes to find what the kernel refuses.
const MAX_ISOLATION: usize = 32;

/// Rules by table.
#[derive(Clone, Copy, Debug, Default)]
struct RuleCounts {
    nat: usize,
    filter: usize,
}

impl RuleCounts {
    fn add(&mut self, plan: &Plan) {
        for step in plan.steps() {
            let Step::EditRules(RuleEdits { edits, .. }) = step else {
                continue;
            };
            for edit in edits {
                let count = match edit {
                    Edit::Replace { rules, .. } => rules.len(),
                    Edit::Prepend { .. } | Edit::Append { .. } => 1,
                    Edit::Delete { .. } | Edit::DeleteChain { .. } => 0,
                };
                match edit.table() {
                    Table::Nat => self.nat += count,
                    Table::Filter => self.filter += count,
                    Table::Raw | Table::Mangle => {}
                }
            }
        }
    }
}

/// One family's planner and what is known of its kernel.
#[derive(Debug)]
pub(super) struct Family {
    pub(super) planner: ModePlanner,
    flows: Flows,
    /// The kernel must be observed before the next plan.
    pub(super) is_unknown: bool,
    /// No round has succeeded yet.
    is_first: bool,
    pub(super) conflicts: BTreeSet<Conflict>,
    audit: Audit,
    quarantined: BTreeSet<ServicePortName>,
    /// Chains that could not be deleted.
    undeletable: BTreeSet<ChainId>,
    pub(super) unmet: BTreeSet<(ServicePortName, Unmet)>,
    pub(super) troubles: Troubles,
    waiting: Waiting,
    /// Somebody else may have changed rules.
    is_suspect: bool,
    /// When rules may be read again for that.
    next_look: Duration,
    /// When drift was found last.
    drifted: Option<Duration>,
    /// Rules that the present round wrote.
    written: RuleCounts,
}

impl Family {
    pub(super) fn new(context: Context, mode: ProxyMode) -> Result<Self, InvalidChainName> {
        Ok(Self {
            flows: Flows::new(context.family, context.node_port_addresses.clone()),
            planner: match mode {
                ProxyMode::Ipvs => ModePlanner::ipvs(context)?,
                ProxyMode::Iptables => ModePlanner::iptables(context),
            },
            is_unknown: true,
            is_first: true,
            conflicts: BTreeSet::new(),
            audit: Audit::default(),
            quarantined: BTreeSet::new(),
            undeletable: BTreeSet::new(),
            unmet: BTreeSet::new(),
            troubles: Troubles::default(),
            waiting: Waiting::default(),
            is_suspect: false,
            next_look: Duration::ZERO,
            drifted: None,
            written: RuleCounts::default(),
        })
    }

    pub(super) fn family(&self) -> IpFamily {
        self.planner.family()
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

    pub(super) fn take_in(&mut self, tracker: &Tracker, changes: &Changes) {
        for service in &changes.services {
            self.planner.update(tracker, service);
            self.flows.update(tracker, service);
        }
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining() > 0
    }

    pub(super) fn draining(&self) -> usize {
        self.planner.draining().len()
    }

    pub(super) fn is_pending(&self) -> bool {
        self.planner.is_pending()
    }

    pub(super) fn plan(&self) -> Plan {
        self.planner.plan()
    }

    /// Replaces belief by what the kernel holds.
    pub(super) fn observe(
        &mut self,
        kernel: &mut impl Kernel,
        scope: ObserveScope,
    ) -> Result<(), ObserveError> {
        let state = kernel.observe(self.family(), scope)?;
        match scope {
            ObserveScope::Everything => {
                self.planner.observed(state);
                self.audit.stop();
            }
            ObserveScope::Rules => self.planner.observed_rules(state.rules),
            ObserveScope::Summary => {
                let news = self.planner.observed_summary(state);
                if !news.is_empty() {
                    let states = kernel.observe_virtual_servers(&news)?;
                    self.planner.observed_virtual_servers(states);
                }
                let audited = self.planner.audited();
                self.audit.begin(kernel, self.planner.family(), audited);
            }
        }
        match scope {
            ObserveScope::Everything => {
                self.is_unknown = false;
                self.is_suspect = false;
            }
            ObserveScope::Rules => self.is_suspect = false,
            ObserveScope::Summary => {}
        }
        Ok(())
    }

    /// Plans and applies. Says whether the kernel is now as wanted.
    pub(super) fn round(
        &mut self,
        kernel: &mut impl Kernel,
        clock: &Clock,
        observer: &dyn Observer,
        trigger: Trigger<'_>,
    ) -> bool {
        let start = clock.monotonic();
        observer.round_started(self.family());
        let scope = if self.is_unknown {
            Some(ObserveScope::Everything)
        } else if trigger.is_audit && self.planner.audits_without_rules() {
            Some(ObserveScope::Summary)
        } else if trigger.is_audit {
            Some(ObserveScope::Everything)
        } else {
            None
        };
        let is_full = scope.is_some() || self.planner.is_full();
        self.written = RuleCounts::default();
        let is_audit = trigger.is_audit && trigger.changes.is_empty();
        let mut succeeded = self.observe_and_apply(kernel, clock, observer, is_audit, scope);
        // Others wait while it is looked for what the kernel refuses.
        for _ in 0..MAX_ISOLATION {
            if !self.planner.is_isolating() {
                break;
            }
            let scope = self.is_unknown.then_some(ObserveScope::Everything);
            succeeded = self.observe_and_apply(kernel, clock, observer, false, scope);
        }
        self.tell_conflicts(observer);
        self.tell_set_aside(clock, observer);
        self.report_unmet(observer);
        let count = |table, written| Some((self.planner.rule_count(table)?, written));
        let rules =
            count(Table::Nat, self.written.nat).zip(count(Table::Filter, self.written.filter));
        observer.round(&Round {
            family: self.family(),
            duration: clock.monotonic().saturating_sub(start),
            is_full,
            succeeded,
            changes: trigger.changes,
            no_local_endpoints: self.planner.no_local_endpoints(),
            quarantined: self.quarantined.len(),
            rules,
        });
        succeeded & self.clean_flows(kernel, clock, observer, succeeded)
    }

    /// Deletes the flows that the changes have left behind. If not all changes were made, some may come back: then it is
    /// done again after the next round.
    fn clean_flows(
        &mut self,
        kernel: &mut impl Kernel,
        clock: &Clock,
        observer: &dyn Observer,
        is_final: bool,
    ) -> bool {
        let family = self.family();
        let Some(cleanup) = self.flows.due() else {
            return true;
        };
        let start = clock.monotonic();
        match kernel.delete_flows(&cleanup) {
            Ok(deleted) => {
                observer.flows_cleaned(family, clock.monotonic().saturating_sub(start), deleted);
                if deleted > 0 {
                    info!(%family, deleted, "flows to removed endpoints deleted");
                }
                if is_final {
                    self.flows.done();
                }
                true
            }
            Err(error) => {
                warn!(%family, error = %ErrorChain(&error), "stale flows not deleted");
                false
            }
        }
    }

    /// An audit has begun and not ended.
    pub(super) fn is_auditing(&self) -> bool {
        self.audit.is_running()
    }

    /// Goes on with an audit for a short time, so that changes need not wait for its end. Says
    /// whether the kernel is as wanted, as far as it was looked at.
    pub(super) fn audit_slice(
        &mut self,
        kernel: &mut impl Kernel,
        clock: &Clock,
        observer: &dyn Observer,
    ) -> bool {
        let start = clock.monotonic();
        let mut differs = false;
        while self.is_auditing() && clock.monotonic().saturating_sub(start) < SLICE {
            let planner = &mut self.planner;
            match self.audit.look(kernel, planner, LOOKED_AT_AT_ONCE) {
                Ok(finds) => differs |= finds,
                Err(error) => {
                    warn!(family = %self.family(), error = %ErrorChain(&error), "audit cut short");
                    self.audit.stop();
                }
            }
        }
        !differs || self.plan_and_apply(kernel, clock, observer, true)
    }

    /// Asks whether somebody else may have changed rules.
    pub(super) fn watch_rules(&mut self, kernel: &mut impl Kernel) {
        // One that is unknown is looked at in any case.
        self.is_suspect |= !self.is_unknown && kernel.rules_have_changed(self.family());
    }

    /// When rules that somebody else may have changed are to be looked at; `None` if there are none.
    pub(super) fn look_due(&self) -> Option<Duration> {
        (self.is_suspect && !self.is_unknown).then_some(self.next_look)
    }

    /// Looks at rules that somebody else may have changed, and makes what is missing. Says whether the kernel is as
    /// wanted then.
    pub(super) fn look_at_rules(
        &mut self,
        kernel: &mut impl Kernel,
        clock: &Clock,
        observer: &dyn Observer,
    ) -> bool {
        let start = clock.monotonic();
        let succeeded =
            self.observe_and_apply(kernel, clock, observer, true, Some(ObserveScope::Rules));
        let end = clock.monotonic();
        let has_drifted = self.drifted.is_some_and(|when| when >= start);
        let share = if has_drifted {
            REPAIR_SHARE
        } else {
            LOOK_SHARE
        };
        self.next_look = end + end.saturating_sub(start) * share;
        succeeded
    }

    /// `tells_drift`: nothing has changed but what others changed.
    fn observe_and_apply(
        &mut self,
        kernel: &mut impl Kernel,
        clock: &Clock,
        observer: &dyn Observer,
        tells_drift: bool,
        scope: Option<ObserveScope>,
    ) -> bool {
        let tells_drift = tells_drift && !self.is_unknown && !self.planner.is_pending();
        match scope.map_or(Ok(()), |scope| self.observe(kernel, scope)) {
            Ok(()) => self.plan_and_apply(kernel, clock, observer, tells_drift),
            Err(error) => {
                error!(family = %self.family(), error = %ErrorChain(&error), "kernel not observed");
                false
            }
        }
    }

    fn plan_and_apply(
        &mut self,
        kernel: &mut impl Kernel,
        clock: &Clock,
        observer: &dyn Observer,
        tells_drift: bool,
    ) -> bool {
        if self.is_first {
            let plan = self.planner.plan_first(&first_services());
            let report = self.apply(kernel, observer, &plan);
            let doubtful = self.planner.report_part(&plan, &report);
            self.look_again(kernel, &doubtful);
            self.is_unknown |= self.planner.needs_observation();
            if self.is_unknown {
                return false;
            }
        }
        let plan = self.planner.plan();
        let report = self.apply(kernel, observer, &plan);
        let now = clock.monotonic();
        if tells_drift && !plan.is_empty() {
            let drift = Drift::of(&self.planner, &plan, &report);
            warn!(family = %self.family(), found = ?drift.found, "kernel was changed by others");
            observer.drift(self.family(), &drift);
            self.drifted = Some(now);
            self.flows.recheck();
        }
        self.follow_troubles(clock, observer, &plan, &report);
        let doubtful = self.planner.report(&plan, &report);
        self.waiting.follow(&self.planner, &plan, now);
        self.look_again(kernel, &doubtful);
        self.is_unknown |= self.planner.needs_observation();
        let succeeded = report.is_success() && !self.is_unknown;
        self.is_first &= !succeeded;
        succeeded
    }

    fn apply(&mut self, kernel: &mut impl Kernel, observer: &dyn Observer, plan: &Plan) -> Report {
        let family = self.family();
        if plan.is_empty() {
            return Report::default();
        }
        for step in plan.steps() {
            debug!(%family, %step, "step");
            if step.edits().len() > 1 {
                for edit in step.edits() {
                    debug!(%family, %edit, "edit");
                }
            }
        }
        self.written.add(plan);
        let report = kernel.apply(plan);
        let mut failed = 0;
        for (step, failure) in report.failures(plan) {
            failed += 1;
            if failed <= LOGGED_FAILURES {
                let error = &failure.message;
                // More privileges do not come by themselves: somebody must act.
                if failure.kind == FailureKind::Permission {
                    error!(%family, %step, error, "step failed");
                } else {
                    warn!(%family, %step, error, "step failed");
                }
            }
        }
        if failed > LOGGED_FAILURES {
            warn!(%family, failed, "more steps failed");
        }
        info!(%family, steps = plan.len(), failed, "plan applied");
        observer.applied(family, plan, &report);
        report
    }

    /// Observes the virtual servers about which belief is in doubt.
    fn look_again(&mut self, kernel: &mut impl Kernel, doubtful: &BTreeSet<VirtualServerKey>) {
        if doubtful.is_empty() {
            return;
        }
        match kernel.observe_virtual_servers(doubtful) {
            Ok(states) => self.planner.observed_virtual_servers(states),
            Err(error) => {
                warn!(family = %self.family(), error = %ErrorChain(&error), "kernel not observed");
                self.is_unknown = true;
            }
        }
    }

    /// Draining real servers are being looked at.
    pub(super) fn is_looking_at_draining(&self) -> bool {
        self.waiting.is_looking()
    }

    /// All draining real servers are to be looked at.
    pub(super) fn look_at_draining(&mut self, clock: &Clock) {
        self.waiting.look_at_all(&self.planner, clock.monotonic());
    }

    /// Looks at draining real servers for a short time and deletes those whose connections have ended or
    /// whose time is over.
    pub(super) fn drain_slice(
        &mut self,
        kernel: &mut impl Kernel,
        clock: &Clock,
        observer: &dyn Observer,
    ) {
        let start = clock.monotonic();
        while self.waiting.is_looking() && clock.monotonic().saturating_sub(start) < SLICE {
            let servers = self.waiting.next(&self.planner, LOOKED_AT_AT_ONCE);
            if servers.is_empty() {
                continue;
            }
            let mut done = match kernel.idle(&servers) {
                Ok(idle) => idle,
                Err(error) => {
                    warn!(family = %self.family(), error = %ErrorChain(&error), "drain not looked at");
                    self.waiting.stop_looking();
                    return;
                }
            };
            let now = clock.monotonic();
            let overdue = self.waiting.overdue(&self.planner, &servers, now);
            for (vs, rs) in overdue.difference(&done) {
                info!(family = %self.family(), %vs, %rs, "drain limit reached, connections are cut");
            }
            done.extend(overdue);
            let plan = self.planner.plan_drained(&done);
            let report = self.apply(kernel, observer, &plan);
            let doubtful = self.planner.report_part(&plan, &report);
            self.waiting.follow(&self.planner, &plan, now);
            self.look_again(kernel, &doubtful);
        }
    }

    /// Says once who did not get what two Services claim.
    fn tell_conflicts(&mut self, observer: &dyn Observer) {
        let conflicts = self.planner.conflicts();
        for conflict in conflicts.difference(&self.conflicts) {
            let Conflict {
                loser,
                winner,
                place,
            } = conflict;
            warn!(service = %loser, %winner, %place, "address and port belong to another Service");
            observer.event(Event::service(
                loser.service.clone(),
                reason::ADDRESS_CONFLICT,
                action::PROGRAM,
                format!(
                    "port {loser} does not get {place}: it belongs to {winner}, whose cluster IP it is or which is older"
                ),
            ));
        }
        self.conflicts = conflicts;
    }

    /// Says once what the kernel refuses to whom.
    fn follow_troubles(
        &mut self,
        clock: &Clock,
        observer: &dyn Observer,
        plan: &Plan,
        report: &Report,
    ) {
        let news = self
            .troubles
            .follow(&self.planner, plan, report, clock.now());
        for Refused { port, message } in news {
            observer.event(Event::service(
                port.service.clone(),
                reason::REFUSED_BY_KERNEL,
                action::PROGRAM,
                format!("port {port}: the kernel refuses to {message}"),
            ));
        }
    }

    /// Says once whose rules the kernel refused, and which chains it kept.
    fn tell_set_aside(&mut self, clock: &Clock, observer: &dyn Observer) {
        let quarantined = self.planner.quarantined();
        for service in quarantined.difference(&self.quarantined) {
            error!(family = %self.family(), %service, "kernel refuses its rules, it keeps those that it had");
            self.troubles.quarantined(service, clock.now());
            observer.event(Event::service(
                service.service.clone(),
                reason::REFUSED_BY_KERNEL,
                action::PROGRAM,
                format!(
                    "the kernel refuses the {} rules of port {service}; it keeps those that it had",
                    self.family()
                ),
            ));
        }
        self.quarantined = quarantined;
        let undeletable = self.planner.undeletable_chains();
        for (table, chain) in undeletable.difference(&self.undeletable) {
            warn!(family = %self.family(), %table, %chain, "chain stays, others use it");
        }
        self.undeletable = undeletable;
    }

    /// Says once what a Service asks for and does not get.
    fn report_unmet(&mut self, observer: &dyn Observer) {
        let unmet = self.planner.unmet();
        for (service, unmet) in unmet.difference(&self.unmet) {
            warn!(family = %self.family(), %service, %unmet, "not possible here");
            let reason = match unmet {
                Unmet::SchedulerMissing { .. }
                | Unmet::ClientHashMissing { .. }
                | Unmet::NoSchedulerFlags { .. }
                | Unmet::NoForwarding { .. }
                | Unmet::ForwardingInPart { .. }
                | Unmet::NoMark => reason::SETTING_NOT_POSSIBLE,
                Unmet::NotBound { .. } => reason::ADDRESS_NOT_BOUND,
            };
            observer.event(Event::service(
                service.service.clone(),
                reason,
                action::PROGRAM,
                format!("port {service}, {}: {unmet}", self.family()),
            ));
        }
        let unbound: BTreeSet<IpAddr> = unmet
            .iter()
            .filter_map(|(_, unmet)| match unmet {
                Unmet::NotBound { address, .. } => Some(*address),
                _ => None,
            })
            .collect();
        observer.unbound_addresses(self.family(), unbound.len());
        self.unmet = unmet;
    }
}
