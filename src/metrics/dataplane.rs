// SPDX-License-Identifier: Apache-2.0
//! Metrics of what is done to the kernel, and of what others did to it.

use prometheus::{IntCounter, IntCounterVec, IntGaugeVec, Registry};

use super::{MetricsError, counter, counters, gauges};

/// What became of a difference that an audit found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriftState {
    /// The kernel differs from what was written.
    Found,
    /// It no longer does.
    Repaired,
}

/// What the dataplane and the audit write. Clones share the values.
#[derive(Clone, Debug)]
pub struct DataplaneMetrics {
    round_trips: IntCounter,
    processes: IntCounter,
    drift: IntCounterVec,
    capabilities: IntGaugeVec,
    unwritable_sysctls: IntGaugeVec,
}

impl DataplaneMetrics {
    /// Registers them.
    pub fn register(registry: &Registry) -> Result<Self, MetricsError> {
        let r = registry;
        Ok(Self {
            round_trips: counter(
                r,
                "kube_proxy_rs_netlink_round_trips_total",
                "Times that the kernel was asked over netlink and answered, however many messages it took",
            )?,
            processes: counter(
                r,
                "kube_proxy_rs_processes_started_total",
                "External programs that were started",
            )?,
            drift: counters(
                r,
                "kube_proxy_rs_drift_total",
                "Objects in the kernel that somebody else changed, by kind",
                &["kind", "state"],
            )?,
            capabilities: gauges(
                r,
                "kube_proxy_rs_kernel_capability",
                "Whether the kernel can do something, 1 or 0",
                &["name"],
            )?,
            unwritable_sysctls: gauges(
                r,
                "kube_proxy_rs_sysctl_unwritable",
                "1 for a kernel setting that could not be written",
                &["name"],
            )?,
        })
    }

    /// The kernel answered over netlink.
    pub fn netlink_round_trips(&self, count: u64) {
        self.round_trips.inc_by(count);
    }

    /// External programs were started.
    pub fn processes_started(&self, count: u64) {
        self.processes.inc_by(count);
    }

    /// Objects of one kind drifted, or were repaired.
    pub fn drift(&self, kind: &'static str, state: DriftState, count: usize) {
        let state = match state {
            DriftState::Found => "found",
            DriftState::Repaired => "repaired",
        };
        self.drift
            .with_label_values(&[kind, state])
            .inc_by(count as u64);
    }

    /// The kernel can, or cannot, do something.
    pub fn kernel_capability(&self, name: &'static str, available: bool) {
        self.capabilities
            .with_label_values(&[name])
            .set(i64::from(available));
    }

    /// A sysctl could, or could not, be written. `name` is its path below `/proc/sys`.
    pub fn sysctl_written(&self, name: &'static str, ok: bool) {
        self.unwritable_sysctls
            .with_label_values(&[name])
            .set(i64::from(!ok));
    }
}
