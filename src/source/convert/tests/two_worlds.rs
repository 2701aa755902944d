// SPDX-License-Identifier: Apache-2.0
//! Whatever a tenant writes into its Services and slices, through the converter and the planners of
//! both modes: no other Service notices.

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::LazyJust;
use proptest::test_runner::RngSeed;

use super::*;
use kpr_core::plan::testing::two_worlds::{ADDRESSES, NODE_PORTS, Object, PORTS, check};

/// Cases of all parts together.
const CASES: u32 = 10_000;

/// The cases are divided among tests, which run beside each other.
const PARTS: u32 = 4;

const NAMES: [&str; 3] = ["a", "b", "kubernetes"];

fn one_of(texts: &'static [&'static str]) -> impl Strategy<Value = Value> {
    select(texts).prop_map(Value::from)
}

fn address() -> impl Strategy<Value = String> {
    select(&ADDRESSES[..]).prop_map(str::to_owned)
}

/// What the API server takes for a Service of this tenant, and some that it does not.
fn spec() -> impl Strategy<Value = Value> {
    let port = (
        one_of(&["", "a", "b", "dns"]),
        one_of(&["TCP", "UDP", "SCTP", "QUIC"]),
        select(&PORTS[..]),
        select(&NODE_PORTS[..]),
    )
        .prop_map(|(name, protocol, port, node_port)| {
            json!({"name": name, "protocol": protocol, "port": port, "nodePort": node_port})
        });
    let ranges = [
        "0.0.0.0/0",
        "10.96.0.10/32",
        "198.51.100.0/24",
        "::/0",
        "2001:db8::/32",
        "no range",
    ];
    let policy = || one_of(&["Local", "Cluster", "Odd"]);
    (
        one_of(&[
            "ClusterIP",
            "NodePort",
            "LoadBalancer",
            "ExternalName",
            "Odd",
        ]),
        vec(port, 0..5),
        vec(address(), 0..6),
        (policy(), policy()),
        (one_of(&["ClientIP", "None", "Odd"]), any::<i32>()),
        vec(select(ranges.to_vec()), 0..3),
        option::of(select(&[31_100, 31_101, -1, 70_000][..])),
    )
        .prop_map(
            |(type_, ports, external, (inside, outside), (affinity, seconds), ranges, health)| {
                json!({
                    "type": type_, "clusterIP": "10.96.1.1", "clusterIPs": ["10.96.1.1"],
                    "ipFamilies": ["IPv4"], "ports": ports, "externalIPs": external,
                    "internalTrafficPolicy": inside, "externalTrafficPolicy": outside,
                    "sessionAffinity": affinity,
                    "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}},
                    "loadBalancerSourceRanges": ranges, "healthCheckNodePort": health,
                })
            },
        )
}

/// Annotations of ours with values that mean something, and others.
fn annotations() -> impl Strategy<Value = Value> {
    let name = select(
        &[
            "scheduler",
            "scheduler-flags",
            "weights",
            "persistence-netmask",
            "drain-limit",
            "forwarding-method",
            "gue-port",
        ][..],
    );
    let value = select(
        &[
            "mh",
            "sh",
            "dh",
            "no-such",
            "0s",
            "1h",
            "-1s",
            "dsr",
            "ipip",
            "gue",
            "gre",
            "8472",
            "10.244.0.0/16=0",
            "32",
            "255.255.0.0",
            "mh-port",
            "",
        ][..],
    );
    let odd = "[^\u{0}]{0,300}";
    let value = prop_oneof![4 => value.prop_map(str::to_owned), 1 => odd];
    btree_map(
        name.prop_map(|name| format!("kube-proxy-rs.io/{name}")),
        value,
        0..4,
    )
    .prop_map(|all| json!(all))
}

fn any_service() -> impl Strategy<Value = Value> {
    let created = one_of(&[
        "1969-12-31T23:59:59Z",
        "1970-01-01T00:00:10Z",
        "2026-02-02T00:00:00Z",
        "9999-01-01T00:00:00Z",
    ]);
    let topology = LazyJust::new(|| json!({"service.kubernetes.io/topology-mode": "Auto"}));
    let annotations = prop_oneof![annotations(), topology];
    (select(&NAMES[..]), created, annotations, spec()).prop_map(
        |(name, created, annotations, spec)| {
            json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {
                    "name": name, "namespace": "tenant", "creationTimestamp": created,
                    "annotations": annotations,
                },
                "spec": spec,
            })
        },
    )
}

fn any_slice() -> impl Strategy<Value = Value> {
    let node = one_of(&["here", "elsewhere", ""]);
    let condition = || option::of(any::<bool>());
    let zones = vec(one_of(&["here", "elsewhere"]), 0..2);
    let endpoint = (
        vec(address(), 0..3),
        node,
        (condition(), condition(), condition()),
        zones,
    )
        .prop_map(|(addresses, node, (ready, serving, terminating), zones)| {
            let zones: Vec<Value> = zones
                .into_iter()
                .map(|name| json!({"name": name}))
                .collect();
            json!({
                "addresses": addresses, "nodeName": node, "hints": {"forZones": zones},
                "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
            })
        });
    let port = (
        one_of(&["", "a", "b", "dns"]),
        one_of(&["TCP", "UDP", "SCTP", "QUIC"]),
        option::of(select(&PORTS[..])),
    )
        .prop_map(
            |(name, protocol, port)| json!({"name": name, "protocol": protocol, "port": port}),
        );
    (
        select(&NAMES[..]),
        select(&NAMES[..]),
        one_of(&["IPv4", "IPv6", "FQDN"]),
        vec(endpoint, 0..6),
        vec(port, 0..5),
        annotations(),
    )
        .prop_map(|(name, service, family, endpoints, ports, annotations)| {
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "name": name, "namespace": "tenant", "annotations": annotations,
                    "labels": {"kubernetes.io/service-name": service},
                },
                "addressType": family, "endpoints": endpoints, "ports": ports,
            })
        })
}

/// What the converter makes of the objects.
fn converted(objects: Vec<Value>) -> Vec<Object> {
    let mut converter = converter();
    let mut found = Vec::new();
    for object in objects {
        if object["kind"] == "Service" {
            let service = converter
                .service(&serde_json::from_value(object).unwrap())
                .0;
            found.extend(service.map(Object::Service));
        } else {
            let slice = converter.slice(&serde_json::from_value(object).unwrap()).0;
            found.extend(slice.map(Object::Slice));
        }
    }
    found
}

/// The same cases in each run, so that a change is to blame for a failure: `hack/fuzz two_worlds`
/// looks for others.
fn cases(part: u64) -> ProptestConfig {
    let wanted = std::env::var("PROPTEST_CASES").ok();
    let all = wanted.and_then(|n| n.parse().ok()).unwrap_or(CASES);
    ProptestConfig {
        cases: all.div_ceil(PARTS),
        rng_seed: RngSeed::Fixed(part),
        ..ProptestConfig::default()
    }
}

fn objects() -> impl Strategy<Value = Vec<Value>> {
    vec(prop_oneof![any_service(), any_slice()], 1..6)
}

macro_rules! parts {
    ($($name:ident: $part:literal,)*) => {$(
        proptest! {
            #![proptest_config(cases($part))]

            #[test]
            fn $name(objects in objects(), first in any::<bool>()) {
                check(converted(objects), first);
            }
        }
    )*};
}

parts! {
    a_tenant_hurts_nobody_else_1: 1,
    a_tenant_hurts_nobody_else_2: 2,
    a_tenant_hurts_nobody_else_3: 3,
    a_tenant_hurts_nobody_else_4: 4,
}
