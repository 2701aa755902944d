// SPDX-License-Identifier: Apache-2.0
//! What is left out of Services that ask for very much, and nothing of any other.

use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::model::testing::{endpoint_at, ip, service, slice, tracker};
use crate::model::{Protocol, Service, ServiceView, Tracker};

fn address(n: usize) -> IpAddr {
    let [_, a, b, c] = u32::try_from(n).unwrap().to_be_bytes();
    IpAddr::from([10, a, b, c])
}

fn with_ports(service: Service, ports: usize) -> Service {
    (0..ports).fold(service, |service, n| {
        let number = u16::try_from(n + 1).unwrap();
        service.named_port(&format!("p{n}"), Protocol::Tcp, number)
    })
}

fn with_external_ips(mut service: Service, first: usize, count: usize) -> Service {
    service
        .external_ips
        .extend((first..first + count).map(address));
    service
}

fn slice_of(ports: usize, endpoints: impl Iterator<Item = usize>, suffix: &str) -> EndpointSlice {
    let endpoints = endpoints.map(|n| endpoint_at(address(n))).collect();
    (0..ports).fold(slice("ns/web", suffix, endpoints), |slice, n| {
        slice.named_port(&format!("p{n}"), Protocol::Tcp, 8080)
    })
}

fn view<'a>(tracker: &'a Tracker, budget: &Budget) -> ServiceView<'a> {
    let name = &tracker.services().next().unwrap().name;
    ServiceView::within(tracker, name, IpFamily::V4, budget)
}

/// The objects that the budget counts.
fn objects(view: &ServiceView<'_>) -> usize {
    let of_port = |port: &ServicePort| {
        let endpoints = view.endpoints_of(port).len();
        port.frontend_count() * (1 + endpoints) + port.range_count()
    };
    view.ports.iter().map(of_port).sum()
}

#[test]
fn a_large_honest_service_is_programmed_as_a_whole() {
    let ports = with_ports(service("ns/web").vip("198.51.100.1"), 5);
    let slices = (0..20).map(|n| slice_of(5, n * 100..(n + 1) * 100, &n.to_string()));
    let tracker = tracker(vec![ports], slices.collect());
    let view = view(&tracker, &Budget::default());
    assert!(view.cut.is_empty());
    assert_eq!(view.endpoints_of(&view.ports[4]).len(), 2_000);
}

#[test]
fn a_million_frontends_are_as_many_addresses_as_fit() {
    let asked = with_external_ips(
        with_ports(service("ns/web").vip("198.51.100.1"), 1_000),
        0,
        1_000,
    );
    let tracker = tracker(vec![asked], vec![]);
    let view = view(&tracker, &Budget::default());
    assert_eq!(view.ports.len(), 1_000);
    let frontends: usize = view.ports.iter().map(ServicePort::frontend_count).sum();
    assert_eq!(frontends, 5_000);
    for port in &view.ports {
        assert_eq!(port.load_balancer_vips, [ip("198.51.100.1")]);
        assert_eq!(port.external_ips, [0, 1, 2].map(address));
    }
    assert_eq!(
        view.cut.to_string(),
        "more than one Service may have; programmed are 3 of 1000 external IPs"
    );
}

#[test]
fn what_stays_does_not_depend_on_the_order_of_addresses() {
    let budget = Budget {
        frontends: 10,
        ..Budget::default()
    };
    let ports = |service: Service| ServicePort::within(&service, IpFamily::V4, &budget);
    let asked = with_external_ips(with_ports(service("ns/web"), 2), 0, 100);
    let mut reversed = asked.clone();
    reversed.external_ips.reverse();
    assert_eq!(ports(asked), ports(reversed));
}

#[test]
fn ports_beyond_the_budget_are_left_out_and_node_ports_come_before_external_ips() {
    let budget = Budget {
        frontends: 5,
        ..Budget::default()
    };
    let mut asked = with_external_ips(with_ports(service("ns/web"), 3), 0, 2);
    for (spec, port) in asked.ports.iter_mut().zip(30_000..) {
        spec.node_port = std::num::NonZeroU16::new(port);
    }
    let (ports, cut) = ServicePort::within(&asked, IpFamily::V4, &budget);
    let node_ports: Vec<_> = ports.iter().map(|port| port.node_port.is_some()).collect();
    assert_eq!(node_ports, [true, true, false]);
    assert_eq!(
        cut.to_string(),
        "more than one Service may have; programmed are 2 of 3 node ports, 0 of 2 external IPs"
    );
    let (ports, cut) =
        ServicePort::within(&with_ports(service("ns/web"), 9), IpFamily::V4, &budget);
    assert_eq!((ports.len(), cut.is_empty()), (5, false));
}

#[test]
fn restricted_sources_stay_restricted() {
    let budget = Budget {
        objects: 1,
        ..Budget::default()
    };
    let asked = service("ns/web").port(80).vip("198.51.100.1");
    let asked = asked
        .source_range("192.0.2.0/24")
        .source_range("203.0.113.0/24");
    let (ports, cut) = ServicePort::within(&asked, IpFamily::V4, &budget);
    assert_eq!(ports[0].load_balancer_source_ranges.len(), 1);
    assert!(!cut.is_empty());
}

#[test]
fn endpoints_that_stay_are_those_on_this_node_and_the_ready_ones() {
    let budget = Budget {
        endpoints: 3,
        ..Budget::default()
    };
    let endpoints = vec![
        endpoint_at(address(1)).unready(),
        endpoint_at(address(2)),
        endpoint_at(address(3)).terminating(),
        endpoint_at(address(4)),
        endpoint_at(address(5)),
        endpoint_at(address(6)).local(),
    ];
    let slice = slice("ns/web", "a", endpoints).port(8080);
    let tracker = tracker(vec![service("ns/web").port(80)], vec![slice]);
    let view = view(&tracker, &budget);
    let kept: Vec<_> = view
        .endpoints_of(&view.ports[0])
        .iter()
        .map(|it| it.address)
        .collect();
    assert_eq!(kept, [2, 4, 6].map(address));
    assert!(view.cut.endpoints);
}

#[test]
fn ports_that_nobody_serves_take_nothing() {
    let mut slice = slice_of(1, 0..1_000, "a");
    for n in 0..2_000 {
        slice = slice.named_port(&format!("other-{n}"), Protocol::Tcp, 9_000);
    }
    let tracker = tracker(vec![with_ports(service("ns/web"), 1)], vec![slice]);
    let view = view(&tracker, &Budget::default());
    assert_eq!(view.endpoints_of(&view.ports[0]).len(), 1_000);
    assert!(view.cut.is_empty());
    assert_eq!(view.endpoints.len(), 1);
}

proptest! {
    #[test]
    fn no_service_gets_more_than_the_budget(
        ports in 0..12_usize,
        externals in 0..12_usize,
        vips in 0..3_usize,
        ranges in 0..20_u8,
        endpoints in proptest::collection::vec(0..60_usize, 0..3),
        limits in (1..40_usize, 1..40_usize, 1..400_usize),
    ) {
        let (frontends, max_endpoints, most) = limits;
        let budget = Budget { frontends, endpoints: max_endpoints, objects: most };
        let mut asked = with_external_ips(with_ports(service("ns/web"), ports), 500, externals);
        asked.load_balancer_vips.extend((900..900 + vips).map(address));
        for n in 0..ranges {
            asked = asked.source_range(&format!("192.0.2.{n}/32"));
        }
        let slices = endpoints.iter().enumerate();
        let slices = slices.map(|(n, count)| slice_of(ports, n * 100..n * 100 + count, &n.to_string()));
        let tracker = tracker(vec![asked], slices.collect());
        let (view, whole) = (view(&tracker, &budget), view(&tracker, &Budget::UNLIMITED));
        let count: usize = view.ports.iter().map(ServicePort::frontend_count).sum();
        prop_assert!(count <= frontends);
        // Each frontend and at least one source range are always kept.
        let least: usize = view.ports.iter().map(|it| it.frontend_count() + it.load_balancer_vips.len()).sum();
        prop_assert!(objects(&view) <= most.max(least + most / 2), "{}", objects(&view));
        let is_whole = view.ports == whole.ports && view.endpoints == whole.endpoints;
        prop_assert_eq!(view.cut.is_empty(), is_whole);
        prop_assert!(whole.cut.is_empty());
    }
}
