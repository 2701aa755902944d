// SPDX-License-Identifier: Apache-2.0
//! The sync loop: take in changes, plan, apply, report, and observe again where belief is in doubt.
//!
//! One task owns the tracker, the planners and the kernel's handle; nothing is shared and nothing
//! is locked. It runs on its own thread, because netlink calls block.

mod audit;
mod audits;
pub mod context;
mod drain;
mod family;
pub mod health_checks;
mod holders;
mod link_watch;
pub mod loopback_ports;
mod network_warnings;
mod node;
mod node_warnings;
pub mod observer;
pub mod plan_text;
mod previous_mode;
pub mod runner;
mod schedulers;
mod served;
mod service_errors;
pub mod show;
pub mod sync_loop;
mod turns;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, info, info_span, warn};

use crate::clock::Clock;
use crate::config::settings::Settings;
use crate::dataplane::kernel::{AuditDepth, IpvsKernel, Kernel, ServerKernel};
use crate::reported_once::ReportedOnce;
use crate::source::Update;
use crate::telemetry::ErrorChain;
use kpr_core::model::{IpFamily, Tracker};
use kpr_core::plan::explain::Explanation;
use kpr_core::plan::ipvs::object::SyncRole;
use kpr_core::plan::leftovers::cleanup::Facts;
use kpr_core::plan::ruleset::InvalidChainName;
use kpr_core::plan::{Context, Planner};

use audits::Audits;
use context::{Missing, NodeFacts, NodeView, context};
use family::{Done, Family, Surroundings, Trigger};
use health_checks::HealthChecks;
pub use link_watch::Gone;
use loopback_ports::LoopbackPorts;
use observer::Observer;
use previous_mode::PreviousMode;
use runner::{Pace, Runner};
use schedulers::Schedulers;
use served::Served;
use show::{Explain, Owner, Question, Shown, TooMany};
use turns::Turns;

/// How often connections of draining real servers are polled.
const DRAIN_PERIOD: Duration = Duration::from_secs(1);

/// How often rules are checked for changes by other programs, without starting a process.
const WATCH_PERIOD: Duration = Duration::from_secs(1);

/// The loop turns so often while it waits, so that one that hangs is told from one that has nothing
/// to do. A shorter sync period makes it more often.
const TURN_PERIOD: Duration = Duration::from_secs(1);

/// The inputs of the loop.
#[derive(Debug)]
pub enum Input {
    Source(Update),
    /// Addresses or links of the node changed.
    NodeAddresses,
    /// Addresses are gone from the node's links or from its routing.
    AddressesGone(Gone),
    /// New settings of the same mode.
    Settings(Arc<Settings>),
    /// A request for what the loop knows.
    Show(Question, oneshot::Sender<Shown>),
    /// A request for what connections meet.
    Explain(Explain, oneshot::Sender<Result<Vec<Explanation>, TooMany>>),
    /// A request for whose virtual servers there are; of counted Services alone if it says so.
    Owners(bool, oneshot::Sender<Vec<Owner>>),
}

impl From<Update> for Input {
    fn from(update: Update) -> Self {
        Self::Source(update)
    }
}

/// Settings and dependencies of the loop.
#[derive(Debug)]
pub struct Parts<P, K> {
    pub settings: Arc<Settings>,
    /// The families to serve; the first one manages what all share.
    pub families: Vec<IpFamily>,
    pub facts: NodeFacts,
    /// Creates the planner of a family.
    pub planner: fn(Context) -> Result<P, InvalidChainName>,
    pub kernel: K,
    /// The pauses between rounds.
    pub pace: Pace,
    /// The kernel as IPVS mode uses it, if another mode serves now and IPVS mode left objects.
    pub previous: Option<Box<dyn IpvsKernel>>,
    pub clock: Clock,
    pub observer: Arc<dyn Observer>,
}

/// See the module.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent conditions")]
pub struct Reconciler<P: Planner, K> {
    settings: Arc<Settings>,
    served: Vec<Served<P>>,
    facts: NodeFacts,
    facts_changed: bool,
    /// Who has which address may have changed.
    holders_due: bool,
    node_listed: bool,
    /// At least one round has run.
    is_started: bool,
    warnings: ReportedOnce<String>,
    tracker: Tracker,
    kernel: K,
    previous: Option<PreviousMode>,
    clock: Clock,
    observer: Arc<dyn Observer>,
    runner: Runner,
    audits: Audits,
    next_watch: Duration,
    next_drain: Duration,
    schedulers: Schedulers,
    turns: Turns,
}

impl<P: Planner, K: Kernel<P>> Reconciler<P, K> {
    /// Fails only if a constant chain name is invalid.
    pub fn new(parts: Parts<P, K>) -> Result<Self, InvalidChainName> {
        let Parts {
            settings,
            families,
            facts,
            planner,
            kernel,
            pace,
            previous,
            clock,
            observer,
        } = parts;
        let node = NodeView::new(&settings, &facts);
        let serve = |(index, family)| {
            Ok(Served {
                family: Family::new(planner(context(node, family, index == 0))?),
                health_checks: HealthChecks::new(family, node),
                has_new_checks: true,
                loopback_ports: LoopbackPorts::new(family, node),
            })
        };
        let families = families.into_iter().enumerate();
        let served = families.map(serve).collect::<Result<_, _>>()?;
        let now = clock.monotonic();
        Ok(Self {
            runner: Runner::new(settings.sync.min_period, settings.sync.period).at(pace),
            audits: Audits::new(now + settings.sync.period),
            next_watch: now + WATCH_PERIOD,
            next_drain: now,
            schedulers: Schedulers::default(),
            turns: Turns::default(),
            served,
            facts,
            facts_changed: false,
            holders_due: true,
            node_listed: false,
            is_started: false,
            warnings: ReportedOnce::default(),
            tracker: Tracker::default(),
            kernel,
            previous: previous.map(PreviousMode::new),
            clock,
            observer,
            settings,
        })
    }

    fn families(&self) -> impl Iterator<Item = &Family<P>> {
        self.served.iter().map(|served| &served.family)
    }

    /// Calls `work` with one family after the other, each in its log span.
    fn with_families(
        &mut self,
        mut work: impl FnMut(&mut Family<P>, &mut Surroundings<'_, K>) -> bool,
    ) -> bool {
        let mut succeeded = true;
        let mut around = Surroundings {
            kernel: &mut self.kernel,
            clock: &self.clock,
            observer: &*self.observer,
        };
        for Served { family, .. } in &mut self.served {
            let _span = info_span!("sync", family = %family.family()).entered();
            succeeded &= work(family, &mut around);
        }
        succeeded
    }

    /// Runs until the inputs end or `stop` is true. A round in flight is finished.
    pub async fn run(mut self, mut inputs: mpsc::Receiver<Input>, mut stop: watch::Receiver<bool>) {
        loop {
            let turn = TURN_PERIOD.min(self.settings.sync.period / 2);
            let pause = self.pause().map_or(turn, |pause| pause.min(turn));
            tokio::select! {
                biased;
                _ = stop.wait_for(|stopped| *stopped) => break,
                input = inputs.recv() => match input {
                    Some(input) => self.take_in(input),
                    None => break,
                },
                () = tokio::time::sleep(pause) => {}
            }
            // All waiting inputs go into the same round.
            while let Ok(input) = inputs.try_recv() {
                self.take_in(input);
            }
            self.work();
        }
        info!("sync loop stopped; kernel state stays in place");
    }

    fn take_in(&mut self, input: Input) {
        if matches!(input, Input::Source(_)) {
            self.observer.input_taken();
        }
        match input {
            Input::Source(Update::Model(event)) => {
                if self.tracker.apply(event) {
                    self.observer.pending(self.tracker.pending());
                    self.request();
                }
            }
            Input::Source(Update::Node(info)) => {
                self.node_listed = true;
                self.observer.node(info.as_ref());
                // After its deletion the last Node object still describes this machine.
                if info.is_some() && self.facts.info != info {
                    self.facts.info = info;
                    self.facts_changed = true;
                }
                self.request();
            }
            Input::Source(Update::Nodes(nodes)) => {
                self.facts.nodes = Some(nodes);
                self.holders_due = true;
                self.request();
            }
            Input::Source(Update::ApiServers(addresses)) => {
                self.facts.api_servers = addresses;
                self.holders_due = true;
                self.request();
            }
            Input::Source(Update::ServiceCidrs(ranges)) => {
                if self.facts.service_cidrs != ranges {
                    self.facts.service_cidrs = ranges;
                    self.facts_changed = true;
                    self.request();
                }
            }
            Input::NodeAddresses => {
                if self.look_at_addresses(AuditDepth::Everything) {
                    self.request();
                }
            }
            Input::AddressesGone(gone) => self.watch_link(&gone),
            Input::Settings(settings) => {
                self.runner
                    .set_periods(settings.sync.min_period, settings.sync.period);
                let soonest = self.clock.monotonic() + settings.sync.period;
                self.audits.by(soonest);
                self.settings = settings;
                self.facts_changed = true;
                self.request();
            }
            Input::Show(question, answer) => {
                // A client that disconnected no longer needs the answer.
                drop(answer.send(self.show(&question)));
            }
            Input::Explain(question, answer) => drop(answer.send(self.explain(&question))),
            Input::Owners(counted, answer) => drop(answer.send(self.owners(counted))),
        }
    }

    fn request(&mut self) {
        self.runner.request();
        for family in self.families() {
            self.observer.queued(family.family());
        }
    }

    /// Time until there is work to do without an input.
    fn pause(&self) -> Option<Duration> {
        let now = self.clock.monotonic();
        let mut due: Vec<Duration> = Vec::new();
        if self.is_ready() {
            due.extend(self.runner.due());
            due.extend(self.turns.due());
            due.extend(self.families().filter_map(|it| it.planner.time_due()));
            due.push(self.audits.due());
            due.push(self.next_watch);
            due.extend(self.families().filter_map(Family::look_due));
            due.extend(self.families().filter_map(Family::cleanup_due));
            due.extend(self.families().filter_map(Family::link_look_due));
            let is_looking =
                |family: &Family<P>| family.is_auditing() || family.is_looking_at_draining();
            if self.families().any(is_looking) {
                due.push(now);
            }
            if self.families().any(Family::is_draining) {
                due.push(self.next_drain);
            }
            if self.is_serving() {
                due.extend(self.previous.as_ref().map(PreviousMode::due));
            }
        } else if let Some(missing) = self.missing().filter(|_| self.tracker.is_complete()) {
            due.push(missing.patience());
        }
        due.into_iter().min().map(|due| due.saturating_sub(now))
    }

    /// Whether everything that a correct first round needs is known.
    fn is_ready(&self) -> bool {
        let is_patient = |missing: Missing| self.clock.monotonic() < missing.patience();
        self.tracker.is_complete() && (self.is_started || !self.missing().is_some_and(is_patient))
    }

    fn work(&mut self) {
        self.observer.alive();
        if !self.is_ready() {
            return;
        }
        let now = self.clock.monotonic();
        if self.turns.due().is_some_and(|due| due <= now) {
            self.request();
        }
        let is_time = |it: &Family<P>| it.planner.time_due().is_some_and(|due| due <= now);
        if self.families().any(is_time) {
            for Served { family, .. } in &mut self.served {
                family.planner.set_time(now);
            }
            self.request();
        }
        // One that takes longer than the period is finished first, or its rest would never be
        // audited.
        let is_audit = now >= self.audits.due() && !self.families().any(Family::is_auditing);
        if self.runner.due().is_some_and(|due| due <= now) || is_audit {
            self.round(is_audit);
        }
        self.clean_flows();
        self.audit_slice();
        self.watch_rules();
        self.look_at_link();
        self.drain();
        self.remove_previous();
        self.observer.cost(&self.kernel.cost());
    }

    /// Whether the last round succeeded: the kernel serves in this mode.
    fn is_serving(&self) -> bool {
        self.is_started && self.runner.failures() == 0
    }

    /// Removes what another mode left, once this mode serves.
    fn remove_previous(&mut self) {
        let now = self.clock.monotonic();
        let is_serving = self.is_serving();
        let Some(previous) = self.previous.as_mut().filter(|it| it.due() <= now) else {
            return;
        };
        let facts = Facts {
            node_addresses: self.facts.around.addresses.clone(),
            exclude_cidrs: self.settings.ipvs.exclude_cidrs.clone(),
            node_port_range: self.settings.node_port_range,
        };
        if is_serving && previous.look(now, &facts) {
            self.previous = None;
            self.facts.leaves_ipvs = false;
            self.facts_changed = true;
            self.request();
        }
    }

    /// One round over all families.
    fn round(&mut self, is_audit: bool) {
        self.start();
        let start = self.clock.monotonic();
        self.runner.begin(start);
        let audit = is_audit.then(|| {
            let servers = self.kernel.servers();
            let has_outline = servers.is_some();
            servers.into_iter().for_each(ServerKernel::begin_audit);
            self.audits
                .begin(start, has_outline, self.settings.sync.period)
        });
        if let Some(depth) = audit {
            // Nothing notifies about a route that changes alone.
            self.look_at_addresses(depth);
        }
        self.renew_holders(is_audit);
        let mut changes = self.tracker.take();
        self.turns.admit(&mut changes.services, start);
        self.observer.changes_taken(&changes);
        let (services, slices) = self.tracker.counts();
        self.observer.known(services, slices);
        self.look_for_schedulers(&changes, is_audit);
        if std::mem::take(&mut self.facts_changed) {
            self.renew_contexts();
        }
        let trigger = Trigger {
            audit,
            changes: &changes,
        };
        let mut large = BTreeSet::new();
        for served in &mut self.served {
            large.append(&mut served.update(&self.tracker, &changes));
        }
        // A first failure may pass; who waits for what the kernel refuses waits for ever.
        let least = if self.runner.failures() == 0 {
            Done::Everything
        } else {
            Done::Most
        };
        let mut serving = Vec::new();
        let succeeded = self.with_families(|family, around| {
            let done = family.round(around, trigger);
            serving.push(done >= least);
            done == Done::Everything
        });
        let families = self.served.iter_mut().zip(serving);
        for (served, _) in families.filter(|(_, is_serving)| *is_serving) {
            served.publish(&*self.observer);
        }
        self.report_shared();
        if is_audit {
            self.audited_since(start);
        }
        let end = self.clock.monotonic();
        self.turns.follow(large, end.saturating_sub(start), end);
        self.runner.end(end, succeeded);
        if !succeeded {
            warn!(failures = self.runner.failures(), "sync failed, will retry");
        } else if self.families().any(Family::is_pending) {
            self.request();
            if self.families().any(Family::goes_on) {
                self.runner.go_on();
            }
        }
    }

    /// The first family has what all share.
    fn report_shared(&self) {
        let Some(first) = self.families().next() else {
            return;
        };
        let refused = first.planner.refused_sysctls();
        for key in first.context().sysctls.keys() {
            self.observer.sysctl_written(key, !refused.contains(key));
        }
        if self.settings.ipvs.sync.is_some() {
            let running = first.planner.sync_daemons();
            for role in SyncRole::ALL {
                self.observer.sync_daemon(role, running.contains(&role));
            }
        }
    }

    /// Audits may take no more than their share of the time.
    fn audited_since(&mut self, start: Duration) {
        let now = self.clock.monotonic();
        self.audits.took(now.saturating_sub(start), now);
        if self.families().any(|it| it.has_drifted_since(start)) {
            self.audits.suspect();
        }
    }

    fn audit_slice(&mut self) {
        if !self.families().any(Family::is_auditing) {
            return;
        }
        let start = self.clock.monotonic();
        let mut is_done = false;
        let succeeded = self.with_families(|family, around| {
            if is_done || !family.is_auditing() {
                return true;
            }
            is_done = true;
            family.audit_slice(around)
        });
        self.audited_since(start);
        if !succeeded {
            self.runner.failed(self.clock.monotonic());
        }
    }

    /// Checks whether another program changed rules, and reads those that it may have changed.
    fn watch_rules(&mut self) {
        let now = self.clock.monotonic();
        if now >= self.next_watch {
            self.next_watch = now + WATCH_PERIOD;
            for Served { family, .. } in &mut self.served {
                family.watch_rules(&mut self.kernel);
            }
        }
        let is_due = |family: &Family<P>| family.look_due().is_some_and(|due| due <= now);
        if !self.families().any(is_due) {
            return;
        }
        let succeeded =
            self.with_families(|family, around| !is_due(family) || family.look_at_rules(around));
        if !succeeded {
            self.runner.failed(self.clock.monotonic());
        }
    }

    fn renew_contexts(&mut self) {
        let node = NodeView::new(&self.settings, &self.facts);
        for (index, served) in self.served.iter_mut().enumerate() {
            let context = context(node, served.family.family(), index == 0);
            if let Err(error) = served.family.set_context(context, &self.tracker) {
                warn!(error = %ErrorChain(&error), "failed to apply a node change");
            }
            served.set_node(node);
        }
        self.report_warnings();
        debug!("node facts changed");
    }

    /// Polls some of the draining real servers: those of the last round at once, all of them once
    /// per period, and no virtual server more than once per period.
    fn drain(&mut self) {
        let now = self.clock.monotonic();
        if now >= self.next_drain && self.families().any(Family::is_draining) {
            self.next_drain = now + DRAIN_PERIOD;
            for Served { family, .. } in &mut self.served {
                family.look_at_draining(&self.clock);
            }
        }
        if !self.families().any(Family::is_looking_at_draining) {
            return;
        }
        let mut is_done = false;
        self.with_families(|family, around| {
            if !is_done && family.is_looking_at_draining() {
                is_done = true;
                family.drain_slice(around);
            }
            true
        });
        self.observer
            .draining(self.families().map(Family::draining).sum());
        // The last connection of a deleted Service takes its virtual server and address with it.
        if self.families().any(Family::is_pending) {
            self.request();
        }
    }
}

#[cfg(test)]
mod tests;
