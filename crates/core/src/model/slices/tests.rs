// SPDX-License-Identifier: Apache-2.0
//! Merging several slices into one list of endpoints.

use proptest::prelude::*;

use super::*;
use crate::model::endpoint::{Conditions, Zones};
use crate::model::{NodeHint, ServiceName, SliceEndpoint, SliceName, SlicePort};

fn slice(name: &str, ports: &[(&str, u16)], endpoints: Vec<SliceEndpoint>) -> EndpointSlice {
    EndpointSlice {
        name: SliceName {
            namespace: "ns".into(),
            name: name.into(),
        },
        service: ServiceName::new("ns", "web"),
        family: IpFamily::V4,
        ports: ports
            .iter()
            .map(|(name, port)| SlicePort {
                name: (*name).into(),
                protocol: Protocol::Tcp,
                port: *port,
            })
            .collect(),
        endpoints,
        last_change_trigger: None,
    }
}

fn endpoint(last: u8, conditions: Conditions) -> SliceEndpoint {
    SliceEndpoint {
        address: IpAddr::from([10, 0, 0, last]),
        local: false,
        conditions,
        node_hint: NodeHint::Absent,
        zones: Arc::default(),
        weight: None,
    }
}

fn ready() -> Conditions {
    Conditions::from_api(None, None, None)
}

/// The conditions of Services that publish addresses that are not ready.
fn terminating_and_ready() -> Conditions {
    Conditions::from_api(Some(true), Some(true), Some(true))
}

fn not_ready() -> Conditions {
    Conditions::from_api(Some(false), Some(false), None)
}

/// Address and port of the endpoints by port name.
fn merged(slices: &[EndpointSlice]) -> Vec<(String, Vec<String>)> {
    merge(slices.iter(), IpFamily::V4)
        .into_iter()
        .map(|((name, _), endpoints)| {
            let show = |endpoint: &Endpoint| format!("{}:{}", endpoint.address, endpoint.port);
            (name.to_string(), endpoints.iter().map(show).collect())
        })
        .collect()
}

#[test]
fn every_port_meets_every_endpoint_of_its_slice() {
    let slices = [
        slice(
            "a",
            &[("http", 8080), ("metrics", 9090)],
            vec![endpoint(2, ready()), endpoint(1, ready())],
        ),
        slice("b", &[("http", 8081)], vec![endpoint(3, ready())]),
    ];
    let texts = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(
        merged(&slices),
        [
            (
                "http".to_owned(),
                texts(&["10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:8081"])
            ),
            (
                "metrics".to_owned(),
                texts(&["10.0.0.1:9090", "10.0.0.2:9090"])
            ),
        ]
    );
}

#[test]
fn slices_of_the_other_family_do_not_count() {
    let mut other = slice("a", &[("", 80)], vec![endpoint(1, ready())]);
    other.family = IpFamily::V6;
    assert_eq!(merged(&[other]), []);
}

#[test]
fn ports_of_equal_name_and_other_protocol_are_apart() {
    let mut udp = slice("a", &[("dns", 53)], vec![endpoint(1, ready())]);
    udp.ports[0].protocol = Protocol::Udp;
    let tcp = slice("b", &[("dns", 53)], vec![endpoint(2, ready())]);
    let merged = merge([&udp, &tcp].into_iter(), IpFamily::V4);
    let counts: Vec<_> = merged.iter().map(|((_, p), e)| (*p, e.len())).collect();
    assert_eq!(counts, [(Protocol::Tcp, 1), (Protocol::Udp, 1)]);
}

#[test]
fn of_two_copies_the_one_that_is_not_terminating_counts() {
    let slices = [
        slice("a", &[("", 80)], vec![endpoint(1, terminating_and_ready())]),
        slice("b", &[("", 80)], vec![endpoint(1, not_ready())]),
    ];
    for order in [[&slices[0], &slices[1]], [&slices[1], &slices[0]]] {
        let merged = merge(order.into_iter(), IpFamily::V4);
        let endpoints = merged.values().next().unwrap();
        assert_eq!(endpoints.len(), 1);
        assert_eq!(endpoints[0].conditions, not_ready());
    }
}

#[test]
fn one_address_may_serve_on_two_ports() {
    let slices = [
        slice("a", &[("", 80)], vec![endpoint(1, ready())]),
        slice("b", &[("", 81)], vec![endpoint(1, ready())]),
    ];
    let expected = vec!["10.0.0.1:80".to_owned(), "10.0.0.1:81".to_owned()];
    assert_eq!(merged(&slices), [(String::new(), expected)]);
}

fn any_slice() -> impl Strategy<Value = EndpointSlice> {
    let conditions =
        (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(ready, serving, terminating)| {
            Conditions {
                ready,
                serving,
                terminating,
            }
        });
    let hint = prop_oneof![
        Just(NodeHint::Absent),
        Just(NodeHint::Here),
        Just(NodeHint::Elsewhere)
    ];
    let zones = prop::collection::vec(
        prop_oneof![Just(Arc::from("a")), Just(Arc::from("b"))],
        0..2,
    );
    let endpoints = prop::collection::vec(
        (0..3_u8, conditions, any::<bool>(), hint, zones).prop_map(
            |(last, conditions, local, node_hint, zones)| SliceEndpoint {
                local,
                node_hint,
                zones: Arc::new(Zones {
                    zone: zones.first().cloned(),
                    hints: zones,
                }),
                weight: None,
                ..endpoint(last, conditions)
            },
        ),
        0..4,
    );
    let ports = prop::collection::vec((prop_oneof![Just("a"), Just("b")], 80..82_u16), 0..3);
    (ports, endpoints).prop_map(|(ports, endpoints)| slice("s", &ports, endpoints))
}

proptest! {
    #[test]
    fn the_order_of_slices_does_not_matter(
        (slices, shuffled) in prop::collection::vec(any_slice(), 0..5)
            .prop_flat_map(|slices| (Just(slices.clone()), Just(slices).prop_shuffle()))
    ) {
        prop_assert_eq!(
            merge(slices.iter(), IpFamily::V4),
            merge(shuffled.iter(), IpFamily::V4)
        );
    }
}
