// SPDX-License-Identifier: Apache-2.0
//! Metrics of syncs.

use std::time::Duration;

use jiff::Timestamp;
use prometheus::{
    Gauge, GaugeVec, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry,
};

use super::{MetricsError, declare_metrics, signed};
use crate::clock::Clock;
use kpr_core::model::ProxyMode;
use kpr_core::model::net::IpFamily;

/// What a sync compared.
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

declare_metrics! {
    /// The metrics of both modes.
    struct Rounds {
        duration: HistogramVec = "kubeproxy_sync_proxy_rules_duration_seconds",
            "Duration of a sync, failed ones included", FAMILY, sync_buckets();
        last_success: GaugeVec = "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
            "Time of the last successful sync", FAMILY;
        last_queued: GaugeVec = "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
            "Time a sync was last requested. If it is well ahead of the last successful sync, syncing is stuck", FAMILY;
        network_programming: HistogramVec = "kubeproxy_network_programming_duration_seconds",
            "Latency from an endpoint change until the kernel is programmed, for changes since this process started", FAMILY, network_programming_buckets();
        last_turn: Gauge = "kube_proxy_rs_loop_last_turn_timestamp_seconds",
            "Time the sync loop last gave a sign of life. If it is well behind the present, the loop hangs";
        endpoint_changes_pending: IntGauge = "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
            "EndpointSlice changes waiting for a sync";
        endpoint_changes: IntCounter = "kubeproxy_sync_proxy_rules_endpoint_changes_total",
            "EndpointSlice changes received";
        service_changes_pending: IntGauge = "kubeproxy_sync_proxy_rules_service_changes_pending",
            "Service changes waiting for a sync";
        service_changes: IntCounter = "kubeproxy_sync_proxy_rules_service_changes_total",
            "Service changes received";
        services: IntGauge = "kube_proxy_rs_services",
            "Services known to the proxy";
        endpoint_slices: IntGauge = "kube_proxy_rs_endpoint_slices",
            "EndpointSlices known to the proxy";
        no_local_endpoints: IntGaugeVec = "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
            "Service ports with traffic policy Local that have endpoints, but none on this node", &["traffic_policy", "ip_family"];
        restore_failures: IntCounterVec = "kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
            "Failed iptables-restore runs", FAMILY;
        conntrack_duration: HistogramVec = "kubeproxy_conntrack_reconciler_sync_duration_seconds",
            "Duration of deleting stale conntrack flows", FAMILY, sync_buckets();
        conntrack_deleted: IntCounterVec = "kubeproxy_conntrack_reconciler_deleted_entries_total",
            "Stale conntrack flows deleted", FAMILY;
        plan_steps: IntCounterVec = "kube_proxy_rs_plan_steps_total",
            "Plan steps applied to the kernel, by kind and result", &["kind", "result", "ip_family"];
        refused: IntGaugeVec = "kube_proxy_rs_refused_service_ports",
            "Service ports of which the kernel rejects something; the rest is served, the log and /state name them", FAMILY;
        draining_servers: IntGauge = "kube_proxy_rs_draining_servers",
            "Real servers draining: no new connections, existing ones not finished";
    }
}

declare_metrics! {
    /// Those of iptables mode.
    struct IptablesMetrics {
        full: HistogramVec = "kubeproxy_sync_full_proxy_rules_duration_seconds",
            "Duration of a full sync", FAMILY, sync_buckets();
        partial: HistogramVec = "kubeproxy_sync_partial_proxy_rules_duration_seconds",
            "Duration of a partial sync, of changes only", FAMILY, sync_buckets();
        rules: IntGaugeVec = "kubeproxy_sync_proxy_rules_iptables_total",
            "iptables rules owned by this proxy", &["table", "ip_family"];
        rules_written: IntGaugeVec = "kubeproxy_sync_proxy_rules_iptables_last",
            "iptables rules written by the last sync", &["table", "ip_family"];
        partial_failures: IntCounterVec = "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total",
            "Failed partial syncs; each is followed by a full one", FAMILY;
    }
}

/// What the loop writes about its rounds. Clones share the values.
#[derive(Clone, Debug)]
pub struct SyncMetrics {
    clock: Clock,
    rounds: Rounds,
    /// Only iptables mode has them.
    iptables: Option<IptablesMetrics>,
}

const FAMILY: &[&str] = &["ip_family"];

impl SyncMetrics {
    /// Registers those of `mode`. `clock` says when things happen.
    pub fn register(
        registry: &Registry,
        mode: ProxyMode,
        clock: Clock,
    ) -> Result<Self, MetricsError> {
        let iptables = (mode == ProxyMode::IPTABLES)
            .then(|| IptablesMetrics::register(registry))
            .transpose()?;
        Ok(Self {
            clock,
            rounds: Rounds::register(registry)?,
            iptables,
        })
    }

    /// A change asks for a round, or the loop starts.
    pub fn sync_queued(&self, family: IpFamily) {
        let now = seconds(self.clock.now());
        self.rounds
            .last_queued
            .with_label_values(&[family.as_str()])
            .set(now);
    }

    /// The loop gives a sign of life.
    pub fn loop_turned(&self) {
        self.rounds.last_turn.set(seconds(self.clock.now()));
    }

    /// A round is over.
    pub fn sync_finished(&self, family: IpFamily, scope: SyncScope, duration: Duration, ok: bool) {
        let labels = [family.as_str()];
        let duration = duration.as_secs_f64();
        self.rounds
            .duration
            .with_label_values(&labels)
            .observe(duration);
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
            self.rounds
                .last_success
                .with_label_values(&labels)
                .set(seconds(self.clock.now()));
        }
    }

    /// A change of an endpoint that was triggered `latency` ago is in the kernel.
    pub fn network_programmed(&self, family: IpFamily, latency: Duration) {
        let histogram = self
            .rounds
            .network_programming
            .with_label_values(&[family.as_str()]);
        histogram.observe(latency.as_secs_f64());
    }

    /// EndpointSlices changed.
    pub fn endpoint_changes(&self, count: usize) {
        self.rounds.endpoint_changes.inc_by(count as u64);
    }

    /// Services changed.
    pub fn service_changes(&self, count: usize) {
        self.rounds.service_changes.inc_by(count as u64);
    }

    /// Number of changes that wait for a round.
    pub fn changes_pending(&self, endpoints: usize, services: usize) {
        self.rounds.endpoint_changes_pending.set(signed(endpoints));
        self.rounds.service_changes_pending.set(signed(services));
    }

    /// Number of known objects.
    pub fn known(&self, services: usize, endpoint_slices: usize) {
        self.rounds.services.set(signed(services));
        self.rounds.endpoint_slices.set(signed(endpoint_slices));
    }

    /// Number of Service ports with policy Local and no local endpoint, by policy.
    pub fn no_local_endpoints(&self, family: IpFamily, internal: usize, external: usize) {
        for (policy, count) in [("internal", internal), ("external", external)] {
            let labels = [policy, family.as_str()];
            self.rounds
                .no_local_endpoints
                .with_label_values(&labels)
                .set(signed(count));
        }
    }

    /// After a round: rules that are ours in a table, and how many of them the round wrote.
    /// Iptables mode only.
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

    /// Number of Service ports of which the kernel rejects something.
    pub fn refused(&self, family: IpFamily, count: usize) {
        self.rounds
            .refused
            .with_label_values(&[family.as_str()])
            .set(signed(count));
    }

    /// A run of iptables-restore failed.
    pub fn restore_failed(&self, family: IpFamily) {
        self.rounds
            .restore_failures
            .with_label_values(&[family.as_str()])
            .inc();
    }

    /// Stale conntrack flows were deleted.
    pub fn conntrack_cleaned(&self, family: IpFamily, duration: Duration, deleted: usize) {
        let labels = [family.as_str()];
        self.rounds
            .conntrack_duration
            .with_label_values(&labels)
            .observe(duration.as_secs_f64());
        self.rounds
            .conntrack_deleted
            .with_label_values(&labels)
            .inc_by(deleted as u64);
    }

    /// Steps of one kind were applied. `kind` is the step's name in JSON.
    pub fn steps_applied(&self, kind: &'static str, family: IpFamily, ok: bool, count: usize) {
        let result = if ok { "ok" } else { "error" };
        let labels = [kind, result, family.as_str()];
        self.rounds
            .plan_steps
            .with_label_values(&labels)
            .inc_by(count as u64);
    }

    /// Number of draining real servers.
    pub fn draining_servers(&self, count: usize) {
        self.rounds.draining_servers.set(signed(count));
    }
}

/// 1 ms to 16.384 s, doubling: kube-proxy's buckets for rounds.
fn sync_buckets() -> Vec<f64> {
    (0..15)
        .map(|exponent| 0.001 * 2f64.powi(exponent))
        .collect()
}

/// kube-proxy's buckets for its service level: fine up to a minute, coarse up to five. It has one
/// of 0, too.
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
