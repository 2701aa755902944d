// SPDX-License-Identifier: Apache-2.0
//! What one family sees of a Service.

use super::*;
use crate::model::{PortSpec, Protocol, ServiceName};

fn service() -> Service {
    Service {
        name: ServiceName::new("ns", "web"),
        uid: "u".into(),
        created: 7,
        cluster_ips: addresses(["10.96.0.1", "fd00::1"]),
        ports: vec![
            PortSpec {
                name: "http".into(),
                protocol: Protocol::Tcp,
                port: 80,
                node_port: NonZeroU16::new(30080),
            },
            PortSpec {
                name: "dns".into(),
                protocol: Protocol::Udp,
                port: 53,
                node_port: None,
            },
        ],
        client_ip_affinity: Some(Duration::from_secs(30)),
        external_ips: Vec::new(),
        load_balancer_vips: Vec::new(),
        load_balancer_source_ranges: Vec::new(),
        external_policy_local: false,
        internal_policy_local: false,
        health_check_node_port: None,
        ipvs: None,
    }
}

fn addresses<const N: usize>(texts: [&str; N]) -> Vec<IpAddr> {
    texts.map(|text| text.parse().unwrap()).to_vec()
}

fn ranges<const N: usize>(texts: [&str; N]) -> Vec<IpNet> {
    texts.map(|text| text.parse().unwrap()).to_vec()
}

/// The first port in a family.
fn first(service: &Service, family: IpFamily) -> ServicePort {
    ServicePort::of(service, family).swap_remove(0)
}

#[test]
fn every_port_is_one_in_each_family_of_the_service() {
    for (family, ip) in [(IpFamily::V4, "10.96.0.1"), (IpFamily::V6, "fd00::1")] {
        let ports = ServicePort::of(&service(), family);
        let seen: Vec<_> = ports
            .iter()
            .map(|port| {
                (
                    port.name.to_string(),
                    port.cluster_ip.to_string(),
                    port.port,
                )
            })
            .collect();
        let expected = [("ns/web:http", ip, 80), ("ns/web:dns", ip, 53)]
            .map(|(name, ip, port)| (name.to_owned(), ip.to_owned(), port));
        assert_eq!(seen, expected);
    }
}

#[test]
fn a_family_without_cluster_ip_sees_nothing() {
    let mut service = service();
    service.cluster_ips = addresses(["fd00::1"]);
    service.external_ips = addresses(["192.0.2.1"]);
    assert_eq!(ServicePort::of(&service, IpFamily::V4), []);
}

#[test]
fn each_family_sees_its_own_addresses_sorted_and_once() {
    let mut service = service();
    service.external_ips = addresses(["192.0.2.2", "fd00::2", "192.0.2.1", "192.0.2.2"]);
    service.load_balancer_vips = addresses(["fd00::9", "192.0.2.9"]);
    let v4 = first(&service, IpFamily::V4);
    assert_eq!(v4.external_ips, addresses(["192.0.2.1", "192.0.2.2"]));
    assert_eq!(v4.load_balancer_vips, addresses(["192.0.2.9"]));
    let v6 = first(&service, IpFamily::V6);
    assert_eq!(v6.external_ips, addresses(["fd00::2"]));
    assert_eq!(v6.load_balancer_vips, addresses(["fd00::9"]));
}

#[test]
fn source_ranges_restrict_their_own_family_only() {
    let mut service = service();
    service.load_balancer_source_ranges = ranges(["10.1.0.0/16", "10.0.0.1/8", "10.1.0.0/16"]);
    let v4 = first(&service, IpFamily::V4).load_balancer_source_ranges;
    assert_eq!(v4, ranges(["10.0.0.0/8", "10.1.0.0/16"]));
    let v6 = first(&service, IpFamily::V6).load_balancer_source_ranges;
    assert_eq!(v6, []);
}

#[test]
fn a_range_of_everything_restricts_nothing() {
    let mut service = service();
    service.load_balancer_source_ranges = ranges(["10.0.0.0/8", "0.0.0.0/0", "fd00::/64"]);
    let v4 = first(&service, IpFamily::V4).load_balancer_source_ranges;
    assert_eq!(v4, []);
    let v6 = first(&service, IpFamily::V6).load_balancer_source_ranges;
    assert_eq!(v6, ranges(["fd00::/64"]));
}

#[test]
fn a_node_port_an_external_ip_or_a_vip_is_a_way_in() {
    let mut service = service();
    let http = first(&service, IpFamily::V4);
    assert!(http.is_externally_accessible());
    service.ports[0].node_port = None;
    assert!(!first(&service, IpFamily::V4).is_externally_accessible());
    service.external_ips = addresses(["192.0.2.1"]);
    assert!(first(&service, IpFamily::V4).is_externally_accessible());
    assert!(!first(&service, IpFamily::V6).is_externally_accessible());
    service.external_ips = Vec::new();
    service.load_balancer_vips = addresses(["fd00::9"]);
    assert!(first(&service, IpFamily::V6).is_externally_accessible());
}

#[test]
fn policies_say_which_endpoints_are_used() {
    // (internal Local, external Local, way in) -> (cluster endpoints, local endpoints)
    let table = [
        ((false, false, false), (true, false)),
        ((false, false, true), (true, false)),
        ((false, true, false), (true, false)),
        ((false, true, true), (true, true)),
        ((true, false, false), (false, true)),
        ((true, false, true), (true, true)),
        ((true, true, false), (false, true)),
        ((true, true, true), (true, true)),
    ];
    for ((internal, external, way_in), expected) in table {
        let mut service = service();
        service.internal_policy_local = internal;
        service.external_policy_local = external;
        service.ports[0].node_port = NonZeroU16::new(if way_in { 30080 } else { 0 });
        let port = first(&service, IpFamily::V4);
        let seen = (port.uses_cluster_endpoints(), port.uses_local_endpoints());
        assert_eq!(seen, expected, "{internal} {external} {way_in}");
    }
}

#[test]
fn a_node_is_admitted_by_a_range_that_holds_it() {
    let mut service = service();
    let node = Some(IpAddr::from([192, 0, 2, 1]));
    assert!(!first(&service, IpFamily::V4).admits_node(node));
    service.load_balancer_source_ranges = ranges(["192.0.2.0/24"]);
    let port = first(&service, IpFamily::V4);
    assert!(port.admits_node(node));
    assert!(!port.admits_node(Some(IpAddr::from([192, 0, 3, 1]))));
    assert!(!port.admits_node(None));
}
