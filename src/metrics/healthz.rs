// SPDX-License-Identifier: Apache-2.0
//! Metrics of the health endpoints.

use prometheus::{IntCounterVec, Registry};

use super::{MetricsError, counters};

/// Answers of the health server by status. Clones share the values.
#[derive(Clone, Debug)]
pub struct HealthMetrics {
    healthz: IntCounterVec,
    livez: IntCounterVec,
}

impl HealthMetrics {
    /// Registers them.
    pub fn register(registry: &Registry) -> Result<Self, MetricsError> {
        Ok(Self {
            healthz: counters(
                registry,
                "kubeproxy_proxy_healthz_total",
                "Responses to /healthz, by HTTP status",
                &["code"],
            )?,
            livez: counters(
                registry,
                "kubeproxy_proxy_livez_total",
                "Responses to /livez, by HTTP status",
                &["code"],
            )?,
        })
    }

    /// `/healthz` was answered.
    pub fn healthz_answered(&self, healthy: bool) {
        self.healthz.with_label_values(&[code(healthy)]).inc();
    }

    /// `/livez` was answered.
    pub fn livez_answered(&self, healthy: bool) {
        self.livez.with_label_values(&[code(healthy)]).inc();
    }
}

const fn code(healthy: bool) -> &'static str {
    if healthy { "200" } else { "503" }
}
