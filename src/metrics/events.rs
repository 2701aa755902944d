// SPDX-License-Identifier: Apache-2.0
//! Metrics of Kubernetes Events.

use prometheus::IntCounterVec;

use super::declare_metrics;

declare_metrics! {
    /// Counts events by result. Clones share the values.
    pub struct EventMetrics {
        events: IntCounterVec = "kube_proxy_rs_events_total",
            "Kubernetes Events by result: written, failed, dropped by the rate limit, or left to other nodes that see the same", &["result"];
    }
}

impl EventMetrics {
    /// The API server took one.
    pub fn written(&self) {
        self.count("written");
    }

    /// The API server refused one, or did not answer for too long.
    pub fn failed(&self) {
        self.count("failed");
    }

    /// There were too many.
    pub fn dropped(&self) {
        self.count("dropped");
    }

    /// Other nodes see the same, and some of them write about it.
    pub fn left_to_others(&self) {
        self.count("left_to_others");
    }

    fn count(&self, result: &str) {
        self.events.with_label_values(&[result]).inc();
    }
}
