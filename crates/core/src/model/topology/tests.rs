// SPDX-License-Identifier: Apache-2.0
//! Which endpoints are used, case by case: readiness, hints, policies, the last resort.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use super::*;
use crate::model::endpoint::{Conditions, Zones};
use crate::model::{IpFamily, Protocol, ServiceName, ServicePortName};

/// An endpoint that is ready, on another node and without hints.
fn endpoint(last: u8) -> Endpoint {
    Endpoint {
        address: IpAddr::from([10, 0, 0, last]),
        port: 8080,
        local: false,
        conditions: Conditions::from_api(None, None, None),
        node_hint: NodeHint::Absent,
        zones: Arc::default(),
        weight: None,
    }
}

trait With {
    fn local(self) -> Self;
    fn not_ready(self) -> Self;
    fn terminating(self) -> Self;
    fn serving(self, serving: bool) -> Self;
    fn node(self, hint: NodeHint) -> Self;
    fn zones<const N: usize>(self, zones: [&str; N]) -> Self;
}

impl With for Endpoint {
    fn local(self) -> Self {
        Self {
            local: true,
            ..self
        }
    }

    fn not_ready(mut self) -> Self {
        self.conditions.ready = false;
        self
    }

    /// Shutting down, but still serving.
    fn terminating(mut self) -> Self {
        self.conditions.ready = false;
        self.conditions.terminating = true;
        self
    }

    fn serving(mut self, serving: bool) -> Self {
        self.conditions.serving = serving;
        self
    }

    fn node(self, node_hint: NodeHint) -> Self {
        Self { node_hint, ..self }
    }

    fn zones<const N: usize>(self, zones: [&str; N]) -> Self {
        let zones = Zones {
            hints: zones.map(Arc::from).to_vec(),
            ..Zones::default()
        };
        Self {
            zones: zones.into(),
            ..self
        }
    }
}

/// A cluster IP with Cluster for both policies.
fn cluster() -> ServicePort {
    ServicePort {
        name: ServicePortName {
            service: ServiceName::new("ns", "web"),
            port: "".into(),
            protocol: Protocol::Tcp,
        },
        family: IpFamily::V4,
        created: 0,
        cluster_ip: IpAddr::from([10, 96, 0, 1]),
        port: 80,
        node_port: None,
        external_ips: Vec::new(),
        load_balancer_vips: Vec::new(),
        held: None,
        load_balancer_source_ranges: Vec::new(),
        client_ip_affinity: None,
        internal_policy_local: false,
        external_policy_local: false,
        health_check_node_port: None,
        is_wide: false,
        ipvs: None,
    }
}

fn internal_local() -> ServicePort {
    ServicePort {
        internal_policy_local: true,
        ..cluster()
    }
}

fn external_local() -> ServicePort {
    ServicePort {
        external_policy_local: true,
        node_port: NonZeroU16::new(30080),
        ..cluster()
    }
}

/// The last octets of the chosen endpoints in zone `a`: for the policy Cluster, for Local, and
/// whether there is any endpoint at all.
fn chosen(service_port: &ServicePort, endpoints: &[Endpoint]) -> (Vec<u8>, Vec<u8>, bool) {
    let octets = |endpoints: &[&Endpoint]| {
        let last = |endpoint: &&Endpoint| match endpoint.address {
            IpAddr::V4(ip) => ip.octets()[3],
            IpAddr::V6(_) => panic!("IPv4 only"),
        };
        endpoints.iter().map(last).collect::<Vec<_>>()
    };
    let choice = choose(service_port, endpoints, Some("a"));
    (
        octets(&choice.cluster),
        octets(&choice.local),
        choice.has_any,
    )
}

fn chosen_for_cluster(endpoints: &[Endpoint]) -> Vec<u8> {
    chosen(&cluster(), endpoints).0
}

#[test]
fn without_hints_every_ready_endpoint_is_used() {
    let endpoints = [endpoint(1), endpoint(2).not_ready(), endpoint(3).local()];
    assert_eq!(chosen(&cluster(), &endpoints), (vec![1, 3], vec![], true));
}

#[test]
fn without_endpoints_there_is_none() {
    for service_port in [cluster(), internal_local(), external_local()] {
        assert_eq!(chosen(&service_port, &[]), (vec![], vec![], false));
        // Not ready, serving and not terminating: never used.
        let unready = [endpoint(1).local().not_ready()];
        assert_eq!(chosen(&service_port, &unready), (vec![], vec![], false));
        let silent = [endpoint(1).local().terminating().serving(false)];
        assert_eq!(chosen(&service_port, &silent), (vec![], vec![], false));
    }
}

#[test]
fn terminating_endpoints_are_the_last_resort() {
    let endpoints = [
        endpoint(1).terminating(),
        endpoint(2).terminating().serving(false),
        endpoint(3).not_ready(),
    ];
    assert_eq!(chosen_for_cluster(&endpoints), [1]);
    let with_ready = [endpoint(1).terminating(), endpoint(4)];
    assert_eq!(chosen_for_cluster(&with_ready), [4]);
}

#[test]
fn terminating_endpoints_are_used_whatever_their_hints() {
    let endpoints = [
        endpoint(1).terminating().zones(["a"]),
        endpoint(2).terminating().zones(["b"]),
    ];
    assert_eq!(chosen_for_cluster(&endpoints), [1, 2]);
}

#[test]
fn node_hints_keep_traffic_on_the_node() {
    let endpoints = [
        endpoint(1).node(NodeHint::Here),
        endpoint(2).node(NodeHint::Elsewhere),
    ];
    assert_eq!(chosen_for_cluster(&endpoints), [1]);
}

#[test]
fn node_hints_that_name_only_other_nodes_do_not_count() {
    let endpoints = [
        endpoint(1).node(NodeHint::Elsewhere),
        endpoint(2).node(NodeHint::Elsewhere),
    ];
    assert_eq!(chosen_for_cluster(&endpoints), [1, 2]);
}

#[test]
fn one_ready_endpoint_without_node_hint_voids_them() {
    let endpoints = [endpoint(1).node(NodeHint::Here), endpoint(2)];
    assert_eq!(chosen_for_cluster(&endpoints), [1, 2]);
}

#[test]
fn node_hints_come_before_zone_hints() {
    let endpoints = [
        endpoint(1).node(NodeHint::Here).zones(["a"]),
        endpoint(2).node(NodeHint::Elsewhere).zones(["a"]),
    ];
    assert_eq!(chosen_for_cluster(&endpoints), [1]);
}

#[test]
fn zone_hints_count_where_node_hints_do_not() {
    let endpoints = [
        endpoint(1).node(NodeHint::Elsewhere).zones(["a"]),
        endpoint(2).node(NodeHint::Elsewhere).zones(["b"]),
    ];
    assert_eq!(chosen_for_cluster(&endpoints), [1]);
}

#[test]
fn zone_hints_keep_traffic_in_the_zone() {
    let endpoints = [
        endpoint(1).zones(["a"]),
        endpoint(2).zones(["b"]),
        endpoint(3).zones(["b", "a"]),
    ];
    assert_eq!(chosen_for_cluster(&endpoints), [1, 3]);
}

#[test]
fn zone_hints_without_our_zone_do_not_count() {
    let endpoints = [endpoint(1).zones(["b"]), endpoint(2).zones(["c"])];
    assert_eq!(chosen_for_cluster(&endpoints), [1, 2]);
}

#[test]
fn one_ready_endpoint_without_zone_hint_voids_them() {
    let endpoints = [endpoint(1).zones(["a"]), endpoint(2)];
    assert_eq!(chosen_for_cluster(&endpoints), [1, 2]);
}

#[test]
fn a_node_without_zone_uses_no_zone_hints() {
    let endpoints = [endpoint(1).zones(["a"]), endpoint(2).zones([""])];
    let choice = choose(&cluster(), &endpoints, None);
    assert_eq!(choice.cluster, [&endpoints[0], &endpoints[1]]);
}

#[test]
fn endpoints_that_are_not_ready_have_no_say_in_hints() {
    let endpoints = [
        endpoint(1).zones(["a"]),
        endpoint(2).zones(["b"]),
        endpoint(3).not_ready(),
        endpoint(4).terminating(),
    ];
    assert_eq!(chosen_for_cluster(&endpoints), [1]);
    // One endpoint's hint does not make the others count either.
    let endpoints = [
        endpoint(1).zones(["b"]),
        endpoint(2).not_ready().zones(["a"]),
    ];
    assert_eq!(chosen_for_cluster(&endpoints), [1]);
}

#[test]
fn a_cluster_ip_with_policy_local_uses_this_nodes_endpoints_only() {
    let endpoints = [endpoint(1), endpoint(2).local()];
    assert_eq!(
        chosen(&internal_local(), &endpoints),
        (vec![], vec![2], true)
    );
}

#[test]
fn endpoints_elsewhere_make_policy_local_drop_instead_of_refuse() {
    assert_eq!(
        chosen(&internal_local(), &[endpoint(1)]),
        (vec![], vec![], true)
    );
    assert_eq!(
        chosen(&internal_local(), &[endpoint(1).terminating()]),
        (vec![], vec![], true)
    );
}

#[test]
fn hints_do_not_filter_this_nodes_endpoints() {
    let endpoints = [
        endpoint(1).local().zones(["b"]).node(NodeHint::Elsewhere),
        endpoint(2).zones(["a"]).node(NodeHint::Here),
    ];
    assert_eq!(
        chosen(&external_local(), &endpoints),
        (vec![2], vec![1], true)
    );
}

#[test]
fn this_nodes_terminating_endpoints_are_its_last_resort() {
    let endpoints = [
        endpoint(1).local().terminating(),
        endpoint(2).local().terminating().serving(false),
        endpoint(3),
    ];
    assert_eq!(
        chosen(&external_local(), &endpoints),
        (vec![3], vec![1], true)
    );
    let with_ready = [endpoint(1).local().terminating(), endpoint(4).local()];
    assert_eq!(
        chosen(&external_local(), &with_ready),
        (vec![4], vec![4], true)
    );
}

#[test]
fn policy_local_for_both_ways_with_a_way_in_has_both_choices() {
    let service_port = ServicePort {
        internal_policy_local: true,
        ..external_local()
    };
    let endpoints = [endpoint(1), endpoint(2).local()];
    assert_eq!(
        chosen(&service_port, &endpoints),
        (vec![1, 2], vec![2], true)
    );
}

#[test]
fn external_policy_local_without_a_way_in_changes_nothing() {
    let service_port = ServicePort {
        node_port: None,
        ..external_local()
    };
    let endpoints = [endpoint(1), endpoint(2).local()];
    assert_eq!(
        chosen(&service_port, &endpoints),
        (vec![1, 2], vec![], true)
    );
}
