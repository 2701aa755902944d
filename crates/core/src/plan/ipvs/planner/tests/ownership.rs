// SPDX-License-Identifier: Apache-2.0
//! Objects of ours are adopted or removed, foreign ones stay.

use super::*;
use crate::plan::ipvs::object::{Forwarding, RealServer, RealServers, VirtualServer};
use crate::plan::ipvs::state::VirtualServerState;
use crate::plan::mode::{Drains as _, SlicedAudit as _};
use crate::plan::ruleset::Ruleset;

fn present(real_servers: &[(&str, u32)]) -> VirtualServerState {
    let server = |weight| RealServer {
        weight,
        forwarding: Forwarding::Masquerade,
        ..RealServer::default()
    };
    let real_servers: RealServers = real_servers
        .iter()
        .map(|(at, weight)| (rs(at), server(*weight)))
        .collect();
    let server = VirtualServer {
        scheduler: "rr".into(),
        flags: 0,
        timeout: 0,
        netmask: 32,
    };
    VirtualServerState {
        server,
        real_servers: real_servers.into(),
    }
}

/// A proxy without Services that finds a virtual server at `key`.
fn unmet(key: VirtualServerKey, bound: &[&str], context: Context) -> Proxy {
    let mut state = State::default();
    state.node.link_exists = true;
    state.virtual_servers.insert(key, present(&[]));
    state.addresses = bound
        .iter()
        .map(|address| address.parse().unwrap())
        .collect();
    Proxy::start(context, tracker(vec![], vec![]), state)
}

fn survives(key: VirtualServerKey, bound: &[&str], context: Context) -> bool {
    let mut proxy = unmet(key, bound, context);
    proxy.sync();
    proxy.kernel.state.virtual_servers.contains_key(&key)
}

#[test]
fn a_virtual_server_is_ours_by_its_address() {
    let context = || context(IpFamily::V4);
    // On our link, in the Service CIDR.
    assert!(!survives(
        tcp("203.0.113.1:80"),
        &["203.0.113.1"],
        context()
    ));
    assert!(!survives(tcp("10.96.7.7:80"), &[], context()));
}

/// The context of a cluster whose node ports are said to be in a range.
fn with_range(range: &str) -> Context {
    Context {
        node_port_range: Some(range.parse().unwrap()),
        ..context(IpFamily::V4)
    }
}

#[test]
fn a_node_port_is_ours_by_the_clusters_range_and_none_is_assumed() {
    assert!(survives(
        tcp("192.168.0.10:30080"),
        &[],
        context(IpFamily::V4)
    ));
    let context = || with_range("20000-22767");
    assert!(!survives(tcp("192.168.0.10:20080"), &[], context()));
    assert!(!survives(udp("172.16.0.10:22767"), &[], context()));
    assert!(survives(tcp("192.168.0.10:30080"), &[], context()));
    assert!(survives(tcp("203.0.113.1:20080"), &[], context()));
}

#[test]
fn a_node_port_is_ours_by_the_set_that_lists_it() {
    let key = tcp("192.168.0.10:20080");
    let of_kube_proxy = set::node_ports_of_kube_proxy(Protocol::Tcp, IpFamily::V4);
    let listed = SetEntry::of_node_port(&key).unwrap();
    let at_other = SetEntry::IpPort("172.16.0.10".parse().unwrap(), Protocol::Tcp, 20_080);
    for (name, set_type, entry, is_ours) in [
        (
            SetId::NodePort.name(IpFamily::V4),
            SetType::HashIpPort,
            listed,
            true,
        ),
        (
            SetId::NodePort.name(IpFamily::V4),
            SetType::HashIpPort,
            at_other,
            false,
        ),
        (
            of_kube_proxy.clone(),
            SetType::BitmapPort,
            SetEntry::Port(20_080),
            true,
        ),
        (
            of_kube_proxy,
            SetType::BitmapPort,
            SetEntry::Port(30_080),
            false,
        ),
    ] {
        let mut state = State::default();
        state.node.link_exists = true;
        state.virtual_servers.insert(key, present(&[]));
        // Another program's, outside of every list.
        state
            .virtual_servers
            .insert(tcp("192.168.0.10:5000"), present(&[]));
        let set = SetState {
            set_type,
            max_entries: 65_536,
            entries: [entry].into(),
        };
        state.sets.insert(name.clone(), set);
        let mut proxy = Proxy::start(context(IpFamily::V4), tracker(vec![], vec![]), state);
        proxy.sync();
        let left = &proxy.kernel.state.virtual_servers;
        assert_eq!(left.contains_key(&key), !is_ours, "{name} {entry}");
        assert!(left.contains_key(&tcp("192.168.0.10:5000")));
        assert!(proxy.restarted().sync().is_empty());
    }
}

#[test]
fn a_node_port_that_drains_is_ours_after_a_restart_too() {
    let service = || service("ns/web").port(80).node_port(20_080);
    let mut proxy = synced(vec![service()], vec![web(vec![endpoint("10.0.1.1")])]);
    let entry = SetEntry::of_node_port(&tcp("192.168.0.10:20080")).unwrap();
    let lists = |proxy: &Proxy| {
        let set = SetId::NodePort.name(IpFamily::V4);
        proxy.kernel.state.sets[&set].entries.contains(&entry)
    };
    proxy.take_in([Event::ServicesReplaced(vec![])]);
    proxy.sync();
    assert!(lists(&proxy));
    let mut proxy = proxy.restarted();
    assert!(proxy.sync().is_empty());
    // With what leaves answers to clients of the node alone.
    assert_eq!(proxy.planner.draining().len(), 4);
    proxy.drain_all();
    assert_eq!(proxy.kernel.state.virtual_servers, BTreeMap::new());
    assert!(!lists(&proxy));
    assert!(!proxy.planner.is_pending());
    // A Service that comes back meanwhile takes it over.
    let mut proxy = synced(vec![service()], vec![web(vec![endpoint("10.0.1.1")])]);
    proxy.take_in([Event::ServicesReplaced(vec![])]);
    proxy.sync();
    proxy.take_in([Event::ServicesReplaced(vec![service()])]);
    proxy.sync();
    assert!(lists(&proxy));
    assert!(proxy.planner.draining().is_empty());
}

#[test]
fn what_was_found_to_be_ours_stays_ours() {
    let key = udp("203.0.113.1:80");
    let mut proxy = unmet(key, &["203.0.113.1"], context(IpFamily::V4));
    proxy.kernel.state.addresses.clear();
    proxy.observe();
    proxy.sync();
    assert_eq!(proxy.kernel.state.virtual_servers, BTreeMap::new());
}

#[test]
fn other_virtual_servers_are_foreign() {
    let context = || context(IpFamily::V4);
    assert!(survives(tcp("203.0.113.1:80"), &[], context()));
    assert!(survives(tcp("203.0.113.1:30080"), &[], context()));
    assert!(survives(tcp("192.168.0.10:80"), &[], context()));
    assert!(survives(tcp("192.168.0.10:32768"), &[], context()));
    let mark = VirtualServerKey::Mark {
        mark: 7,
        family: IpFamily::V4,
    };
    assert!(survives(mark, &[], context()));
}

#[test]
fn node_ports_on_loopback_are_ours_where_they_answer() {
    let mut context = with_range("30000-32767");
    assert!(survives(tcp("127.0.0.1:30080"), &[], context.clone()));
    context
        .node_port_addresses
        .insert("127.0.0.1".parse().unwrap());
    assert!(!survives(tcp("127.0.0.1:30080"), &[], context));
}

#[test]
fn excluded_ranges_are_foreign_whatever_else_speaks_for_us() {
    let context = Context {
        exclude_cidrs: vec![
            "10.96.7.0/24".parse().unwrap(),
            "203.0.113.0/24".parse().unwrap(),
        ],
        ..context(IpFamily::V4)
    };
    assert!(survives(tcp("10.96.7.7:80"), &[], context.clone()));
    assert!(survives(
        tcp("203.0.113.1:80"),
        &["203.0.113.1"],
        context.clone()
    ));
    assert!(!survives(tcp("10.96.8.7:80"), &[], context));
}

#[test]
fn a_service_in_an_excluded_range_is_served_and_removed() {
    let context = Context {
        exclude_cidrs: vec!["10.96.0.0/24".parse().unwrap()],
        ..context(IpFamily::V4)
    };
    let tracker = tracker(vec![service("ns/web").port(80)], vec![]);
    let mut proxy = Proxy::start(context, tracker, State::default());
    proxy.sync();
    assert!(
        proxy
            .kernel
            .state
            .virtual_servers
            .contains_key(&tcp("10.96.0.1:80"))
    );
    proxy.take_in([Event::ServicesReplaced(vec![])]);
    proxy.sync();
    assert_eq!(proxy.kernel.state.virtual_servers, BTreeMap::new());
}

#[test]
fn unwanted_addresses_of_our_link_go() {
    let mut proxy = unmet(
        tcp("203.0.113.9:80"),
        &["10.96.0.99"],
        context(IpFamily::V4),
    );
    let lines = lines(&proxy.sync());
    assert_eq!(
        lines.last().unwrap(),
        "delete address 10.96.0.99 from kube-ipvs0"
    );
    assert_eq!(proxy.kernel.state.addresses, BTreeSet::new());
}

#[test]
fn sets_and_chains_of_others_stay() {
    let foreign = Ruleset::parse(
        "*filter\n:INPUT ACCEPT [0:0]\n:MINE - [0:0]\n-A INPUT -j MINE\n-A MINE -j DROP\nCOMMIT\n",
    );
    let mut state = State {
        rules: foreign.unwrap(),
        ..State::default()
    };
    // Any set that is not ours, even one whose name has the same prefix.
    let spec = SetSpec {
        name: SetId::IpvsIps.name(IpFamily::V6),
        ..SetSpec::new(SetId::ClusterIp, IpFamily::V4, 10)
    };
    let name = spec.name.clone();
    state.apply(&Step::CreateSet(spec)).unwrap();
    let entry = SetEntry::IpPort("10.0.0.1".parse().unwrap(), Protocol::Tcp, 1);
    state
        .apply(&Step::AddEntry {
            set: name.clone(),
            entry,
        })
        .unwrap();
    let kept = state.sets[&name].clone();
    let tracker = tracker(vec![service("ns/web").port(80)], vec![]);
    let mut proxy = Proxy::start(context(IpFamily::V4), tracker, state);
    proxy.sync();
    proxy.take_in([Event::ServicesReplaced(vec![])]);
    proxy.sync();
    let state = &proxy.kernel.state;
    assert_eq!(state.sets[&name], kept);
    let input = crate::plan::ruleset::ChainName::new("INPUT").unwrap();
    let rules = state.rules.rules(Table::Filter, &input).unwrap();
    assert_eq!(rules.last().unwrap().as_str(), "-j MINE");
}

#[test]
fn what_kube_proxy_left_is_adopted() {
    let mut state = serving_one().kernel.state;
    // kube-proxy drains one more server, and has one Service that was deleted.
    let servers = &mut state.virtual_servers;
    servers.insert(
        tcp("10.96.0.1:80"),
        present(&[("10.0.1.1:8080", 1), ("10.0.1.9:8080", 0)]),
    );
    servers.insert(tcp("10.96.0.2:80"), present(&[("10.0.1.1:8080", 1)]));
    let tracker = tracker(
        vec![service("ns/web").port(80)],
        vec![web(vec![endpoint("10.0.1.1")])],
    );
    let mut proxy = Proxy::start(context(IpFamily::V4), tracker, state);
    assert_eq!(
        lines(&proxy.sync()),
        ["set real server TCP 10.96.0.2:80 -> 10.0.1.1:8080 weight 0 masquerade"]
    );
    assert_eq!(
        lines(&proxy.drain_all()),
        [
            "delete real server TCP 10.96.0.1:80 -> 10.0.1.9:8080",
            "delete virtual server TCP 10.96.0.2:80",
        ]
    );
}

#[test]
fn drained_servers_of_foreign_virtual_servers_are_not_ours_to_delete() {
    let mut state = State::default();
    state
        .virtual_servers
        .insert(tcp("203.0.113.1:80"), present(&[("10.9.9.9:80", 0)]));
    let mut proxy = Proxy::start(context(IpFamily::V4), tracker(vec![], vec![]), state);
    proxy.sync();
    assert!(proxy.planner.draining().is_empty());
    assert_eq!(proxy.kernel.state.virtual_servers.len(), 1);
}

#[test]
fn observing_a_foreign_virtual_server_does_not_make_it_ours() {
    let mut proxy = synced(vec![], vec![]);
    let key = tcp("203.0.113.1:80");
    let state = present(&[("10.9.9.9:80", 1)]);
    proxy.kernel.state.virtual_servers.insert(key, state);
    let states = proxy.kernel.virtual_servers(&[key].into());
    proxy.planner.observed_virtual_servers(states);
    assert!(proxy.sync().is_empty());
    assert!(proxy.planner.draining().is_empty());
}

#[test]
fn a_service_that_came_and_went_unseen_claims_nothing() {
    let mut proxy = synced(vec![], vec![]);
    let web = service("ns/web").port(80).external_ip("203.0.113.1");
    proxy.take_in([Event::ServiceApplied(web)]);
    proxy.take_in([Event::ServicesReplaced(vec![])]);
    assert!(proxy.sync().is_empty());
    // Later another program creates that virtual server.
    proxy
        .kernel
        .state
        .virtual_servers
        .insert(tcp("203.0.113.1:80"), present(&[]));
    proxy.observe();
    assert!(proxy.sync().is_empty());
}
