// SPDX-License-Identifier: Apache-2.0
//! Real servers and virtual servers that wait for their connections to end.

use crate::plan::mode::{Drains as _, Planner as _};
use std::time::Duration;

use super::*;
use crate::model::Service;
use crate::model::ipvs_options::Scheduler;
use crate::model::testing::service_name;

fn is_bound(proxy: &Proxy, address: &str) -> bool {
    proxy
        .kernel
        .state
        .addresses
        .contains(&address.parse().unwrap())
}

#[test]
fn a_removed_tcp_endpoint_drains() {
    let mut proxy = serving_one();
    proxy.take_in([Event::SliceApplied(web(vec![endpoint("10.0.1.2")]))]);
    assert_eq!(
        lines(&proxy.sync()),
        [
            "add real server TCP 10.96.0.1:80 -> 10.0.1.2:8080 weight 1 masquerade",
            "set real server TCP 10.96.0.1:80 -> 10.0.1.1:8080 weight 0 masquerade",
        ]
    );
    let waiting = (tcp("10.96.0.1:80"), rs("10.0.1.1:8080"));
    assert_eq!(*proxy.planner.draining(), [waiting].into());
    assert!(proxy.drain(&BTreeSet::new()).is_empty());
    assert_eq!(
        lines(&proxy.drain(&[waiting].into())),
        ["delete real server TCP 10.96.0.1:80 -> 10.0.1.1:8080"]
    );
    assert!(proxy.planner.draining().is_empty());
    assert!(proxy.restarted().sync().is_empty());
}

#[test]
fn a_removed_udp_endpoint_goes_at_once() {
    let slice = |endpoints| slice("ns/web", "a", endpoints).named_port("p", Protocol::Udp, 8080);
    let mut proxy = synced(
        vec![service("ns/web").named_port("p", Protocol::Udp, 80)],
        vec![slice(vec![endpoint("10.0.1.1")])],
    );
    proxy.take_in([Event::SliceApplied(slice(vec![]))]);
    assert_eq!(
        lines(&proxy.sync()),
        ["delete real server UDP 10.96.0.1:80 -> 10.0.1.1:8080"]
    );
    assert!(proxy.planner.draining().is_empty());
}

#[test]
fn udp_flows_stay_with_an_endpoint_that_shuts_down_as_long_as_it_serves() {
    let slice = |endpoints| slice("ns/web", "a", endpoints).named_port("p", Protocol::Udp, 8080);
    let mut proxy = synced(
        vec![service("ns/web").named_port("p", Protocol::Udp, 80)],
        vec![slice(vec![endpoint("10.0.1.1"), endpoint("10.0.1.2")])],
    );
    let leaving = vec![endpoint("10.0.1.1").terminating(), endpoint("10.0.1.2")];
    proxy.take_in([Event::SliceApplied(slice(leaving))]);
    assert_eq!(
        lines(&proxy.sync()),
        ["set real server UDP 10.96.0.1:80 -> 10.0.1.1:8080 weight 0 masquerade"]
    );
    // A UDP server does not drain: it stays until its endpoint is removed.
    assert!(proxy.planner.draining().is_empty());
    proxy.take_in([Event::SliceApplied(slice(vec![endpoint("10.0.1.2")]))]);
    assert_eq!(
        lines(&proxy.sync()),
        ["delete real server UDP 10.96.0.1:80 -> 10.0.1.1:8080"]
    );
}

#[test]
fn a_removed_sctp_endpoint_drains() {
    let slice = |endpoints| slice("ns/web", "a", endpoints).named_port("p", Protocol::Sctp, 8080);
    let mut proxy = synced(
        vec![service("ns/web").named_port("p", Protocol::Sctp, 80)],
        vec![slice(vec![endpoint("10.0.1.1")])],
    );
    proxy.take_in([Event::SliceApplied(slice(vec![]))]);
    assert_eq!(
        lines(&proxy.sync()),
        ["set real server SCTP 10.96.0.1:80 -> 10.0.1.1:8080 weight 0 masquerade"]
    );
    assert_eq!(
        lines(&proxy.drain_all()),
        ["delete real server SCTP 10.96.0.1:80 -> 10.0.1.1:8080"]
    );
}

/// `dh` would hash connections to a server of weight 0 and so reject them.
#[test]
fn with_dh_nothing_drains_as_long_as_the_service_is_there() {
    let dh = |service: Service| service.scheduler(Scheduler::Dh);
    let mut proxy = synced(
        vec![dh(service("ns/web").port(80))],
        vec![web(vec![endpoint("10.0.1.1"), endpoint("10.0.1.2")])],
    );
    proxy.take_in([Event::SliceApplied(web(vec![endpoint("10.0.1.2")]))]);
    assert_eq!(
        lines(&proxy.sync()),
        ["delete real server TCP 10.96.0.1:80 -> 10.0.1.1:8080"]
    );
    proxy.take_in([Event::ServiceDeleted(service_name("ns/web"))]);
    proxy.sync();
    let waiting = (tcp("10.96.0.1:80"), rs("10.0.1.2:8080"));
    assert_eq!(*proxy.planner.draining(), [waiting].into());
}

#[test]
fn what_drains_goes_when_dh_is_chosen() {
    let mut proxy = serving_one();
    proxy.take_in([Event::SliceApplied(web(vec![endpoint("10.0.1.2")]))]);
    proxy.sync();
    assert_eq!(proxy.planner.draining().len(), 1);
    let dh = service("ns/web").port(80).scheduler(Scheduler::Dh);
    proxy.take_in([Event::ServiceApplied(dh)]);
    assert_eq!(
        lines(&proxy.sync()),
        [
            "set virtual server TCP 10.96.0.1:80 scheduler dh",
            "delete real server TCP 10.96.0.1:80 -> 10.0.1.1:8080",
        ]
    );
    assert!(proxy.planner.draining().is_empty());
}

#[test]
fn the_limit_of_a_service_holds_after_its_end_until_its_server_is_gone() {
    let limit = Duration::from_secs(5);
    let limited = service("ns/web").port(80).drain_limit(limit);
    let mut proxy = serving_one();
    let key = tcp("10.96.0.1:80");
    let usual = proxy.planner.context().drain_limit;
    assert_eq!(proxy.planner.drain_limit(&key), usual);
    proxy.take_in([Event::ServiceApplied(limited)]);
    assert_eq!(proxy.planner.drain_limit(&key), limit);
    assert!(
        proxy.sync().is_empty(),
        "a limit changes nothing in the kernel"
    );
    proxy.take_in([Event::ServiceDeleted(service_name("ns/web"))]);
    proxy.sync();
    assert_eq!(proxy.planner.drain_limit(&key), limit);
    proxy.take_in([Event::ServiceApplied(service("ns/web").port(80))]);
    assert_eq!(proxy.planner.drain_limit(&key), usual);
    proxy.sync();
    proxy.take_in([Event::ServiceDeleted(service_name("ns/web"))]);
    proxy.sync();
    proxy.drain_all();
    proxy.sync();
    assert_eq!(proxy.planner.drain_limit(&key), usual);
}

#[test]
fn only_idle_servers_that_drain_are_deleted() {
    let mut proxy = serving_one();
    let serving = (tcp("10.96.0.1:80"), rs("10.0.1.1:8080"));
    assert!(proxy.drain(&[serving].into()).is_empty());
}

#[test]
fn an_endpoint_that_returns_while_it_drains_serves_again() {
    let mut proxy = serving_one();
    proxy.take_in([Event::SliceApplied(web(vec![]))]);
    proxy.sync();
    proxy.take_in([Event::SliceApplied(web(vec![endpoint("10.0.1.1")]))]);
    // Its connections have ended, but it is wanted: it must not be deleted between the plans.
    assert!(proxy.planner.draining().is_empty());
    assert_eq!(
        lines(&proxy.sync()),
        ["set real server TCP 10.96.0.1:80 -> 10.0.1.1:8080 weight 1 masquerade"]
    );
    assert!(proxy.planner.draining().is_empty());
}

#[test]
fn a_restart_goes_on_draining() {
    let mut proxy = serving_one();
    proxy.take_in([Event::SliceApplied(web(vec![]))]);
    proxy.sync();
    let mut next = proxy.restarted();
    assert!(next.sync().is_empty());
    assert_eq!(next.planner.draining(), proxy.planner.draining());
    assert_eq!(
        lines(&next.drain_all()),
        ["delete real server TCP 10.96.0.1:80 -> 10.0.1.1:8080"]
    );
}

#[test]
fn a_server_that_others_gave_weight_0_serves_again() {
    let mut proxy = serving_one();
    let state = &mut proxy.kernel.state;
    let server = state.virtual_servers.get_mut(&tcp("10.96.0.1:80")).unwrap();
    server
        .real_servers_mut()
        .get_mut(&rs("10.0.1.1:8080"))
        .unwrap()
        .weight = 0;
    let mut next = proxy.restarted();
    assert!(next.planner.draining().is_empty());
    assert_eq!(
        lines(&next.sync()),
        ["set real server TCP 10.96.0.1:80 -> 10.0.1.1:8080 weight 1 masquerade"]
    );
}

#[test]
fn a_deleted_service_refuses_new_connections_and_keeps_open_ones() {
    let mut proxy = serving_one();
    let name = service_name("ns/web");
    proxy.take_in([Event::ServiceDeleted(name)]);
    assert_eq!(
        lines(&proxy.sync()),
        [
            "delete entry KUBE-CLUSTER-IP 10.96.0.1,tcp:80",
            "set real server TCP 10.96.0.1:80 -> 10.0.1.1:8080 weight 0 masquerade",
        ]
    );
    assert!(is_bound(&proxy, "10.96.0.1"));
    assert!(proxy.restarted().sync().is_empty());
    assert_eq!(
        lines(&proxy.drain_all()),
        [
            "delete virtual server TCP 10.96.0.1:80",
            "delete address 10.96.0.1 from kube-ipvs0",
            "delete entry KUBE-IPVS-IPS 10.96.0.1",
        ]
    );
    assert!(proxy.planner.draining().is_empty() && !proxy.planner.is_pending());
    assert!(proxy.restarted().sync().is_empty());
}

#[test]
fn a_deleted_service_without_connections_to_end_goes_at_once() {
    let mut proxy = synced(vec![service("ns/web").port(80)], vec![]);
    let name = service_name("ns/web");
    proxy.take_in([Event::ServiceDeleted(name)]);
    assert_eq!(
        lines(&proxy.sync()),
        [
            "delete entry KUBE-CLUSTER-IP 10.96.0.1,tcp:80",
            "delete virtual server TCP 10.96.0.1:80",
            "delete address 10.96.0.1 from kube-ipvs0",
            "delete entry KUBE-IPVS-IPS 10.96.0.1",
        ]
    );
}

#[test]
fn a_deleted_udp_service_goes_at_once() {
    let dns = service("ns/web").named_port("dns", Protocol::Udp, 53);
    let endpoints =
        slice("ns/web", "a", vec![endpoint("10.0.1.1")]).named_port("dns", Protocol::Udp, 53);
    let mut proxy = synced(vec![dns], vec![endpoints]);
    proxy.take_in([Event::ServicesReplaced(vec![])]);
    assert_eq!(
        lines(&proxy.sync()),
        [
            "delete entry KUBE-CLUSTER-IP 10.96.0.1,udp:53",
            "delete virtual server UDP 10.96.0.1:53",
            "delete address 10.96.0.1 from kube-ipvs0",
            "delete entry KUBE-IPVS-IPS 10.96.0.1",
        ]
    );
}

#[test]
fn an_address_stays_until_all_ports_have_drained() {
    let two = service("ns/web")
        .named_port("a", Protocol::Tcp, 80)
        .named_port("b", Protocol::Tcp, 443);
    let endpoints = slice("ns/web", "a", vec![endpoint("10.0.1.1")])
        .named_port("a", Protocol::Tcp, 8080)
        .named_port("b", Protocol::Tcp, 8443);
    let mut proxy = synced(vec![two], vec![endpoints]);
    proxy.take_in([Event::ServicesReplaced(vec![])]);
    proxy.sync();
    let first = (tcp("10.96.0.1:80"), rs("10.0.1.1:8080"));
    assert_eq!(
        lines(&proxy.drain(&[first].into())),
        ["delete virtual server TCP 10.96.0.1:80"]
    );
    assert!(is_bound(&proxy, "10.96.0.1"));
    assert_eq!(
        lines(&proxy.drain_all()),
        [
            "delete virtual server TCP 10.96.0.1:443",
            "delete address 10.96.0.1 from kube-ipvs0",
            "delete entry KUBE-IPVS-IPS 10.96.0.1",
        ]
    );
}

#[test]
fn an_address_on_which_tcp_drains_outlives_udp() {
    let both = service("ns/web")
        .named_port("t", Protocol::Tcp, 53)
        .named_port("u", Protocol::Udp, 53);
    let endpoints = slice("ns/web", "a", vec![endpoint("10.0.1.1")])
        .named_port("t", Protocol::Tcp, 53)
        .named_port("u", Protocol::Udp, 53);
    let mut proxy = synced(vec![both], vec![endpoints]);
    proxy.take_in([Event::ServicesReplaced(vec![])]);
    // `sync` ensures that nothing is pending afterwards.
    proxy.sync();
    let left: Vec<_> = proxy.kernel.state.virtual_servers.keys().copied().collect();
    assert_eq!(left, [tcp("10.96.0.1:53")]);
    assert!(is_bound(&proxy, "10.96.0.1"));
    proxy.drain_all();
    assert!(!is_bound(&proxy, "10.96.0.1"));
}

#[test]
fn an_address_that_another_service_uses_survives_the_drain() {
    let mut proxy = synced(
        vec![
            service("ns/web").port(80).external_ip("203.0.113.1"),
            service("ns/b")
                .cluster_ips(&["10.96.0.2"])
                .port(443)
                .external_ip("203.0.113.1"),
        ],
        vec![web(vec![endpoint("10.0.1.1")])],
    );
    proxy.take_in([Event::ServiceApplied(service("ns/web").port(80))]);
    proxy.sync();
    assert_eq!(
        lines(&proxy.drain_all()),
        ["delete virtual server TCP 203.0.113.1:80"]
    );
    assert!(is_bound(&proxy, "203.0.113.1"));
}

#[test]
fn a_service_that_is_made_anew_takes_its_draining_virtual_server_over() {
    let mut proxy = serving_one();
    proxy.take_in([Event::ServicesReplaced(vec![])]);
    proxy.sync();
    proxy.take_in([
        Event::ServiceApplied(service("ns/web").created(5).port(80)),
        Event::SliceApplied(web(vec![endpoint("10.0.1.2")])),
    ]);
    assert_eq!(
        lines(&proxy.sync()),
        [
            "add entry KUBE-CLUSTER-IP 10.96.0.1,tcp:80",
            "add real server TCP 10.96.0.1:80 -> 10.0.1.2:8080 weight 1 masquerade",
        ]
    );
    // What the old Service had is still draining, and nothing else is.
    assert_eq!(
        lines(&proxy.drain_all()),
        ["delete real server TCP 10.96.0.1:80 -> 10.0.1.1:8080"]
    );
    assert!(proxy.restarted().sync().is_empty());
}

#[test]
fn a_service_that_is_made_anew_after_the_drain_starts_afresh() {
    let mut proxy = serving_one();
    proxy.take_in([Event::ServicesReplaced(vec![])]);
    proxy.sync();
    let waiting = proxy.planner.draining().clone();
    proxy.drain_all();
    proxy.take_in([Event::ServiceApplied(service("ns/web").created(5).port(80))]);
    assert_eq!(
        lines(&proxy.sync()),
        [
            "add entry KUBE-CLUSTER-IP 10.96.0.1,tcp:80",
            "add entry KUBE-IPVS-IPS 10.96.0.1",
            "add virtual server TCP 10.96.0.1:80 scheduler rr",
            "add real server TCP 10.96.0.1:80 -> 10.0.1.1:8080 weight 1 masquerade",
            "add address 10.96.0.1 to kube-ipvs0",
        ]
    );
    // An answer about the old one arrives late.
    assert!(proxy.drain(&waiting).is_empty());
}

#[test]
fn a_drain_leaves_pending_changes_alone() {
    let mut proxy = serving_one();
    proxy.take_in([Event::SliceApplied(web(vec![]))]);
    proxy.sync();
    proxy.take_in([Event::SliceApplied(web(vec![endpoint("10.0.1.2")]))]);
    proxy.drain_all();
    assert!(proxy.planner.is_pending());
    assert_eq!(
        lines(&proxy.sync()),
        ["add real server TCP 10.96.0.1:80 -> 10.0.1.2:8080 weight 1 masquerade"]
    );
}
