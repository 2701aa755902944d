// SPDX-License-Identifier: Apache-2.0
//! Metrics of the rounds.

use std::time::Duration;

use jiff::Timestamp;
use prometheus::{
    GaugeVec, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry,
};

use super::{MetricsError, counter, counters, gauge, gauges, histograms, opts, register, signed};
use crate::clock::Clock;
use kpr_core::model::ProxyMode;
use kpr_core::model::net::IpFamily;

/// How much a round looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncScope {
    /// Everything: at start, after a failure, periodically.
    Full,
    /// What changed.
    Partial,
}

/// An iptables table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    Filter,
    Nat,
}

impl Table {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
        }
    }
}

/// What the loop writes about its rounds. Clones share the values.
#[derive(Clone, Debug)]
pub struct SyncMetrics {
    clock: Clock,
    duration: HistogramVec,
    last_success: GaugeVec,
    last_queued: GaugeVec,
    network_programming: HistogramVec,
    endpoint_changes_pending: IntGauge,
    endpoint_changes: IntCounter,
    service_changes_pending: IntGauge,
    service_changes: IntCounter,
    services: IntGauge,
    endpoint_slices: IntGauge,
    no_local_endpoints: IntGaugeVec,
    restore_failures: IntCounterVec,
    conntrack_duration: HistogramVec,
    conntrack_deleted: IntCounterVec,
    plan_steps: IntCounterVec,
    draining_servers: IntGauge,
    /// Only iptables mode has them.
    iptables: Option<IptablesMetrics>,
}

#[derive(Clone, Debug)]
struct IptablesMetrics {
    full: HistogramVec,
    partial: HistogramVec,
    rules: IntGaugeVec,
    rules_written: IntGaugeVec,
    partial_failures: IntCounterVec,
    refused: IntGaugeVec,
}

const FAMILY: &[&str] = &["ip_family"];

impl SyncMetrics {
    /// Registers those of `mode`. `clock` says when things happen.
    pub fn register(
        registry: &Registry,
        mode: ProxyMode,
        clock: Clock,
    ) -> Result<Self, MetricsError> {
        let r = registry;
        let iptables = (mode == ProxyMode::Iptables)
            .then(|| IptablesMetrics::register(r))
            .transpose()?;
        Ok(Self {
            clock,
            duration: histograms(
                r,
                "kubeproxy_sync_proxy_rules_duration_seconds",
                "How long a round took, failed ones too",
                sync_buckets(),
                FAMILY,
            )?,
            last_success: time_gauges(
                r,
                "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
                "When a round last succeeded",
            )?,
            last_queued: time_gauges(
                r,
                "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
                "When a round was last asked for; much later than the last success: something hangs",
            )?,
            network_programming: histograms(
                r,
                "kubeproxy_network_programming_duration_seconds",
                "Time from the change of an endpoint until the kernel had it, since this process started",
                network_programming_buckets(),
                FAMILY,
            )?,
            endpoint_changes_pending: gauge(
                r,
                "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
                "Changes of EndpointSlices that wait for a round",
            )?,
            endpoint_changes: counter(
                r,
                "kubeproxy_sync_proxy_rules_endpoint_changes_total",
                "Changes of EndpointSlices",
            )?,
            service_changes_pending: gauge(
                r,
                "kubeproxy_sync_proxy_rules_service_changes_pending",
                "Changes of Services that wait for a round",
            )?,
            service_changes: counter(
                r,
                "kubeproxy_sync_proxy_rules_service_changes_total",
                "Changes of Services",
            )?,
            services: gauge(r, "kube_proxy_rs_services", "Services that are known")?,
            endpoint_slices: gauge(
                r,
                "kube_proxy_rs_endpoint_slices",
                "EndpointSlices that are known",
            )?,
            no_local_endpoints: gauges(
                r,
                "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
                "Service ports with traffic policy Local that have endpoints, but none here",
                &["traffic_policy", "ip_family"],
            )?,
            restore_failures: counters(
                r,
                "kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
                "Failed runs of iptables-restore",
                FAMILY,
            )?,
            conntrack_duration: histograms(
                r,
                "kubeproxy_conntrack_reconciler_sync_duration_seconds",
                "How long deleting stale flows took",
                sync_buckets(),
                FAMILY,
            )?,
            conntrack_deleted: counters(
                r,
                "kubeproxy_conntrack_reconciler_deleted_entries_total",
                "Stale flows that were deleted",
                FAMILY,
            )?,
            plan_steps: counters(
                r,
                "kube_proxy_rs_plan_steps_total",
                "Steps of plans that were applied to the kernel, by kind",
                &["kind", "result", "ip_family"],
            )?,
            draining_servers: gauge(
                r,
                "kube_proxy_rs_draining_servers",
                "Real servers that take no new connections and wait for their last ones to end",
            )?,
            iptables,
        })
    }

    /// A change asks for a round, or the loop starts.
    pub fn sync_queued(&self, family: IpFamily) {
        let now = seconds(self.clock.now());
        self.last_queued
            .with_label_values(&[family.as_str()])
            .set(now);
    }

    /// A round is over.
    pub fn sync_finished(&self, family: IpFamily, scope: SyncScope, duration: Duration, ok: bool) {
        let labels = [family.as_str()];
        let duration = duration.as_secs_f64();
        self.duration.with_label_values(&labels).observe(duration);
        if let Some(iptables) = &self.iptables {
            let histogram = match scope {
                SyncScope::Full => &iptables.full,
                SyncScope::Partial => &iptables.partial,
            };
            histogram.with_label_values(&labels).observe(duration);
            if !ok && scope == SyncScope::Partial {
                iptables.partial_failures.with_label_values(&labels).inc();
            }
        }
        if ok {
            self.last_success
                .with_label_values(&labels)
                .set(seconds(self.clock.now()));
        }
    }

    /// A change of an endpoint that was triggered `latency` ago is in the kernel.
    pub fn network_programmed(&self, family: IpFamily, latency: Duration) {
        let histogram = self
            .network_programming
            .with_label_values(&[family.as_str()]);
        histogram.observe(latency.as_secs_f64());
    }

    /// EndpointSlices changed.
    pub fn endpoint_changes(&self, count: usize) {
        self.endpoint_changes.inc_by(count as u64);
    }

    /// Services changed.
    pub fn service_changes(&self, count: usize) {
        self.service_changes.inc_by(count as u64);
    }

    /// So many changes wait for a round.
    pub fn changes_pending(&self, endpoints: usize, services: usize) {
        self.endpoint_changes_pending.set(signed(endpoints));
        self.service_changes_pending.set(signed(services));
    }

    /// So many objects are known.
    pub fn known(&self, services: usize, endpoint_slices: usize) {
        self.services.set(signed(services));
        self.endpoint_slices.set(signed(endpoint_slices));
    }

    /// So many service ports have a policy Local and no local endpoint, by the policy that says so.
    pub fn no_local_endpoints(&self, family: IpFamily, internal: usize, external: usize) {
        for (policy, count) in [("internal", internal), ("external", external)] {
            let labels = [policy, family.as_str()];
            self.no_local_endpoints
                .with_label_values(&labels)
                .set(signed(count));
        }
    }

    /// After a round: rules that are ours in a table, and how many of them the round wrote. Iptables mode only.
    pub fn iptables_rules(&self, family: IpFamily, table: Table, owned: usize, written: usize) {
        if let Some(iptables) = &self.iptables {
            let labels = [table.as_str(), family.as_str()];
            iptables.rules.with_label_values(&labels).set(signed(owned));
            iptables
                .rules_written
                .with_label_values(&labels)
                .set(signed(written));
        }
    }

    /// So many Service ports have rules that the kernel refuses. Iptables mode only.
    pub fn refused(&self, family: IpFamily, count: usize) {
        if let Some(iptables) = &self.iptables {
            iptables
                .refused
                .with_label_values(&[family.as_str()])
                .set(signed(count));
        }
    }

    /// A run of iptables-restore failed.
    pub fn restore_failed(&self, family: IpFamily) {
        self.restore_failures
            .with_label_values(&[family.as_str()])
            .inc();
    }

    /// Stale flows were looked for.
    pub fn conntrack_cleaned(&self, family: IpFamily, duration: Duration, deleted: usize) {
        let labels = [family.as_str()];
        self.conntrack_duration
            .with_label_values(&labels)
            .observe(duration.as_secs_f64());
        self.conntrack_deleted
            .with_label_values(&labels)
            .inc_by(deleted as u64);
    }

    /// Steps of one kind were applied. `kind` is the step's name in JSON.
    pub fn steps_applied(&self, kind: &'static str, family: IpFamily, ok: bool, count: usize) {
        let result = if ok { "ok" } else { "error" };
        let labels = [kind, result, family.as_str()];
        self.plan_steps
            .with_label_values(&labels)
            .inc_by(count as u64);
    }

    /// So many real servers drain.
    pub fn draining_servers(&self, count: usize) {
        self.draining_servers.set(signed(count));
    }
}

impl IptablesMetrics {
    fn register(r: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            full: histograms(
                r,
                "kubeproxy_sync_full_proxy_rules_duration_seconds",
                "How long a round that looked at everything took",
                sync_buckets(),
                FAMILY,
            )?,
            partial: histograms(
                r,
                "kubeproxy_sync_partial_proxy_rules_duration_seconds",
                "How long a round that looked at changes only took",
                sync_buckets(),
                FAMILY,
            )?,
            rules: gauges(
                r,
                "kubeproxy_sync_proxy_rules_iptables_total",
                "Rules that are this proxy's",
                &["table", "ip_family"],
            )?,
            rules_written: gauges(
                r,
                "kubeproxy_sync_proxy_rules_iptables_last",
                "Rules that the last round wrote",
                &["table", "ip_family"],
            )?,
            partial_failures: counters(
                r,
                "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total",
                "Failed rounds that looked at changes only; a full one follows",
                FAMILY,
            )?,
            refused: gauges(
                r,
                "kube_proxy_rs_refused_service_ports",
                "Service ports whose rules the kernel refuses; the log names them",
                FAMILY,
            )?,
        })
    }
}

fn time_gauges(registry: &Registry, name: &str, help: &str) -> prometheus::Result<GaugeVec> {
    register(registry, GaugeVec::new(opts(name, help), FAMILY)?)
}

/// 1 ms to 16.384 s, doubling: kube-proxy's buckets for rounds.
fn sync_buckets() -> Vec<f64> {
    (0..15)
        .map(|exponent| 0.001 * 2f64.powi(exponent))
        .collect()
}

/// kube-proxy's buckets for its service level: fine up to a minute, coarse up to five. It has one of 0, too.
fn network_programming_buckets() -> Vec<f64> {
    let whole = (1..60)
        .chain((60..=115).step_by(5))
        .chain((120..=300).step_by(30));
    [0.0, 0.25, 0.5]
        .into_iter()
        .chain(whole.map(f64::from))
        .collect()
}

/// Unix time with a fraction.
#[expect(
    clippy::cast_precision_loss,
    reason = "a microsecond is lost in 200 years"
)]
fn seconds(time: Timestamp) -> f64 {
    time.as_microsecond() as f64 / 1e6
}
