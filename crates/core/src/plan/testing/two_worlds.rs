// SPDX-License-Identifier: Apache-2.0
//! Two worlds: victims alone, and the same victims beside whatever a tenant creates. The tenant may
//! hurt nobody but itself: the victims' objects, claims, reports and the fate of packets to them
//! are the same in both.
//!
//! What a tenant cannot write is not varied: cluster IPs, node ports and load balancers' addresses
//! of other Services are theirs by the API server and the controllers. Stated exceptions: an older
//! external IP goes before a younger one, and a mark may move when two names hash to the same one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use crate::model::node::LocalDetector;
use crate::model::testing::{endpoint, ip, service, slice};
use crate::model::{
    EndpointSlice, Event, Holders, IpFamily, Protocol, Service, ServicePortName, ServiceView,
    Tracker,
};
use crate::plan::conntrack::flows::{Flow, Flows};
use crate::plan::iptables;
use crate::plan::ipvs::State;
use crate::plan::ipvs::object::VirtualServerKey;
use crate::plan::ipvs::set::{SetEntry, SetId};
use crate::plan::mode::Planner as _;
use crate::plan::testing::fake::FakeKernel;
use crate::plan::testing::tracer::{Ends, Packet, Tracer};
use crate::plan::testing::{Proxy, context};
use crate::plan::unmet::Unmet;

/// The namespace of the tenant. No victim is in it.
pub const TENANT: &str = "tenant";

/// Addresses that a tenant may list and that are not its own, in any spelling, and some that are.
pub const ADDRESSES: [&str; 32] = [
    "10.96.0.1",
    "10.96.0.10",
    "010.096.000.010",
    "::ffff:10.96.0.10",
    "10.96.0.11",
    "198.51.100.10",
    "198.51.100.6",
    "198.51.100.53",
    "192.168.0.1",
    "192.168.0.10",
    "172.16.0.10",
    "192.168.0.11",
    "192.168.0.20",
    "192.168.0.50",
    "10.244.1.2",
    "10.244.2.2",
    "10.244.9.9",
    "127.0.0.1",
    "169.254.169.254",
    "0.0.0.0",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "203.0.113.1",
    "203.0.113.2",
    "2001:db8::1",
    "fd00:ec2::254",
    "::1",
    "fe80::1",
    "ff02::1",
    "web",
    "",
];

/// Ports that are somebody's, and the ends of the range.
pub const PORTS: [i32; 14] = [
    53, 80, 443, 6443, 8472, 10_250, 30_053, 30_080, 31_080, 1, 65_535, 0, -1, 65_536,
];

/// Node ports that the API server may give to the tenant: no victim has them.
pub const NODE_PORTS: [i32; 4] = [0, 30_100, 30_101, 32_767];

/// The Services that must not notice, and their endpoints.
fn victims() -> Vec<Event> {
    let local = |address: &str| endpoint(address).local();
    let dns = service("kube-system/dns")
        .cluster_ips(&["10.96.0.10"])
        .named_port("dns", Protocol::Udp, 53)
        .named_port("dns-tcp", Protocol::Tcp, 53);
    let api = service("default/kubernetes")
        .cluster_ips(&["10.96.0.1"])
        .port(443);
    let balanced = service("victim/balanced")
        .cluster_ips(&["10.96.0.11"])
        .port(80)
        .node_port(30_080)
        .vip("198.51.100.10")
        .source_range("198.51.100.0/24")
        .affinity(60)
        .external_local()
        .health_check(31_080);
    let node_port = service("victim/node-port")
        .cluster_ips(&["10.96.0.12"])
        .named_port("", Protocol::Udp, 53)
        .node_port(30_053);
    let external = service("victim/external")
        .cluster_ips(&["10.96.0.13"])
        .port(443)
        .external_ip("203.0.113.200");
    let pods = || vec![local("10.244.1.2"), endpoint("10.244.2.2")];
    let of = |name: &str| slice(name, "a", pods());
    let mut events: Vec<Event> = [
        of("kube-system/dns")
            .named_port("dns", Protocol::Udp, 53)
            .named_port("dns-tcp", Protocol::Tcp, 53),
        slice("default/kubernetes", "a", vec![endpoint("192.168.0.20")]).port(6443),
        of("victim/balanced").port(8080),
        of("victim/node-port").named_port("", Protocol::Udp, 53),
        of("victim/external").port(8443),
    ]
    .map(Event::SliceApplied)
    .into();
    let services = [dns, api, balanced, node_port, external];
    events.extend(services.map(|service| Event::ServiceApplied(service.created(100))));
    events
}

/// The node is 192.168.0.10 of a cluster with two more.
fn holders() -> Holders {
    let ips = |texts: &[&str]| texts.iter().copied().map(ip).collect();
    let own: BTreeSet<IpAddr> = ips(&["192.168.0.10", "172.16.0.10"]);
    let listening = [
        (Protocol::Tcp, 10_250),
        (Protocol::Tcp, 6443),
        (Protocol::Udp, 8472),
        (Protocol::Tcp, 31_080),
    ];
    Holders {
        node: ips(&["192.168.0.10"]),
        nodes: ips(&["192.168.0.10", "192.168.0.11", "192.168.0.20"]),
        gateways: ips(&["192.168.0.1"]),
        api_servers: ips(&["198.51.100.6"]),
        listed_api_servers: ips(&["192.168.0.20"]),
        resolvers: ips(&["198.51.100.53"]),
        pods: [
            ["10.244.0.0/16".parse().unwrap()],
            ["fd00:244::/48".parse().unwrap()],
        ]
        .concat()
        .into_iter()
        .collect(),
        networks: ["192.168.0.0/24".parse().unwrap()].into(),
        listening: listening
            .into_iter()
            .map(|port| (port, [None].into()))
            .collect(),
        own,
        nodes_are_unknown: false,
    }
}

/// One proxy of each mode, and the flows.
#[derive(Clone)]
struct World {
    ipvs: Proxy,
    iptables: iptables::Planner,
    rules: FakeKernel<iptables::State>,
    flows: Flows,
}

impl World {
    fn new() -> Self {
        let context = crate::plan::Context {
            local_detector: LocalDetector::Cidr("10.244.1.0/24".parse().unwrap()),
            ..context(IpFamily::V4)
        };
        let mut tracker = Tracker::default();
        tracker.apply(Event::ServicesReplaced(Vec::new()));
        tracker.apply(Event::SlicesReplaced(Vec::new()));
        tracker.set_holders(holders());
        let mut iptables = iptables::Planner::new(context.clone());
        let rules = FakeKernel::new(iptables::State::default());
        iptables.observed(rules.state.clone());
        Self {
            flows: Flows::new(IpFamily::V4, context.node_port_addresses.clone()),
            ipvs: Proxy::start(context, tracker, State::default()),
            iptables,
            rules,
        }
    }

    /// A round in each mode.
    fn take_in(&mut self, events: &[Event]) {
        let tracker = &mut self.ipvs.tracker;
        for event in events {
            tracker.apply(event.clone());
        }
        let changed = tracker.pending().services.clone();
        for name in &changed {
            let view = ServiceView::of(&self.ipvs.tracker, name, IpFamily::V4);
            self.iptables.update(&view, &self.ipvs.tracker);
            self.flows.update(&view);
        }
        self.ipvs.take_in([]);
        self.ipvs.sync();
        let plan = self.iptables.plan();
        let report = self.rules.apply(&plan);
        assert!(report.is_success(), "{report:?}");
        self.iptables.report(&plan, &report);
    }

    /// No connection to what was removed is left.
    fn drained(&mut self) {
        self.ipvs.drain_all();
        if self.ipvs.planner.is_pending() {
            self.ipvs.sync();
        }
    }

    /// What becomes of packets to a place, from outside, from a pod and from the node.
    fn fates(&self, to: SocketAddr, protocol: Protocol) -> [Ends; 3] {
        let tracer = Tracer {
            rules: &self.rules.state.rules,
            local: ["127.0.0.1", "192.168.0.10", "172.16.0.10"].map(ip).into(),
        };
        let from = [
            ("198.51.100.77", Some("eth0")),
            ("10.244.1.7", Some("cni0")),
            ("192.168.0.10", None),
        ];
        from.map(|(from, interface)| {
            tracer.trace(&Packet {
                from: ip(from),
                interface,
                to,
                protocol,
                known_to: None,
            })
        })
    }

    fn unmet_of_victims(&self) -> BTreeSet<(ServicePortName, Unmet)> {
        let in_ipvs_mode = self.ipvs.planner.unmet().into_iter();
        let all = in_ipvs_mode.chain(self.iptables.unmet());
        all.filter(|(name, _)| is_victim(name)).collect()
    }

    /// The entries of sets that decide about packets to a place. Whether a pod reaches itself is
    /// the same for all Services.
    fn entries_at(&self, place: (IpAddr, Protocol, u16)) -> BTreeSet<(SetId, SetEntry)> {
        let desired = self.ipvs.planner.desired();
        let of = |id: SetId| desired.entries(id).map(move |entry| (id, *entry));
        let all = SetId::ALL.into_iter().filter(|id| *id != SetId::LoopBack);
        all.flat_map(of)
            .filter(|(_, entry)| place_of(entry) == Some(place))
            .collect()
    }
}

const fn place_of(entry: &SetEntry) -> Option<(IpAddr, Protocol, u16)> {
    match *entry {
        SetEntry::Ip(_) | SetEntry::Port(_) => None,
        SetEntry::IpPort(ip, protocol, port)
        | SetEntry::IpPortMark(ip, protocol, port, _)
        | SetEntry::IpPortIp(ip, protocol, port, _)
        | SetEntry::IpPortNet(ip, protocol, port, _) => Some((ip, protocol, port)),
    }
}

/// The world without the tenant, and what comes of it. It is the same for all cases.
struct Alone {
    victims: Vec<Event>,
    world: World,
    /// What becomes of packets to each place of a victim and to those of nobody.
    fates: BTreeMap<(SocketAddr, Protocol), [Ends; 3]>,
    unmet: BTreeSet<(ServicePortName, Unmet)>,
}

impl Alone {
    fn new() -> Self {
        let victims = victims();
        let mut world = World::new();
        world.take_in(&victims);
        let servers = world.ipvs.planner.desired().virtual_servers();
        let places: Vec<_> = servers
            .filter_map(|(key, _)| match *key {
                VirtualServerKey::Address {
                    address,
                    port,
                    protocol,
                } => Some((SocketAddr::new(address, port), protocol)),
                VirtualServerKey::Mark { .. } => None,
            })
            .chain(places_of_nobody())
            .collect();
        let fate = |(to, protocol)| ((to, protocol), world.fates(to, protocol));
        Self {
            fates: places.into_iter().map(fate).collect(),
            unmet: world.unmet_of_victims(),
            victims,
            world,
        }
    }
}

thread_local! {
    static ALONE: Alone = Alone::new();
}

/// Places that are no Service's: other nodes, the API server, what the node itself serves.
fn places_of_nobody() -> Vec<(SocketAddr, Protocol)> {
    [
        ("192.168.0.10:10250", Protocol::Tcp),
        ("192.168.0.10:6443", Protocol::Tcp),
        ("172.16.0.10:8472", Protocol::Udp),
        ("192.168.0.11:10250", Protocol::Tcp),
        ("192.168.0.11:8472", Protocol::Udp),
        ("192.168.0.11:80", Protocol::Tcp),
        ("192.168.0.20:6443", Protocol::Tcp),
        ("192.168.0.1:53", Protocol::Udp),
        ("192.168.0.50:443", Protocol::Tcp),
        ("198.51.100.6:6443", Protocol::Tcp),
        ("198.51.100.6:443", Protocol::Tcp),
        ("198.51.100.53:53", Protocol::Udp),
        ("10.244.1.2:80", Protocol::Tcp),
        ("10.244.9.9:443", Protocol::Tcp),
        ("127.0.0.1:10250", Protocol::Tcp),
        ("169.254.169.254:80", Protocol::Tcp),
        ("255.255.255.255:53", Protocol::Udp),
    ]
    .map(|(place, protocol)| (place.parse().unwrap(), protocol))
    .into()
}

/// An object of the tenant; it is put into the tenant's namespace, as the API server does.
#[derive(Clone, Debug)]
pub enum Object {
    Service(Service),
    Slice(EndpointSlice),
}

/// Panics if a victim notices what the tenant creates, in this order. `first`: the tenant was there
/// before the victims.
pub fn check(objects: Vec<Object>, first: bool) {
    ALONE.with(|alone| check_beside(alone, objects, first));
}

fn check_beside(alone: &Alone, objects: Vec<Object>, first: bool) {
    let mut names = BTreeMap::new();
    let tenant: Vec<Event> = objects
        .into_iter()
        .map(|object| match object {
            Object::Service(mut service) => {
                service.name.namespace = TENANT.into();
                // Allocated by the API server.
                let next = names.len();
                let n = *names.entry(service.name.name.clone()).or_insert(next);
                let own = |ip: &IpAddr| IpFamily::of(*ip) == IpFamily::V4;
                service.cluster_ips.retain(|ip| !own(ip));
                service
                    .cluster_ips
                    .push(ip(&format!("10.96.1.{}", n % 250)));
                Event::ServiceApplied(service)
            }
            Object::Slice(mut slice) => {
                slice.name.namespace = TENANT.into();
                slice.service.namespace = TENANT.into();
                Event::SliceApplied(slice)
            }
        })
        .collect();
    let mut beside;
    if first {
        beside = World::new();
        beside.take_in(&tenant);
        beside.take_in(&alone.victims);
    } else {
        beside = alone.world.clone();
        beside.take_in(&tenant);
    }
    // Connections to the tenant that were open before the victims came may end.
    beside.drained();
    victims_do_not_notice(alone, &beside);
    // Nothing of the tenant is left when it goes.
    let mut gone = Vec::new();
    for event in tenant {
        gone.push(match event {
            Event::ServiceApplied(service) => Event::ServiceDeleted(service.name),
            Event::SliceApplied(slice) => Event::SliceDeleted(slice.name),
            other => other,
        });
    }
    beside.take_in(&gone);
    beside.drained();
    assert_eq!(
        beside.ipvs.kernel.state.addresses,
        alone.world.ipvs.kernel.state.addresses
    );
    assert_eq!(beside.rules.state.rules, alone.world.rules.state.rules);
}

fn is_victim(name: &ServicePortName) -> bool {
    *name.service.namespace != *TENANT
}

fn victims_do_not_notice(expected: &Alone, beside: &World) {
    let alone = &expected.world;
    let (desired, with_tenant) = (alone.ipvs.planner.desired(), beside.ipvs.planner.desired());
    for (key, wanted) in desired.virtual_servers() {
        // Two names may hash to one mark: then the younger one has another.
        let VirtualServerKey::Address {
            address,
            port,
            protocol,
        } = *key
        else {
            continue;
        };
        let other = with_tenant.virtual_server(key);
        let other = other.map(|other| (&other.server, &other.real_servers));
        assert_eq!(other, Some((&wanted.server, &wanted.real_servers)), "{key}");
        assert_eq!(
            with_tenant.claims().winner(key),
            desired.claims().winner(key),
            "{key}"
        );
        let (before, after) = (
            &alone.ipvs.kernel.state.virtual_servers,
            &beside.ipvs.kernel.state.virtual_servers,
        );
        assert_eq!(before.get(key), after.get(key), "{key}");
        let marks_aside = |entries: BTreeSet<(SetId, SetEntry)>| -> BTreeSet<(SetId, SetEntry)> {
            let aside = |(id, entry)| match entry {
                SetEntry::IpPortMark(ip, protocol, port, _) => {
                    (id, SetEntry::IpPortMark(ip, protocol, port, 0))
                }
                other => (id, other),
            };
            entries.into_iter().map(aside).collect()
        };
        let place = (address, protocol, port);
        assert_eq!(
            marks_aside(beside.entries_at(place)),
            marks_aside(alone.entries_at(place)),
            "{key}"
        );
        let to = SocketAddr::new(address, port);
        let (fates, unchanged) = (beside.fates(to, protocol), &expected.fates[&(to, protocol)]);
        assert_eq!(fates, *unchanged, "{to} {protocol}");
        if protocol == Protocol::Udp {
            flows_stay(alone, beside, to);
        }
    }
    let (before, after) = (
        &alone.ipvs.kernel.state.addresses,
        &beside.ipvs.kernel.state.addresses,
    );
    let lost: Vec<&IpAddr> = before.difference(after).collect();
    assert!(lost.is_empty(), "no longer bound: {lost:?}");
    for (place, protocol) in places_of_nobody() {
        let fates = beside.fates(place, protocol);
        let unchanged = &expected.fates[&(place, protocol)];
        assert_eq!(fates, *unchanged, "{place} {protocol}");
        let key = VirtualServerKey::Address {
            address: place.ip(),
            port: place.port(),
            protocol,
        };
        assert!(with_tenant.virtual_server(&key).is_none(), "{key}");
        assert!(!after.contains(&place.ip()), "{place} is bound");
    }
    for conflict in beside
        .ipvs
        .planner
        .conflicts()
        .iter()
        .chain(&beside.iptables.conflicts())
    {
        assert!(!is_victim(&conflict.loser), "{conflict:?}");
    }
    assert_eq!(beside.unmet_of_victims(), expected.unmet);
}

/// A client of a victim keeps its endpoint, and nobody else answers it.
fn flows_stay(alone: &World, beside: &World, to: SocketAddr) {
    let stale = |world: &World, answerer: &str| {
        let flow = Flow {
            destination: to,
            answerer: answerer.parse().unwrap(),
        };
        world
            .flows
            .due()
            .is_some_and(|cleanup| cleanup.is_stale(&flow))
    };
    for answerer in ["10.244.1.2:53", "10.244.2.2:53", "10.244.9.9:53"] {
        assert_eq!(
            stale(beside, answerer),
            stale(alone, answerer),
            "{to} {answerer}"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tenant that is the oldest of all and asks for what everybody has.
    fn greedy() -> Vec<Object> {
        let mut service = service("tenant/a").port(443).port(80).created(1);
        for address in ["10.96.0.10", "198.51.100.10", "203.0.113.1", "192.168.0.11"] {
            service = service.external_ip(address);
        }
        let slice = slice("tenant/a", "a", vec![endpoint("10.96.0.10")]).port(8080);
        vec![Object::Service(service), Object::Slice(slice)]
    }

    #[test]
    fn worlds_are_compared_in_both_orders() {
        for first in [false, true] {
            check(Vec::new(), first);
            check(greedy(), first);
        }
    }

    /// What the comparison is for is seen by it: a victim's load balancer's address has another
    /// owner.
    #[test]
    #[should_panic(expected = "198.51.100.10")]
    fn a_difference_is_seen() {
        let thief = service("tenant/a").port(80).vip("198.51.100.10").created(1);
        check(vec![Object::Service(thief)], true);
    }
}
