// SPDX-License-Identifier: Apache-2.0
//! What one Service port wants: kube-proxy's tables of virtual servers, addresses and set entries.

mod forwarding;
mod options;
mod policies;

use super::*;
use crate::model::testing::{endpoint, ip, service, slice};
use crate::model::{EndpointSlice, IpFamily, Service, SliceEndpoint};
use crate::plan::ipvs::object::flags;
use crate::plan::testing::{context, rs, tcp, udp, vs};

/// The objects of the only port of a Service with these endpoints.
fn of(service: &Service, endpoints: Vec<SliceEndpoint>, context: &Context) -> PortObjects {
    let port = &service.ports[0];
    let slice = slice("ns/web", "a", endpoints).named_port(&port.name, port.protocol, 8080);
    of_slice(service, &slice, context)
}

fn of_slice(service: &Service, slice: &EndpointSlice, context: &Context) -> PortObjects {
    with_mark(service, slice, context, None)
}

fn with_mark(
    service: &Service,
    slice: &EndpointSlice,
    context: &Context,
    mark: Option<u32>,
) -> PortObjects {
    let [port] = &ServicePort::of(service, context.family)[..] else {
        panic!("one port");
    };
    let endpoints = crate::model::slices::merge(std::iter::once(slice), context.family);
    let key = (port.name.port.clone(), port.name.protocol);
    let endpoints = endpoints.get(&key).map_or(&[][..], Vec::as_slice);
    port_objects(port, endpoints, context, mark)
}

/// Virtual servers with their real servers, each as `10.0.0.1:80`.
fn servers(port_objects: &PortObjects) -> Vec<(String, Vec<String>)> {
    let real = |wanted: &WantedServer| {
        wanted
            .real_servers
            .keys()
            .map(ToString::to_string)
            .collect()
    };
    port_objects
        .virtual_servers
        .iter()
        .map(|(key, wanted)| (key.to_string(), real(wanted)))
        .collect()
}

fn wanted_at(port_objects: &PortObjects, key: VirtualServerKey) -> &WantedServer {
    port_objects.virtual_servers.get(&key).unwrap()
}

/// All entries as `SET entry`, in name order.
fn entries(port_objects: &PortObjects) -> Vec<String> {
    let of_servers = port_objects.virtual_servers.values();
    let all: BTreeSet<String> = of_servers
        .flat_map(|wanted| &wanted.entries)
        .chain(&port_objects.entries)
        .map(|(set, entry)| format!("{} {entry}", set.name(IpFamily::V4)))
        .collect();
    all.into_iter().collect()
}

fn pair<'a>(server: &str, real: &[&'a str]) -> (String, Vec<String>)
where
    String: From<&'a str>,
{
    (
        server.to_owned(),
        real.iter().copied().map(Into::into).collect(),
    )
}

const BOTH: [&str; 2] = ["10.0.1.1:8080", "10.0.2.1:8080"];

fn local_and_remote() -> Vec<SliceEndpoint> {
    vec![endpoint("10.0.1.1").local(), endpoint("10.0.2.1")]
}

#[test]
fn a_cluster_ip_is_bound_and_masqueraded() {
    let service = service("ns/web").port(80);
    let port_objects = of(&service, local_and_remote(), &context(IpFamily::V4));
    assert_eq!(servers(&port_objects), [pair("TCP 10.96.0.1:80", &BOTH)]);
    assert_eq!(port_objects.addresses, [ip("10.96.0.1")].into());
    assert_eq!(
        entries(&port_objects),
        [
            "KUBE-CLUSTER-IP 10.96.0.1,tcp:80",
            "KUBE-IPVS-IPS 10.96.0.1",
            "KUBE-LOOP-BACK 10.0.1.1,tcp:8080,10.0.1.1",
        ]
    );
}

#[test]
fn real_servers_have_weight_1_and_are_masqueraded() {
    let service = service("ns/web").port(80);
    let port_objects = of(&service, local_and_remote(), &context(IpFamily::V4));
    let wanted = wanted_at(&port_objects, tcp("10.96.0.1:80"));
    let server = RealServer {
        weight: 1,
        forwarding: Forwarding::Masquerade,
        ..RealServer::default()
    };
    assert_eq!(wanted.real_servers.get(&rs("10.0.1.1:8080")), Some(&server));
    let server = VirtualServer {
        scheduler: "rr".into(),
        flags: 0,
        timeout: 0,
        netmask: 32,
    };
    assert_eq!(wanted.server, server);
}

#[test]
fn an_external_ip_is_served_like_a_cluster_ip() {
    let service = service("ns/web").port(80).external_ip("203.0.113.1");
    let port_objects = of(&service, vec![endpoint("10.0.2.1")], &context(IpFamily::V4));
    assert_eq!(
        servers(&port_objects),
        [
            pair("TCP 10.96.0.1:80", &["10.0.2.1:8080"]),
            pair("TCP 203.0.113.1:80", &["10.0.2.1:8080"]),
        ]
    );
    assert_eq!(
        port_objects.addresses,
        [ip("10.96.0.1"), ip("203.0.113.1")].into()
    );
    assert_eq!(
        entries(&port_objects),
        [
            "KUBE-CLUSTER-IP 10.96.0.1,tcp:80",
            "KUBE-EXTERNAL-IP 203.0.113.1,tcp:80",
            "KUBE-IPVS-IPS 10.96.0.1",
            "KUBE-IPVS-IPS 203.0.113.1",
        ]
    );
}

#[test]
fn an_external_ip_with_policy_local_is_not_masqueraded() {
    let service = service("ns/web")
        .port(80)
        .external_ip("203.0.113.1")
        .external_local();
    let port_objects = of(&service, local_and_remote(), &context(IpFamily::V4));
    assert_eq!(
        servers(&port_objects),
        [
            pair("TCP 10.96.0.1:80", &BOTH),
            pair("TCP 203.0.113.1:80", &["10.0.1.1:8080"]),
        ]
    );
    assert_eq!(
        entries(&port_objects),
        [
            "KUBE-CLUSTER-IP 10.96.0.1,tcp:80",
            "KUBE-EXTERNAL-IP-LOCAL 203.0.113.1,tcp:80",
            "KUBE-IPVS-IPS 10.96.0.1",
            "KUBE-IPVS-IPS 203.0.113.1",
            "KUBE-LOOP-BACK 10.0.1.1,tcp:8080,10.0.1.1",
        ]
    );
}

#[test]
fn a_load_balancer_vip_has_its_own_set() {
    let service = service("ns/web").port(80).vip("198.51.100.1");
    let port_objects = of(&service, vec![endpoint("10.0.2.1")], &context(IpFamily::V4));
    assert_eq!(
        servers(&port_objects),
        [
            pair("TCP 10.96.0.1:80", &["10.0.2.1:8080"]),
            pair("TCP 198.51.100.1:80", &["10.0.2.1:8080"]),
        ]
    );
    assert_eq!(
        entries(&port_objects),
        [
            "KUBE-CLUSTER-IP 10.96.0.1,tcp:80",
            "KUBE-IPVS-IPS 10.96.0.1",
            "KUBE-IPVS-IPS 198.51.100.1",
            "KUBE-LOAD-BALANCER 198.51.100.1,tcp:80",
        ]
    );
}

#[test]
fn a_load_balancer_with_policy_local_is_in_both_sets() {
    let service = service("ns/web")
        .port(80)
        .vip("198.51.100.1")
        .external_local()
        .health_check(31000);
    let port_objects = of(&service, vec![endpoint("10.0.2.1")], &context(IpFamily::V4));
    assert_eq!(
        servers(&port_objects),
        [
            pair("TCP 10.96.0.1:80", &["10.0.2.1:8080"]),
            pair("TCP 198.51.100.1:80", &[]),
        ]
    );
    assert_eq!(
        entries(&port_objects),
        [
            "KUBE-CLUSTER-IP 10.96.0.1,tcp:80",
            "KUBE-HEALTH-CHECK-NODE-PORT 31000",
            "KUBE-HEALTH-CHECK-VIP 198.51.100.1,tcp:31000",
            "KUBE-IPVS-IPS 10.96.0.1",
            "KUBE-IPVS-IPS 198.51.100.1",
            "KUBE-LOAD-BALANCER 198.51.100.1,tcp:80",
            "KUBE-LOAD-BALANCER-LOCAL 198.51.100.1,tcp:80",
            "KUBE-NO-LOCAL-ENDPOINTS 198.51.100.1,tcp:80",
        ]
    );
}

#[test]
fn source_ranges_close_a_load_balancer() {
    let service = service("ns/web")
        .port(80)
        .vip("198.51.100.1")
        .source_range("10.0.0.0/8")
        .source_range("203.0.113.7/32")
        .source_range("2001:db8::/32");
    let port_objects = of(&service, vec![], &context(IpFamily::V4));
    assert_eq!(
        entries(&port_objects),
        [
            "KUBE-CLUSTER-IP 10.96.0.1,tcp:80",
            "KUBE-IPVS-IPS 10.96.0.1",
            "KUBE-IPVS-IPS 198.51.100.1",
            "KUBE-LOAD-BALANCER 198.51.100.1,tcp:80",
            "KUBE-LOAD-BALANCER-FW 198.51.100.1,tcp:80",
            "KUBE-LOAD-BALANCER-SOURCE-CIDR 198.51.100.1,tcp:80,10.0.0.0/8",
            "KUBE-LOAD-BALANCER-SOURCE-CIDR 198.51.100.1,tcp:80,203.0.113.7",
        ]
    );
}

#[test]
fn a_range_with_the_node_in_it_admits_the_vip_as_source() {
    let service = service("ns/web")
        .port(80)
        .vip("198.51.100.1")
        .source_range("192.168.0.0/16");
    let port_objects = of(&service, vec![], &context(IpFamily::V4));
    let entry = "KUBE-LOAD-BALANCER-SOURCE-IP 198.51.100.1,tcp:80,198.51.100.1".to_owned();
    assert!(entries(&port_objects).contains(&entry));
    let elsewhere = Context {
        node_ip: Some(ip("192.167.0.1")),
        ..context(IpFamily::V4)
    };
    assert!(!entries(&of(&service, vec![], &elsewhere)).contains(&entry));
    let unknown = Context {
        node_ip: None,
        ..context(IpFamily::V4)
    };
    assert!(!entries(&of(&service, vec![], &unknown)).contains(&entry));
}

#[test]
fn a_range_of_length_0_admits_everybody() {
    let service = service("ns/web")
        .port(80)
        .vip("198.51.100.1")
        .source_range("10.0.0.0/8")
        .source_range("0.0.0.0/0");
    let port_objects = of(&service, vec![], &context(IpFamily::V4));
    assert!(
        !entries(&port_objects)
            .iter()
            .any(|entry| entry.contains("-FW") || entry.contains("SOURCE"))
    );
}

#[test]
fn source_ranges_do_not_concern_external_ips() {
    let service = service("ns/web")
        .port(80)
        .external_ip("203.0.113.1")
        .source_range("10.0.0.0/8");
    let port_objects = of(&service, vec![], &context(IpFamily::V4));
    assert!(
        !entries(&port_objects)
            .iter()
            .any(|entry| entry.contains("-FW") || entry.contains("SOURCE"))
    );
}

#[test]
fn a_node_port_is_served_on_each_node_port_address_and_bound_to_none() {
    let service = service("ns/web").port(80).node_port(30080);
    let port_objects = of(&service, vec![endpoint("10.0.2.1")], &context(IpFamily::V4));
    assert_eq!(
        servers(&port_objects),
        [
            pair("TCP 10.96.0.1:80", &["10.0.2.1:8080"]),
            pair("TCP 172.16.0.10:30080", &["10.0.2.1:8080"]),
            pair("TCP 192.168.0.10:30080", &["10.0.2.1:8080"]),
        ]
    );
    assert_eq!(port_objects.addresses, [ip("10.96.0.1")].into());
    assert_eq!(
        entries(&port_objects),
        [
            "KUBE-CLUSTER-IP 10.96.0.1,tcp:80",
            "KUBE-IPVS-IPS 10.96.0.1",
            "KUBE-NODE-PORT-HASH 172.16.0.10,tcp:30080",
            "KUBE-NODE-PORT-HASH 192.168.0.10,tcp:30080",
        ]
    );
}

#[test]
fn node_ports_have_entries_by_address_protocol_and_policy() {
    let case = |protocol| {
        let mut service = service("ns/web")
            .named_port("p", protocol, 80)
            .node_port(30080);
        let mut entries = [false, true].map(|is_local| {
            service.external_policy_local = is_local;
            let port_objects = of(&service, vec![], &context(IpFamily::V4));
            entries(&port_objects)
                .into_iter()
                .filter(|entry| entry.contains("NODE-PORT"))
                .collect::<Vec<_>>()
        });
        entries[1].retain(|entry| entry.contains("-LOCAL-"));
        entries.concat()
    };
    for protocol in Protocol::ALL {
        let name = protocol.lowercase();
        let entry =
            |set: &str, address: &str| format!("KUBE-NODE-PORT-{set} {address},{name}:30080");
        assert_eq!(
            case(protocol),
            [
                entry("HASH", "172.16.0.10"),
                entry("HASH", "192.168.0.10"),
                entry("LOCAL-HASH", "172.16.0.10"),
                entry("LOCAL-HASH", "192.168.0.10"),
            ]
        );
    }
}

#[test]
fn a_local_node_port_stays_in_the_plain_set() {
    let service = service("ns/web").port(80).node_port(30080).external_local();
    let port_objects = of(&service, vec![], &context(IpFamily::V4));
    let entries = entries(&port_objects);
    assert!(entries.contains(&"KUBE-NODE-PORT-HASH 172.16.0.10,tcp:30080".to_owned()));
    assert!(entries.contains(&"KUBE-NODE-PORT-LOCAL-HASH 172.16.0.10,tcp:30080".to_owned()));
}

#[test]
fn without_node_port_addresses_the_rest_is_still_served() {
    let nowhere = Context {
        node_port_addresses: BTreeSet::new(),
        ..context(IpFamily::V4)
    };
    let service = service("ns/web")
        .port(80)
        .node_port(30080)
        .vip("198.51.100.1")
        .external_local()
        .health_check(31000);
    let port_objects = of(&service, vec![], &nowhere);
    assert_eq!(
        entries(&port_objects),
        [
            "KUBE-CLUSTER-IP 10.96.0.1,tcp:80",
            "KUBE-HEALTH-CHECK-NODE-PORT 31000",
            "KUBE-HEALTH-CHECK-VIP 198.51.100.1,tcp:31000",
            "KUBE-IPVS-IPS 10.96.0.1",
            "KUBE-IPVS-IPS 198.51.100.1",
            "KUBE-LOAD-BALANCER 198.51.100.1,tcp:80",
            "KUBE-LOAD-BALANCER-LOCAL 198.51.100.1,tcp:80",
        ]
    );
    assert_eq!(port_objects.virtual_servers.len(), 2);
}

#[test]
fn affinity_makes_a_virtual_server_persistent() {
    let service = service("ns/web").port(80).affinity(10_800);
    let port_objects = of(&service, vec![], &context(IpFamily::V4));
    let server = &wanted_at(&port_objects, tcp("10.96.0.1:80")).server;
    assert_eq!(
        (server.flags, server.timeout, server.netmask),
        (0x1, 10_800, 32)
    );
}

#[test]
fn hashing_schedulers_skip_draining_servers() {
    let flags = |scheduler: &str| {
        let context = Context {
            scheduler: scheduler.into(),
            ..context(IpFamily::V4)
        };
        let port_objects = of(&service("ns/web").port(80), vec![], &context);
        let server = wanted_at(&port_objects, tcp("10.96.0.1:80")).server.clone();
        assert_eq!(&*server.scheduler, scheduler);
        server.flags
    };
    assert_eq!(flags("mh"), 0x18);
    assert_eq!(flags("sh"), 0x8);
    assert_eq!(flags("lc"), 0);
}

#[test]
fn affinity_and_scheduler_flags_add_up() {
    let context = Context {
        scheduler: "mh".into(),
        ..context(IpFamily::V4)
    };
    let port_objects = of(&service("ns/web").port(80).affinity(5), vec![], &context);
    assert_eq!(
        wanted_at(&port_objects, tcp("10.96.0.1:80")).server.flags,
        0x19
    );
}

#[test]
fn every_local_endpoint_can_reach_itself_whatever_its_condition() {
    let service = service("ns/web").named_port("dns", Protocol::Udp, 53);
    let endpoints = vec![
        endpoint("10.0.1.1").local().unready(),
        endpoint("10.0.1.2").local().terminating(),
        endpoint("10.0.2.1"),
    ];
    let port_objects = of(&service, endpoints, &context(IpFamily::V4));
    assert_eq!(
        servers(&port_objects),
        [pair(
            "UDP 10.96.0.1:53",
            &["10.0.1.2:8080", "10.0.2.1:8080"]
        )]
    );
    assert_eq!(
        entries(&port_objects),
        [
            "KUBE-CLUSTER-IP 10.96.0.1,udp:53",
            "KUBE-IPVS-IPS 10.96.0.1",
            "KUBE-LOOP-BACK 10.0.1.1,udp:8080,10.0.1.1",
            "KUBE-LOOP-BACK 10.0.1.2,udp:8080,10.0.1.2",
        ]
    );
}

#[test]
fn an_address_of_the_node_is_served_but_not_bound() {
    let service = service("ns/web")
        .port(80)
        .external_ip("192.168.0.10")
        .vip("172.16.0.10");
    let port_objects = of(&service, vec![endpoint("10.0.2.1")], &context(IpFamily::V4));
    assert_eq!(port_objects.addresses, [ip("10.96.0.1")].into());
    assert!(
        port_objects
            .virtual_servers
            .contains_key(&tcp("192.168.0.10:80"))
    );
    assert!(
        port_objects
            .virtual_servers
            .contains_key(&tcp("172.16.0.10:80"))
    );
    let entries = entries(&port_objects);
    assert!(entries.contains(&"KUBE-EXTERNAL-IP 192.168.0.10,tcp:80".to_owned()));
    assert!(entries.contains(&"KUBE-LOAD-BALANCER 172.16.0.10,tcp:80".to_owned()));
    assert_eq!(
        entries
            .iter()
            .filter(|entry| entry.contains("IPVS-IPS"))
            .count(),
        1
    );
}

#[test]
fn an_external_ip_that_is_a_load_balancers_too_has_the_entries_of_both() {
    let service = service("ns/web")
        .port(80)
        .external_ip("198.51.100.1")
        .vip("198.51.100.1")
        .source_range("10.0.0.0/8");
    let port_objects = of(&service, vec![], &context(IpFamily::V4));
    assert_eq!(
        entries(&port_objects)[1..],
        [
            "KUBE-EXTERNAL-IP 198.51.100.1,tcp:80",
            "KUBE-IPVS-IPS 10.96.0.1",
            "KUBE-IPVS-IPS 198.51.100.1",
            "KUBE-LOAD-BALANCER 198.51.100.1,tcp:80",
            "KUBE-LOAD-BALANCER-FW 198.51.100.1,tcp:80",
            "KUBE-LOAD-BALANCER-SOURCE-CIDR 198.51.100.1,tcp:80,10.0.0.0/8",
        ]
    );
}

#[test]
fn endpoints_serve_the_port_of_their_name_and_protocol_only() {
    let service = service("ns/web").named_port("dns", Protocol::Udp, 53);
    let slice =
        slice("ns/web", "a", vec![endpoint("10.0.2.1")]).named_port("dns", Protocol::Tcp, 8080);
    let port_objects = of_slice(&service, &slice, &context(IpFamily::V4));
    assert!(
        wanted_at(&port_objects, udp("10.96.0.1:53"))
            .real_servers
            .is_empty()
    );
}

#[test]
fn a_family_sees_its_own_addresses_only() {
    let service = service("ns/web")
        .cluster_ips(&["10.96.0.1", "fd00:96::1"])
        .port(80)
        .node_port(30080)
        .external_ip("203.0.113.1")
        .external_ip("2001:db8::1")
        .vip("198.51.100.1")
        .vip("2001:db8::2")
        .source_range("10.0.0.0/8")
        .source_range("2001:db8:1::/48");
    let slice = slice("ns/web", "a", vec![endpoint("fd00:10::1").local()]).port(8080);
    let port_objects = of_slice(&service, &slice, &context(IpFamily::V6));
    let all: Vec<_> = port_objects.virtual_servers.keys().copied().collect();
    assert_eq!(
        all,
        [
            tcp("[2001:db8::1]:80"),
            tcp("[2001:db8::2]:80"),
            tcp("[fd00:96::1]:80"),
            tcp("[fd00:172::10]:30080"),
            tcp("[fd00:192::10]:30080"),
        ]
    );
    for wanted in port_objects.virtual_servers.values() {
        assert_eq!(wanted.server.netmask, 128);
        assert!(wanted.real_servers.contains_key(&rs("[fd00:10::1]:8080")));
    }
    assert_eq!(
        port_objects.addresses,
        [ip("2001:db8::1"), ip("2001:db8::2"), ip("fd00:96::1")].into()
    );
    let sources: Vec<_> = entries(&port_objects)
        .into_iter()
        .filter(|e| e.contains("SOURCE"))
        .collect();
    assert_eq!(
        sources,
        ["KUBE-LOAD-BALANCER-SOURCE-CIDR 2001:db8::2,tcp:80,2001:db8:1::/48"]
    );
}

#[test]
fn a_service_without_an_address_of_the_family_wants_nothing_in_it() {
    let service = service("ns/web").port(80).node_port(30080);
    assert_eq!(ServicePort::of(&service, IpFamily::V6), []);
}
