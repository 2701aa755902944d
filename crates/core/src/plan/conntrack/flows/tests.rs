// SPDX-License-Identifier: Apache-2.0

use super::*;
use crate::model::testing::{endpoint, ip, service, service_name, slice, tracker};
use crate::model::{Event, Service, ServiceName, SliceEndpoint, SliceName, Tracker};

mod properties;

/// The addresses of the node.
fn node() -> BTreeSet<IpAddr> {
    BTreeSet::from([ip("192.168.0.10"), ip("172.16.0.10")])
}

fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

fn flow(destination: &str, answerer: &str) -> Flow {
    Flow {
        destination: at(destination),
        answerer: at(answerer),
    }
}

fn update(flows: &mut Flows, tracker: &Tracker, name: &ServiceName) {
    flows.update(&ServiceView::of(tracker, name, IpFamily::V4));
}

/// One family's flows and the objects that they are derived from.
struct World {
    tracker: Tracker,
    flows: Flows,
}

impl World {
    /// DNS with two endpoints; nothing is due any more.
    fn settled() -> Self {
        let mut world = Self {
            tracker: tracker(vec![dns()], vec![to(vec![one(), two()])]),
            flows: Flows::new(IpFamily::V4, node()),
        };
        world.take_in(vec![]);
        update(&mut world.flows, &world.tracker, &service_name("ns/dns"));
        world.flows.done();
        world
    }

    fn take_in(&mut self, events: Vec<Event>) {
        for event in events {
            self.tracker.apply(event);
        }
        for name in self.tracker.take().services {
            update(&mut self.flows, &self.tracker, &name);
        }
    }

    /// The clean-up that is due after these changes.
    fn due_after(&mut self, events: Vec<Event>) -> Option<Cleanup> {
        self.take_in(events);
        self.flows.due()
    }

    fn cleanup_after(&mut self, event: Event) -> Cleanup {
        self.due_after(vec![event]).unwrap()
    }
}

fn dns() -> Service {
    service("ns/dns")
        .named_port("dns", Protocol::Udp, 53)
        .node_port(30_053)
        .named_port("dns-tcp", Protocol::Tcp, 53)
        .external_ip("203.0.113.1")
        .vip("198.51.100.1")
}

fn one() -> SliceEndpoint {
    endpoint("10.1.0.1")
}

fn two() -> SliceEndpoint {
    endpoint("10.1.0.2")
}

fn to(endpoints: Vec<SliceEndpoint>) -> crate::model::EndpointSlice {
    slice("ns/dns", "a", endpoints)
        .named_port("dns", Protocol::Udp, 5353)
        .named_port("dns-tcp", Protocol::Tcp, 5353)
}

fn scaled(endpoints: Vec<SliceEndpoint>) -> Event {
    Event::SliceApplied(to(endpoints))
}

const FRONTENDS: [&str; 5] = [
    "10.96.0.1:53",
    "203.0.113.1:53",
    "198.51.100.1:53",
    "192.168.0.10:30053",
    "172.16.0.10:30053",
];

#[test]
fn flows_to_a_removed_endpoint_end_at_every_frontend() {
    let cleanup = World::settled().cleanup_after(scaled(vec![two()]));
    for frontend in FRONTENDS {
        assert!(
            cleanup.is_stale(&flow(frontend, "10.1.0.1:5353")),
            "{frontend}"
        );
        assert!(
            !cleanup.is_stale(&flow(frontend, "10.1.0.2:5353")),
            "{frontend}"
        );
        // The port counts too.
        assert!(
            cleanup.is_stale(&flow(frontend, "10.1.0.2:53")),
            "{frontend}"
        );
    }
    assert!(cleanup.is_stale(&flow("127.0.0.1:30053", "10.1.0.1:5353")));
    for foreign in [
        // Not translated, so it belongs to a program of the node.
        flow("127.0.0.1:30053", "127.0.0.1:30053"),
        // A node port and a DNS that are not ours.
        flow("192.168.0.11:30053", "10.1.0.1:5353"),
        flow("192.168.0.11:30053", "192.168.0.11:30053"),
        flow("192.0.2.1:53", "192.0.2.1:53"),
        flow("192.168.0.10:53", "192.168.0.10:53"),
        flow("10.1.0.1:5353", "10.1.0.1:5353"),
    ] {
        assert!(!cleanup.is_stale(&foreign), "{foreign:?}");
    }
}

#[test]
fn flows_end_with_the_last_endpoint_at_node_ports_too() {
    let cleanup = World::settled().cleanup_after(scaled(vec![one().unready()]));
    for frontend in FRONTENDS {
        assert!(
            cleanup.is_stale(&flow(frontend, "10.1.0.1:5353")),
            "{frontend}"
        );
        assert!(cleanup.is_stale(&flow(frontend, frontend)), "{frontend}");
    }
}

#[test]
fn flows_past_the_endpoints_end_with_the_first_one() {
    let mut world = World::settled();
    world.take_in(vec![scaled(vec![])]);
    world.flows.done();
    let cleanup = world.cleanup_after(scaled(vec![one()]));
    for frontend in FRONTENDS {
        assert!(cleanup.is_stale(&flow(frontend, frontend)), "{frontend}");
    }
}

#[test]
fn nothing_is_due_when_no_flow_can_be_stale() {
    let mut world = World::settled();
    assert_eq!(world.flows.due(), None);
    let more = vec![one(), two(), endpoint("10.1.0.3")];
    assert_eq!(world.due_after(vec![scaled(more)]), None, "one more");
    let draining = vec![one().terminating(), two(), endpoint("10.1.0.3")];
    assert_eq!(
        world.due_after(vec![scaled(draining)]),
        None,
        "a terminating endpoint may still serve"
    );
    let local = dns().internal_local().external_local().affinity(10);
    let applied = Event::ServiceApplied(local);
    assert_eq!(world.due_after(vec![applied]), None, "policies");
    let tcp = service("ns/web").port(80).node_port(30_080);
    let events = vec![
        Event::ServiceApplied(tcp),
        Event::SliceApplied(slice("ns/web", "a", vec![one()]).port(8080)),
        Event::ServiceDeleted(service_name("ns/web")),
    ];
    assert_eq!(world.due_after(events), None, "TCP");
}

#[test]
fn change_of_the_service_alone_counts() {
    let mut world = World::settled();
    let cleanup = world.cleanup_after(Event::ServiceApplied(Service {
        load_balancer_vips: vec![],
        ..dns()
    }));
    let gone = Frontend::Address(at("198.51.100.1:53"));
    assert_eq!(cleanup.frontends().collect::<Vec<_>>(), [&gone]);
    assert!(cleanup.is_stale(&flow("198.51.100.1:53", "10.1.0.1:5353")));
    // Traffic to a place without a Service is not ours.
    assert!(!cleanup.is_stale(&flow("198.51.100.1:53", "198.51.100.1:53")));
    assert!(
        !cleanup.is_stale(&flow("10.96.0.1:53", "10.9.9.9:5353")),
        "not due"
    );
    world.flows.done();
    let cleanup = world.cleanup_after(Event::ServiceApplied(dns().vip("198.51.100.2")));
    assert_eq!(cleanup.frontends().len(), 2, "one is back, one is new");
    assert!(cleanup.is_stale(&flow("198.51.100.2:53", "198.51.100.2:53")));
    world.flows.done();
    let cleanup = world.cleanup_after(Event::ServiceDeleted(service_name("ns/dns")));
    for frontend in FRONTENDS {
        assert!(
            cleanup.is_stale(&flow(frontend, "10.1.0.1:5353")),
            "{frontend}"
        );
        assert!(!cleanup.is_stale(&flow(frontend, frontend)), "{frontend}");
    }
}

#[test]
fn everything_is_due_at_start_and_after_doubt() {
    let mut world = World::settled();
    world.flows.recheck();
    let again = world.flows.due().unwrap();
    let mut fresh = Flows::new(IpFamily::V4, node());
    update(&mut fresh, &world.tracker, &service_name("ns/dns"));
    assert_eq!(fresh.due().unwrap(), again);
    assert_eq!(again.frontends().len(), 4);
    assert_eq!(Flows::new(IpFamily::V4, node()).due(), None, "no Services");
}

#[test]
fn what_is_due_stays_due_until_it_is_done() {
    let mut world = World::settled();
    world.take_in(vec![scaled(vec![two()])]);
    let first = world.flows.due().unwrap();
    // The endpoint may return in the meantime.
    world.take_in(vec![scaled(vec![one(), two()])]);
    let second = world.flows.due().unwrap();
    let old = flow("10.96.0.1:53", "10.1.0.1:5353");
    assert!(first.is_stale(&old));
    assert!(!second.is_stale(&old));
    world.flows.done();
    assert_eq!(world.flows.due(), None);
}

#[test]
fn older_service_decides_about_a_contested_address() {
    let other = service("ns/other")
        .cluster_ips(&["10.96.0.2"])
        .named_port("dns", Protocol::Udp, 53)
        .external_ip("203.0.113.1")
        .created(-1);
    let mut world = World::settled();
    let others = slice("ns/other", "a", vec![endpoint("10.1.0.9")]);
    let others = others.named_port("dns", Protocol::Udp, 5353);
    let events = vec![Event::ServiceApplied(other), Event::SliceApplied(others)];
    let cleanup = world.due_after(events).unwrap();
    assert!(cleanup.is_stale(&flow("203.0.113.1:53", "10.1.0.1:5353")));
    assert!(!cleanup.is_stale(&flow("203.0.113.1:53", "10.1.0.9:5353")));
    world.flows.done();
    let cleanup = world.cleanup_after(Event::ServiceDeleted(service_name("ns/other")));
    assert!(!cleanup.is_stale(&flow("203.0.113.1:53", "10.1.0.1:5353")));
    assert!(cleanup.is_stale(&flow("203.0.113.1:53", "10.1.0.9:5353")));
}

#[test]
fn older_service_does_not_decide_about_a_cluster_ip() {
    let other = service("ns/other")
        .cluster_ips(&["10.96.0.2"])
        .named_port("dns", Protocol::Udp, 53)
        .external_ip("10.96.0.1")
        .created(-1);
    let mut world = World::settled();
    let others = slice("ns/other", "a", vec![endpoint("10.1.0.9")]);
    let others = others.named_port("dns", Protocol::Udp, 5353);
    let events = vec![Event::ServiceApplied(other), Event::SliceApplied(others)];
    let cleanup = world.due_after(events).unwrap();
    assert!(!cleanup.is_stale(&flow("10.96.0.1:53", "10.1.0.1:5353")));
}

#[test]
fn address_of_the_node_that_a_load_balancer_gave_is_no_node_port() {
    let mut world = World::settled();
    let clash = service("ns/clash")
        .cluster_ips(&["10.96.0.2"])
        .named_port("p", Protocol::Udp, 30_053)
        .vip("192.168.0.10");
    let others = slice("ns/clash", "a", vec![endpoint("10.1.0.9")]);
    let others = others.named_port("p", Protocol::Udp, 1);
    world.take_in(vec![
        Event::ServiceApplied(clash),
        Event::SliceApplied(others),
    ]);
    world.flows.done();
    let cleanup = world.cleanup_after(scaled(vec![two()]));
    assert!(!cleanup.is_stale(&flow("192.168.0.10:30053", "10.1.0.9:1")));
    assert!(cleanup.is_stale(&flow("172.16.0.10:30053", "10.1.0.9:1")));
}

#[test]
fn other_node_addresses_make_node_ports_due() {
    let mut world = World::settled();
    world.flows.set_node_port_addresses(&node());
    assert_eq!(world.flows.due(), None);
    world
        .flows
        .set_node_port_addresses(&BTreeSet::from([ip("192.168.0.99")]));
    let cleanup = world.flows.due().unwrap();
    assert!(cleanup.is_stale(&flow("192.168.0.99:30053", "192.168.0.99:30053")));
    assert!(!cleanup.is_stale(&flow("192.168.0.10:30053", "192.168.0.10:30053")));
}

#[test]
fn kernel_is_asked_for_a_few_ports_or_for_all_flows() {
    let mut world = World::settled();
    let filter = |address: Option<&str>, port| Filter {
        address: address.map(ip),
        port,
    };
    let cleanup = world.cleanup_after(Event::ServiceApplied(Service {
        external_ips: vec![],
        ..dns()
    }));
    let external = filter(Some("203.0.113.1"), Some(53));
    assert_eq!(cleanup.filters(), [external]);
    let cleanup = world.cleanup_after(Event::ServiceDeleted(service_name("ns/dns")));
    assert_eq!(
        cleanup.filters(),
        [filter(None, Some(53)), filter(None, Some(30_053))]
    );
    let v6 = Cleanup {
        family: IpFamily::V6,
        frontends: BTreeMap::from([(Frontend::Address(at("[fd00::1]:53")), Answering::Gone)]),
        node_port_addresses: Arc::default(),
    };
    assert_eq!(
        v6.filters(),
        [filter(None, Some(53))],
        "kernels filter the address wrongly"
    );
    let many = (1..9).map(|port| {
        let many = service(&format!("ns/{port}")).cluster_ips(&[&format!("10.96.1.{port}")]);
        Event::ServiceApplied(many.named_port("p", Protocol::Udp, port))
    });
    let cleanup = world.due_after(many.collect()).unwrap();
    assert_eq!(cleanup.filters(), [filter(None, None)]);
}
