// SPDX-License-Identifier: Apache-2.0
//! A proxy that waits for another one in its network namespace ([`super::lock`]).

use std::convert::Infallible;
use std::net::SocketAddr;

use tokio::sync::watch;
use tracing::warn;

use super::HEALTH_SERVER;
use super::instrumentation::Metrics;
use super::lock::Holder;
use crate::clock::Clock;
use crate::config::settings::Settings;
use crate::events::{Event, Events, action, reason};
use crate::health::{ProxyHealth, Server, health_routes};

/// Answers probes of a proxy that waits for another one: it lives, and serves nothing. Where the
/// other one answers them, or is about to, its port is left alone.
pub(super) async fn answer_probes(
    settings: &Settings,
    metrics: &Metrics,
    clock: &Clock,
    mut other: watch::Receiver<Option<Holder>>,
) -> Infallible {
    let health = ProxyHealth::new(clock.clone(), settings.sync.period);
    let routes = health_routes(health, metrics.health.clone());
    let known = other.wait_for(Option::is_some).await;
    let theirs = known.ok().and_then(|other| other.as_ref()?.health);
    let is_free = |address: &SocketAddr| theirs.is_none_or(|theirs| !overlap(*address, theirs));
    if let Some(address) = settings.healthz_address.filter(is_free)
        && let Ok(server) = Server::bind(HEALTH_SERVER, address, routes, true)
        && let Ok(never) = server.run().await
    {
        match never {}
    }
    std::future::pending().await
}

/// Whether two cannot listen there at once.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let (ip, other_ip) = (one.ip(), other.ip());
    let is_same = ip == other_ip || ip.is_unspecified() || other_ip.is_unspecified();
    one.port() == other.port() && is_same
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_overlap_where_one_program_keeps_the_other_out() {
        for (one, other, wanted) in [
            ("0.0.0.0:10256", "0.0.0.0:10256", true),
            ("0.0.0.0:10256", "127.0.0.1:10256", true),
            ("[::]:10256", "192.0.2.1:10256", true),
            ("127.0.0.1:10256", "192.0.2.1:10256", false),
            ("0.0.0.0:10256", "0.0.0.0:10300", false),
        ] {
            let (one, other) = (one.parse().unwrap(), other.parse().unwrap());
            assert_eq!(overlap(one, other), wanted, "{one} {other}");
            assert_eq!(overlap(other, one), wanted, "{other} {one}");
        }
    }
}
