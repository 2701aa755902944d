// SPDX-License-Identifier: Apache-2.0
//! The HTTP servers: health, metrics and state of the proxy, and health checks of Services.
//!
//! The loop writes [`ProxyHealth`]; three kinds of servers read it. Servers are bound at start
//! ([`Server::bind`]), so that a proxy that cannot work exits early, and run later. Nothing here
//! changes the proxy.

mod admin;
mod connections;
mod proxy;
mod server;
mod service;
mod state;

pub use admin::{AdminSurface, ScrapeFn, admin_routes};
pub use proxy::health_routes;
pub use server::{ServeError, Server};
pub use service::{HealthCheckPortError, ServiceHealthServers};
pub use state::{FamilyStatus, HealthStatus, ProxyHealth};

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// A finished answer. Upstream forbids browsers to guess the type.
fn answer(status: StatusCode, content_type: &'static str, body: String) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(content_type)),
        (
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        ),
    ];
    (status, headers, body).into_response()
}

/// Go's answer to an unknown path.
async fn not_found() -> Response {
    answer(
        StatusCode::NOT_FOUND,
        PLAIN,
        "404 page not found\n".to_owned(),
    )
}

const PLAIN: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";
const JSON: &str = "application/json";

#[cfg(test)]
mod tests;
