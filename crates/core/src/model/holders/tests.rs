// SPDX-License-Identifier: Apache-2.0
//! Who gets an address, and which Services a change concerns.

use super::*;
use crate::model::testing::{endpoint, ip, service, slice, tracker};
use crate::model::{Event, IpFamily, ServicePort, ServiceView, Tracker};

fn ips(texts: &[&str]) -> BTreeSet<IpAddr> {
    texts.iter().copied().map(ip).collect()
}

fn nets(texts: &[&str]) -> BTreeSet<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// A node at 192.168.0.10 with a neighbour's network, and one of everything else.
fn holders() -> Holders {
    let on_all =
        |ports: &[(Protocol, u16)]| ports.iter().map(|port| (*port, [None].into())).collect();
    Holders {
        own: ips(&["192.168.0.10", "172.16.0.10"]),
        node: ips(&["192.168.0.10", "203.0.113.10"]),
        nodes: ips(&[
            "192.168.0.10",
            "203.0.113.10",
            "192.168.0.11",
            "203.0.113.11",
        ]),
        gateways: ips(&["192.168.0.1"]),
        api_servers: ips(&["198.51.100.6"]),
        listed_api_servers: ips(&["198.51.100.7"]),
        resolvers: ips(&["198.51.100.53"]),
        pods: nets(&["10.244.0.0/16"]),
        networks: nets(&["192.168.0.0/24", "172.16.0.0/16"]),
        listening: on_all(&[(Protocol::Tcp, 10_250), (Protocol::Udp, 8472)]),
        ..Holders::default()
    }
}

/// The port of a Service as a node with these holders sees it.
fn seen(service: &Service, holders: &Holders) -> ServicePort {
    let port = ServicePort::of(service, IpFamily::V4).swap_remove(0);
    port.yielding_to(holders)
}

fn refused(service: &Service, holders: &Holders) -> Vec<(String, String)> {
    let held = seen(service, holders).held.unwrap_or_default();
    let text = |(address, holder): &(IpAddr, Holder)| (address.to_string(), holder.to_string());
    held.refused.iter().map(text).collect()
}

#[test]
fn an_external_ip_that_is_somebodys_is_not_the_services() {
    for (address, why) in [
        ("192.168.0.11", "it is another node's address"),
        ("203.0.113.11", "it is another node's address"),
        ("192.168.0.1", "it is the default gateway's address"),
        ("198.51.100.6", "it is the API server's address"),
        ("198.51.100.7", "it is the API server's address"),
        (
            "198.51.100.53",
            "it is the address of a DNS server of this node",
        ),
        ("10.244.3.3", "it is in the range of pods' addresses"),
        (
            "192.168.0.50",
            "it is in the network of a link of this node, and no load balancer gave it to the Service",
        ),
        ("127.0.0.1", "it is a loopback address"),
        (
            "169.254.169.254",
            "it is the address of a cloud's metadata server",
        ),
        ("255.255.255.255", "it is a reserved or broadcast address"),
    ] {
        let web = service("ns/web")
            .port(80)
            .external_ip(address)
            .external_ip("203.0.113.1");
        assert_eq!(
            refused(&web, &holders()),
            [(address.to_owned(), why.to_owned())]
        );
        assert_eq!(
            seen(&web, &holders()).external_ips,
            [ip("203.0.113.1")],
            "{address}"
        );
    }
}

#[test]
fn a_nodes_own_address_serves_what_the_node_does_not() {
    for address in ["192.168.0.10", "172.16.0.10", "203.0.113.10"] {
        let at = |protocol, port| {
            let web = service("ns/web")
                .named_port("", protocol, port)
                .external_ip(address);
            refused(&web, &holders())
        };
        assert_eq!(at(Protocol::Tcp, 443), []);
        assert_eq!(at(Protocol::Udp, 10_250), []);
        assert_eq!(
            at(Protocol::Tcp, 10_250),
            [(
                address.to_owned(),
                "a process of this node listens on TCP port 10250".to_owned()
            )]
        );
        assert_eq!(at(Protocol::Udp, 8472).len(), 1);
    }
    // One that listens on another address is in nobody's way.
    let mut holders = holders();
    holders
        .listening
        .insert((Protocol::Tcp, 443), [Some(ip("172.16.0.10"))].into());
    let at = |address| refused(&service("ns/web").port(443).external_ip(address), &holders).len();
    assert_eq!((at("192.168.0.10"), at("172.16.0.10")), (0, 1));
}

#[test]
fn what_a_load_balancer_gave_is_served_and_not_bound_where_somebody_has_it() {
    for (address, holder) in [
        ("192.168.0.11", Some(Holder::OtherNode)),
        ("192.168.0.10", Some(Holder::OtherLink)),
        ("203.0.113.10", Some(Holder::Node)),
        ("192.168.0.1", Some(Holder::Gateway)),
        ("198.51.100.6", Some(Holder::ApiServer)),
        // MetalLB's addresses are in the node's network; any user may write slices.
        ("192.168.0.50", None),
        ("198.51.100.7", None),
        ("198.51.100.53", None),
        ("10.244.3.3", None),
        ("203.0.113.1", None),
    ] {
        for also_external in [false, true] {
            let mut web = service("ns/web").port(10_250).vip(address);
            if also_external {
                web = web.external_ip(address);
            }
            let port = seen(&web, &holders());
            assert_eq!(port.load_balancer_vips, [ip(address)]);
            assert_eq!(
                port.external_ips.len(),
                usize::from(also_external),
                "{address}"
            );
            let held = port.held.unwrap_or_default();
            assert_eq!(held.refused, []);
            let unbound = held.unbound.first().map(|(_, holder)| *holder);
            assert_eq!(unbound, holder, "{address}");
        }
    }
    // A tunnel's address is the client's own.
    let tunnelled = service("ns/web")
        .port(80)
        .vip("127.0.0.1")
        .vip("203.0.113.1");
    let port = seen(&tunnelled, &holders());
    assert_eq!(port.load_balancer_vips, [ip("203.0.113.1")]);
    assert_eq!(
        refused(&tunnelled, &holders()),
        [(
            "127.0.0.1".to_owned(),
            "it is a loopback address".to_owned()
        )]
    );
}

#[test]
fn a_cluster_ip_is_its_services_whoever_else_has_it() {
    let holders = Holders {
        nodes: ips(&["10.96.0.10"]),
        api_servers: ips(&["10.96.0.10"]),
        pods: nets(&["10.0.0.0/8"]),
        networks: nets(&["10.96.0.0/16"]),
        nodes_are_unknown: true,
        ..Holders::default()
    };
    let dns = service("kube-system/dns")
        .cluster_ips(&["10.96.0.10"])
        .port(53);
    let port = seen(&dns, &holders);
    assert_eq!((port.cluster_ip, port.held), (ip("10.96.0.10"), None));
}

#[test]
fn until_the_nodes_are_known_any_address_may_be_theirs() {
    let unknown = Holders {
        nodes_are_unknown: true,
        ..Holders::default()
    };
    let web = || {
        service("ns/web")
            .port(80)
            .external_ip("203.0.113.1")
            .vip("198.51.100.1")
    };
    let port = seen(&web(), &unknown);
    assert_eq!(port.external_ips, [] as [IpAddr; 0]);
    let held = port.held.unwrap();
    assert_eq!(held.refused, [(ip("203.0.113.1"), Holder::Unknown)]);
    assert_eq!(held.unbound, [(ip("198.51.100.1"), Holder::Unknown)]);
    assert_eq!(seen(&web(), &Holders::default()).held, None);
}

/// The Services that a change of the holders makes pending.
fn affected(tracker: &mut Tracker, change: impl FnOnce(&mut Holders)) -> Vec<String> {
    let mut holders = tracker.holders().clone();
    change(&mut holders);
    let is_news = tracker.set_holders(holders);
    let changes = tracker.take();
    assert_eq!(is_news, !changes.is_empty());
    assert_eq!((changes.service_changes, changes.endpoint_changes), (0, 0));
    changes.services.iter().map(ToString::to_string).collect()
}

#[test]
fn a_change_concerns_the_services_that_claim_what_changed() {
    let services = vec![
        service("ns/inside").cluster_ips(&["10.96.0.1"]).port(80),
        service("ns/external")
            .cluster_ips(&["10.96.0.2"])
            .port(80)
            .external_ip("203.0.113.1"),
        service("ns/vip")
            .cluster_ips(&["10.96.0.3"])
            .port(80)
            .vip("203.0.113.2"),
        service("ns/mine")
            .cluster_ips(&["10.96.0.4"])
            .port(80)
            .external_ip("192.168.0.10"),
    ];
    let slices = vec![slice("ns/vip", "a", vec![endpoint("10.1.0.1")]).port(80)];
    let mut tracker = tracker(services, slices);
    tracker.take();
    let none: [&str; 0] = [];
    assert_eq!(affected(&mut tracker, |_| {}), none);
    let with_node = |address: &'static str| move |h: &mut Holders| h.nodes = ips(&[address]);
    assert_eq!(affected(&mut tracker, with_node("192.168.0.77")), none);
    assert_eq!(
        affected(&mut tracker, with_node("203.0.113.1")),
        ["ns/external"]
    );
    assert_eq!(
        affected(&mut tracker, with_node("203.0.113.2")),
        ["ns/external", "ns/vip"]
    );
    assert_eq!(
        affected(&mut tracker, |h| h.own = ips(&["192.168.0.10"])),
        none
    );
    let listen =
        |port| move |h: &mut Holders| h.listening = [((Protocol::Tcp, port), [None].into())].into();
    assert_eq!(affected(&mut tracker, listen(22)), none);
    assert_eq!(affected(&mut tracker, listen(80)), ["ns/mine"]);
    assert_eq!(
        affected(&mut tracker, |h| h.pods = nets(&["203.0.113.0/28"])),
        ["ns/external"]
    );
    // The view that planners get has been told.
    tracker.apply(Event::SlicesReplaced(Vec::new()));
    let name = crate::model::testing::service_name("ns/external");
    let view = ServiceView::of(&tracker, &name, IpFamily::V4);
    assert_eq!(view.ports[0].external_ips, [] as [IpAddr; 0]);
}
