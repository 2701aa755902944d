// SPDX-License-Identifier: Apache-2.0
//! Keeps the servers behind `healthCheckNodePort` as the loop last wanted them. They live on the main runtime: a load
//! balancer's question never waits for a round.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::watch;
use tracing::warn;

use super::told::Told;
use crate::events::{Event, Events, action, reason};
use crate::health::{ListenFailure, ProxyHealth, ServiceHealthServers};
use crate::model::IpFamily;
use crate::reconcile::health_checks::HealthChecks;
use crate::telemetry::ErrorChain;

/// Pause before ports that could not be opened are tried again without another reason.
const RETRY: Duration = Duration::from_secs(5);

/// The last word of each family.
pub(super) type Wanted = BTreeMap<IpFamily, HealthChecks>;

/// Says what is wanted; never waits.
#[derive(Debug)]
pub(super) struct Board(watch::Sender<Wanted>);

impl Board {
    pub(super) fn new() -> (Self, watch::Receiver<Wanted>) {
        let (sender, receiver) = watch::channel(Wanted::new());
        (Self(sender), receiver)
    }

    pub(super) fn show(&self, checks: &HealthChecks) {
        self.0.send_if_modified(|wanted| {
            let is_news = wanted.get(&checks.family) != Some(checks);
            if is_news {
                wanted.insert(checks.family, checks.clone());
            }
            is_news
        });
    }
}

/// Opens, closes and re-opens ports until nobody can want anything any more.
pub(super) async fn run(
    mut wanted: watch::Receiver<Wanted>,
    health: ProxyHealth,
    events: Events,
    node: &str,
) {
    let mut servers = ServiceHealthServers::new(health);
    let mut told = Told::default();
    loop {
        let now = wanted.borrow_and_update().clone();
        let failures = open(&mut servers, &now).await;
        told.take_in(&failures, |failure| tell(failure, &events, node));
        tokio::select! {
            changed = wanted.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = tokio::time::sleep(RETRY), if !failures.is_empty() => {}
        }
    }
}

async fn open(servers: &mut ServiceHealthServers, wanted: &Wanted) -> Vec<ListenFailure> {
    let mut counts = BTreeMap::new();
    for (family, checks) in wanted {
        for (service, check) in &checks.services {
            counts.insert((*family, service.clone()), check.local_endpoints);
        }
    }
    // Before the ports: one that opens knows what to say.
    servers.set_local_endpoints(counts);
    let mut failures = Vec::new();
    for (family, checks) in wanted {
        let ports = checks
            .services
            .iter()
            .map(|(service, check)| (service.clone(), check.port))
            .collect();
        failures.extend(servers.sync(*family, &checks.addresses, &ports).await);
    }
    failures
}

fn tell(failure: &ListenFailure, events: &Events, node: &str) {
    warn!(
        service = %failure.service,
        address = %failure.address,
        error = %failure.source,
        retry_seconds = RETRY.as_secs(),
        "health check port not opened"
    );
    events.send(Event::service(
        failure.service.clone(),
        reason::SERVICE_HEALTH_CHECK_FAILED,
        action::LISTEN,
        format!(
            "node {node} failed to start healthcheck {:?} on port {}: {}",
            failure.service.to_string(),
            failure.address.port(),
            ErrorChain(failure)
        ),
    ));
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, TcpListener};

    use prometheus::Registry;

    use super::*;
    use crate::clock::Clock;
    use crate::metrics::EventMetrics;
    use crate::model::ServiceName;
    use crate::reconcile::health_checks::HealthCheck;

    fn wanted(port: u16) -> Wanted {
        let check = HealthCheck {
            port,
            local_endpoints: 1,
        };
        let checks = HealthChecks {
            family: IpFamily::V4,
            addresses: [IpAddr::V4(Ipv4Addr::LOCALHOST)].into(),
            services: [(ServiceName::new("default", "web"), check)].into(),
        };
        [(IpFamily::V4, checks)].into()
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_told_once_and_opened_when_it_is_free() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let metrics = EventMetrics::register(&Registry::new()).unwrap();
        let (events, mut queue) = Events::queue(metrics);
        let health = ProxyHealth::new(Clock::system(), Duration::from_secs(30));
        let mut servers = ServiceHealthServers::new(health);
        let mut told = Told::default();
        for _ in 0..2 {
            let failures = open(&mut servers, &wanted(port)).await;
            assert_eq!(failures.len(), 1);
            told.take_in(&failures, |failure| tell(failure, &events, "worker"));
        }
        let event = queue.try_recv().unwrap();
        assert_eq!(event.reason, "FailedToStartServiceHealthcheck");
        assert_eq!(event.action, "Listen");
        let start =
            format!("node worker failed to start healthcheck \"default/web\" on port {port}: ");
        assert!(event.note.starts_with(&start), "{}", event.note);
        assert!(queue.try_recv().is_err(), "it was told once");

        drop(taken);
        let failures = open(&mut servers, &wanted(port)).await;
        told.take_in(&failures, |failure| tell(failure, &events, "worker"));
        assert_eq!(servers.open_ports().count(), 1);
        assert!(told == Told::default() && queue.try_recv().is_err());
    }

    #[test]
    fn what_is_as_before_is_no_news() {
        let (board, mut receiver) = Board::new();
        let checks = wanted(1).remove(&IpFamily::V4).unwrap();
        board.show(&checks);
        assert!(receiver.has_changed().unwrap());
        receiver.mark_unchanged();
        board.show(&checks);
        assert!(!receiver.has_changed().unwrap());
    }
}
