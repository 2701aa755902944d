// SPDX-License-Identifier: Apache-2.0
//! Claims, reference counts and what a change marks as dirty.

use super::*;
use crate::model::testing::{ip, service};
use crate::model::{IpFamily, Service, ServicePort};
use crate::plan::ipvs::port_objects::port_objects;
use crate::plan::testing::{context, tcp};

/// Replaces a Service (without endpoints) and returns what that marked as dirty.
fn set(desired: &mut Desired, service: &Service) -> Dirty {
    let context = context(IpFamily::V4);
    let by_port = ServicePort::of(service, IpFamily::V4)
        .into_iter()
        .map(|port| (port.name.clone(), port_objects(&port, &[], &context, None)))
        .collect();
    let mut dirty = Dirty::default();
    desired.replace_service(&service.name, by_port, &mut dirty);
    dirty
}

fn delete(desired: &mut Desired, service: &Service) -> Dirty {
    let mut dirty = Dirty::default();
    desired.replace_service(&service.name, BTreeMap::new(), &mut dirty);
    dirty
}

/// A Service at its own cluster IP that also claims 203.0.113.1:80.
fn claimant(name: &str, created: i64, cluster_ip: &str) -> Service {
    service(name)
        .created(created)
        .cluster_ips(&[cluster_ip])
        .port(80)
        .external_ip("203.0.113.1")
}

fn winner(desired: &Desired) -> String {
    desired
        .claims()
        .winner(&tcp("203.0.113.1:80"))
        .unwrap()
        .to_string()
}

fn entry(set: SetId, address: &str, port: u16) -> (SetId, SetEntry) {
    (
        set,
        SetEntry::IpPort(ip(address), crate::model::Protocol::Tcp, port),
    )
}

#[test]
fn the_oldest_claim_wins_in_any_order() {
    let old = claimant("ns/old", 100, "10.96.0.1");
    let young = claimant("ns/a-young", 200, "10.96.0.2");
    let mut one = Desired::default();
    set(&mut one, &old);
    set(&mut one, &young);
    let mut other = Desired::default();
    set(&mut other, &young);
    set(&mut other, &old);
    assert_eq!(winner(&one), "ns/old");
    assert_eq!(one, other);
}

#[test]
fn the_name_decides_between_claims_of_equal_age() {
    let mut desired = Desired::default();
    set(&mut desired, &claimant("ns/b", 100, "10.96.0.1"));
    set(&mut desired, &claimant("ns/a", 100, "10.96.0.2"));
    assert_eq!(winner(&desired), "ns/a");
}

#[test]
fn a_cluster_ip_goes_before_external_addresses_of_older_services() {
    let theirs = service("ns/z")
        .created(300)
        .cluster_ips(&["203.0.113.1"])
        .port(80);
    for created in [300, 100] {
        let other = claimant("ns/a", created, "10.96.0.1");
        let mut one = Desired::default();
        set(&mut one, &theirs);
        set(&mut one, &other);
        let mut two = Desired::default();
        set(&mut two, &other);
        set(&mut two, &theirs);
        assert_eq!(winner(&one), "ns/z");
        assert_eq!(one, two);
        let wanted = one.virtual_server(&tcp("203.0.113.1:80")).unwrap();
        assert_eq!(
            *wanted.entries,
            [entry(SetId::ClusterIp, "203.0.113.1", 80)]
        );
        // The cluster IPs of the two are swapped, and nothing else changes.
        let first = theirs
            .clone()
            .cluster_ips(&["10.96.0.9"])
            .external_ip("203.0.113.1");
        let second = other.cluster_ips(&["203.0.113.1"]).external_ip("10.96.0.1");
        set(&mut one, &first);
        set(&mut one, &second);
        assert_eq!(winner(&one), "ns/a");
        set(&mut two, &second);
        set(&mut two, &first);
        assert_eq!(one, two);
    }
}

#[test]
fn a_claim_passes_on_and_does_not_come_back_to_a_younger_service() {
    let (first, second) = (
        claimant("ns/a", 100, "10.96.0.1"),
        claimant("ns/b", 200, "10.96.0.2"),
    );
    let mut desired = Desired::default();
    set(&mut desired, &first);
    set(&mut desired, &second);
    let dirty = delete(&mut desired, &first);
    assert!(dirty.virtual_servers.contains(&tcp("203.0.113.1:80")));
    assert_eq!(winner(&desired), "ns/b");
    set(&mut desired, &first.created(300));
    assert_eq!(winner(&desired), "ns/b");
}

#[test]
fn a_service_that_gets_younger_loses_its_claim() {
    let (first, second) = (
        claimant("ns/a", 100, "10.96.0.1"),
        claimant("ns/b", 200, "10.96.0.2"),
    );
    let mut desired = Desired::default();
    set(&mut desired, &first);
    set(&mut desired, &second);
    let dirty = set(&mut desired, &first.created(300));
    assert_eq!(winner(&desired), "ns/b");
    assert!(dirty.virtual_servers.contains(&tcp("203.0.113.1:80")));
}

#[test]
fn conflicts_name_winner_and_losers() {
    let mut desired = Desired::default();
    assert_eq!(desired.claims().lost().count(), 0);
    let services = [
        claimant("ns/a", 100, "10.96.0.1"),
        claimant("ns/b", 200, "10.96.0.2"),
        claimant("ns/c", 300, "10.96.0.3"),
    ];
    for service in &services {
        set(&mut desired, service);
    }
    let names = |desired: &Desired| -> Vec<String> {
        let lost = desired.claims().lost();
        lost.map(|(key, loser, winner)| format!("{winner} gets {key}, not {loser}"))
            .collect()
    };
    assert_eq!(
        names(&desired),
        [
            "ns/a gets TCP 203.0.113.1:80, not ns/b",
            "ns/a gets TCP 203.0.113.1:80, not ns/c",
        ]
    );
    delete(&mut desired, &services[0]);
    assert_eq!(names(&desired), ["ns/b gets TCP 203.0.113.1:80, not ns/c"]);
    delete(&mut desired, &services[2]);
    assert_eq!(desired.claims().lost().count(), 0);
}

#[test]
fn a_loser_neither_opens_nor_closes_what_it_did_not_get() {
    let vip = |name, created, cluster_ip: &str| {
        service(name)
            .created(created)
            .cluster_ips(&[cluster_ip])
            .port(80)
            .vip("198.51.100.1")
    };
    let mut desired = Desired::default();
    set(
        &mut desired,
        &vip("ns/old", 100, "10.96.0.1").source_range("10.0.0.0/8"),
    );
    let before: Vec<SetEntry> = desired
        .entries(SetId::LoadBalancerSourceCidr)
        .copied()
        .collect();
    let intruder = vip("ns/young", 200, "10.96.0.2")
        .source_range("0.0.0.1/1")
        .external_local();
    let dirty = set(&mut desired, &intruder);
    let after: Vec<SetEntry> = desired
        .entries(SetId::LoadBalancerSourceCidr)
        .copied()
        .collect();
    assert_eq!(before, after);
    assert_eq!(desired.entries(SetId::LoadBalancerLocal).len(), 0);
    assert!(
        dirty
            .entries
            .iter()
            .all(|(_, entry)| !entry.to_string().contains("198.51.100.1"))
    );
}

#[test]
fn entries_follow_the_claim() {
    let local = claimant("ns/a", 100, "10.96.0.1").external_local();
    let cluster = claimant("ns/b", 200, "10.96.0.2");
    let mut desired = Desired::default();
    set(&mut desired, &cluster);
    let (of_local, of_cluster) = (
        entry(SetId::ExternalIpLocal, "203.0.113.1", 80),
        entry(SetId::ExternalIp, "203.0.113.1", 80),
    );
    let wants =
        |desired: &Desired, (set, entry): (SetId, SetEntry)| desired.wants_entry(set, &entry);
    assert!(wants(&desired, of_cluster) && !wants(&desired, of_local));
    let dirty = set(&mut desired, &local);
    assert!(!wants(&desired, of_cluster) && wants(&desired, of_local));
    assert!(dirty.entries.is_superset(&[of_local, of_cluster].into()));
    delete(&mut desired, &local);
    assert!(wants(&desired, of_cluster) && !wants(&desired, of_local));
}

#[test]
fn a_shared_address_stays_until_its_last_user_goes() {
    let a = service("ns/a")
        .cluster_ips(&["10.96.0.1"])
        .port(80)
        .external_ip("203.0.113.1");
    let b = service("ns/b")
        .cluster_ips(&["10.96.0.2"])
        .port(443)
        .external_ip("203.0.113.1");
    let mut desired = Desired::default();
    set(&mut desired, &a);
    set(&mut desired, &b);
    let reject = (SetId::IpvsIps, SetEntry::Ip(ip("203.0.113.1")));
    let dirty = delete(&mut desired, &a);
    assert!(desired.wants_address(&ip("203.0.113.1")));
    assert!(desired.wants_entry(reject.0, &reject.1));
    assert!(!dirty.entries.contains(&reject));
    let dirty = delete(&mut desired, &b);
    assert!(!desired.wants_address(&ip("203.0.113.1")));
    assert!(!desired.wants_entry(reject.0, &reject.1));
    assert!(dirty.entries.contains(&reject));
    assert_eq!(desired, Desired::default());
}

#[test]
fn an_equal_service_touches_nothing() {
    let web = service("ns/web").port(80).node_port(30080);
    let mut desired = Desired::default();
    assert!(!set(&mut desired, &web).is_empty());
    assert!(set(&mut desired, &web).is_empty());
}

#[test]
fn a_change_touches_what_differs_only() {
    let mut desired = Desired::default();
    set(&mut desired, &service("ns/web").port(80));
    let dirty = set(
        &mut desired,
        &service("ns/web").port(80).external_ip("203.0.113.1"),
    );
    assert_eq!(
        dirty,
        Dirty {
            virtual_servers: [tcp("203.0.113.1:80")].into(),
            addresses: [ip("203.0.113.1")].into(),
            entries: [
                entry(SetId::ExternalIp, "203.0.113.1", 80),
                (SetId::IpvsIps, SetEntry::Ip(ip("203.0.113.1"))),
            ]
            .into(),
        }
    );
}

#[test]
fn ports_that_are_gone_are_forgotten() {
    let mut desired = Desired::default();
    let tcp_and_udp = service("ns/dns")
        .named_port("dns", crate::model::Protocol::Udp, 53)
        .named_port("dns-tcp", crate::model::Protocol::Tcp, 53);
    // Neighbours in name order.
    set(
        &mut desired,
        &service("ns/dn").cluster_ips(&["10.96.0.2"]).port(1),
    );
    set(
        &mut desired,
        &service("ns/dns0").cluster_ips(&["10.96.0.3"]).port(1),
    );
    set(&mut desired, &tcp_and_udp);
    assert_eq!(desired.by_port().len(), 4);
    set(
        &mut desired,
        &service("ns/dns").named_port("dns", crate::model::Protocol::Tcp, 53),
    );
    let names: Vec<_> = desired
        .by_port()
        .iter()
        .map(|(name, _)| name.to_string())
        .collect();
    assert_eq!(names, ["ns/dn", "ns/dns:dns", "ns/dns0"]);
}

#[test]
fn services_without_local_endpoints_are_counted_once() {
    let name = |service: &str, port: &str| ServicePortName {
        service: crate::model::testing::service_name(service),
        port: port.into(),
        protocol: crate::model::Protocol::Tcp,
    };
    let lacking = PortObjects {
        no_local_external: true,
        ..PortObjects::default()
    };
    let mut desired = Desired::default();
    let mut dirty = Dirty::default();
    for service in ["ns/a", "ns/b"] {
        let ports = ["http", "https"].map(|port| (name(service, port), lacking.clone()));
        desired.replace_service(&name(service, "").service, ports.into(), &mut dirty);
    }
    assert_eq!(desired.no_local_endpoints(), (0, 2));
    desired.replace_service(&name("ns/a", "").service, BTreeMap::new(), &mut dirty);
    assert_eq!(desired.no_local_endpoints(), (0, 1));
}

#[test]
fn what_a_service_wants_can_be_planned_alone() {
    let mut desired = Desired::default();
    set(
        &mut desired,
        &service("ns/other").cluster_ips(&["10.96.0.2"]).port(80),
    );
    set(&mut desired, &service("ns/web").port(80));
    assert_eq!(
        desired.dirty_of(&crate::model::testing::service_name("ns/web")),
        Dirty {
            virtual_servers: [tcp("10.96.0.1:80")].into(),
            addresses: [ip("10.96.0.1")].into(),
            entries: [
                entry(SetId::ClusterIp, "10.96.0.1", 80),
                (SetId::IpvsIps, SetEntry::Ip(ip("10.96.0.1"))),
            ]
            .into(),
        }
    );
}
