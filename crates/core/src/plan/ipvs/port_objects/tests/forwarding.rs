// SPDX-License-Identifier: Apache-2.0
//! Forwarding without translation: for which addresses, clients and endpoints, and the obstacles.

use super::*;
use crate::model::ipvs_options::{ForwardingMethod, Tunnel};

const MARK: u32 = 0x2001;

/// A Service with an external IP and a VIP that requests direct routing at port 8080.
fn direct() -> Service {
    let service = service("ns/web").port(8080).external_ip("203.0.113.1");
    let service = service.vip("198.51.100.1").node_port(30080);
    service.options(|options| options.forwarding = ForwardingMethod::DirectRouting)
}

fn fragment_of(service: &Service, context: &Context, mark: Option<u32>) -> PortObjects {
    let endpoints = vec![endpoint("10.0.1.1").local(), endpoint("10.0.2.1")];
    let slice = slice("ns/web", "a", endpoints).port(8080);
    let [port] = &ServicePort::of(service, context.family)[..] else {
        panic!("one port");
    };
    let merged = crate::model::slices::merge(std::iter::once(&slice), context.family);
    let endpoints = merged.into_values().next().unwrap();
    port_objects(port, &endpoints, context, mark)
}

/// How each endpoint of a virtual server is reached.
fn methods(port_objects: &PortObjects, key: VirtualServerKey) -> Vec<String> {
    let servers = wanted_at(port_objects, key).real_servers.iter();
    servers
        .map(|(key, server)| format!("{} {}", key.address, server.forwarding))
        .collect()
}

fn unmet(port_objects: &PortObjects) -> Vec<String> {
    let extras = port_objects.extras.iter();
    let unmet = extras.flat_map(|extras| &extras.unmet);
    unmet.map(ToString::to_string).collect()
}

/// The kernel forgets such packets at once, and with them how to translate answers.
#[test]
fn datagrams_are_scheduled_one_by_one_only_where_none_is_translated() {
    let of = |direct: bool, local: bool, protocol: Protocol| {
        let service = service("ns/dns")
            .named_port("p", protocol, 8080)
            .vip("198.51.100.1");
        let service = service.options(|options| {
            options.one_packet = true;
            if direct {
                options.forwarding = ForwardingMethod::DirectRouting;
            }
        });
        let mut endpoints = vec![endpoint("10.0.2.1")];
        if local {
            endpoints.push(endpoint("10.0.1.1").local());
        }
        let slice = slice("ns/dns", "a", endpoints).named_port("p", protocol, 8080);
        let port_objects = with_mark(&service, &slice, &context(IpFamily::V4), Some(MARK));
        let said = unmet(&port_objects).into_iter();
        let said: Vec<String> = said.filter(|it| it.contains("one by one")).collect();
        let flags = |at| wanted_at(&port_objects, vs(protocol, at)).server.flags;
        let found = ["198.51.100.1:8080", "10.96.0.1:8080"].map(flags);
        (found, said)
    };
    let (udp, tcp) = (Protocol::Udp, Protocol::Tcp);
    assert_eq!(of(true, false, udp), ([flags::ONE_PACKET, 0], vec![]));
    assert_eq!(of(true, false, tcp), ([0, 0], vec![]));
    let (found, said) = of(true, true, udp);
    assert_eq!((found, said.len()), ([0, 0], 1));
    assert!(said[0].contains("endpoint 10.0.1.1"), "{said:?}");
    let (found, said) = of(false, false, udp);
    assert_eq!((found, said.len()), ([0, 0], 1));
    assert!(said[0].contains("forwarding-method"), "{said:?}");
}

#[test]
fn only_external_addresses_and_remote_endpoints_are_direct() {
    let port_objects = fragment_of(&direct(), &context(IpFamily::V4), Some(MARK));
    let mixed = ["10.0.1.1 masquerade", "10.0.2.1 route"];
    let translated = ["10.0.1.1 masquerade", "10.0.2.1 masquerade"];
    assert_eq!(methods(&port_objects, tcp("203.0.113.1:8080")), mixed);
    assert_eq!(methods(&port_objects, tcp("198.51.100.1:8080")), mixed);
    assert_eq!(methods(&port_objects, tcp("10.96.0.1:8080")), translated);
    assert_eq!(
        methods(&port_objects, tcp("192.168.0.10:30080")),
        translated
    );
    let inside = VirtualServerKey::Mark {
        mark: MARK,
        family: IpFamily::V4,
    };
    assert_eq!(methods(&port_objects, inside), translated);
    let [unmet] = &unmet(&port_objects)[..] else {
        panic!("one unmet")
    };
    assert!(unmet.contains("node port 30080"), "{unmet}");
}

#[test]
fn clients_outside_are_not_masqueraded() {
    let port_objects = fragment_of(&direct(), &context(IpFamily::V4), Some(MARK));
    let entries = entries(&port_objects);
    assert!(entries.contains(&"KUBE-EXTERNAL-IP-LOCAL 203.0.113.1,tcp:8080".to_owned()));
    assert!(entries.contains(&"KUBE-LOAD-BALANCER-LOCAL 198.51.100.1,tcp:8080".to_owned()));
    assert!(
        !entries
            .iter()
            .any(|entry| entry.starts_with("KUBE-EXTERNAL-IP "))
    );
    let marked = entries
        .iter()
        .filter(|entry| entry.starts_with("KUBE-LOCAL-POLICY-MARK"));
    assert_eq!(marked.count(), 2);
}

#[test]
fn an_obstacle_is_reported_and_all_packets_are_translated() {
    let plain = context(IpFamily::V4);
    let masquerade_all = Context {
        masquerade_all: true,
        ..plain.clone()
    };
    let other_port = service("ns/web").port(80).external_ip("203.0.113.1");
    let ipip = ForwardingMethod::Tunnel(Tunnel::IpIp);
    let other_port = other_port.options(|options| options.forwarding = ipip);
    let inside = service("ns/web").port(8080);
    let inside = inside.options(|options| options.forwarding = ipip);
    let mut local = direct();
    local.external_policy_local = true;
    let tunnelled = service("ns/web").port(8080).external_ip("203.0.113.1");
    let tunnelled = tunnelled.options(|options| options.forwarding = ipip);
    let closed = Context {
        tunnel_ranges: vec!["10.255.0.0/16".parse().unwrap()],
        ..plain.clone()
    };
    let cases = [
        (&tunnelled, &closed, Some(MARK), "--tunnel-cidrs"),
        (&direct(), &masquerade_all, Some(MARK), "--masquerade-all"),
        (&direct(), &plain, None, "no firewall mark"),
        (
            &other_port,
            &plain,
            Some(MARK),
            "port 80, but the endpoints serve at 8080",
        ),
        (&inside, &plain, Some(MARK), "no external IP"),
        (&local, &plain, Some(MARK), "externalTrafficPolicy Local"),
    ];
    for (service, context, mark, why) in cases {
        let port_objects = fragment_of(service, context, mark);
        let [unmet] = &unmet(&port_objects)[..] else {
            panic!("{why}: one unmet")
        };
        assert!(unmet.contains(why), "{unmet}");
        let servers = port_objects.virtual_servers.values();
        let mut servers = servers.flat_map(|wanted| wanted.real_servers.values());
        assert!(servers.all(|server| server.forwarding == Forwarding::Masquerade));
        // Replies must come back this way, whoever the client is.
        let is_local = service.external_policy_local;
        let entries = entries(&port_objects);
        let is_split = entries.iter().any(|entry| entry.contains("-LOCAL "));
        assert_eq!(is_split, is_local, "{why}: {entries:?}");
    }
}
