// SPDX-License-Identifier: Apache-2.0
//! Metrics, configuration and state of the proxy, port 10249.

use std::fmt;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Query, RawQuery};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use axum::routing::{MethodRouter, any};
use futures::future::BoxFuture;
use jiff::Timestamp;
use prometheus::proto::MetricFamily;
use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder};
use serde_json::{Value, json};

use super::{HTML, JSON, PLAIN, answer, not_found};
use crate::clock::Clock;
use kpr_core::model::ProxyMode;

/// What the Prometheus text format is called by `client_golang` 1.23.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";
/// What `/statusz` lists.
const PATHS: [&str; 9] = [
    "/configz",
    "/explain",
    "/flagz",
    "/healthz",
    "/metrics",
    "/proxyMode",
    "/servers",
    "/state",
    "/status",
];
/// The group under which `/configz` shows the configuration.
const CONFIG_GROUP: &str = "kubeproxy.config.k8s.io";
/// The only check of the metrics server's `/healthz`.
const PING: &str = "ping";

/// Computes what `/configz` shows.
type ConfigurationFn = dyn Fn() -> Value + Send + Sync;
/// Finds what `/state` shows for a query, or says what is wrong with the query.
type StateFn =
    dyn Fn(Vec<(String, String)>) -> BoxFuture<'static, Result<Value, String>> + Send + Sync;

/// Reads metrics that are not kept in the registry.
pub type ScrapeFn = dyn Fn() -> BoxFuture<'static, Vec<MetricFamily>> + Send + Sync;
/// Renders the page at `/` for a query, or says what is wrong with the query.
type PageFn =
    dyn Fn(Vec<(String, String)>) -> BoxFuture<'static, Result<String, String>> + Send + Sync;
/// Gathers what `/status` shows.
type StatusFn = dyn Fn() -> BoxFuture<'static, Value> + Send + Sync;

/// What the server shows.
#[derive(Clone)]
pub struct AdminSurface {
    /// For `/metrics`.
    pub registry: Registry,
    /// For `/metrics` besides: read at each scrape alone.
    pub scraped: Option<Arc<ScrapeFn>>,
    /// For `/proxyMode`.
    pub mode: ProxyMode,
    /// For `/configz`: the effective configuration, which may change.
    pub configuration: Arc<ConfigurationFn>,
    /// For `/flagz`: names and values, in order.
    pub flags: Arc<[(String, String)]>,
    /// For `/statusz`.
    pub clock: Clock,
    /// For `/statusz`: `v1.37.2` or alike.
    pub kubernetes_version: String,
    /// For `/state`: asked at each request.
    pub state: Arc<StateFn>,
    /// For `/explain`: asked at each request.
    pub explain: Arc<StateFn>,
    /// For `/servers`: names of virtual servers, asked at each request.
    pub servers: Arc<StatusFn>,
    /// For `/status`: asked at each request.
    pub status: Arc<StatusFn>,
    /// For `/`: asked at each request.
    pub page: Arc<PageFn>,
}

impl fmt::Debug for AdminSurface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminSurface")
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

/// The routes of the metrics server.
pub fn admin_routes(surface: AdminSurface) -> Result<Router, prometheus::Error> {
    let AdminSurface {
        registry,
        scraped,
        mode,
        configuration,
        flags,
        clock,
        kubernetes_version,
        state,
        explain,
        servers,
        status,
        page,
    } = surface;
    let started = clock.now();
    let slis = Slis::new()?;
    let ping = slis.clone();
    Ok(Router::new()
        .route(
            "/",
            any(
                move |Query(query): Query<Vec<(String, String)>>| async move {
                    match page(query).await {
                        Ok(shown) => answer(StatusCode::OK, HTML, shown),
                        Err(error) => answer(StatusCode::BAD_REQUEST, PLAIN, format!("{error}\n")),
                    }
                },
            ),
        )
        .route(
            "/metrics",
            any(move || async move {
                let mut families = registry.gather();
                if let Some(scraped) = scraped {
                    families.extend(scraped().await);
                }
                metrics(&families)
            }),
        )
        .route(
            "/metrics/slis",
            any(move || async move { metrics(&slis.registry.gather()) }),
        )
        .route(
            "/healthz",
            any(move |RawQuery(query): RawQuery| async move {
                ping.record();
                healthz(query.as_deref().unwrap_or_default())
            }),
        )
        .route(
            "/healthz/ping",
            any(|| async { answer(StatusCode::OK, PLAIN, "ok".to_owned()) }),
        )
        .route(
            "/proxyMode",
            any(move || async move { answer(StatusCode::OK, PLAIN, mode.as_str().to_owned()) }),
        )
        .route(
            "/configz",
            any(move || async move {
                let configz = json!({ CONFIG_GROUP: configuration() });
                answer(StatusCode::OK, JSON, configz.to_string())
            }),
        )
        .route(
            "/flagz",
            any(move || async move { answer(StatusCode::OK, PLAIN, flagz(&flags)) }),
        )
        .route(
            "/statusz",
            any(move || async move {
                let page = statusz(started, clock.now(), &kubernetes_version);
                answer(StatusCode::OK, PLAIN, page)
            }),
        )
        .route("/state", answers(state))
        .route("/explain", answers(explain))
        .route(
            "/servers",
            any(|| async move { answer(StatusCode::OK, JSON, servers().await.to_string()) }),
        )
        .route(
            "/status",
            any(|| async move { answer(StatusCode::OK, JSON, status().await.to_string()) }),
        )
        .fallback(not_found))
}

/// JSON for a query, or what is wrong with it.
fn answers(find: Arc<StateFn>) -> MethodRouter {
    any(
        move |Query(query): Query<Vec<(String, String)>>| async move {
            match find(query).await {
                Ok(shown) => answer(StatusCode::OK, JSON, shown.to_string()),
                Err(error) => answer(StatusCode::BAD_REQUEST, PLAIN, format!("{error}\n")),
            }
        },
    )
}

fn metrics(families: &[MetricFamily]) -> Response {
    match TextEncoder::new().encode_to_string(families) {
        Ok(text) => {
            let mut response = answer(StatusCode::OK, METRICS_TYPE, text);
            if let Some(start) = process_start(families) {
                let name = HeaderName::from_static("process-start-time-unix");
                response.headers_mut().insert(name, start);
            }
            response
        }
        Err(error) => answer(
            StatusCode::INTERNAL_SERVER_ERROR,
            PLAIN,
            format!("{error}\n"),
        ),
    }
}

/// The words that component-base puts above its pages for people.
fn heading(name: &str) -> String {
    format!(
        "\nkube-proxy {name}\nWarning: This endpoint is not meant to be machine parseable, has no formatting \
         compatibility guarantees and is for debugging purposes only.\n"
    )
}

fn flagz(flags: &[(String, String)]) -> String {
    let lines = flags.iter();
    let lines: Vec<String> = lines
        .map(|(name, value)| format!("{name} {value}\n"))
        .collect();
    heading("flagz") + &lines.concat()
}

fn statusz(started: Timestamp, now: Timestamp, kubernetes_version: &str) -> String {
    let up = now.duration_since(started).as_secs().max(0);
    let (hours, minutes, seconds) = (up / 3600, up / 60 % 60, up % 60);
    let version = kubernetes_version.trim_start_matches('v');
    let minor = version.rsplit_once('.').map_or(version, |(minor, _)| minor);
    let status = format!(
        "\nStarted: {}\nUp: {hours} hr {minutes:02} min {seconds:02} sec\n\
         Binary version: {version} (kube-proxy-rs {})\nEmulation version: {minor}\nPaths: {}\n",
        started.strftime("%a %b %e %H:%M:%S UTC %Y"),
        env!("CARGO_PKG_VERSION"),
        PATHS.join(" "),
    );
    heading("statusz") + &status
}

fn process_start(families: &[MetricFamily]) -> Option<HeaderValue> {
    let family = families
        .iter()
        .find(|family| family.name() == "process_start_time_seconds")?;
    let value = family.get_metric().first()?.get_gauge().get_value();
    HeaderValue::from_str(&format!("{value:.0}")).ok()
}

/// The answer of the API machinery's health handler that has one check, which never fails.
fn healthz(query: &str) -> Response {
    let parameters = || {
        query
            .split('&')
            .filter(|part| !part.is_empty())
            .map(|part| part.split_once('=').unwrap_or((part, "")))
    };
    if !parameters().any(|(name, _)| name == "verbose") {
        return answer(StatusCode::OK, PLAIN, "ok".to_owned());
    }
    let mut excluded: Vec<&str> = parameters()
        .filter(|(name, _)| *name == "exclude")
        .map(|(_, value)| value)
        .collect();
    let is_excluded = excluded.contains(&PING);
    excluded.retain(|name| *name != PING);
    let mut text = if is_excluded {
        format!("[+]{PING} excluded: ok\n")
    } else {
        format!("[+]{PING} ok\n")
    };
    if !excluded.is_empty() {
        let names: Vec<String> = excluded.iter().map(|name| format!("{name:?}")).collect();
        text.push_str("warn: some health checks cannot be excluded: no matches for ");
        text.push_str(&names.join(","));
        text.push('\n');
    }
    text.push_str("healthz check passed\n");
    answer(StatusCode::OK, PLAIN, text)
}

/// The service level indicators of the health handler, which have a registry of their own.
#[derive(Clone)]
struct Slis {
    registry: Registry,
    last: IntGaugeVec,
    total: IntCounterVec,
}

impl Slis {
    fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let last = IntGaugeVec::new(
            Opts::new(
                "kubernetes_healthcheck",
                "[STABLE] Result of a health check, 1 is good",
            ),
            &["name", "type"],
        )?;
        let total = IntCounterVec::new(
            Opts::new(
                "kubernetes_healthchecks_total",
                "[STABLE] Results of health checks",
            ),
            &["name", "status", "type"],
        )?;
        registry.register(Box::new(last.clone()))?;
        registry.register(Box::new(total.clone()))?;
        Ok(Self {
            registry,
            last,
            total,
        })
    }

    fn record(&self) {
        self.last.with_label_values(&[PING, "healthz"]).set(1);
        self.total
            .with_label_values(&[PING, "success", "healthz"])
            .inc();
    }
}
