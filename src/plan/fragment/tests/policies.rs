// SPDX-License-Identifier: Apache-2.0
//! Which endpoints serve which address of a Service.

use super::*;

#[test]
fn external_policy_local_never_uses_remote_endpoints() {
    let service = service("ns/web").port(80).node_port(30080).external_local();
    let fragment = of(&service, vec![endpoint("10.0.2.1")], &context(IpFamily::V4));
    assert_eq!(
        servers(&fragment),
        [
            pair("TCP 10.96.0.1:80", &["10.0.2.1:8080"]),
            pair("TCP 172.16.0.10:30080", &[]),
            pair("TCP 192.168.0.10:30080", &[]),
        ]
    );
    assert!(fragment.no_local_external);
    assert!(!fragment.no_local_internal);
}

#[test]
fn internal_policy_local_never_uses_remote_endpoints() {
    let service = service("ns/web").port(80).node_port(30080).internal_local();
    let fragment = of(&service, vec![endpoint("10.0.2.1")], &context(IpFamily::V4));
    assert_eq!(
        servers(&fragment),
        [
            pair("TCP 10.96.0.1:80", &[]),
            pair("TCP 172.16.0.10:30080", &["10.0.2.1:8080"]),
            pair("TCP 192.168.0.10:30080", &["10.0.2.1:8080"]),
        ]
    );
    assert!(fragment.no_local_internal);
    assert!(!fragment.no_local_external);
}

#[test]
fn a_service_without_endpoints_anywhere_does_not_count_as_lacking_local_ones() {
    let service = service("ns/web")
        .port(80)
        .node_port(30080)
        .internal_local()
        .external_local();
    let fragment = of(&service, vec![], &context(IpFamily::V4));
    assert!(!fragment.no_local_internal && !fragment.no_local_external);
}

#[test]
fn terminating_endpoints_are_the_last_resort_on_this_node_too() {
    let service = service("ns/web").port(80).node_port(30080).external_local();
    let endpoints = vec![
        endpoint("10.0.1.1").local().terminating(),
        endpoint("10.0.2.1"),
    ];
    let fragment = of(&service, endpoints, &context(IpFamily::V4));
    assert_eq!(
        servers(&fragment),
        [
            pair("TCP 10.96.0.1:80", &["10.0.2.1:8080"]),
            pair("TCP 172.16.0.10:30080", &["10.0.1.1:8080"]),
            pair("TCP 192.168.0.10:30080", &["10.0.1.1:8080"]),
        ]
    );
    assert!(!fragment.no_local_external);
}

#[test]
fn zone_hints_do_not_filter_local_endpoints() {
    let service = service("ns/web").port(80).node_port(30080).external_local();
    let endpoints = vec![
        endpoint("10.0.1.1").local().zone("there"),
        endpoint("10.0.2.1").zone("here"),
    ];
    let fragment = of(&service, endpoints, &context(IpFamily::V4));
    assert_eq!(
        servers(&fragment),
        [
            pair("TCP 10.96.0.1:80", &["10.0.2.1:8080"]),
            pair("TCP 172.16.0.10:30080", &["10.0.1.1:8080"]),
            pair("TCP 192.168.0.10:30080", &["10.0.1.1:8080"]),
        ]
    );
}

#[test]
fn the_policies_pick_the_real_servers_of_each_role() {
    // Rows: internal Local, external Local; columns: cluster IP, external IP, VIP, node port.
    for (internal, external) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut service = service("ns/web")
            .port(80)
            .node_port(30080)
            .external_ip("203.0.113.1")
            .vip("198.51.100.1");
        service.internal_policy_local = internal;
        service.external_policy_local = external;
        let fragment = of(&service, local_and_remote(), &context(IpFamily::V4));
        let count = |at: &str| {
            wanted_at(&fragment, vs(Protocol::Tcp, at))
                .real_servers
                .len()
        };
        let expected = |is_local: bool| if is_local { 1 } else { 2 };
        assert_eq!(count("10.96.0.1:80"), expected(internal));
        assert_eq!(count("203.0.113.1:80"), expected(external));
        assert_eq!(count("198.51.100.1:80"), expected(external));
        assert_eq!(count("192.168.0.10:30080"), expected(external));
        assert_eq!(count("172.16.0.10:30080"), expected(external));
    }
}
