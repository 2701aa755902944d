// SPDX-License-Identifier: Apache-2.0
//! What clients of Services experience: the packet tracer over the rules of whole nodes. The table
//! of `kpr_testkit::cases` covers addresses, policies, ranges and detectors, and its cases are
//! traced too (`tests/traced_packets.rs`); this file has the cases that the table cannot express.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use crate::model::node::LocalDetector;
use crate::model::testing::{endpoint, ip, service, slice, tracker};
use crate::model::{EndpointSlice, Event, IpFamily, Protocol, Service};
use crate::plan::iptables::affinity::ClientMemory;
use crate::plan::iptables::name::endpoint_chain;
use crate::plan::iptables::tests::proxy::{Proxy, name};
use crate::plan::mode::Planner as _;
use crate::plan::ruleset::{ChainName, Rule, Ruleset, Table};
use crate::plan::testing::context;
use crate::plan::testing::tracer::{End, Packet, Tracer};
use crate::plan::{Context, Hairpin};

/// A node at 192.168.0.10 whose pods are in 10.1.0.0/24; pods of other nodes are in 10.2.0.0/24.
fn node(objects: Vec<(Service, EndpointSlice)>) -> Proxy {
    with(
        Context {
            local_detector: LocalDetector::Cidr("10.1.0.0/24".parse().unwrap()),
            ..context(IpFamily::V4)
        },
        objects,
    )
}

fn with(context: Context, objects: Vec<(Service, EndpointSlice)>) -> Proxy {
    let (services, slices) = objects.into_iter().unzip();
    let mut proxy = Proxy::start(context, tracker(services, slices), Ruleset::new());
    proxy.sync();
    proxy
}

#[derive(Clone, Copy, Debug)]
enum Client {
    Pod,
    Node,
    Loopback,
    Outside,
    /// The endpoint on this node.
    Endpoint,
}

impl Client {
    fn packet(self, to: &str) -> Packet {
        let (from, interface) = match self {
            Self::Pod => ("10.1.0.9", Some("cni0")),
            Self::Node => ("192.168.0.10", None),
            Self::Loopback => ("127.0.0.1", None),
            Self::Outside => ("198.51.100.1", Some("eth0")),
            Self::Endpoint => ("10.1.0.1", Some("cni0")),
        };
        Packet {
            from: ip(from),
            interface,
            to: to.parse().unwrap(),
            protocol: Protocol::Tcp,
            known_to: None,
        }
    }
}

fn ends(proxy: &Proxy, packet: &Packet) -> BTreeSet<End> {
    let local = ["192.168.0.10", "172.16.0.10", "127.0.0.1"]
        .map(ip)
        .to_vec();
    let rules = &proxy.kernel.state.rules;
    let ends = Tracer { rules, local }.trace(packet);
    let sum: f64 = ends.values().sum();
    assert!((sum - 1.0).abs() < 1e-6, "{ends:?}");
    // All endpoints are equally likely.
    let share = 1.0 / f64::from(u32::try_from(ends.len()).unwrap());
    assert!(
        ends.values().all(|chance| (chance - share).abs() < 1e-6),
        "{ends:?}"
    );
    ends.into_keys().collect()
}

fn ask(proxy: &Proxy, client: Client, to: &str) -> BTreeSet<End> {
    ends(proxy, &client.packet(to))
}

fn at(address: &str) -> SocketAddr {
    SocketAddr::new(ip(address), 8080)
}

/// The endpoint sees the client's own address.
fn direct<const N: usize>(addresses: [&str; N]) -> BTreeSet<End> {
    addresses.map(|a| End::To(at(a))).into()
}

fn masqueraded<const N: usize>(addresses: [&str; N]) -> BTreeSet<End> {
    addresses.map(|a| End::Masqueraded(at(a))).into()
}

fn just(end: End) -> BTreeSet<End> {
    [end].into()
}

const HERE: &str = "10.1.0.1";
const THERE: &str = "10.2.0.1";
const BOTH: [&str; 2] = [HERE, THERE];

fn both() -> EndpointSlice {
    slice("ns/web", "a", vec![endpoint(HERE).local(), endpoint(THERE)]).port(8080)
}

fn nowhere() -> EndpointSlice {
    slice("ns/web", "a", vec![]).port(8080)
}

/// Answers at 10.96.0.1:80, 203.0.113.1:80 (external IP), 203.0.113.2:80 (load balancer) and node
/// port 30080.
fn web() -> Service {
    service("ns/web")
        .port(80)
        .node_port(30_080)
        .external_ip("203.0.113.1")
        .vip("203.0.113.2")
}

const CLUSTER_IP: &str = "10.96.0.1:80";
const EXTERNAL: [&str; 3] = ["203.0.113.1:80", "203.0.113.2:80", "192.168.0.10:30080"];

#[test]
fn other_protocols_are_untouched() {
    let proxy = node(vec![(web(), both())]);
    let mut udp = Client::Pod.packet(CLUSTER_IP);
    udp.protocol = Protocol::Udp;
    assert_eq!(ends(&proxy, &udp), just(End::Untouched));
}

#[test]
fn masquerade_all_needs_no_detector() {
    let all = Context {
        masquerade_all: true,
        ..context(IpFamily::V4)
    };
    let proxy = with(all, vec![(web(), both())]);
    assert_eq!(ask(&proxy, Client::Pod, CLUSTER_IP), masqueraded(BOTH));
}

#[test]
fn node_that_has_the_cluster_ip_is_masqueraded_while_ipvs_mode_leaves() {
    let rule = |leaves_ipvs, detector| {
        let mut node = Context {
            local_detector: detector,
            ..context(IpFamily::V4)
        };
        node.iptables.leaves_ipvs = leaves_ipvs;
        let proxy = with(node, vec![(web(), both())]);
        let rules = proxy.kernel.state.rules.chains.values().flatten();
        let from_itself = |rule: &&Rule| rule.as_str().contains("-s 10.96.0.1/32 ");
        let rules: Vec<String> = rules
            .filter(from_itself)
            .map(|rule| rule.as_str().to_owned())
            .collect();
        rules
    };
    let pods = LocalDetector::Cidr("10.1.0.0/24".parse().unwrap());
    assert_eq!(rule(true, pods), [""; 0]);
    assert_eq!(rule(false, LocalDetector::None), [""; 0]);
    assert_eq!(
        rule(true, LocalDetector::None),
        [
            "-s 10.96.0.1/32 -d 10.96.0.1/32 -p tcp -m comment --comment \"ns/web cluster IP\" -m tcp --dport 80 -j KUBE-MARK-MASQ"
        ]
    );
}

#[test]
fn pod_that_reaches_itself_is_masqueraded() {
    let proxy = node(vec![(web(), both())]);
    let expected = BTreeSet::from([End::Masqueraded(at(HERE)), End::To(at(THERE))]);
    assert_eq!(ask(&proxy, Client::Endpoint, CLUSTER_IP), expected);
    // With many of them, the tree of local endpoints has branches.
    let many = (1..=200).map(|n| endpoint(&format!("10.1.0.{n}")).local());
    let proxy = node(vec![(
        web(),
        slice("ns/web", "a", many.collect()).port(8080),
    )]);
    let ends = ask(&proxy, Client::Endpoint, CLUSTER_IP);
    let masqueraded: Vec<&End> = ends
        .iter()
        .filter(|end| matches!(end, End::Masqueraded(_)))
        .collect();
    assert_eq!(masqueraded, [&End::Masqueraded(at(HERE))]);
    assert_eq!(ends.len(), 200);
}

#[test]
fn one_rule_masquerades_all_pods_that_reach_themselves() {
    let mut comparing = node(vec![]).planner.context().clone();
    comparing.iptables.hairpin = Hairpin::OneRule;
    let proxy = with(comparing, vec![(web(), both())]);
    let expected = BTreeSet::from([End::Masqueraded(at(HERE)), End::To(at(THERE))]);
    assert_eq!(ask(&proxy, Client::Endpoint, CLUSTER_IP), expected);
    let rules = proxy.rules(Table::Nat, "KUBE-HAIRPIN");
    assert_eq!(rules.len(), 1, "{rules:?}");
}

#[test]
fn without_endpoints_an_internal_policy_refuses() {
    let proxy = node(vec![(web().internal_local(), nowhere())]);
    for to in EXTERNAL.into_iter().chain([CLUSTER_IP]) {
        for client in [Client::Pod, Client::Node, Client::Outside] {
            let met = ask(&proxy, client, to);
            assert_eq!(met, just(End::Rejected), "{client:?} {to}");
        }
    }
}

#[test]
fn source_ranges() {
    let vip = EXTERNAL[1];
    // Another node of that network is not this node.
    let proxy = node(vec![(web().source_range("192.168.0.99/32"), both())]);
    let mut from_node = Client::Node.packet(vip);
    from_node.from = ip("172.16.0.10");
    assert_eq!(ends(&proxy, &from_node), just(End::Dropped));
    // An address that is also an external IP does not bypass the ranges.
    let both_roles = web()
        .external_ip("203.0.113.2")
        .source_range("192.168.0.0/24");
    let proxy = node(vec![(both_roles, both())]);
    assert_eq!(ask(&proxy, Client::Outside, vip), just(End::Dropped));
}

#[test]
fn node_ports_and_where_they_answer() {
    let proxy = node(vec![(web(), both())]);
    assert_eq!(
        ask(&proxy, Client::Loopback, "127.0.0.1:30080"),
        masqueraded(BOTH)
    );
    assert_eq!(
        ask(&proxy, Client::Outside, "172.16.0.10:30080"),
        masqueraded(BOTH)
    );
    assert_eq!(
        ask(&proxy, Client::Outside, "192.168.0.99:30080"),
        just(End::Untouched)
    );
    // Packets to 127.0.0.0/8 from elsewhere are an attack that route_localnet makes possible.
    let mut martian = Client::Outside.packet("127.0.0.1:22");
    assert_eq!(ends(&proxy, &martian), just(End::Dropped));
    martian.to = "127.0.0.1:30080".parse().unwrap();
    assert_eq!(ends(&proxy, &martian), just(End::Dropped));
    let mut selected = proxy.planner.context().clone();
    selected.iptables.node_ports_everywhere = false;
    selected.node_port_addresses.clear();
    let selected = with(selected, vec![(web(), both())]);
    assert_eq!(ends(&selected, &martian), just(End::Dropped));
    assert_eq!(
        ask(&selected, Client::Loopback, "127.0.0.1:30080"),
        masqueraded(BOTH)
    );
    martian.to = "192.168.0.10:22".parse().unwrap();
    assert_eq!(ends(&proxy, &martian), just(End::Untouched));
    let mut narrow = proxy.planner.context().clone();
    narrow.iptables.node_ports_everywhere = false;
    narrow.iptables.localhost_node_ports = false;
    // More than fit into one chain.
    narrow.node_port_addresses = (0..100).map(|n| ip(&format!("172.16.0.{n}"))).collect();
    for (slice, served) in [
        (both(), masqueraded(BOTH)),
        (nowhere(), just(End::Rejected)),
    ] {
        let proxy = with(narrow.clone(), vec![(web(), slice)]);
        assert_eq!(ask(&proxy, Client::Outside, "172.16.0.10:30080"), served);
        assert_eq!(
            ask(&proxy, Client::Outside, "192.168.0.10:30080"),
            just(End::Untouched)
        );
        assert_eq!(
            ask(&proxy, Client::Loopback, "127.0.0.1:30080"),
            just(End::Untouched)
        );
    }
}

#[test]
fn affinity_leads_back() {
    affinity_leads_back_in(ClientMemory::default(), |chain| {
        format!("-j SET --add-set {chain} src --exist")
    });
    let without_sets = ClientMemory {
        has_sets: false,
        recent: Some(100),
    };
    affinity_leads_back_in(without_sets, |chain| format!("--set --name {chain}"));
}

fn affinity_leads_back_in(memory: ClientMemory, remember: impl Fn(&ChainName) -> String) {
    let sticky = web().affinity(10);
    let mut here = node(vec![]).planner.context().clone();
    here.iptables.memory = memory;
    let proxy = with(here, vec![(sticky, both())]);
    assert_eq!(ask(&proxy, Client::Pod, CLUSTER_IP), direct(BOTH));
    for endpoint in BOTH {
        let chain = endpoint_chain("ns/web", Protocol::Tcp, at(endpoint));
        let mut packet = Client::Pod.packet(CLUSTER_IP);
        packet.known_to = Some(chain.to_string());
        assert_eq!(ends(&proxy, &packet), direct([endpoint]));
        // The affinity list is shared by all addresses of the Service.
        packet.to = EXTERNAL[0].parse().unwrap();
        assert_eq!(ends(&proxy, &packet), masqueraded([endpoint]));
        let rules = proxy.rules(Table::Nat, chain.as_str());
        assert!(rules[0].contains(&remember(&chain)), "{rules:?}");
    }
}

#[test]
fn health_check_port_is_open() {
    let proxy = node(vec![(web().external_local().health_check(32_000), both())]);
    let accepted = proxy.rules(Table::Filter, "KUBE-NODEPORTS");
    assert_eq!(
        accepted,
        [
            "-p tcp -m comment --comment \"ns/web health check node port\" -m tcp --dport 32000 -j ACCEPT"
        ]
    );
    assert_eq!(
        ask(&proxy, Client::Outside, "192.168.0.10:32000"),
        just(End::Untouched)
    );
}

/// The port of the health check belongs to the Service, not to one of its ports.
#[test]
fn ports_of_a_service_share_its_health_check() {
    let web = web().named_port("tls", Protocol::Tcp, 443);
    let web = web.external_local().health_check(32_000);
    let other = service("ns/other")
        .cluster_ips(&["10.96.0.99"])
        .port(80)
        .created(1)
        .external_local()
        .health_check(32_000);
    let conflicts = |proxy: &Proxy| {
        let conflicts = proxy.planner.conflicts().into_iter();
        let losers = conflicts.map(|conflict| conflict.loser.service);
        losers.map(|name| name.to_string()).collect::<Vec<_>>()
    };
    assert!(conflicts(&node(vec![(web.clone(), both())])).is_empty());
    let contested = node(vec![(web, both()), (other, both())]);
    assert_eq!(conflicts(&contested), ["ns/other"]);
}

/// Every endpoint of a long list is equally likely (`ends` checks that), and no chain is long.
#[test]
fn long_lists_of_endpoints_are_split_evenly() {
    for count in [16, 17, 31, 255, 256, 257, 1_000] {
        let endpoints: Vec<_> = (0..count)
            .map(|n| endpoint(&format!("10.3.{}.{}", n / 250, n % 250)))
            .collect();
        let proxy = node(vec![(web(), slice("ns/web", "a", endpoints).port(8080))]);
        assert_eq!(ask(&proxy, Client::Pod, CLUSTER_IP).len(), count);
        let longest = proxy.kernel.state.rules.chains.values().map(Vec::len).max();
        assert!(longest <= Some(32), "{count}: {longest:?}");
    }
}

#[test]
fn each_of_many_services_is_found() {
    let objects = (0..600_u16)
        .map(|n| {
            let [high, low] = n.to_be_bytes();
            let name = format!("ns/web{n}");
            let service = service(&name)
                .cluster_ips(&[&format!("10.96.{high}.{low}")])
                .port(80)
                .node_port(30_000 + n);
            let pod = format!("10.3.{high}.{low}");
            (service, slice(&name, "a", vec![endpoint(&pod)]).port(8080))
        })
        .collect();
    let mut proxy = node(objects);
    for n in [0, 1, 99, 255, 256, 511, 599_u16] {
        let [high, low] = n.to_be_bytes();
        let pod = format!("10.3.{high}.{low}");
        assert_eq!(
            ask(&proxy, Client::Pod, &format!("10.96.{high}.{low}:80")),
            direct([&*pod])
        );
        let node_port = format!("192.168.0.10:{}", 30_000 + n);
        assert_eq!(
            ask(&proxy, Client::Outside, &node_port),
            masqueraded([&*pod])
        );
    }
    proxy.take_in([Event::SlicesReplaced(vec![])]);
    proxy.sync();
    for to in ["10.96.1.44:80", "192.168.0.10:30300"] {
        assert_eq!(ask(&proxy, Client::Pod, to), just(End::Rejected));
    }
}

#[test]
#[should_panic(expected = "unknown")]
fn tracer_fails_on_a_rule_that_it_does_not_know() {
    let mut proxy = node(vec![(web(), both())]);
    let rules = &mut proxy.kernel.state.rules;
    rules.set(
        Table::Nat,
        name("PREROUTING"),
        vec![Rule::new("-m bpf --bytecode 1 -j ACCEPT")],
    );
    ask(&proxy, Client::Pod, CLUSTER_IP);
}
