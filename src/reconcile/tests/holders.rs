// SPDX-License-Identifier: Apache-2.0
//! The loop follows who has addresses that Services claim.

use super::*;
use crate::events::reason;
use kpr_core::model::{NodeClaims, Protocol};

fn claims(addresses: &[&str]) -> Input {
    let addresses = addresses.iter().copied().map(ip).collect();
    let claims = NodeClaims {
        addresses,
        pod_cidrs: BTreeSet::new(),
    };
    Input::Source(Update::Nodes(claims))
}

fn take_in<P: Planner>(fixture: &mut Fixture<P>, input: Input)
where
    Shared: Kernel<P>,
{
    fixture.reconciler.take_in(input);
    fixture.time.advance(Duration::from_secs(10));
    fixture.work();
}

/// Services that claim an address of somebody, of the node and of a load balancer.
fn claimants() -> Vec<Event> {
    let services = vec![
        service("ns/web").port(80),
        service("ns/external")
            .cluster_ips(&["10.96.0.2"])
            .port(80)
            .external_ip("203.0.113.1"),
        service("ns/mine")
            .cluster_ips(&["10.96.0.3"])
            .port(8080)
            .external_ip("192.168.0.10"),
        service("ns/vip")
            .cluster_ips(&["10.96.0.4"])
            .port(80)
            .vip("198.51.100.1"),
    ];
    vec![
        Event::ServicesReplaced(services),
        Event::SlicesReplaced(vec![]),
    ]
}

impl<P: Planner> Fixture<P>
where
    Shared: Kernel<P>,
{
    fn claims(&mut self) {
        for event in claimants() {
            self.model(event);
        }
    }
}

fn started() -> Fixture {
    let mut fixture = Fixture::new();
    fixture.lock().addresses = [ip("192.168.0.10")].into();
    fixture.reconciler.facts.around.addresses = [ip("192.168.0.10")].into();
    fixture.claims();
    fixture.known_node();
    fixture.work();
    fixture
}

fn is_served(fixture: &Fixture, at: &str) -> bool {
    let node = fixture.lock();
    node.kernel.state.virtual_servers.contains_key(&tcp(at))
}

fn is_bound(fixture: &Fixture, address: &str) -> bool {
    fixture.lock().kernel.state.addresses.contains(&ip(address))
}

#[test]
fn an_address_of_a_node_that_joins_is_given_up() {
    let mut fixture = started();
    assert!(is_served(&fixture, "203.0.113.1:80") && is_bound(&fixture, "203.0.113.1"));
    fixture.lock().observations.clear();
    take_in(&mut fixture, claims(&["203.0.113.1", "198.51.100.1"]));
    assert!(!is_served(&fixture, "203.0.113.1:80") && !is_bound(&fixture, "203.0.113.1"));
    assert!(is_served(&fixture, "198.51.100.1:80") && !is_bound(&fixture, "198.51.100.1"));
    assert_eq!(
        fixture.lock().observations,
        [],
        "only what changed is planned"
    );
    let notes: Vec<String> = fixture
        .watcher
        .events
        .lock()
        .unwrap()
        .iter()
        .filter(|event| event.note.contains("another node"))
        .map(|event| format!("{}: {}", event.reason, event.note))
        .collect();
    assert_eq!(
        notes,
        [
            "AddressNotBound: port ns/external, IPv4: address 203.0.113.1 is not bound to kube-ipvs0 and not served: it is another node's address",
            "AddressNotBound: port ns/vip, IPv4: address 198.51.100.1 is not bound to kube-ipvs0: it is another node's address",
        ]
    );
    take_in(&mut fixture, claims(&[]));
    assert!(is_served(&fixture, "203.0.113.1:80") && is_bound(&fixture, "203.0.113.1"));
    assert!(is_bound(&fixture, "198.51.100.1"));
}

#[test]
fn api_servers_are_known_by_name_and_by_their_slice() {
    let mut fixture = started();
    let addresses = [ip("203.0.113.1")].into();
    take_in(&mut fixture, Input::Source(Update::ApiServers(addresses)));
    assert!(!is_served(&fixture, "203.0.113.1:80"));
    take_in(
        &mut fixture,
        Input::Source(Update::ApiServers(BTreeSet::new())),
    );
    assert!(is_served(&fixture, "203.0.113.1:80"));
    let mut own = slice("default/kubernetes", "a", vec![endpoint("203.0.113.1")]).port(6443);
    // Anybody with rights in the namespace may write another slice.
    fixture.model(Event::SliceApplied(own.clone()));
    fixture.work();
    assert!(is_served(&fixture, "203.0.113.1:80"));
    own.name.name = "kubernetes".into();
    fixture.model(Event::SliceApplied(own));
    fixture.time.advance(Duration::from_secs(10));
    fixture.work();
    assert!(!is_served(&fixture, "203.0.113.1:80"));
}

#[test]
fn a_process_of_the_node_keeps_its_port() {
    let mut fixture = started();
    assert!(is_served(&fixture, "192.168.0.10:8080"));
    let listening = [((Protocol::Tcp, 8080), [None].into())].into();
    fixture.lock().listening = listening;
    fixture.wait(Duration::from_secs(31));
    assert!(!is_served(&fixture, "192.168.0.10:8080"));
    let last = fixture.watcher.events.lock().unwrap().pop().unwrap();
    assert_eq!(last.reason, reason::ADDRESS_NOT_BOUND);
    assert!(
        last.note
            .ends_with("a process of this node listens on TCP port 8080"),
        "{}",
        last.note
    );
    fixture.lock().listening.clear();
    fixture.wait(Duration::from_secs(31));
    assert!(is_served(&fixture, "192.168.0.10:8080"));
}

#[test]
fn addresses_wait_for_the_list_of_nodes_and_nothing_else_does() {
    let mut fixture = Fixture::new();
    fixture.reconciler.facts.nodes = None;
    fixture.claims();
    fixture.known_node();
    fixture.work();
    assert!(
        !is_served(&fixture, "10.96.0.1:80"),
        "a first round needs all"
    );
    take_in(&mut fixture, claims(&["203.0.113.1"]));
    assert!(is_served(&fixture, "10.96.0.1:80"));
    assert!(is_bound(&fixture, "198.51.100.1"));
    assert!(!is_served(&fixture, "203.0.113.1:80"));

    // A Service that claims addresses later waits alone, silently.
    let mut fixture = Fixture::new();
    fixture.reconciler.facts.nodes = None;
    fixture.model(Event::ServicesReplaced(vec![service("ns/web").port(80)]));
    fixture.model(Event::SlicesReplaced(vec![]));
    fixture.known_node();
    fixture.work();
    assert!(is_served(&fixture, "10.96.0.1:80"));
    fixture.claims();
    fixture.time.advance(Duration::from_secs(10));
    fixture.work();
    assert!(!is_served(&fixture, "203.0.113.1:80") && is_served(&fixture, "10.96.0.2:80"));
    assert!(fixture.watcher.events.lock().unwrap().is_empty());
    take_in(&mut fixture, claims(&[]));
    assert!(is_served(&fixture, "203.0.113.1:80") && is_bound(&fixture, "198.51.100.1"));
}

#[test]
fn nodes_that_are_never_listed_do_not_stop_serving() {
    let mut fixture = Fixture::new();
    fixture.reconciler.facts.nodes = None;
    fixture.claims();
    fixture.known_node();
    fixture.wait(Duration::from_secs(29));
    assert!(!is_served(&fixture, "10.96.0.1:80"));
    fixture.wait(Duration::from_secs(2));
    assert!(is_served(&fixture, "203.0.113.1:80"));
}
