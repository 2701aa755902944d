// SPDX-License-Identifier: Apache-2.0
//! Metrics of the source: client-go's for requests, ours for skipped input.

use std::time::SystemTime;

use prometheus::{GaugeVec, HistogramVec, IntCounterVec};

use super::declare_metrics;
use crate::source::{Observer, Problem, Request};

declare_metrics! {
    /// Counts what a source reports.
    pub struct SourceMetrics {
        requests: IntCounterVec = "rest_client_requests_total",
            "Requests to the API server by status code, method and host", &["code", "host", "method"];
        latency: HistogramVec = "rest_client_request_duration_seconds",
            "Latency of API server requests, by verb and host", &["host", "verb"], REQUEST_BUCKETS.to_vec();
        skipped: IntCounterVec = "kube_proxy_rs_skipped_objects_total",
            "Objects or parts of objects skipped as invalid, by reason", &["reason"];
        heard: GaugeVec = "kube_proxy_rs_watch_last_heard_timestamp_seconds",
            "When the API server last said something about a kind: an event, a bookmark, a list, or that it takes a watch", &["kind"];
    }
}

/// client-go's buckets.
const REQUEST_BUCKETS: [f64; 12] = [
    0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0,
];

impl Observer for SourceMetrics {
    fn problem(&self, problem: &Problem) {
        self.skipped.with_label_values(&[problem.reason]).inc();
    }

    fn heard(&self, kind: &'static str) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let seconds = now.unwrap_or_default().as_secs_f64();
        self.heard.with_label_values(&[kind]).set(seconds);
    }

    fn request(&self, request: &Request<'_>) {
        let code = request
            .code
            .map_or_else(|| "<error>".to_owned(), |code| code.to_string());
        self.requests
            .with_label_values(&[code.as_str(), request.host, request.method])
            .inc();
        let latency = self
            .latency
            .with_label_values(&[request.host, request.method]);
        latency.observe(request.duration.as_secs_f64());
    }
}
