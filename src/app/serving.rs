// SPDX-License-Identifier: Apache-2.0
//! What the proxy serves over HTTP, and everything else that serves clients.

use std::sync::Arc;

use axum::Router;
use tokio::sync::watch;

use super::service_metrics::{self, ServiceTraffic};
use super::state::PATIENCE;
use super::status::Overview;
use super::{explain, instrumentation, page};
use crate::config::settings::Settings;
use crate::health::{AdminSurface, ScrapeFn, Server, admin_routes, health_routes};

/// The names of the two servers.
pub(super) const HEALTH_SERVER: &str = "healthz";
const METRICS_SERVER: &str = "metrics";

/// What the admin port and the admin socket serve.
fn admin_surface(
    newest: &watch::Receiver<Arc<Settings>>,
    overview: Arc<Overview>,
    flags: Vec<(String, String)>,
) -> anyhow::Result<Router> {
    let settings = newest.borrow().clone();
    let configuration = newest.clone();
    let page = overview.state.clone();
    let (shown, explained) = (overview.clone(), overview.clone());
    let named = overview.state.clone();
    let traffic = ServiceTraffic::new(&settings, overview.state.clone());
    let routes = admin_routes(AdminSurface {
        registry: overview.registry.clone(),
        scraped: traffic.map(|traffic| -> Arc<ScrapeFn> {
            Arc::new(move || {
                let traffic = traffic.clone();
                Box::pin(async move { traffic.scrape().await })
            })
        }),
        mode: settings.mode,
        flags: flags.into(),
        clock: overview.clock.clone(),
        kubernetes_version: settings.kubernetes_version.clone(),
        configuration: Arc::new(move || {
            // Plain data always has a JSON form.
            serde_json::to_value(&configuration.borrow().configuration).unwrap_or_default()
        }),
        state: Arc::new(move |query| {
            let page = page.clone();
            Box::pin(async move { page.show(&query).await })
        }),
        page: Arc::new(move |query| {
            let overview = shown.clone();
            Box::pin(async move { page::page(&overview, &query).await })
        }),
        explain: Arc::new(move |query| {
            let overview = explained.clone();
            Box::pin(async move { explain::answer(&overview, &query).await })
        }),
        servers: Arc::new(move || {
            let state = named.clone();
            Box::pin(async move {
                let owners = state.owners(false, PATIENCE).await.unwrap_or_default();
                serde_json::to_value(service_metrics::names(&owners)).unwrap_or_default()
            })
        }),
        status: Arc::new(move || {
            let overview = overview.clone();
            Box::pin(
                async move { serde_json::to_value(overview.status().await).unwrap_or_default() },
            )
        }),
    })?;
    Ok(routes)
}

/// Binds the health and the metrics server, where they are wanted. Also returns what the metrics
/// server serves.
pub(super) fn servers(
    newest: &watch::Receiver<Arc<Settings>>,
    metrics: &instrumentation::Metrics,
    overview: Arc<Overview>,
    flags: Vec<(String, String)>,
) -> anyhow::Result<([Option<Server>; 2], Router)> {
    let settings = newest.borrow().clone();
    let bind = |name, address: Option<_>, routes| {
        address
            .map(|address| Server::bind(name, address, routes, settings.bind_address_hard_fail))
            .transpose()
    };
    let health_routes = health_routes(overview.health.clone(), metrics.health.clone());
    let admin = admin_surface(newest, overview, flags)?;
    let servers = [
        bind(HEALTH_SERVER, settings.healthz_address, health_routes)?,
        bind(METRICS_SERVER, settings.metrics_address, admin.clone())?,
    ];
    Ok((servers, admin))
}

/// Serves until the process ends; a server that is not wanted never ends.
async fn serve(server: Option<Server>) -> anyhow::Result<()> {
    match server {
        Some(server) => match server.run().await? {},
        None => std::future::pending().await,
    }
}

/// Runs everything that serves clients.
pub(super) async fn serve_all(
    [first, second]: [Option<Server>; 2],
    checking: impl Future<Output = ()>,
    looping_back: impl Future<Output = ()>,
    asking: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    tokio::select! {
        ended = serve(first) => ended,
        ended = serve(second) => ended,
        () = checking => Ok(()),
        () = looping_back => Ok(()),
        () = asking => Ok(()),
    }
}
