// SPDX-License-Identifier: Apache-2.0
//! Over random changes, rounds and flows: what remains in the table is what a full clean-up would
//! leave.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::*;

const NAMES: [&str; 3] = ["ns/a", "ns/b", "other/a"];
const CLUSTER_IPS: [&str; 3] = ["10.96.0.1", "10.96.0.2", "10.96.0.3"];
const SHARED: [&str; 4] = ["203.0.113.1", "198.51.100.1", "192.168.0.10", "10.96.0.2"];
const PORTS: [u16; 2] = [53, 30_001];
const NODE_PORTS: [u16; 2] = [30_001, 30_002];
const ENDPOINTS: [&str; 3] = ["10.1.0.1", "10.1.0.2", "10.1.0.3"];

#[derive(Clone, Debug)]
enum Happening {
    Event(Box<Event>),
    /// A client sends, and the kernel forwards by the state that the last round programmed.
    Flow(SocketAddr, usize),
    /// A round; its clean-up may fail.
    Round(bool),
    Doubt,
}

fn some_service() -> impl Strategy<Value = Event> {
    let protocol = prop_oneof![3 => Just(Protocol::Udp), 1 => Just(Protocol::Tcp)];
    let port = (
        protocol,
        select(&PORTS[..]),
        proptest::option::of(select(&NODE_PORTS[..])),
    );
    (
        0..NAMES.len(),
        vec(port, 0..3),
        subsequence(&SHARED[..], 0..=2),
        subsequence(&SHARED[..], 0..=1),
        0..2_i64,
    )
        .prop_map(|(n, ports, shared, vips, created)| {
            let mut service = service(NAMES[n])
                .cluster_ips(&[CLUSTER_IPS[n]])
                .created(created);
            for (index, (protocol, port, node_port)) in ports.into_iter().enumerate() {
                service = service.named_port(&format!("p{index}"), protocol, port);
                if let Some(node_port) = node_port {
                    service = service.node_port(node_port);
                }
            }
            for address in shared {
                service = service.external_ip(address);
            }
            for address in vips {
                service = service.vip(address);
            }
            Event::ServiceApplied(service)
        })
}

fn some_slice() -> impl Strategy<Value = Event> {
    let endpoints = subsequence(&ENDPOINTS[..], 0..=3);
    (select(&NAMES[..]), endpoints, 0..4_u8).prop_map(|(name, endpoints, shape)| {
        let endpoints = endpoints.into_iter().enumerate().map(|(index, address)| {
            let endpoint = endpoint(address);
            match (shape, index) {
                (1, 0) => endpoint.terminating(),
                (2, 0) => endpoint.unready(),
                _ => endpoint,
            }
        });
        let mut slice = slice(name, "a", endpoints.collect());
        for port in ["p0", "p1", "p2"] {
            slice = slice.named_port(port, Protocol::Udp, 5353);
        }
        Event::SliceApplied(slice)
    })
}

/// Places that may be frontends at some time, and others.
fn destination() -> impl Strategy<Value = SocketAddr> {
    let addresses: Vec<&str> = CLUSTER_IPS
        .into_iter()
        .chain(SHARED)
        .chain(["172.16.0.10", "192.0.2.9"])
        .collect();
    let ports: Vec<u16> = PORTS.into_iter().chain(NODE_PORTS).collect();
    (select(addresses), select(ports))
        .prop_map(|(ip, port)| SocketAddr::new(ip.parse().unwrap(), port))
}

fn happening() -> impl Strategy<Value = Happening> {
    let event = prop_oneof![
        4 => some_service(),
        1 => select(&NAMES[..]).prop_map(|name| Event::ServiceDeleted(service_name(name))),
        4 => some_slice(),
        1 => select(&NAMES[..]).prop_map(|name| {
            let name = service_name(name);
            Event::SliceDeleted(SliceName {
                name: format!("{}-a", name.name).into(),
                namespace: name.namespace,
            })
        }),
    ];
    prop_oneof![
        6 => event.prop_map(|event| Happening::Event(Box::new(event))),
        6 => (destination(), any::<usize>()).prop_map(|(to, choice)| Happening::Flow(to, choice)),
        3 => any::<bool>().prop_map(Happening::Round),
        1 => Just(Happening::Doubt),
    ]
}

/// Which endpoints answer at a place, derived from all Services each time; `None`: it is not a
/// frontend.
fn answerers(tracker: &Tracker, destination: SocketAddr) -> Option<BTreeSet<SocketAddr>> {
    let node = node();
    let mut best: Option<(u8, i64, ServicePortName, BTreeSet<SocketAddr>)> = None;
    for service in tracker.services() {
        for port in ServicePort::of(service, IpFamily::V4) {
            if port.name.protocol != Protocol::Udp {
                continue;
            }
            let own = std::iter::once(&port.cluster_ip)
                .chain(&port.external_ips)
                .chain(&port.load_balancer_vips)
                .any(|ip| SocketAddr::new(*ip, port.port) == destination);
            let at_node_port = node.contains(&destination.ip())
                && port
                    .node_port
                    .is_some_and(|port| port.get() == destination.port());
            if !own && !at_node_port {
                continue;
            }
            let key = (port.name.port.clone(), Protocol::Udp);
            let endpoints = tracker.endpoints(&service.name, IpFamily::V4).remove(&key);
            let endpoints = endpoints.unwrap_or_default().into_iter();
            let serving = endpoints.filter(|endpoint| endpoint.conditions.serving);
            let serving = serving
                .map(|e| SocketAddr::new(e.address, e.port))
                .collect();
            // A cluster IP goes before a load balancer's address, that before a node port, that
            // before an external IP; then age and name decide.
            let is_vip = port.load_balancer_vips.contains(&destination.ip());
            let right = match (own, at_node_port) {
                (true, _) if port.cluster_ip == destination.ip() => 0,
                (true, _) if is_vip => 1,
                (_, true) => 2,
                _ => 3,
            };
            let candidate = (right, port.created, port.name.clone(), serving);
            if best.as_ref().is_none_or(|best| candidate < *best) {
                best = Some(candidate);
            }
        }
    }
    best.map(|(.., answerers)| answerers)
}

/// Whether a flow is one that the kernel would make now.
fn is_possible(tracker: &Tracker, flow: &Flow) -> bool {
    match answerers(tracker, flow.destination) {
        Some(answerers) => answerers.contains(&flow.answerer),
        None => flow.answerer == flow.destination,
    }
}

proptest! {
    #[test]
    fn no_round_leaves_a_stale_flow(happenings in vec(happening(), 1..60)) {
        let mut tracker = tracker(vec![], vec![]);
        let mut flows = Flows::new(IpFamily::V4, node());
        let mut table: BTreeSet<Flow> = BTreeSet::new();
        // What the last round programmed.
        let mut programmed = super::tracker(vec![], vec![]);
        for happening in happenings.into_iter().chain([Happening::Round(false)]) {
            match happening {
                Happening::Event(event) => { tracker.apply(*event); }
                Happening::Flow(destination, choice) => {
                    // A frontend without endpoints rejects packets.
                    let answerer = match answerers(&programmed, destination) {
                        None => Some(destination),
                        Some(all) => all.iter().nth(choice % all.len().max(1)).copied(),
                    };
                    table.extend(answerer.map(|answerer| Flow { destination, answerer }));
                }
                Happening::Doubt => flows.recheck(),
                Happening::Round(fails) => {
                    for name in tracker.take().services {
                        update(&mut flows, &tracker, &name);
                    }
                    programmed = super::tracker(
                        tracker.services().cloned().collect(),
                        tracker.slices().cloned().collect(),
                    );
                    if fails {
                        continue;
                    }
                    let before = table.clone();
                    if let Some(cleanup) = flows.due() {
                        // The kernel is asked for every flow that could be stale.
                        let filters = cleanup.filters();
                        for flow in &table {
                            let is_listed = filters.iter().any(|filter| filter.admits(flow));
                            prop_assert!(is_listed || !cleanup.is_stale(flow), "{flow:?} {filters:?}");
                        }
                        table.retain(|flow| !cleanup.is_stale(flow));
                    }
                    flows.done();
                    let wanted: BTreeSet<Flow> =
                        before.into_iter().filter(|flow| is_possible(&tracker, flow)).collect();
                    prop_assert_eq!(&table, &wanted);
                }
            }
        }
    }
}
