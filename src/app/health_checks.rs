// SPDX-License-Identifier: Apache-2.0
//! Opens the servers behind `healthCheckNodePort` that the loop last wanted.

use std::collections::BTreeMap;

use tracing::warn;

use super::listening::{RETRY, Sockets, Wanted};
use crate::events::{Event, Events, action, reason};
use crate::health::{HealthCheckPortError, ServiceHealthServers};
use crate::reconcile::health_checks::HealthChecks;
use crate::telemetry::ErrorChain;

impl Sockets for ServiceHealthServers {
    type Wanted = HealthChecks;
    type Failure = HealthCheckPortError;

    async fn open(&mut self, wanted: &Wanted<HealthChecks>) -> Vec<HealthCheckPortError> {
        let mut counts = BTreeMap::new();
        for (family, checks) in wanted {
            for (service, check) in &checks.services {
                counts.insert((*family, service.clone()), check.local_endpoints);
            }
        }
        // Before the ports: one that opens knows what to say.
        self.set_local_endpoints(counts);
        let mut failures = Vec::new();
        for (family, checks) in wanted {
            let ports = checks
                .services
                .iter()
                .map(|(service, check)| (service.clone(), check.port))
                .collect();
            failures.extend(self.sync(*family, &checks.addresses, &ports).await);
        }
        failures
    }

    fn report(failure: &HealthCheckPortError, events: &Events, node: &str) {
        warn!(
            service = %failure.service,
            address = %failure.address,
            error = %failure.source,
            retry_seconds = RETRY.as_secs(),
            "failed to open health check port"
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
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, TcpListener};
    use std::time::Duration;

    use prometheus::Registry;

    use super::*;
    use crate::app::listening::report_new;
    use crate::clock::Clock;
    use crate::health::ProxyHealth;
    use crate::metrics::EventMetrics;
    use crate::reconcile::health_checks::HealthCheck;
    use crate::reported_once::ReportedOnce;
    use kpr_core::model::{IpFamily, ServiceName};

    fn wanted(port: u16) -> Wanted<HealthChecks> {
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
    async fn a_port_that_is_taken_is_reported_once_and_opened_when_it_is_free() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let metrics = EventMetrics::register(&Registry::new()).unwrap();
        let (events, mut queue) = Events::queue(metrics);
        let health = ProxyHealth::new(Clock::system(), Duration::from_secs(30));
        let mut servers = ServiceHealthServers::new(health);
        let mut reported = ReportedOnce::default();
        for _ in 0..2 {
            let failures = servers.open(&wanted(port)).await;
            assert_eq!(failures.len(), 1);
            report_new::<ServiceHealthServers>(&mut reported, &failures, &events, "worker");
        }
        let event = queue.try_recv().unwrap();
        assert_eq!(event.reason, "FailedToStartServiceHealthcheck");
        assert_eq!(event.action, "Listen");
        let start =
            format!("node worker failed to start healthcheck \"default/web\" on port {port}: ");
        assert!(event.note.starts_with(&start), "{}", event.note);
        assert!(queue.try_recv().is_err(), "it was reported once");

        drop(taken);
        let failures = servers.open(&wanted(port)).await;
        report_new::<ServiceHealthServers>(&mut reported, &failures, &events, "worker");
        assert_eq!(servers.open_ports().count(), 1);
        assert!(reported == ReportedOnce::default() && queue.try_recv().is_err());
    }
}
