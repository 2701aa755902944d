// SPDX-License-Identifier: Apache-2.0
//! Metrics of Kubernetes Events.

use prometheus::{IntCounterVec, Registry};

use super::{MetricsError, counters};

/// Counts events by what became of them. Clones share the values.
#[derive(Clone, Debug)]
pub struct EventMetrics {
    events: IntCounterVec,
}

impl EventMetrics {
    /// Registers them.
    pub fn register(registry: &Registry) -> Result<Self, MetricsError> {
        Ok(Self {
            events: counters(
                registry,
                "kube_proxy_rs_events_total",
                "Kubernetes Events by result: written, failed, or dropped by the rate limit",
                &["result"],
            )?,
        })
    }

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

    fn count(&self, result: &str) {
        self.events.with_label_values(&[result]).inc();
    }
}
