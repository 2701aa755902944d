// SPDX-License-Identifier: Apache-2.0
//! Flows of UDP clients are checked after the rounds that may have made some of them stale.

use super::*;
use kpr_core::model::Protocol;

impl Fixture {
    /// A loop that has programmed `ns/dns` with two endpoints, and two clients, one for each.
    fn with_clients() -> Self {
        let mut fixture = Self::new();
        fixture.known_node();
        let dns = service("ns/dns").named_port("", Protocol::Udp, 53);
        fixture.model(Event::ServicesReplaced(vec![dns]));
        fixture.model(Event::SlicesReplaced(vec![dns_at(&[
            "10.1.0.5", "10.1.0.6",
        ])]));
        fixture.lock().flows = BTreeSet::from([
            flow_to("10.1.0.5"),
            flow_to("10.1.0.6"),
            // From an earlier process, to an endpoint that was removed while none was running.
            flow_to("10.1.0.4"),
        ]);
        fixture.work();
        fixture
    }

    fn flows(&self) -> Vec<Flow> {
        self.lock().flows.iter().copied().collect()
    }

    fn cleanups(&self) -> usize {
        self.lock().cleanups
    }
}

fn dns_at(addresses: &[&str]) -> kpr_core::model::EndpointSlice {
    let endpoints = addresses.iter().map(|address| endpoint(address)).collect();
    slice("ns/dns", "a", endpoints).named_port("", Protocol::Udp, 53)
}

fn flow_to(address: &str) -> Flow {
    Flow {
        destination: "10.96.0.1:53".parse().unwrap(),
        answerer: std::net::SocketAddr::new(ip(address), 53),
    }
}

#[test]
fn first_round_checks_all_flows_and_later_ones_only_with_a_reason() {
    let mut fixture = Fixture::with_clients();
    assert_eq!(fixture.flows(), [flow_to("10.1.0.5"), flow_to("10.1.0.6")]);
    assert_eq!(fixture.cleanups(), 1);
    fixture.model(Event::SliceApplied(dns_at(&[
        "10.1.0.5", "10.1.0.6", "10.1.0.7",
    ])));
    fixture.work();
    assert_eq!(fixture.cleanups(), 1, "none can be stale");
    fixture.model(Event::SliceApplied(dns_at(&["10.1.0.6", "10.1.0.7"])));
    fixture.work();
    assert_eq!(fixture.flows(), [flow_to("10.1.0.6")]);
    fixture.model(Event::ServiceDeleted(service_name("ns/dns")));
    fixture.work();
    assert_eq!(fixture.flows(), []);
    assert_eq!(fixture.cleanups(), 3);
}

#[test]
fn failed_cleanup_is_retried() {
    let mut fixture = Fixture::with_clients();
    fixture.lock().keeps_flows = true;
    fixture.model(Event::SliceApplied(dns_at(&["10.1.0.6"])));
    fixture.work();
    assert_eq!(fixture.flows().len(), 2);
    fixture.lock().keeps_flows = false;
    let pause = fixture.reconciler.pause().unwrap();
    assert!(pause < Duration::from_secs(1), "{pause:?}");
    fixture.wait(pause);
    assert_eq!(fixture.flows(), [flow_to("10.1.0.6")]);
}

#[test]
fn flows_that_come_back_while_a_step_fails_are_deleted_again() {
    let mut fixture = Fixture::with_clients();
    fixture
        .lock()
        .troubles
        .push_back(("delete-real-server", Fault::Refused));
    fixture.model(Event::SliceApplied(dns_at(&["10.1.0.6"])));
    fixture.work();
    assert_eq!(fixture.flows(), [flow_to("10.1.0.6")]);
    // The real server still exists.
    fixture.lock().flows.insert(flow_to("10.1.0.5"));
    let pause = fixture.reconciler.pause().unwrap();
    fixture.wait(pause);
    assert_eq!(fixture.flows(), [flow_to("10.1.0.6")]);
    let cleanups = fixture.cleanups();
    fixture.work();
    assert_eq!(fixture.cleanups(), cleanups, "done");
}

#[test]
fn after_drift_all_flows_are_looked_at() {
    let mut fixture = Fixture::with_clients();
    let past = Flow {
        destination: "10.96.0.1:53".parse().unwrap(),
        answerer: "10.96.0.1:53".parse().unwrap(),
    };
    fixture.lock().flows.insert(past);
    // An audit that finds nothing costs nothing.
    fixture.wait(Duration::from_secs(30));
    assert_eq!(fixture.cleanups(), 1);
    fixture.lock().kernel.state.addresses.clear();
    fixture.wait(Duration::from_secs(30));
    assert_eq!(fixture.cleanups(), 2);
    assert!(!fixture.flows().contains(&past));
}

#[test]
fn slow_searches_leave_time_to_others() {
    let mut fixture = Fixture::with_clients();
    let slow = (fixture.time.clone(), Duration::from_secs(1));
    fixture.lock().slow = Some(slow);
    for endpoint in ["10.1.0.5", "10.1.0.6", "10.1.0.7", "10.1.0.8"] {
        fixture.model(Event::SliceApplied(dns_at(&[endpoint])));
        fixture.wait(Duration::from_millis(100));
    }
    // The first at once, the others together, when ten times as long has passed.
    assert_eq!(fixture.cleanups(), 2);
    let pause = fixture.reconciler.pause().unwrap();
    fixture.wait(pause);
    assert_eq!(fixture.cleanups(), 2, "not yet: {pause:?}");
    fixture.wait(Duration::from_secs(10));
    assert_eq!(fixture.cleanups(), 3);
    fixture.wait(Duration::from_secs(20));
    assert_eq!(fixture.cleanups(), 3, "done");
    assert_eq!(fixture.flows(), []);
}

#[test]
fn flows_that_come_back_between_the_parts_of_a_change_are_deleted_again() {
    let mut fixture = Fixture::with_clients();
    let many = |net: u8| -> Vec<String> {
        let addresses = (0..6_000).map(|n| format!("10.{net}.{}.{}", n / 250, n % 250));
        addresses.collect()
    };
    let (old, new) = (many(2), many(3));
    let dns = |all: &[String]| dns_at(&all.iter().map(String::as_str).collect::<Vec<_>>());
    fixture.model(Event::SliceApplied(dns(&old)));
    fixture.work();
    fixture.model(Event::SliceApplied(dns(&new)));
    fixture.reconciler.round(false);
    assert!(fixture.reconciler.families().any(Family::is_pending));
    // Its real server still exists.
    let last = flow_to("10.2.23.249");
    fixture.lock().flows.insert(last);
    while fixture.reconciler.families().any(Family::is_pending) {
        let pause = fixture.reconciler.pause().unwrap();
        fixture.wait(pause);
    }
    assert!(!fixture.flows().contains(&last));
}
