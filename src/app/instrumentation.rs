// SPDX-License-Identifier: Apache-2.0
//! The observers of the loop and of the source: metrics, health, Events and `/state`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use prometheus::Registry;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::listening::Published;
use super::status::Overview;
use crate::clock::Clock;
use crate::config::settings::Settings;
use crate::dataplane::kernel::Cost;
use crate::events::{Event, Events, action, reason};
use crate::metrics::{
    self, DataplaneMetrics, DriftState, EventMetrics, HealthMetrics, MetricsError, SourceMetrics,
    SyncMetrics, SyncScope, Table,
};
use crate::reconcile::health_checks::HealthChecks;
use crate::reconcile::loopback_ports;
use crate::reconcile::observer::{Applied, Observer, Round, ShownPlan};
use crate::source::{self, Problem};
use kpr_core::model::ProxyMode;
use kpr_core::model::{Changes, IpFamily, NodeInfo};
use kpr_core::plan::Drift;
use kpr_core::plan::ipvs::object::SyncRole;

/// The metrics of all parts, in one registry.
#[derive(Debug)]
pub(super) struct Metrics {
    pub(super) registry: Registry,
    pub(super) source: SourceMetrics,
    pub(super) sync: SyncMetrics,
    pub(super) dataplane: DataplaneMetrics,
    pub(super) health: HealthMetrics,
    pub(super) events: EventMetrics,
}

impl Metrics {
    pub(super) fn new(settings: &Settings, clock: &Clock) -> Result<Self, MetricsError> {
        let registry = metrics::registry(&settings.kubernetes_version)?;
        if settings.mode == ProxyMode::IPVS {
            metrics::register_ipvs_traffic(&registry)?;
        }
        Ok(Self {
            source: SourceMetrics::register(&registry)?,
            sync: SyncMetrics::register(&registry, settings.mode, clock.clone())?,
            dataplane: DataplaneMetrics::register(&registry)?,
            health: HealthMetrics::register(&registry)?,
            events: EventMetrics::register(&registry)?,
            registry,
        })
    }
}

/// Records what the loop reports.
#[derive(Debug)]
pub(super) struct LoopObserver {
    pub(super) sync: SyncMetrics,
    pub(super) dataplane: DataplaneMetrics,
    pub(super) health_checks: Published<HealthChecks>,
    pub(super) loopback: Published<loopback_ports::Wanted>,
    pub(super) overview: Arc<Overview>,
    pub(super) events: Events,
    /// A node without a Node object is not eligible.
    pub(super) needs_node: bool,
    /// Steps planned since free memory was last returned to the system.
    pub(super) planned: AtomicUsize,
    /// Others publish ports, so that ipvs mode must move its rules to nftables.
    pub(super) published: Arc<Notify>,
}

/// After plans of this size, one large one or many small ones, what they freed is given back.
const RELEASE_AFTER: usize = 1_000;

/// So is what reading as many rules took.
const RELEASE_AFTER_RULES: usize = 10_000;

/// The last plan of each family. Rendered on request.
#[derive(Debug, Default)]
pub(super) struct LastPlans(Mutex<BTreeMap<IpFamily, LastPlan>>);

/// When it was applied, and what it was.
type LastPlan = (Timestamp, Arc<dyn ShownPlan>);

impl LastPlans {
    fn set(&self, family: IpFamily, time: Timestamp, plan: Arc<dyn ShownPlan>) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.insert(family, (time, plan));
    }

    pub(super) fn to_json(&self) -> Value {
        // Copied, so that the loop does not wait for the rendering.
        let last = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let shown = last.into_iter().map(|(family, (time, plan))| {
            let mut shown = plan.to_json();
            if let Value::Object(fields) = &mut shown {
                fields.insert("time".to_owned(), json!(time.to_string()));
            }
            (family.to_string(), shown)
        });
        shown.collect()
    }
}

impl LoopObserver {
    /// Time from a trigger until now. A change that was triggered before we started says nothing
    /// about us.
    fn latency(&self, trigger: i64) -> Option<Duration> {
        let trigger = Timestamp::from_nanosecond(trigger.into()).ok()?;
        let latency = self.overview.clock.now().duration_since(trigger);
        (trigger > self.overview.started)
            .then(|| Duration::try_from(latency).ok())
            .flatten()
    }
}

impl Observer for LoopObserver {
    fn iptables_backend(&self, backend: &'static str, reason: &'static str) {
        let chosen = (backend.to_owned(), reason.to_owned());
        self.overview.iptables.get_or_init(|| chosen);
        self.dataplane.iptables_backend(backend, reason);
    }

    fn ipvs_rules(&self, rules: &'static str, reason: &'static str) {
        self.dataplane.ipvs_rules(rules, reason);
    }

    fn ports_published(&self) {
        self.published.notify_one();
    }

    fn kernel_capability(&self, name: &str, available: bool) {
        self.dataplane.kernel_capability(name, available);
    }

    fn sysctl_written(&self, name: &'static str, ok: bool) {
        self.dataplane.sysctl_written(name, ok);
    }

    fn alive(&self) {
        self.sync.loop_turned();
        self.overview.health.loop_is_alive();
    }

    fn input_taken(&self) {
        self.overview.health.input_taken();
    }

    fn queued(&self, family: IpFamily) {
        self.sync.sync_queued(family);
        self.overview.health.change_queued(family);
    }

    fn ready(&self) {
        self.overview.health.ready();
    }

    fn round_started(&self, family: IpFamily) {
        self.overview.health.round_started(family);
    }

    fn pending(&self, changes: &Changes) {
        self.sync
            .changes_pending(changes.endpoint_changes, changes.service_changes);
    }

    fn changes_taken(&self, changes: &Changes) {
        self.sync.endpoint_changes(changes.endpoint_changes);
        self.sync.service_changes(changes.service_changes);
        self.sync.changes_pending(0, 0);
    }

    fn known(&self, services: usize, endpoint_slices: usize) {
        self.sync.known(services, endpoint_slices);
    }

    fn applied(&self, family: IpFamily, applied: Applied) {
        self.overview
            .state
            .last_plans
            .set(family, self.overview.clock.now(), applied.plan);
        self.planned.fetch_add(applied.size, Ordering::Relaxed);
        for ((kind, ok), count) in applied.counts {
            self.sync.steps_applied(kind, family, ok, count);
        }
        for _ in 0..applied.failed_batches {
            self.sync.restore_failed(family);
        }
    }

    fn drift(&self, _family: IpFamily, drift: &Drift) {
        for (state, counts) in [
            (DriftState::Found, &drift.found),
            (DriftState::Repaired, &drift.repaired),
        ] {
            for (kind, count) in counts {
                self.dataplane.drift(kind, state, *count);
            }
        }
    }

    fn round(&self, round: &Round<'_>) {
        let read = round.rules.filter(|_| round.is_full);
        let read = read.map_or(0, |((nat, _), (filter, _))| nat + filter);
        let planned = self.planned.load(Ordering::Relaxed);
        if planned >= RELEASE_AFTER || read >= RELEASE_AFTER_RULES {
            self.planned.store(0, Ordering::Relaxed);
            crate::memory::release();
        }
        self.overview.rounds.add(self.overview.clock.now(), round);
        let scope = if round.is_full {
            SyncScope::Full
        } else {
            SyncScope::Partial
        };
        self.sync
            .sync_finished(round.family, scope, round.duration, round.succeeded);
        let (internal, external) = round.no_local_endpoints;
        self.sync
            .no_local_endpoints(round.family, internal, external);
        self.sync.refused(round.family, round.set_aside);
        if let Some(((nat, nat_written), (filter, filter_written))) = round.rules {
            self.sync
                .iptables_rules(round.family, Table::Nat, nat, nat_written);
            self.sync
                .iptables_rules(round.family, Table::Filter, filter, filter_written);
        }
        if round.succeeded {
            self.overview.health.round_succeeded(round.family);
            let mine = round
                .changes
                .triggers
                .iter()
                .filter(|(family, _)| *family == round.family);
            for latency in mine.filter_map(|(_, trigger)| self.latency(*trigger)) {
                self.sync.network_programmed(round.family, latency);
            }
        } else {
            self.overview.health.round_failed(round.family);
        }
    }

    fn flows_cleaned(&self, family: IpFamily, duration: Duration, deleted: usize) {
        self.sync.conntrack_cleaned(family, duration, deleted);
    }

    fn unbound_addresses(&self, family: IpFamily, addresses: usize) {
        self.dataplane.unbound_addresses(family, addresses);
    }

    fn sync_daemon(&self, role: SyncRole, runs: bool) {
        self.dataplane.sync_daemon(role, runs);
    }

    fn over_budget(&self, family: IpFamily, services: usize) {
        self.dataplane.over_budget(family, services);
    }

    fn draining(&self, servers: usize) {
        self.sync.draining_servers(servers);
    }

    fn cost(&self, cost: &Cost) {
        self.dataplane.kernel_cost(cost);
    }

    fn node(&self, node: Option<&NodeInfo>) {
        let is_eligible = node.map_or(!self.needs_node, |node| !node.is_leaving());
        self.overview.health.set_node_eligible(is_eligible);
    }

    fn health_checks(&self, checks: &HealthChecks) {
        self.health_checks.publish(checks.family, checks);
    }

    fn loopback_ports(&self, wanted: &loopback_ports::Wanted) {
        self.loopback.publish(wanted.family, wanted);
    }

    fn event(&self, event: Event) {
        self.events.send(event);
    }
}

/// Records what the source reports, as metrics and Events.
#[derive(Debug)]
pub(super) struct SourceObserver {
    pub(super) metrics: SourceMetrics,
    pub(super) events: Events,
}

impl source::Observer for SourceObserver {
    fn problem_beyond_limit(&self, problem: &Problem, is_first: bool) {
        self.metrics.problem(problem);
        if let Some(service) = problem.service.as_ref().filter(|_| is_first) {
            self.events.send(Event::silenced(service.clone()));
        }
    }

    fn problem(&self, problem: &Problem) {
        self.metrics.problem(problem);
        if let Some(service) = &problem.service {
            self.events.send(Event::service(
                service.clone(),
                reason::INVALID_SERVICE,
                action::PROGRAM,
                problem.to_string(),
            ));
        }
    }

    fn heard(&self, kind: &'static str) {
        self.metrics.heard(kind);
    }

    fn request(&self, request: &source::Request<'_>) {
        self.metrics.request(request);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default)]
    struct Counting(AtomicUsize);

    impl ShownPlan for Counting {
        fn to_json(&self) -> Value {
            json!({ "rendered": self.0.fetch_add(1, Ordering::Relaxed) })
        }
    }

    #[test]
    fn a_plan_is_rendered_only_when_it_is_asked_for() {
        let (last, plan) = (LastPlans::default(), Arc::new(Counting::default()));
        let time = Timestamp::UNIX_EPOCH;
        last.set(IpFamily::V4, time, plan.clone());
        last.set(IpFamily::V4, time, plan.clone());
        assert_eq!(plan.0.load(Ordering::Relaxed), 0);
        let shown =
            |rendered: u32| json!({ "IPv4": { "time": time.to_string(), "rendered": rendered } });
        assert_eq!(last.to_json(), shown(0));
        assert_eq!(last.to_json(), shown(1));
    }
}
