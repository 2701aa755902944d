// SPDX-License-Identifier: Apache-2.0
//! Metrics of kernel operations, and of changes to the kernel by others.

use prometheus::{IntCounter, IntCounterVec, IntGaugeVec};

use super::{declare_metrics, raise};
use crate::dataplane::kernel::Cost;
use kpr_core::model::IpFamily;
use kpr_core::plan::ipvs::object::SyncRole;

/// What became of a difference that an audit found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriftState {
    /// The kernel differs from what was written.
    Found,
    /// It no longer does.
    Repaired,
}

declare_metrics! {
    /// What the dataplane and the audit write. Clones share the values.
    pub struct DataplaneMetrics {
        round_trips: IntCounter = "kube_proxy_rs_netlink_round_trips_total",
            "Netlink round trips, however many messages each carries";
        messages: IntCounterVec = "kube_proxy_rs_netlink_messages_total",
            "Netlink messages, by direction", &["direction"];
        bytes: IntCounterVec = "kube_proxy_rs_netlink_bytes_total",
            "Bytes of netlink messages, by direction", &["direction"];
        processes: IntCounter = "kube_proxy_rs_processes_started_total",
            "External programs started";
        drift: IntCounterVec = "kube_proxy_rs_drift_total",
            "Kernel objects changed by another program, by kind; found and repaired", &["kind", "state"];
        iptables_backend: IntGaugeVec = "kube_proxy_rs_iptables_backend",
            "1 for the iptables backend in use, with the reason for choosing it", &["backend", "reason"];
        ipvs_rules: IntGaugeVec = "kube_proxy_rs_ipvs_rules",
            "1 for how ipvs mode holds its fixed rules and sets, with the reason", &["rules", "reason"];
        capabilities: IntGaugeVec = "kube_proxy_rs_kernel_capability",
            "1 if the kernel has a probed capability, else 0", &["name"];
        unwritable_sysctls: IntGaugeVec = "kube_proxy_rs_sysctl_unwritable",
            "1 for each kernel setting that could not be written", &["name"];
        unbound_addresses: IntGaugeVec = "kube_proxy_rs_unbound_addresses",
            "Service addresses not served or not bound to kube-ipvs0 because somebody else has them", &["ip_family"];
        sync_daemons: IntGaugeVec = "kube_proxy_rs_sync_daemon",
            "1 if the kernel's sync daemon of --ipvs-sync-interface runs, else 0: master sends connections to other nodes, backup takes in theirs", &["role"];
        over_budget: IntGaugeVec = "kube_proxy_rs_services_over_budget",
            "Services of which something is not programmed because it is more than one Service may have", &["ip_family"];
    }
}

impl DataplaneMetrics {
    /// What talking to the kernel cost since the start.
    pub fn kernel_cost(&self, total: &Cost) {
        raise(&self.round_trips, total.round_trips);
        raise(&self.processes, total.processes);
        for (direction, messages, bytes) in [
            ("sent", total.messages_sent, total.bytes_sent),
            ("received", total.messages_received, total.bytes_received),
        ] {
            let labels = [direction];
            raise(&self.messages.with_label_values(&labels), messages);
            raise(&self.bytes.with_label_values(&labels), bytes);
        }
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

    /// This iptables was chosen at start.
    pub fn iptables_backend(&self, backend: &'static str, reason: &'static str) {
        self.iptables_backend
            .with_label_values(&[backend, reason])
            .set(1);
    }

    /// Ipvs mode holds its rules so.
    pub fn ipvs_rules(&self, rules: &'static str, reason: &'static str) {
        self.ipvs_rules.with_label_values(&[rules, reason]).set(1);
    }

    /// The kernel can, or cannot, do something.
    pub fn kernel_capability(&self, name: &str, available: bool) {
        self.capabilities
            .with_label_values(&[name])
            .set(i64::from(available));
    }

    /// Number of Service addresses that are bound elsewhere.
    pub fn unbound_addresses(&self, family: IpFamily, addresses: usize) {
        self.unbound_addresses
            .with_label_values(&[family.as_str()])
            .set(i64::try_from(addresses).unwrap_or(i64::MAX));
    }

    /// The sync daemon of a role runs, or should and does not.
    pub fn sync_daemon(&self, role: SyncRole, runs: bool) {
        self.sync_daemons
            .with_label_values(&[role.as_str()])
            .set(i64::from(runs));
    }

    /// Number of Services that ask for more than one may have.
    pub fn over_budget(&self, family: IpFamily, services: usize) {
        self.over_budget
            .with_label_values(&[family.as_str()])
            .set(i64::try_from(services).unwrap_or(i64::MAX));
    }

    /// A sysctl could, or could not, be written. `name` is its path below `/proc/sys` or `/sys`.
    pub fn sysctl_written(&self, name: &'static str, ok: bool) {
        self.unwritable_sysctls
            .with_label_values(&[name])
            .set(i64::from(!ok));
    }
}
