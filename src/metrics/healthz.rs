// SPDX-License-Identifier: Apache-2.0
//! Metrics of the health endpoints.

use prometheus::IntCounterVec;

use super::declare_metrics;

declare_metrics! {
    /// Answers of the health server by status. Clones share the values.
    pub struct HealthMetrics {
        healthz: IntCounterVec = "kubeproxy_proxy_healthz_total",
            "Responses to /healthz, by HTTP status", &["code"];
        livez: IntCounterVec = "kubeproxy_proxy_livez_total",
            "Responses to /livez, by HTTP status", &["code"];
    }
}

impl HealthMetrics {
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
