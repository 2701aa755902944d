// SPDX-License-Identifier: Apache-2.0
//! Random Services, slices and kernels. Names, addresses and ports are few, so that they collide.

use crate::plan::ipvs::state::VirtualServerState;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::*;
use crate::model::ipvs_options::{
    ForwardingMethod, PlaceWeights, Scheduler, Thresholds, Tunnel, Weight,
};
use crate::model::testing::{endpoint_at, ip, service_name};
use crate::model::{Holders, IpvsOptions, ServiceName, SliceName};
use crate::plan::ipvs::object::{Forwarding, RealServer, VirtualServer};
use crate::plan::ipvs::set::SetType;
use crate::plan::ipvs::state::SetState;
use crate::plan::ruleset::{ChainName, Rule, Ruleset, Table};

const NAMES: [&str; 3] = ["ns/a", "ns/b", "other/a"];

/// The n-th address of a kind, which differs by family.
fn at(family: IpFamily, kind: &str, n: u16) -> IpAddr {
    let (v4, v6) = match kind {
        "cluster" => ("10.96.0", "fd00:96::"),
        "external" => ("203.0.113", "2001:db8:1::"),
        "vip" => ("198.51.100", "2001:db8:2::"),
        "endpoint" => ("10.0.1", "fd00:10::"),
        "foreign" => ("198.18.0", "2001:db8:3::"),
        "node" => ("192.168.0", "fd00:192::"),
        other => panic!("no addresses of kind {other}"),
    };
    match family {
        IpFamily::V4 => ip(&format!("{v4}.{n}")),
        IpFamily::V6 => ip(&format!("{v6}{n}")),
    }
}

pub(super) fn spare_node_address(family: IpFamily) -> IpAddr {
    // An external IP that the node itself may get.
    at(family, "external", 2)
}

pub(in super::super) fn any_family() -> impl Strategy<Value = IpFamily> {
    family()
}

fn name() -> impl Strategy<Value = ServiceName> {
    select(&NAMES[..]).prop_map(service_name)
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![3 => Just(Protocol::Tcp), 1 => Just(Protocol::Udp), 1 => Just(Protocol::Sctp)]
}

fn addresses(
    family: IpFamily,
    kinds: &[(&'static str, u16)],
) -> impl Strategy<Value = Vec<IpAddr>> {
    let all: Vec<IpAddr> = kinds.iter().map(|(kind, n)| at(family, kind, *n)).collect();
    let most = all.len();
    subsequence(all, 0..=most)
}

/// The annotations of a Service; mostly none.
fn options() -> impl Strategy<Value = Option<IpvsOptions>> {
    let scheduler = select(
        &[
            Scheduler::Dh,
            Scheduler::Mh,
            Scheduler::Sh,
            Scheduler::Twos,
            Scheduler::Wrr,
        ][..],
    );
    let weights = vec(
        (select(&["10.0.1.0/30", "fd00:10::/64"][..]), 0..3_u16),
        0..2,
    );
    let methods = [
        ForwardingMethod::Masquerade,
        ForwardingMethod::DirectRouting,
        ForwardingMethod::Tunnel(Tunnel::Gre),
    ];
    let settings = (
        option::of(scheduler),
        option::of(any::<bool>()),
        weights,
        select(methods.to_vec()),
        thresholds(),
        (
            option::of(select(&[9, 90][..])),
            option::of(place_weights()),
            any::<bool>(),
        ),
    );
    option::weighted(0.3, settings).prop_map(|settings| {
        let (scheduler, hashes_port, weights, forwarding, thresholds, others) = settings?;
        let (slow_start, place_weights, one_packet) = others;
        let weights = weights
            .into_iter()
            .map(|(range, weight)| (range.parse().unwrap(), Weight::new(weight).unwrap()));
        Some(IpvsOptions {
            scheduler,
            hashes_port,
            weights: weights.collect(),
            weight: None,
            persistence_ipv4: Some(24),
            persistence_ipv6: None,
            drain_limit: Some(Duration::from_secs(5)),
            forwarding,
            thresholds,
            slow_start: slow_start.map(Duration::from_secs),
            place_weights,
            one_packet,
            is_counted: false,
        })
    })
}

fn place_weights() -> impl Strategy<Value = PlaceWeights> {
    let weight = || (1..4_u16).prop_map(|weight| Weight::new(weight).unwrap());
    (weight(), weight(), weight()).prop_map(|(same_node, same_zone, other)| PlaceWeights {
        same_node,
        same_zone,
        other,
    })
}

fn thresholds() -> impl Strategy<Value = Thresholds> {
    let of = |(upper, lower)| Thresholds { upper, lower };
    select(&[(0, 0), (5, 0), (5, 3)][..]).prop_map(of)
}

/// Any Service. Cluster IPs mostly differ by name, as the API server ensures; a directory of
/// manifests does not.
fn any_service(family: IpFamily) -> impl Strategy<Value = Service> {
    let ports = vec(
        (
            select(&["", "p"][..]),
            protocol(),
            select(&[80, 443][..]),
            option::of(select(&[30_080, 30_081][..])),
        ),
        0..3,
    );
    let ranges = match family {
        IpFamily::V4 => vec![
            "10.0.0.0/8",
            "192.168.0.10/32",
            "172.16.0.0/12",
            "0.0.0.0/0",
        ],
        IpFamily::V6 => vec!["fd00::/8", "fd00:192::10/128", "2001:db8::/32", "::/0"],
    };
    let from_outside = (
        // May be another Service's cluster IP.
        addresses(
            family,
            &[("external", 1), ("external", 2), ("vip", 1), ("cluster", 2)],
        ),
        addresses(family, &[("vip", 1), ("vip", 2)]),
        subsequence(ranges, 0..=2),
    );
    let settings = (
        option::of(select(&[60, 10_800][..])),
        any::<bool>(),
        any::<bool>(),
        option::of(select(&[31_000, 31_001][..])),
        0..3_i64,
        options(),
    );
    (select(&NAMES[..]), 0..8_u16, ports, from_outside, settings).prop_map(
        move |(name, clash, ports, (external, vips, ranges), settings)| {
            let own = NAMES.iter().position(|other| *other == name).unwrap();
            let n = if clash == 0 {
                1
            } else {
                1 + u16::try_from(own).unwrap()
            };
            let mut service = service(name);
            service.cluster_ips = vec![at(family, "cluster", n)];
            for (name, protocol, port, node_port) in ports {
                service = service.named_port(name, protocol, port);
                if let Some(node_port) = node_port {
                    service = service.node_port(node_port);
                }
            }
            service.external_ips = external;
            service.load_balancer_vips = vips;
            for range in ranges {
                service = service.source_range(range);
            }
            let (affinity, internal_local, external_local, health_check, created, options) =
                settings;
            service.ipvs = options.map(Arc::new);
            if let Some(seconds) = affinity {
                service = service.affinity(seconds);
            }
            if let Some(port) = health_check {
                service = service.health_check(port);
            }
            service.internal_policy_local = internal_local;
            service.external_policy_local = external_local;
            service.created(created)
        },
    )
}

fn any_endpoint(family: IpFamily) -> impl Strategy<Value = SliceEndpoint> {
    let endpoint = (
        1..5_u16,
        any::<bool>(),
        0..4_u8,
        0..3_u8,
        option::weighted(0.1, 0..2_u16),
    );
    endpoint.prop_map(move |(n, is_local, condition, zone, weight)| {
        // Sometimes it has an address that Services claim.
        let kind = if n == 4 { "external" } else { "endpoint" };
        let mut endpoint = endpoint_at(at(family, kind, n % 4));
        endpoint.weight = weight.and_then(Weight::new);
        let endpoint = if is_local { endpoint.local() } else { endpoint };
        let endpoint = match condition {
            0 => endpoint.unready(),
            1 => endpoint.terminating(),
            _ => endpoint,
        };
        match zone {
            0 => endpoint.zone("here").in_zone("there"),
            1 => endpoint.zone("there").in_zone("here"),
            _ => endpoint,
        }
    })
}

fn slice_name() -> impl Strategy<Value = (&'static str, &'static str)> {
    (select(&NAMES[..]), select(&["x", "y"][..]))
}

fn any_slice(family: IpFamily) -> impl Strategy<Value = EndpointSlice> {
    let ports = vec(
        (
            select(&["", "p"][..]),
            protocol(),
            select(&[8080, 8081][..]),
        ),
        0..3,
    );
    (slice_name(), ports, vec(any_endpoint(family), 0..4)).prop_map(
        move |((name, suffix), ports, endpoints)| {
            let mut slice = slice(name, suffix, endpoints);
            slice.family = family;
            for (name, protocol, port) in ports {
                slice = slice.named_port(name, protocol, port);
            }
            slice
        },
    )
}

pub(in super::super) fn event(family: IpFamily) -> impl Strategy<Value = Event> {
    let unique = |services: Vec<Service>| {
        let by_name: BTreeMap<_, _> = services.into_iter().map(|s| (s.name.clone(), s)).collect();
        by_name.into_values().collect()
    };
    let unique_slices = |slices: Vec<EndpointSlice>| {
        let by_name: BTreeMap<_, _> = slices.into_iter().map(|s| (s.name.clone(), s)).collect();
        by_name.into_values().collect()
    };
    prop_oneof![
        6 => any_service(family).prop_map(Event::ServiceApplied),
        6 => any_slice(family).prop_map(Event::SliceApplied),
        2 => name().prop_map(Event::ServiceDeleted),
        2 => slice_name().prop_map(|(name, suffix)| {
            let service = service_name(name);
            Event::SliceDeleted(SliceName {
                namespace: service.namespace,
                name: format!("{}-{suffix}", service.name).into(),
            })
        }),
        1 => vec(any_service(family), 0..3).prop_map(unique).prop_map(Event::ServicesReplaced),
        1 => vec(any_slice(family), 0..4).prop_map(unique_slices).prop_map(Event::SlicesReplaced),
    ]
}

fn other_family(family: IpFamily) -> IpFamily {
    match family {
        IpFamily::V4 => IpFamily::V6,
        IpFamily::V6 => IpFamily::V4,
    }
}

fn server(scheduler: &str, family: IpFamily) -> VirtualServer {
    VirtualServer {
        scheduler: scheduler.into(),
        flags: 0,
        timeout: 0,
        netmask: family.host_prefix_len(),
    }
}

/// A virtual server with a real server of each weight.
fn present(family: IpFamily, weights: &[u32]) -> VirtualServerState {
    let real_servers = weights.iter().zip(1..).map(|(weight, n)| {
        let address = at(family, "endpoint", n);
        let server = RealServer {
            weight: *weight,
            forwarding: Forwarding::Masquerade,
            // As somebody may have set them by hand.
            thresholds: Thresholds {
                upper: 7 * weight,
                lower: 0,
            },
        };
        (
            RealServerKey {
                address,
                port: 8080,
            },
            server,
        )
    });
    VirtualServerState {
        server: server("wlc", family),
        real_servers: Arc::new(real_servers.collect()),
    }
}

fn key(address: IpAddr, port: u16, protocol: Protocol) -> VirtualServerKey {
    VirtualServerKey::Address {
        address,
        port,
        protocol,
    }
}

/// Who has addresses: some of those that Services claim are somebody's.
pub(super) fn holders(family: IpFamily, what: u8) -> Holders {
    let some = |bit: u8, kind: &str, n: u16| (what >> bit & 1 == 1).then(|| at(family, kind, n));
    Holders {
        nodes: some(0, "external", 1)
            .into_iter()
            .chain(some(1, "vip", 1))
            .collect(),
        gateways: some(2, "vip", 2).into_iter().collect(),
        listed_api_servers: some(3, "external", 2).into_iter().collect(),
        nodes_are_unknown: what >> 4 == 15,
        ..Holders::default()
    }
}

/// A kernel with foreign objects, and with what an earlier kube-proxy may have left.
pub(super) fn kernel(family: IpFamily) -> impl Strategy<Value = State> {
    (any::<bool>(), vec(0..2_u32, 0..3), vec(0..2_u32, 0..3)).prop_map(
        move |(is_used, foreign, stale)| {
            let mut state = State::default();
            let address = at(family, "foreign", 1);
            for protocol in Protocol::ALL {
                let present = present(family, &foreign);
                state.virtual_servers.insert(key(address, 30_080, protocol), present);
            }
            let mark = VirtualServerKey::Mark { mark: 7, family };
            state.virtual_servers.insert(mark, present(family, &foreign));
            let rules = "*filter\n:INPUT ACCEPT [0:0]\n:MINE - [0:0]\n-A INPUT -j MINE\n-A MINE -j DROP\nCOMMIT\n";
            state.rules = Ruleset::parse(rules).unwrap();
            state.sets.insert(
                SetId::ClusterIp.name(other_family(family)),
                SetState {
                    set_type: SetType::HashIp,
                    max_entries: 3,
                    entries: [SetEntry::Ip(address)].into(),
                },
            );
            if is_used {
                state.node.link_exists = true;
                for (kind, port) in [("cluster", 80), ("external", 443), ("node", 30_081)] {
                    let address = at(family, kind, if kind == "node" { 10 } else { 1 });
                    if kind != "node" {
                        state.addresses.insert(address);
                    }
                    for protocol in Protocol::ALL {
                        let present = present(family, &stale);
                        state.virtual_servers.insert(key(address, port, protocol), present);
                    }
                }
                let id = SetId::IpvsIps;
                let entries = state.addresses.iter().map(|address| SetEntry::Ip(*address));
                let entries = entries.chain([SetEntry::Ip(address)]).collect();
                let set = SetState {
                    set_type: id.set_type(),
                    max_entries: DEFAULT_MAX_ENTRIES,
                    entries,
                };
                state.sets.insert(id.name(family), set);
                let id = SetId::NodePort;
                let node_ports = state.virtual_servers.keys();
                let node_ports = node_ports.filter(|key| key.address() == Some(at(family, "node", 10)));
                let set = SetState {
                    set_type: id.set_type(),
                    max_entries: DEFAULT_MAX_ENTRIES,
                    entries: node_ports.filter_map(SetEntry::of_node_port).collect(),
                };
                state.sets.insert(id.name(family), set);
            }
            state
        },
    )
}

/// Changes one of our objects.
pub(super) fn drift(state: &mut State, what: u8) {
    let foreign = |key: &VirtualServerKey| match key.address() {
        Some(address) => IpFamily::ALL
            .into_iter()
            .any(|family| at(family, "foreign", 1) == address),
        None => true,
    };
    let mut ours = state
        .virtual_servers
        .iter_mut()
        .filter(|(key, _)| !foreign(key));
    match what % 8 {
        0 => {
            if let Some((key, _)) = ours.next() {
                let key = *key;
                state.virtual_servers.remove(&key);
            }
        }
        1 => {
            if let Some((_, server)) = ours.next() {
                server.real_servers_mut().clear();
            }
        }
        2 => {
            for server in ours.flat_map(|(_, server)| server.real_servers_mut().values_mut()) {
                server.weight = 0;
                server.thresholds.upper = 1;
            }
        }
        3 => {
            if let Some((_, server)) = ours.next() {
                server.server.scheduler = "lc".into();
            }
        }
        4 => {
            let own = |chain: &ChainName| chain.as_str().starts_with("KUBE-");
            if let Some((_, rules)) = state
                .rules
                .chains
                .iter_mut()
                .find(|((_, chain), _)| own(chain))
            {
                rules.push(Rule::new("-j ACCEPT"));
            }
        }
        5 => {
            let jumps = |rule: &Rule| {
                rule.target()
                    .is_some_and(|target| target.starts_with("KUBE-"))
            };
            let nat = state
                .rules
                .chains
                .iter_mut()
                .filter(|((table, _), _)| *table == Table::Nat);
            for (_, rules) in nat.filter(|((table, chain), _)| table.has_built_in(chain)) {
                rules.retain(|rule| !jumps(rule));
            }
        }
        6 => {
            state.node.sysctls.clear();
            state.node.daemons.clear();
        }
        _ => {
            for (name, set) in &mut state.sets {
                if !name.as_str().ends_with("CLUSTER-IP") {
                    set.entries.clear();
                }
            }
            // No address stays bound without its reject entry.
            state.addresses.clear();
        }
    }
}

/// Foreign objects.
#[derive(Debug)]
pub(super) struct Foreign {
    pub(super) virtual_servers: BTreeMap<VirtualServerKey, VirtualServerState>,
    set: Option<SetState>,
}

impl Foreign {
    pub(super) fn of(state: &State) -> Self {
        let is_foreign = |key: &VirtualServerKey| match key.address() {
            Some(address) => at(IpFamily::of(address), "foreign", 1) == address,
            None => true,
        };
        let foreign = state
            .virtual_servers
            .iter()
            .filter(|(key, _)| is_foreign(key));
        Self {
            virtual_servers: foreign.map(|(key, state)| (*key, state.clone())).collect(),
            set: state
                .sets
                .values()
                .find(|set| set.max_entries == 3)
                .cloned(),
        }
    }

    pub(super) fn is_in(&self, state: &State) {
        for (key, server) in &self.virtual_servers {
            assert_eq!(state.virtual_servers.get(key), Some(server), "{key}");
        }
        let set = state.sets.values().find(|set| set.max_entries == 3);
        assert_eq!(set, self.set.as_ref());
        let input = ChainName::new("INPUT").unwrap();
        let input = state.rules.rules(Table::Filter, &input).unwrap();
        assert_eq!(
            input
                .iter()
                .filter(|rule| rule.as_str() == "-j MINE")
                .count(),
            1
        );
        let mine = ChainName::new("MINE").unwrap();
        assert_eq!(
            state.rules.rules(Table::Filter, &mine).map(<[Rule]>::len),
            Some(1)
        );
    }
}

/// A Service that shares nothing with the subject, and its endpoint.
pub(super) fn bystander(family: IpFamily, n: u16) -> [Event; 2] {
    let name = format!("by/s{n}");
    let mut service = service(&name).port(80).node_port(31_000 + n);
    service.cluster_ips = vec![at(family, "cluster", 100 + n)];
    let slice = slice(&name, "a", vec![endpoint_at(at(family, "endpoint", 200))]).port(80);
    [Event::ServiceApplied(service), Event::SliceApplied(slice)]
}

pub(super) fn subject_endpoint(family: IpFamily, n: u16) -> IpAddr {
    at(family, "endpoint", 100 + n)
}

/// A Service with this many endpoints.
pub(super) fn subject(family: IpFamily, endpoints: u16) -> [Event; 2] {
    let mut service = service("subject/s").port(80).node_port(32_000);
    service.cluster_ips = vec![at(family, "cluster", 99)];
    let endpoints = (0..endpoints).map(|n| endpoint_at(subject_endpoint(family, n)));
    let slice = slice("subject/s", "a", endpoints.collect()).port(80);
    [Event::ServiceApplied(service), Event::SliceApplied(slice)]
}
