// SPDX-License-Identifier: Apache-2.0
//! A proxy that waits for another one in its network namespace ([`super::lock`]).

use std::convert::Infallible;

use tracing::warn;

use super::HEALTH_SERVER;
use super::instrumentation::Metrics;
use super::lock::Holder;
use crate::clock::Clock;
use crate::config::settings::Settings;
use crate::events::{Event, Events, action, reason};
use crate::health::{ProxyHealth, Server, health_routes};

/// Answers probes of a proxy that waits for another one: it lives, and serves nothing. Where the
/// other one has the port, that one answers.
pub(super) async fn answer_probes(
    settings: &Settings,
    metrics: &Metrics,
    clock: &Clock,
) -> Infallible {
    let health = ProxyHealth::new(clock.clone(), settings.sync.period);
    let routes = health_routes(health, metrics.health.clone());
    let address = settings.healthz_address;
    let server = address.map(|address| Server::bind(HEALTH_SERVER, address, routes, true));
    if let Some(Ok(server)) = server
        && let Ok(never) = server.run().await
    {
        match never {}
    }
    std::future::pending().await
}

/// Says that this proxy waits for another one to end.
pub(super) fn say_whom_for(holder: &Holder, events: &Events) {
    warn!(
        pid = holder.pid,
        mode = holder.mode,
        since = holder.since,
        version = holder.version,
        "another kube-proxy-rs serves this network namespace, waiting for it to end"
    );
    events.send(Event::node(
        reason::ANOTHER_PROXY,
        action::START,
        format!("waiting for another kube-proxy-rs on this node to end ({holder})"),
    ));
}
