// SPDX-License-Identifier: Apache-2.0
//! What the loop reports: health checks of Services, Events.

use super::*;
use crate::events::{Regarding, reason};
use crate::loopback::Transport;
use kpr_core::model::Protocol;

impl Fixture {
    /// Number of local endpoints of `ns/web` by health check port, one entry per report.
    fn reported(&self) -> Vec<Option<(u16, usize)>> {
        let reported = std::mem::take(&mut *self.watcher.health_checks.lock().unwrap());
        let of_web = |checks: &HealthChecks| {
            let check = checks.services.get(&service_name("ns/web"))?;
            Some((check.port, check.local_endpoints))
        };
        reported.iter().map(of_web).collect()
    }
}

#[test]
fn health_checks_are_published_when_the_kernel_has_the_change() {
    let mut fixture = Fixture::programmed();
    fixture.reported();
    let checked = service("ns/web").port(80).health_check(30_000);
    fixture.model(Event::ServiceApplied(checked));
    let local = vec![endpoint("10.1.0.5").local(), endpoint("10.1.0.7").local()];
    fixture.model(Event::SliceApplied(slice("ns/web", "a", local).port(8080)));
    assert_eq!(fixture.reported(), []);
    fixture
        .lock()
        .troubles
        .push_back(("add-real-server", Fault::Refused));
    fixture.work();
    assert_eq!(fixture.reported(), [], "the endpoint does not exist yet");
    fixture.wait(Duration::from_secs(1));
    assert_eq!(fixture.reported(), [Some((30_000, 2))]);

    fixture.model(Event::ServiceDeleted(service_name("ns/web")));
    fixture.work();
    assert_eq!(fixture.reported(), [None]);
}

#[test]
fn node_ports_for_localhost_are_published_when_they_change() {
    let mut fixture = Fixture::with(&[
        "--proxy-mode=ipvs",
        "--ipvs-min-sync-period=0s",
        "--localhost-nodeports",
    ]);
    let reported = |fixture: &Fixture| -> Vec<Vec<(Transport, u16)>> {
        let reported = std::mem::take(&mut *fixture.watcher.loopback_ports.lock().unwrap());
        let ports = reported
            .iter()
            .map(|wanted| wanted.services.values().flatten());
        ports.map(|ports| ports.copied().collect()).collect()
    };
    fixture.model(Event::ServicesReplaced(vec![
        service("ns/web").port(80).node_port(30_080),
    ]));
    fixture.model(Event::SlicesReplaced(vec![]));
    fixture.known_node();
    fixture.work();
    assert_eq!(reported(&fixture), [[(Transport::Tcp, 30_080)]]);
    fixture.scale(&["10.1.0.5"]);
    fixture.work();
    assert!(
        reported(&fixture).is_empty(),
        "an endpoint changes no ports"
    );
    fixture.model(Event::ServiceDeleted(service_name("ns/web")));
    fixture.work();
    assert_eq!(reported(&fixture), [[]; 1]);
}

#[test]
fn a_clash_of_addresses_is_an_event_of_the_younger_service_once() {
    let mut fixture = Fixture::programmed();
    let younger = service("ns/younger").port(80).created(5);
    fixture.model(Event::ServiceApplied(younger));
    fixture.work();
    fixture.scale(&["10.1.0.5"]);
    fixture.work();
    let events = fixture.watcher.events.lock().unwrap();
    let [event] = events.as_slice() else {
        panic!("{events:?}")
    };
    assert_eq!(
        event.regarding,
        Regarding::Service(service_name("ns/younger"))
    );
    assert_eq!(event.reason, reason::ADDRESS_CONFLICT);
    assert_eq!(
        event.note,
        "port ns/younger is not served at TCP 10.96.0.1:80: ns/web holds it, as the older Service"
    );
}

/// Of two addresses that are others', at more ports than are reported of one Service, both are
/// named; of a Service with very many problems it is said that there are more.
#[test]
fn nothing_that_is_not_served_is_hidden_silently() {
    let mut fixture = Fixture::programmed();
    let many = |name: &str, ports: u16, addresses: u8| {
        let service = (1..=ports).fold(service(name), |service, port| {
            service.named_port(&format!("p{port}"), Protocol::Tcp, port)
        });
        (0..addresses).fold(service, |service, n| {
            service.external_ip(&format!("127.0.0.{n}"))
        })
    };
    let wide = many("ns/wide", 20, 2).cluster_ips(&["10.96.0.7"]);
    let greedy = many("ns/greedy", 1, 30).cluster_ips(&["10.96.0.8"]);
    fixture.model(Event::ServiceApplied(wide));
    fixture.model(Event::ServiceApplied(greedy));
    fixture.work();
    let events = fixture.watcher.events.lock().unwrap();
    let notes = |service: &str, reason: &str| -> Vec<&str> {
        let regarding = Regarding::Service(service_name(service));
        let mine = events.iter().filter(|event| event.regarding == regarding);
        let mine = mine.filter(|event| event.reason == reason);
        mine.map(|event| event.note.as_str()).collect()
    };
    let wide = notes("ns/wide", reason::ADDRESS_NOT_BOUND);
    assert_eq!(wide.len(), 2, "{wide:?}");
    for (note, address) in wide.iter().zip(["127.0.0.0", "127.0.0.1"]) {
        assert!(
            note.contains(address) && note.contains("and 19 more"),
            "{note}"
        );
    }
    assert_eq!(notes("ns/wide", reason::MORE_PROBLEMS), [""; 0]);
    assert_eq!(notes("ns/greedy", reason::ADDRESS_NOT_BOUND).len(), 10);
    assert_eq!(notes("ns/greedy", reason::MORE_PROBLEMS).len(), 1);
    drop(events);
    // Where it says that they are, they are.
    let shown = fixture.reconciler.show(&Question {
        service: Some(service_name("ns/greedy")),
        matching: None,
        skip: 0,
        limit: 1,
    });
    let found = &shown.services["ns/greedy"][&IpFamily::V4].unmet;
    assert_eq!(found.len(), 30, "{found:?}");
}
