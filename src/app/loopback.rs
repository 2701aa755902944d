// SPDX-License-Identifier: Apache-2.0
//! Opens the node ports on loopback addresses that the loop last wanted.

use std::collections::BTreeMap;

use tracing::{info, warn};

use super::listening::{self, RETRY, Sockets};
use crate::events::{Event, Events, action, reason};
use crate::loopback::{Forwarder, NodePortError, Transport};
use crate::reconcile::loopback_ports::Wanted;
use crate::telemetry::ErrorChain;
use kpr_core::model::ServiceName;

impl Sockets for Forwarder {
    type Wanted = Wanted;
    type Failure = NodePortError;

    async fn open(&mut self, families: &listening::Wanted<Wanted>) -> Vec<NodePortError> {
        let were_open = self.len();
        let mut failures = Vec::new();
        for (family, wanted) in families {
            match wanted.target {
                Some(target) => {
                    failures.extend(self.sync(*family, target, &ports(wanted)).await);
                }
                None => self.stop(*family).await,
            }
        }
        if self.len() != were_open {
            info!(ports = self.len(), "forwarding node ports on localhost");
        }
        failures
    }

    fn report(failure: &NodePortError, events: &Events, node: &str) {
        warn!(
            service = %failure.service,
            address = %failure.address,
            error = %failure.source,
            retry_seconds = RETRY.as_secs(),
            "failed to open node port on localhost"
        );
        events.send(Event::service(
            failure.service.clone(),
            reason::LOCALHOST_NODE_PORT_FAILED,
            action::LISTEN,
            format!("node {node} {}", ErrorChain(failure)),
        ));
    }
}

/// The owner of each port. Of two that claim the same, the kernel knows which one gets it; here it
/// is only a name.
fn ports(wanted: &Wanted) -> BTreeMap<(Transport, u16), ServiceName> {
    let mut owners = BTreeMap::new();
    for (service, ports) in &wanted.services {
        for port in ports {
            owners.entry(*port).or_insert_with(|| service.clone());
        }
    }
    owners
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, TcpListener};

    use prometheus::Registry;

    use super::*;
    use crate::app::listening::report_new;
    use crate::metrics::EventMetrics;
    use crate::reported_once::ReportedOnce;
    use kpr_core::model::IpFamily;

    fn wanted(port: u16, target: Option<Ipv4Addr>) -> Wanted {
        let ports = [(Transport::Tcp, port)].into();
        Wanted {
            family: IpFamily::V4,
            target: target.map(IpAddr::V4),
            services: [(ServiceName::new("ns", "web"), ports)].into(),
        }
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_reported_once_and_opened_when_it_is_free() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let metrics = EventMetrics::register(&Registry::new()).unwrap();
        let (events, mut queue) = Events::queue(metrics);
        let (mut forwarder, mut reported) = (Forwarder::default(), ReportedOnce::default());
        let node = Ipv4Addr::new(127, 0, 0, 2);
        let mut families: listening::Wanted<Wanted> =
            [(IpFamily::V4, wanted(port, Some(node)))].into();
        for _ in 0..2 {
            let failures = forwarder.open(&families).await;
            assert_eq!(failures.len(), 1);
            report_new::<Forwarder>(&mut reported, &failures, &events, "worker");
        }
        let event = queue.try_recv().unwrap();
        assert_eq!(event.reason, "FailedToListenOnLocalhost");
        let start = format!("node worker cannot listen on 127.0.0.1:{port} (TCP)");
        assert!(event.note.starts_with(&start), "{}", event.note);
        assert!(queue.try_recv().is_err(), "it was reported once");

        drop(taken);
        let failures = forwarder.open(&families).await;
        report_new::<Forwarder>(&mut reported, &failures, &events, "worker");
        assert_eq!((forwarder.len(), reported), (1, ReportedOnce::default()));

        families.insert(IpFamily::V4, wanted(port, None));
        assert!(forwarder.open(&families).await.is_empty());
        assert!(forwarder.is_empty(), "there is nowhere to forward to");
    }

    #[test]
    fn of_two_services_with_one_port_one_is_named() {
        let mut wanted = wanted(30_080, None);
        let ports = [(Transport::Tcp, 30_080), (Transport::Udp, 30_080)].into();
        wanted.services.insert(ServiceName::new("ns", "zoo"), ports);
        let owners: Vec<_> = super::ports(&wanted).into_values().collect();
        assert_eq!(
            owners,
            ["web", "zoo"].map(|name| ServiceName::new("ns", name))
        );
    }
}
