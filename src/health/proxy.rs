// SPDX-License-Identifier: Apache-2.0
//! `/healthz` and `/livez` of the proxy, port 10256.

use axum::Router;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::any;

use super::state::{HealthStatus, ProxyHealth};
use super::{JSON, answer, not_found};
use crate::metrics::HealthMetrics;

/// The routes of the health server.
pub fn health_routes(health: ProxyHealth, metrics: HealthMetrics) -> Router {
    let (live, live_metrics) = (health.clone(), metrics.clone());
    let healthz = move || {
        let status = health.healthz();
        metrics.healthz_answered(status.is_good());
        async move { respond(&status) }
    };
    let livez = move || {
        let status = live.livez();
        live_metrics.livez_answered(status.is_good());
        async move { respond(&status) }
    };
    Router::new()
        .route("/healthz", any(healthz))
        .route("/livez", any(livez))
        .fallback(not_found)
}

fn respond(status: &HealthStatus) -> Response {
    let code = if status.is_good() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    match serde_json::to_string(status) {
        Ok(body) => answer(code, JSON, body),
        Err(error) => answer(StatusCode::INTERNAL_SERVER_ERROR, JSON, error.to_string()),
    }
}
