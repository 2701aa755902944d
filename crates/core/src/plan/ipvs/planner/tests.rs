// SPDX-License-Identifier: Apache-2.0
//! Rounds over a fake kernel: what a change plans, what a failure leaves pending, what drains.

mod budget;
mod daemons;
mod drain;
mod failures;
mod marks;
mod nftables;
mod ownership;
mod properties;
mod slow_start;
mod sysctls;
mod takeover;
mod turns;
mod unread;

use super::*;
use crate::model::testing::{endpoint, service, slice, tracker};
use crate::model::{EndpointSlice, Event, Holders, IpFamily, Protocol, Service, SliceEndpoint};
use crate::plan::Step as _;
use crate::plan::ipvs::set::{self, SetType};
use crate::plan::ipvs::state::SetState;
use crate::plan::mode::{Planner as _, SlicedAudit as _};
use crate::plan::ruleset::{Rule, Table};
use crate::plan::testing::{Proxy, context, lines, rs, tcp, udp};

fn web(endpoints: Vec<SliceEndpoint>) -> EndpointSlice {
    slice("ns/web", "a", endpoints).port(8080)
}

/// A proxy with these objects, after its first round.
fn synced(services: Vec<Service>, slices: Vec<EndpointSlice>) -> Proxy {
    let tracker = tracker(services, slices);
    let mut proxy = Proxy::start(context(IpFamily::V4), tracker, State::default());
    proxy.sync();
    proxy
}

fn serving_one() -> Proxy {
    synced(
        vec![service("ns/web").port(80)],
        vec![web(vec![endpoint("10.0.1.1")])],
    )
}

#[test]
fn a_cold_start_makes_everything_in_order() {
    let tracker = tracker(
        vec![service("ns/web").port(80).node_port(30080)],
        vec![web(vec![endpoint("10.0.1.1")])],
    );
    let mut proxy = Proxy::start(context(IpFamily::V4), tracker, State::default());
    let plan = proxy.sync();
    let lines = lines(&plan);
    let services = lines
        .iter()
        .position(|line| line.starts_with("add entry"))
        .unwrap();
    assert_eq!(
        lines[..services],
        [
            "set sysctl net/ipv4/vs/conntrack = 1",
            "set sysctl net/ipv4/vs/expire_nodest_conn = 1",
            "set sysctl net/ipv4/vs/expire_quiescent_template = 1",
            "set sysctl net/ipv4/ip_forward = 1",
            "create link kube-ipvs0",
            "create set KUBE-LOOP-BACK hash:ip,port,ip IPv4 maxelem 65536",
            "create set KUBE-CLUSTER-IP hash:ip,port IPv4 maxelem 65536",
            "create set KUBE-EXTERNAL-IP hash:ip,port IPv4 maxelem 65536",
            "create set KUBE-EXTERNAL-IP-LOCAL hash:ip,port IPv4 maxelem 65536",
            "create set KUBE-LOAD-BALANCER hash:ip,port IPv4 maxelem 65536",
            "create set KUBE-LOAD-BALANCER-LOCAL hash:ip,port IPv4 maxelem 65536",
            "create set KUBE-LOAD-BALANCER-FW hash:ip,port IPv4 maxelem 65536",
            "create set KUBE-LOAD-BALANCER-SOURCE-CIDR hash:ip,port,net IPv4 maxelem 65536",
            "create set KUBE-LOAD-BALANCER-SOURCE-IP hash:ip,port,ip IPv4 maxelem 65536",
            "create set KUBE-NODE-PORT-HASH hash:ip,port IPv4 maxelem 65536",
            "create set KUBE-NODE-PORT-LOCAL-HASH hash:ip,port IPv4 maxelem 65536",
            "create set KUBE-NO-LOCAL-ENDPOINTS hash:ip,port IPv4 maxelem 65536",
            "create set KUBE-LOCAL-POLICY-MARK hash:ip,port skbinfo IPv4 maxelem 65536",
            "create set KUBE-HEALTH-CHECK-NODE-PORT bitmap:port",
            "create set KUBE-HEALTH-CHECK-VIP hash:ip,port IPv4 maxelem 65536",
            "create set KUBE-IPVS-IPS hash:ip IPv4 maxelem 65536",
        ]
    );
    assert_eq!(
        lines[services..],
        [
            "add entry KUBE-NODE-PORT-HASH 172.16.0.10,tcp:30080",
            "add entry KUBE-NODE-PORT-HASH 192.168.0.10,tcp:30080",
            "add entry KUBE-CLUSTER-IP 10.96.0.1,tcp:80",
            "add entry KUBE-IPVS-IPS 10.96.0.1",
            "add virtual server TCP 10.96.0.1:80 scheduler rr",
            "add real server TCP 10.96.0.1:80 -> 10.0.1.1:8080 weight 1 masquerade",
            "add virtual server TCP 172.16.0.10:30080 scheduler rr",
            "add real server TCP 172.16.0.10:30080 -> 10.0.1.1:8080 weight 1 masquerade",
            "add virtual server TCP 192.168.0.10:30080 scheduler rr",
            "add real server TCP 192.168.0.10:30080 -> 10.0.1.1:8080 weight 1 masquerade",
            "add virtual server FWM 8191 IPv4 scheduler rr flags 0x4",
            "add real server FWM 8191 IPv4 -> 127.0.0.1:0 weight 1 route",
            "add address 10.96.0.1 to kube-ipvs0",
        ]
    );
    assert!(proxy.restarted().sync().is_empty());
}

#[test]
fn the_second_family_leaves_shared_settings_alone_but_makes_the_link() {
    let mut proxy = Proxy::start(
        context(IpFamily::V6),
        tracker(vec![], vec![]),
        State::default(),
    );
    let lines = lines(&proxy.sync());
    assert_eq!(lines[0], "create link kube-ipvs0");
    assert!(
        lines[1..]
            .iter()
            .all(|line| line.starts_with("create set KUBE-6-"))
    );
}

#[test]
fn an_endpoint_more_is_one_step() {
    let mut proxy = serving_one();
    let endpoints = vec![endpoint("10.0.1.1"), endpoint("10.0.1.2")];
    proxy.take_in([Event::SliceApplied(web(endpoints))]);
    assert_eq!(
        lines(&proxy.sync()),
        ["add real server TCP 10.96.0.1:80 -> 10.0.1.2:8080 weight 1 masquerade"]
    );
}

#[test]
fn a_change_that_is_taken_back_plans_nothing() {
    let mut proxy = serving_one();
    proxy.take_in([
        Event::SliceApplied(web(vec![])),
        Event::SliceApplied(web(vec![endpoint("10.0.1.1")])),
    ]);
    assert!(proxy.sync().is_empty());
    proxy.take_in([Event::SliceApplied(web(vec![]))]);
    proxy.take_in([Event::SliceApplied(web(vec![endpoint("10.0.1.1")]))]);
    assert!(proxy.sync().is_empty());
}

#[test]
fn affinity_changes_a_virtual_server_in_place() {
    let mut proxy = serving_one();
    proxy.take_in([Event::ServiceApplied(
        service("ns/web").port(80).affinity(60),
    )]);
    assert_eq!(
        lines(&proxy.sync()),
        ["set virtual server TCP 10.96.0.1:80 scheduler rr persistent 60 s"]
    );
}

#[test]
fn source_ranges_open_before_they_close() {
    let vip = || service("ns/web").port(80).vip("198.51.100.1");
    let mut proxy = synced(vec![vip()], vec![]);
    let ranged = || vip().source_range("10.0.0.0/8");
    proxy.take_in([Event::ServiceApplied(ranged())]);
    assert_eq!(
        lines(&proxy.sync()),
        [
            "add entry KUBE-LOAD-BALANCER-SOURCE-CIDR 198.51.100.1,tcp:80,10.0.0.0/8",
            "add entry KUBE-LOAD-BALANCER-FW 198.51.100.1,tcp:80",
        ]
    );
    proxy.take_in([Event::ServiceApplied(vip().source_range("11.0.0.0/8"))]);
    assert_eq!(
        lines(&proxy.sync()),
        [
            "add entry KUBE-LOAD-BALANCER-SOURCE-CIDR 198.51.100.1,tcp:80,11.0.0.0/8",
            "delete entry KUBE-LOAD-BALANCER-SOURCE-CIDR 198.51.100.1,tcp:80,10.0.0.0/8",
        ]
    );
    proxy.take_in([Event::ServiceApplied(vip())]);
    assert_eq!(
        lines(&proxy.sync()),
        [
            "delete entry KUBE-LOAD-BALANCER-FW 198.51.100.1,tcp:80",
            "delete entry KUBE-LOAD-BALANCER-SOURCE-CIDR 198.51.100.1,tcp:80,11.0.0.0/8",
        ]
    );
}

#[test]
fn another_scheduler_is_set_in_place() {
    let mut proxy = serving_one();
    let context = Context {
        scheduler: "lc".into(),
        ..context(IpFamily::V4)
    };
    proxy.planner.set_context(context, &proxy.tracker).unwrap();
    assert_eq!(
        lines(&proxy.sync()),
        ["set virtual server TCP 10.96.0.1:80 scheduler lc"]
    );
}

#[test]
fn an_equal_context_plans_nothing() {
    let mut proxy = serving_one();
    proxy
        .planner
        .set_context(context(IpFamily::V4), &proxy.tracker)
        .unwrap();
    assert!(!proxy.planner.is_pending());
}

#[test]
fn an_address_that_the_node_gets_is_served_and_unbound() {
    let web = service("ns/web")
        .port(80)
        .node_port(30080)
        .external_ip("192.168.0.77");
    let mut proxy = synced(vec![web], vec![]);
    let mut context = context(IpFamily::V4);
    let new = "192.168.0.77".parse().unwrap();
    context.node_addresses.insert(new);
    context.node_port_addresses.insert(new);
    proxy.planner.set_context(context, &proxy.tracker).unwrap();
    assert_eq!(
        lines(&proxy.sync()),
        [
            "add entry KUBE-NODE-PORT-HASH 192.168.0.77,tcp:30080",
            "add virtual server TCP 192.168.0.77:30080 scheduler rr",
            "delete address 192.168.0.77 from kube-ipvs0",
            "delete entry KUBE-IPVS-IPS 192.168.0.77",
        ]
    );
}

/// Unmet requests as text.
fn unmet(proxy: &Proxy) -> Vec<String> {
    let unmet = proxy.planner.desired().unmet();
    unmet
        .into_iter()
        .map(|(service, unmet)| format!("{service}: {unmet}"))
        .collect()
}

#[test]
fn an_address_that_an_endpoint_has_is_served_and_not_bound() {
    let services = vec![
        service("ns/web").port(80).external_ip("203.0.113.1"),
        service("ns/other").port(80).cluster_ips(&["10.96.0.2"]),
    ];
    let mut proxy = synced(services, vec![]);
    let elsewhere = |address: &str| slice("ns/other", "a", vec![endpoint(address)]).port(8080);
    proxy.take_in([Event::SliceApplied(elsewhere("203.0.113.1"))]);
    assert_eq!(
        lines(&proxy.sync()),
        [
            "add real server TCP 10.96.0.2:80 -> 203.0.113.1:8080 weight 1 masquerade",
            "delete address 203.0.113.1 from kube-ipvs0",
            "delete entry KUBE-IPVS-IPS 203.0.113.1",
        ]
    );
    assert_eq!(
        unmet(&proxy),
        ["ns/web: address 203.0.113.1 is not bound to kube-ipvs0: it is an endpoint's address"]
    );
    assert!(proxy.restarted().sync().is_empty());
    proxy.take_in([Event::SliceApplied(elsewhere("10.0.1.1"))]);
    let plan = lines(&proxy.sync());
    assert!(
        plan.contains(&"add address 203.0.113.1 to kube-ipvs0".to_owned()),
        "{plan:?}"
    );
    assert!(unmet(&proxy).is_empty());
}

#[test]
fn others_addresses_are_not_bound_but_as_cluster_ips() {
    let services = vec![
        service("ns/a").port(80).external_ip("192.168.0.10"),
        service("ns/b")
            .port(80)
            .cluster_ips(&["10.96.0.2"])
            .vip("192.168.0.1"),
        service("ns/c")
            .port(80)
            .cluster_ips(&["10.96.0.3"])
            .external_ip("10.96.0.9"),
        service("default/kubernetes")
            .port(443)
            .cluster_ips(&["10.96.0.9"]),
    ];
    let holders = Holders {
        gateways: ["192.168.0.1".parse().unwrap()].into(),
        api_servers: ["10.96.0.9".parse().unwrap()].into(),
        ..Holders::default()
    };
    let mut tracker = tracker(services, vec![]);
    tracker.set_holders(holders);
    let mut proxy = Proxy::start(context(IpFamily::V4), tracker, State::default());
    proxy.sync();
    let bound: Vec<String> = proxy
        .kernel
        .state
        .addresses
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(bound, ["10.96.0.1", "10.96.0.2", "10.96.0.3", "10.96.0.9"]);
    // What only an external IP claims is not served either.
    for (key, is_served) in [
        ("192.168.0.10:80", true),
        ("192.168.0.1:80", true),
        ("10.96.0.9:443", true),
        ("10.96.0.9:80", false),
    ] {
        let servers = &proxy.kernel.state.virtual_servers;
        assert_eq!(servers.contains_key(&tcp(key)), is_served, "{key}");
    }
    assert_eq!(
        unmet(&proxy),
        [
            "ns/a: address 192.168.0.10 is not bound to kube-ipvs0: it is on another link of this node",
            "ns/b: address 192.168.0.1 is not bound to kube-ipvs0: it is the default gateway's address",
            "ns/c: address 10.96.0.9 is not bound to kube-ipvs0 and not served: it is the API server's address",
        ]
    );
    // The address is nobody's any more.
    proxy.set_holders(Holders::default());
    let plan = lines(&proxy.sync());
    assert!(
        plan.contains(&"add address 192.168.0.1 to kube-ipvs0".to_owned()),
        "{plan:?}"
    );
    assert!(
        proxy
            .kernel
            .state
            .virtual_servers
            .contains_key(&tcp("10.96.0.9:80"))
    );
    assert!(proxy.restarted().sync().is_empty());
}

#[test]
fn no_slice_takes_what_the_cluster_or_a_load_balancer_gave() {
    let victim = service("victim/dns")
        .port(53)
        .cluster_ips(&["10.96.0.10"])
        .vip("198.51.100.1");
    let tenant = service("tenant/any").port(80).cluster_ips(&["10.96.0.2"]);
    let ours = slice("victim/dns", "a", vec![endpoint("10.0.1.1")]).port(53);
    let mut proxy = synced(vec![victim, tenant], vec![ours]);
    let bound = proxy.kernel.state.addresses.clone();
    let attack = ["10.96.0.10", "198.51.100.1", "10.96.0.2"]
        .map(endpoint)
        .to_vec();
    proxy.take_in([Event::SliceApplied(
        slice("tenant/any", "a", attack).port(53),
    )]);
    proxy.sync();
    assert_eq!(proxy.kernel.state.addresses, bound);
    assert!(unmet(&proxy).is_empty());
    // One claim by a better right is enough, whoever else lists the address.
    let lists = service("other/any")
        .port(81)
        .cluster_ips(&["10.96.0.3"])
        .external_ip("198.51.100.1");
    proxy.take_in([Event::ServiceApplied(lists)]);
    proxy.sync();
    assert!(unmet(&proxy).is_empty());
    proxy.take_in([Event::ServiceDeleted(crate::model::testing::service_name(
        "victim/dns",
    ))]);
    proxy.sync();
    assert_eq!(
        unmet(&proxy),
        ["other/any: address 198.51.100.1 is not bound to kube-ipvs0: it is an endpoint's address"]
    );
    assert!(proxy.restarted().sync().is_empty());
}

#[test]
fn sets_that_only_kube_proxy_has_go_after_its_rules() {
    let mut proxy = synced(vec![service("ns/web").port(80)], vec![]);
    for set in set::retired(IpFamily::V4) {
        let state = SetState {
            set_type: SetType::BitmapPort,
            max_entries: 65_536,
            entries: BTreeSet::new(),
        };
        proxy.kernel.state.sets.insert(set, state);
    }
    let chain = (Table::Nat, "KUBE-NODE-PORT".parse().unwrap());
    let of_kube_proxy =
        Rule::new("-p tcp -m set --match-set KUBE-NODE-PORT-TCP dst -j KUBE-MARK-MASQ");
    let rules = &mut proxy.kernel.state.rules;
    rules.chains.insert(chain, vec![of_kube_proxy]);
    proxy.observe();
    let plan = proxy.sync();
    let kinds: Vec<_> = plan.steps().map(Step::kind).collect();
    assert_eq!(kinds[0], "edit-rules");
    assert_eq!(kinds[1..], ["destroy-set"; 6]);
    assert!(proxy.restarted().sync().is_empty());
}

#[test]
fn drift_is_repaired_and_nothing_else() {
    let mut proxy = synced(
        vec![service("ns/web").port(80).external_ip("203.0.113.1")],
        vec![web(vec![endpoint("10.0.1.1")])],
    );
    let state = &mut proxy.kernel.state;
    state.addresses.clear();
    state.virtual_servers.remove(&tcp("203.0.113.1:80"));
    let server = state.virtual_servers.get_mut(&tcp("10.96.0.1:80")).unwrap();
    server
        .real_servers_mut()
        .get_mut(&rs("10.0.1.1:8080"))
        .unwrap()
        .weight = 7;
    let sets = state.sets.values_mut().find(|set| set.entries.len() == 2);
    sets.unwrap().entries.clear();
    state
        .node
        .sysctls
        .insert("net/ipv4/ip_forward", "0".to_owned());
    proxy.observe();
    assert_eq!(
        lines(&proxy.sync()),
        [
            "set sysctl net/ipv4/ip_forward = 1",
            "add entry KUBE-IPVS-IPS 10.96.0.1",
            "add entry KUBE-IPVS-IPS 203.0.113.1",
            "set real server TCP 10.96.0.1:80 -> 10.0.1.1:8080 weight 1 masquerade",
            "add virtual server TCP 203.0.113.1:80 scheduler rr",
            "add real server TCP 203.0.113.1:80 -> 10.0.1.1:8080 weight 1 masquerade",
            "add address 10.96.0.1 to kube-ipvs0",
            "add address 203.0.113.1 to kube-ipvs0",
        ]
    );
}

#[test]
fn unwanted_entries_of_our_sets_go() {
    let mut proxy = serving_one();
    let name = SetId::ClusterIp.name(IpFamily::V4);
    let entry = SetEntry::IpPort("10.96.0.99".parse().unwrap(), Protocol::Udp, 1);
    proxy
        .kernel
        .state
        .sets
        .get_mut(&name)
        .unwrap()
        .entries
        .insert(entry);
    proxy.observe();
    assert_eq!(
        lines(&proxy.sync()),
        ["delete entry KUBE-CLUSTER-IP 10.96.0.99,udp:1"]
    );
}

#[test]
fn important_services_come_first() {
    let dns = service("kube-system/kube-dns")
        .cluster_ips(&["10.96.0.10"])
        .named_port("dns", Protocol::Udp, 53);
    let tracker = tracker(vec![service("ns/web").port(80), dns], vec![]);
    let mut proxy = Proxy::start(context(IpFamily::V4), tracker, State::default());
    let name = crate::model::testing::service_name("kube-system/kube-dns");
    let first = proxy.planner.plan_first(&[name]).unwrap();
    let report = proxy.kernel.apply(&first);
    assert!(report.is_success());
    proxy.planner.report_part(&first, &report);
    assert_eq!(proxy.planner.take_doubtful(), BTreeSet::new());
    let servers: Vec<_> = proxy.kernel.state.virtual_servers.keys().copied().collect();
    assert_eq!(servers, [udp("10.96.0.10:53")]);
    assert!(proxy.planner.is_pending());
    assert_eq!(
        lines(&proxy.sync()),
        [
            "add entry KUBE-CLUSTER-IP 10.96.0.1,tcp:80",
            "add entry KUBE-IPVS-IPS 10.96.0.1",
            "add virtual server TCP 10.96.0.1:80 scheduler rr",
            "add address 10.96.0.1 to kube-ipvs0",
        ]
    );
}

#[test]
fn one_endpoint_costs_the_same_among_many_services() {
    let cost = |services: u16| {
        let at = |n: u16| format!("10.{}.{}.1", 96 + n / 256, n % 256);
        let all = (0..services)
            .map(|n| {
                service(&format!("ns/s{n}"))
                    .cluster_ips(&[&at(n)])
                    .port(80)
                    .node_port(30_000 + n % 2_000)
            })
            .collect();
        let slices = (0..services)
            .map(|n| slice(&format!("ns/s{n}"), "a", vec![endpoint(&at(n))]).port(8080))
            .collect();
        let tracker = tracker(all, slices);
        let mut proxy = Proxy::start(context(IpFamily::V4), tracker, State::default());
        proxy.sync();
        let endpoints = vec![endpoint(&at(7)), endpoint("10.0.1.2")];
        proxy.take_in([Event::SliceApplied(
            slice("ns/s7", "a", endpoints).port(8080),
        )]);
        let dirty = proxy.planner.dirty.clone();
        assert_eq!(dirty.virtual_servers.len(), 3);
        assert!(dirty.addresses.is_empty() && dirty.entries.is_empty());
        lines(&proxy.sync())
    };
    let few = cost(10);
    assert_eq!(
        few,
        [
            "add real server TCP 10.96.7.1:80 -> 10.0.1.2:8080 weight 1 masquerade",
            "add real server TCP 172.16.0.10:30007 -> 10.0.1.2:8080 weight 1 masquerade",
            "add real server TCP 192.168.0.10:30007 -> 10.0.1.2:8080 weight 1 masquerade",
        ]
    );
    assert_eq!(few, cost(1_000));
}
