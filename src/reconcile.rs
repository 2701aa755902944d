// SPDX-License-Identifier: Apache-2.0
//! The loop: take in changes, plan, apply, report, look again where belief is in doubt.
//!
//! One task owns the tracker, the planners and the kernel's handle; nothing is shared and nothing
//! is locked. It runs on a thread of its own, because netlink calls block.

mod audit;
pub mod context;
mod doubts;
mod drain;
mod family;
mod former;
pub mod health_checks;
pub mod loopback_ports;
pub mod observer;
pub mod runner;
mod schedulers;
pub mod show;
mod troubles;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, error, info, warn};

use crate::clock::Clock;
use crate::config::settings::Settings;
use crate::dataplane::kernel::{Kernel, ObserveScope};
use crate::events::{Event, action, reason};
use crate::source::Update;
use crate::telemetry::ErrorChain;
use kpr_core::model::ProxyMode;
use kpr_core::model::{Changes, IpFamily, Tracker};
use kpr_core::plan::leftovers::cleanup::Facts;

use context::{Missing, NodeFacts, context};
use family::{Family, Trigger};
use former::Former;
use health_checks::HealthChecks;
use loopback_ports::LoopbackPorts;
use observer::Observer;
use runner::Runner;
use schedulers::Schedulers;
use show::{Question, Shown};

/// How often draining real servers are looked at.
const DRAIN_PERIOD: Duration = Duration::from_secs(1);

/// How often it is asked, without a process, whether others changed rules.
const WATCH_PERIOD: Duration = Duration::from_secs(1);

/// Audits may take one part in so many of the time.
const AUDIT_SHARE: u32 = 100;

/// What reaches the loop from outside.
#[derive(Debug)]
pub enum Input {
    Source(Update),
    /// Addresses or links of the node changed.
    NodeAddresses,
    /// Other settings of the same mode.
    Settings(Arc<Settings>),
    /// Somebody wants to see what the loop knows.
    Show(Question, oneshot::Sender<Shown>),
}

impl From<Update> for Input {
    fn from(update: Update) -> Self {
        Self::Source(update)
    }
}

/// Settings and parts of the loop.
#[derive(Debug)]
pub struct Parts<K> {
    pub settings: Arc<Settings>,
    /// The families to serve; the first one looks after what all share.
    pub families: Vec<IpFamily>,
    pub facts: NodeFacts,
    pub kernel: K,
    /// The kernel as the other mode uses it, if that left something.
    pub former: Option<K>,
    pub clock: Clock,
    pub observer: Arc<dyn Observer>,
}

/// See the module.
#[derive(Debug)]
pub struct Reconciler<K> {
    settings: Arc<Settings>,
    families: Vec<Family>,
    /// Of the families, in the same order.
    health_checks: Vec<HealthChecks>,
    loopback_ports: Vec<LoopbackPorts>,
    facts: NodeFacts,
    facts_changed: bool,
    node_listed: bool,
    /// There was a round.
    is_started: bool,
    /// What was told of them.
    doubts: BTreeSet<String>,
    tracker: Tracker,
    kernel: K,
    former: Option<Former<K>>,
    clock: Clock,
    observer: Arc<dyn Observer>,
    runner: Runner,
    next_audit: Duration,
    next_watch: Duration,
    next_drain: Duration,
    schedulers: Schedulers,
}

impl<K: Kernel> Reconciler<K> {
    /// Fails only if a constant name of a chain is wrong.
    pub fn new(parts: Parts<K>) -> Result<Self, kpr_core::plan::ruleset::InvalidChainName> {
        let Parts {
            settings,
            families,
            facts,
            kernel,
            former,
            clock,
            observer,
        } = parts;
        let health_checks = families
            .iter()
            .map(|family| HealthChecks::new(*family, &settings, &facts))
            .collect();
        let loopback_ports = families
            .iter()
            .map(|family| LoopbackPorts::new(*family, &settings, &facts))
            .collect();
        let families = families
            .into_iter()
            .enumerate()
            .map(|(index, family)| {
                Family::new(
                    context(&settings, &facts, family, index == 0),
                    settings.mode,
                )
            })
            .collect::<Result<_, _>>()?;
        let now = clock.monotonic();
        let runner = Runner::new(settings.sync.min_period, settings.sync.period);
        Ok(Self {
            runner: match settings.mode {
                ProxyMode::Ipvs => runner,
                ProxyMode::Iptables => runner.following_cost(),
            },
            next_audit: now + settings.sync.period,
            next_watch: now + WATCH_PERIOD,
            next_drain: now,
            schedulers: Schedulers::default(),
            families,
            health_checks,
            loopback_ports,
            facts,
            facts_changed: false,
            node_listed: false,
            is_started: false,
            doubts: BTreeSet::new(),
            tracker: Tracker::default(),
            kernel,
            former: former.map(Former::new),
            clock,
            observer,
            settings,
        })
    }

    /// Runs until the inputs end or `stop` says so. A round in flight is finished.
    pub async fn run(mut self, mut inputs: mpsc::Receiver<Input>, mut stop: watch::Receiver<bool>) {
        loop {
            let pause = self.pause();
            tokio::select! {
                biased;
                _ = stop.wait_for(|stopped| *stopped) => break,
                input = inputs.recv() => match input {
                    Some(input) => self.take_in(input),
                    None => break,
                },
                () = sleep_for(pause) => {}
            }
            // Everything that waits goes into the same round.
            while let Ok(input) = inputs.try_recv() {
                self.take_in(input);
            }
            self.work();
        }
        info!("sync loop stopped, the kernel stays as it is");
    }

    fn take_in(&mut self, input: Input) {
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
                // What is known of one that was deleted stays true of this machine.
                if info.is_some() && self.facts.info != info {
                    self.facts.info = info;
                    self.facts_changed = true;
                }
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
                if self.look_at_addresses() {
                    self.request();
                }
            }
            Input::Settings(settings) => {
                self.runner
                    .set_periods(settings.sync.min_period, settings.sync.period);
                let soonest = self.clock.monotonic() + settings.sync.period;
                self.next_audit = self.next_audit.min(soonest);
                self.settings = settings;
                self.facts_changed = true;
                self.request();
            }
            Input::Show(question, answer) => {
                // Who has gone does not want to know any more.
                drop(answer.send(self.show(&question)));
            }
        }
    }

    /// Asks for the node's addresses and gateways. Says whether others are there than before.
    fn look_at_addresses(&mut self) -> bool {
        let found = self.kernel.node_addresses();
        let found = found.and_then(|addresses| Ok((addresses, self.kernel.gateways()?)));
        let (addresses, gateways) = match found {
            Ok(found) => found,
            Err(error) => {
                warn!(error = %ErrorChain(&error), "node addresses unknown");
                return false;
            }
        };
        let is_news = addresses != self.facts.addresses || gateways != self.facts.gateways;
        if is_news {
            self.facts.addresses = addresses;
            self.facts.gateways = gateways;
            self.facts_changed = true;
        }
        is_news
    }

    fn request(&mut self) {
        self.runner.request();
        for family in &self.families {
            self.observer.queued(family.family());
        }
    }

    /// Time until there is something to do without an input.
    fn pause(&self) -> Option<Duration> {
        let now = self.clock.monotonic();
        let mut due: Vec<Duration> = Vec::new();
        if self.is_ready() {
            due.extend(self.runner.due());
            due.push(self.next_audit);
            due.push(self.next_watch);
            due.extend(self.families.iter().filter_map(Family::look_due));
            let is_looking =
                |family: &Family| family.is_auditing() || family.is_looking_at_draining();
            if self.families.iter().any(is_looking) {
                due.push(now);
            }
            if self.families.iter().any(Family::is_draining) {
                due.push(self.next_drain);
            }
            if self.is_serving() {
                due.extend(self.former.as_ref().map(Former::due));
            }
        } else if let Some(missing) = self.missing().filter(|_| self.tracker.is_complete()) {
            due.push(missing.patience());
        }
        due.into_iter().min().map(|due| due.saturating_sub(now))
    }

    /// Everything that a correct first round needs is there.
    fn is_ready(&self) -> bool {
        let is_patient =
            |missing: Missing| !self.is_started && self.clock.monotonic() < missing.patience();
        self.tracker.is_complete() && !self.missing().is_some_and(is_patient)
    }

    fn missing(&self) -> Option<Missing> {
        if self.node_listed {
            self.facts.missing(&self.settings)
        } else {
            Some(Missing::Node)
        }
    }

    /// Says what is missing when the first round does not wait any longer.
    fn start(&mut self) {
        if !std::mem::replace(&mut self.is_started, true) {
            if let Some(missing) = self.missing() {
                error!(%missing, "not waited for any longer");
                self.observer.event(Event::node(
                    reason::NODE_INCOMPLETE,
                    action::START,
                    format!("{missing}; it is taken in when it comes"),
                ));
            }
            self.tell_doubts();
        }
    }

    /// Says once what does not fit together.
    fn tell_doubts(&mut self) {
        let families: Vec<IpFamily> = self.families.iter().map(Family::family).collect();
        let doubts = doubts::doubts(&self.settings, &self.facts, &families);
        for doubt in doubts.difference(&self.doubts) {
            warn!(doubt, "configuration may be wrong for this node");
            self.observer.event(Event::node(
                reason::DOUBTFUL_CONFIGURATION,
                action::CONFIGURE,
                doubt,
            ));
        }
        self.doubts = doubts;
    }

    fn work(&mut self) {
        if !self.is_ready() {
            return;
        }
        let now = self.clock.monotonic();
        // One that takes longer than the period is finished first, or its rest would never be seen.
        let is_audit = now >= self.next_audit && !self.families.iter().any(Family::is_auditing);
        if self.runner.due().is_some_and(|due| due <= now) || is_audit {
            self.round(is_audit);
        }
        self.audit_slice();
        self.watch_rules();
        self.drain();
        self.retire_former();
        self.observer.cost(&self.kernel.cost());
    }

    /// The last round succeeded: the kernel serves as this mode does.
    fn is_serving(&self) -> bool {
        self.is_started && self.runner.failures() == 0
    }

    /// What the other mode left goes when this one serves.
    fn retire_former(&mut self) {
        let now = self.clock.monotonic();
        let is_serving = self.is_serving();
        let Some(former) = self.former.as_mut().filter(|former| former.due() <= now) else {
            return;
        };
        let facts = Facts {
            node_addresses: self.facts.addresses.clone(),
            exclude_cidrs: self.settings.ipvs.exclude_cidrs.clone(),
        };
        if is_serving && former.look(now, &facts) {
            self.former = None;
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
        let changes = self.tracker.take();
        self.observer.changes_taken(&changes);
        let (services, slices) = self.tracker.counts();
        self.observer.known(services, slices);
        self.look_for_schedulers(&changes, is_audit);
        if is_audit {
            // A route that changes alone is told to nobody.
            self.look_at_addresses();
        }
        if std::mem::take(&mut self.facts_changed) {
            self.renew_contexts();
        }
        let mut succeeded = true;
        let told = self.health_checks.iter_mut().zip(&mut self.loopback_ports);
        for (family, (checks, loopback)) in self.families.iter_mut().zip(told) {
            family.take_in(&self.tracker, &changes);
            checks.take_in(&self.tracker, &changes.services);
            loopback.take_in(&self.tracker, &changes.services);
            let trigger = Trigger {
                is_audit,
                changes: &changes,
            };
            let is_synced = family.round(&mut self.kernel, &self.clock, &*self.observer, trigger);
            if is_synced {
                self.observer.health_checks(checks);
                if loopback.take_news() {
                    self.observer.loopback_ports(loopback.wanted());
                }
            }
            succeeded &= is_synced;
        }
        if is_audit {
            let now = self.clock.monotonic();
            let pause = now.saturating_sub(start) * AUDIT_SHARE;
            self.next_audit = now + self.settings.sync.period.max(pause);
        }
        self.runner.end(self.clock.monotonic(), succeeded);
        if succeeded && self.families.iter().any(Family::is_pending) {
            self.request();
        }
        if !succeeded {
            warn!(
                failures = self.runner.failures(),
                "round failed, it will be retried"
            );
        }
    }

    fn audit_slice(&mut self) {
        let auditing = self.families.iter_mut().find(|family| family.is_auditing());
        let Some(family) = auditing else { return };
        if !family.audit_slice(&mut self.kernel, &self.clock, &*self.observer) {
            self.runner.failed(self.clock.monotonic());
        }
    }

    /// Asks whether others changed rules, and looks at those that they may have changed.
    fn watch_rules(&mut self) {
        let now = self.clock.monotonic();
        if now >= self.next_watch {
            self.next_watch = now + WATCH_PERIOD;
            for family in &mut self.families {
                family.watch_rules(&mut self.kernel);
            }
        }
        for family in &mut self.families {
            if family.look_due().is_some_and(|due| due <= now)
                && !family.look_at_rules(&mut self.kernel, &self.clock, &*self.observer)
            {
                self.runner.failed(self.clock.monotonic());
            }
        }
    }

    fn renew_contexts(&mut self) {
        for (index, family) in self.families.iter_mut().enumerate() {
            let context = context(&self.settings, &self.facts, family.family(), index == 0);
            if let Err(error) = family.set_context(context, &self.tracker) {
                warn!(error = %ErrorChain(&error), "node change not taken in");
            }
        }
        self.tell_doubts();
        for checks in &mut self.health_checks {
            checks.set_node(&self.settings, &self.facts);
        }
        for loopback in &mut self.loopback_ports {
            loopback.set_node(&self.settings, &self.facts);
        }
        debug!("node facts changed");
    }

    /// A Service may ask for a scheduler that the kernel lacks: it gets the usual one.
    fn look_for_schedulers(&mut self, changes: &Changes, is_audit: bool) {
        if self.settings.mode != ProxyMode::Ipvs {
            return;
        }
        if is_audit {
            self.schedulers.try_again(&mut self.kernel, &*self.observer);
        }
        self.schedulers
            .follow(&mut self.kernel, &*self.observer, &self.tracker, changes);
        if self.facts.missing_schedulers != *self.schedulers.missing() {
            self.facts.missing_schedulers = self.schedulers.missing().clone();
            self.facts_changed = true;
        }
    }

    /// Looks at some of the draining real servers: those of the last round at once, all of them in every period, no
    /// virtual server more than once in one.
    fn drain(&mut self) {
        let now = self.clock.monotonic();
        if now >= self.next_drain && self.families.iter().any(Family::is_draining) {
            self.next_drain = now + DRAIN_PERIOD;
            for family in &mut self.families {
                family.look_at_draining(&self.clock);
            }
        }
        let mut families = self.families.iter_mut();
        let Some(family) = families.find(|family| family.is_looking_at_draining()) else {
            return;
        };
        family.drain_slice(&mut self.kernel, &self.clock, &*self.observer);
        self.observer
            .draining(self.families.iter().map(Family::draining).sum());
        // The last connection of a Service that is gone takes its virtual server and address along.
        if self.families.iter().any(Family::is_pending) {
            self.request();
        }
    }
}

impl<K: Kernel> Reconciler<K> {
    /// Takes in everything that a source sends until it ends, then says what a full round would do,
    /// without doing it. For `kube-proxy-rs plan`.
    pub fn plan_only(
        mut self,
        updates: Vec<Update>,
    ) -> Result<Vec<kpr_core::plan::Plan>, crate::dataplane::kernel::ObserveError> {
        for update in updates {
            self.take_in(Input::Source(update));
        }
        let mut changes = Changes::default();
        changes
            .services
            .extend(self.tracker.services().map(|service| service.name.clone()));
        self.look_for_schedulers(&changes, false);
        self.renew_contexts();
        let mut plans = Vec::new();
        for family in &mut self.families {
            family.take_in(&self.tracker, &changes);
            family.observe(&mut self.kernel, ObserveScope::Everything)?;
            plans.push(family.plan());
        }
        Ok(plans)
    }
}

/// Sleeps for a time, or for ever.
async fn sleep_for(pause: Option<Duration>) {
    match pause {
        Some(pause) => tokio::time::sleep(pause).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
