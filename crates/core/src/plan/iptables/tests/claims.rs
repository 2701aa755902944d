// SPDX-License-Identifier: Apache-2.0
//! External IPs that are addresses of the node: they yield to node ports, in any order of changes.

use proptest::collection::vec;
use proptest::prelude::*;

use crate::model::testing::{endpoint, ip, service, service_name, slice, tracker};
use crate::model::{Event, Holders, IpFamily, Service};
use crate::plan::iptables::tests::proxy::Proxy;
use crate::plan::mode::Planner as _;
use crate::plan::ruleset::{Ruleset, Table};
use crate::plan::testing::context;

const NAMES: [&str; 3] = ["ns/a", "ns/b", "ns/c"];

fn start() -> Proxy {
    let slices = NAMES.map(|name| slice(name, "a", vec![endpoint("10.1.0.1")]).port(8080));
    let tracker = tracker(vec![], slices.to_vec());
    Proxy::start(context(IpFamily::V4), tracker, Ruleset::new())
}

#[test]
fn a_tenant_does_not_take_a_node_port_over_by_its_address() {
    let victim = service("victim/web")
        .port(80)
        .node_port(30_080)
        .created(200);
    let tenant = service("tenant/evil")
        .cluster_ips(&["10.96.0.2"])
        .port(30_080)
        .external_ip("192.168.0.10")
        .external_ip("203.0.113.1")
        .created(100);
    let to = |name: &str| slice(name, "a", vec![endpoint("10.1.0.1")]).port(8080);
    let tracker = tracker(
        vec![victim, tenant],
        vec![to("victim/web"), to("tenant/evil")],
    );
    let mut proxy = Proxy::start(context(IpFamily::V4), tracker, Ruleset::new());
    proxy.sync();
    let rules = proxy.rules(Table::Nat, "KUBE-SERVICES").join("\n");
    assert!(!rules.contains("192.168.0.10/32"), "{rules}");
    assert!(rules.contains("203.0.113.1/32"), "{rules}");
    let conflicts: Vec<String> = proxy
        .planner
        .conflicts()
        .into_iter()
        .map(|lost| {
            format!(
                "{} {}: {}, {:?}",
                lost.loser, lost.place, lost.winner, lost.by
            )
        })
        .collect();
    assert_eq!(
        conflicts,
        ["tenant/evil TCP 192.168.0.10:30080: victim/web, Some(NodePort)"]
    );
    proxy.take_in([Event::ServiceDeleted(service_name("victim/web"))]);
    proxy.sync();
    let rules = proxy.rules(Table::Nat, "KUBE-SERVICES").join("\n");
    assert!(rules.contains("192.168.0.10/32"), "{rules}");
}

#[test]
fn an_external_ip_that_is_somebodys_has_no_rule() {
    let web = service("ns/a")
        .port(80)
        .external_ip("203.0.113.1")
        .external_ip("203.0.113.2");
    let mut proxy = start();
    proxy.tracker.set_holders(Holders {
        nodes: [ip("203.0.113.2")].into(),
        ..Holders::default()
    });
    proxy.take_in([Event::ServiceApplied(web)]);
    proxy.sync();
    let rules = |proxy: &Proxy| proxy.rules(Table::Nat, "KUBE-SERVICES").join("\n");
    assert!(rules(&proxy).contains("203.0.113.1/32"));
    assert!(!rules(&proxy).contains("203.0.113.2/32"));
    let unmet: Vec<String> = proxy
        .planner
        .unmet()
        .iter()
        .map(|(port, unmet)| format!("{port}: {unmet}"))
        .collect();
    assert_eq!(
        unmet,
        ["ns/a: address 203.0.113.2 is not served: it is another node's address"]
    );
    let revision = proxy.planner.revision();
    proxy.tracker.set_holders(Holders::default());
    proxy.take_in([]);
    proxy.sync();
    assert!(rules(&proxy).contains("203.0.113.2/32"));
    assert!(proxy.planner.unmet().is_empty());
    assert_ne!(proxy.planner.revision(), revision);
}

/// A Service that claims the node's address, a node port, or both.
fn any_service() -> impl Strategy<Value = Service> {
    let port = prop_oneof![Just(30_080_u16), Just(30_081)];
    let node_port = proptest::option::of(prop_oneof![Just(30_080_u16), Just(30_081)]);
    (0..NAMES.len(), port, node_port, 0..4_u8, 0..2_i64).prop_map(
        |(n, port, node_port, roles, created)| {
            let own = format!("10.96.0.{n}");
            let mut service = service(NAMES[n])
                .cluster_ips(&[&own])
                .port(port)
                .created(created);
            if let Some(node_port) = node_port {
                service = service.node_port(node_port);
            }
            if roles & 1 == 1 {
                service = service.external_ip("192.168.0.10");
            }
            if roles & 2 == 2 {
                service = service.vip("192.168.0.10");
            }
            service
        },
    )
}

proptest! {
    /// Small changes lead where a new process arrives, and so do their reports.
    #[test]
    fn claims_do_not_depend_on_their_order(
        events in vec(
            prop_oneof![
                4 => any_service().prop_map(Event::ServiceApplied),
                1 => (0..NAMES.len()).prop_map(|n| Event::ServiceDeleted(service_name(NAMES[n]))),
            ],
            1..12,
        ),
    ) {
        let mut proxy = start();
        for event in events {
            proxy.take_in([event]);
            proxy.sync();
        }
        let mut fresh = start();
        let services = proxy.tracker.services().cloned().collect();
        fresh.take_in([Event::ServicesReplaced(services)]);
        fresh.sync();
        prop_assert_eq!(proxy.planner.desired(), fresh.planner.desired());
        prop_assert_eq!(&proxy.kernel.state.rules, &fresh.kernel.state.rules);
        prop_assert_eq!(proxy.planner.conflicts(), fresh.planner.conflicts());
    }
}
