// SPDX-License-Identifier: Apache-2.0
//! The converter makes the same of an object in JSON and in protobuf.

use std::fmt::Debug;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use kpr_testkit::protobuf::{bare, envelope, field, number};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

use super::super::all_nodes::Outline;
use super::*;
use crate::source::convert::{Converted, Converter};
use crate::source::counted::Counted;
use crate::source::kubernetes::object;
use crate::source::{Annotations, ClusterSize, Options};

fn converter() -> Converter {
    Converter::new(&Options {
        node_name: "here".into(),
        allow_external_ips: true,
        annotations: Annotations {
            counted: Counted {
                labels: Some("app in (web, b)".parse().unwrap()),
                ..Counted::default()
            },
            ..Annotations::default()
        },
        cluster: ClusterSize::default(),
    })
}

/// Both forms give the same, problems included.
fn same<K, T>(object: &Value, convert: impl Fn(&mut Converter, &K) -> Converted<T>)
where
    K: Decode + k8s_openapi::Resource,
    T: PartialEq + Debug,
{
    let mut object = object.clone();
    object["kind"] = K::KIND.into();
    let json: K = object::decode(object.to_string().as_bytes()).expect("it can be read");
    let bytes = Bytes::from(bare(&object));
    let message: K = decode_bare(bytes.clone()).expect("it can be read");
    let wrapped = envelope("v1", K::KIND, &bytes);
    let wrapped: K = decode(wrapped.into()).expect("it can be read");
    let expected = convert(&mut converter(), &json);
    assert_eq!(convert(&mut converter(), &message), expected, "{object}");
    assert_eq!(convert(&mut converter(), &wrapped), expected, "{object}");
    let (one, other) = (message.metadata(), json.metadata());
    assert_eq!(one.name, other.name);
    assert_eq!(one.namespace, other.namespace);
    assert_eq!(one.resource_version, other.resource_version);
}

fn one_of(texts: &'static [&'static str]) -> impl Strategy<Value = String> {
    select(texts).prop_map(str::to_owned)
}

/// A field that may be absent. An API server leaves an empty one out of JSON.
fn some(text: impl Strategy<Value = String>) -> impl Strategy<Value = Option<String>> {
    option::of(text).prop_map(|text| text.filter(|text| !text.is_empty()))
}

fn without_absent(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.into_iter().filter(|(_, value)| !value.is_null());
            fields
                .map(|(name, value)| (name, without_absent(value)))
                .collect()
        }
        Value::Array(items) => items.into_iter().map(without_absent).collect(),
        other => other,
    }
}

const ADDRESSES: &[&str] = &[
    "10.0.0.1",
    "10.0.0.2",
    "fd00::1",
    "::ffff:1.2.3.4",
    "127.0.0.1",
    "010.0.0.1",
    "no address",
    "",
    "None",
];
const RANGES: &[&str] = &["10.0.0.0/8", " 10.1.0.0/16 ", "fd00::/64", "::/0", "x", ""];
const TIMES: &[&str] = &[
    "2026-01-01T00:00:00Z",
    "1970-01-01T00:00:01Z",
    "0001-01-02T00:00:00Z",
    "9999-12-30T00:00:00Z",
    "9999-12-31T23:59:59Z",
];

fn meta() -> impl Strategy<Value = Value> {
    let label = one_of(&[
        "service.kubernetes.io/service-proxy-name",
        "service.kubernetes.io/headless",
        "kubernetes.io/service-name",
        "topology.kubernetes.io/zone",
        "app",
    ]);
    let annotation = one_of(&[
        "kube-proxy-rs.io/scheduler",
        "kube-proxy-rs.io/weight",
        "kube-proxy-rs.io/no-such",
        "kube-router.io/service.scheduler",
        "endpoints.kubernetes.io/last-change-trigger-time",
        "example.com/other",
    ]);
    let value = one_of(&["rr", "5", "mh", "", "ä\u{0}", "2026-01-01T00:00:00.5Z"]);
    let labels = btree_map(label, one_of(&["web", "", "b"]), 0..3);
    let annotations = btree_map(annotation, value, 0..4);
    (
        some(one_of(&["web", "here", "a.b", ""])),
        some(one_of(&["default", "ns", ""])),
        some(one_of(&["u-1", ""])),
        some("[0-9]{0,6}"),
        (option::of(one_of(TIMES)), option::of(one_of(TIMES))),
        (option::of(labels), option::of(annotations)),
    )
        .prop_map(
            |(name, namespace, uid, version, (created, deleted), (labels, annotations))| {
                json!({
                    "name": name, "namespace": namespace, "uid": uid, "resourceVersion": version,
                    "creationTimestamp": created, "deletionTimestamp": deleted,
                    "labels": labels, "annotations": annotations, "generation": 7,
                    "managedFields": [{"manager": "m", "fieldsV1": {"f:spec": {}}}],
                    "finalizers": ["x"],
                })
            },
        )
}

fn policy() -> impl Strategy<Value = Option<String>> {
    some(one_of(&["Local", "Cluster", "Odd", ""]))
}

fn any_service() -> impl Strategy<Value = Value> {
    let port = (
        some(one_of(&["http", "dns", ""])),
        some(one_of(&["TCP", "UDP", "SCTP", "QUIC", ""])),
        select(&[0, 80, 443, -1, 70_000, i32::MAX, i32::MIN][..]),
        option::of(select(&[0, 30_080, -1, 70_000][..])),
        prop_oneof![Just(json!(8080)), Just(json!("name")), Just(Value::Null)],
    )
        .prop_map(|(name, protocol, port, node_port, target)| {
            json!({
                "name": name, "protocol": protocol, "port": port, "nodePort": node_port,
                "targetPort": target,
            })
        });
    let ingress = (
        some(one_of(ADDRESSES)),
        some(one_of(&["VIP", "Proxy", "Odd"])),
    )
        .prop_map(|(ip, mode)| json!({"ip": ip, "hostname": "h", "ipMode": mode}));
    let addresses = || option::of(vec(one_of(ADDRESSES), 0..4));
    let types = &[
        "ClusterIP",
        "NodePort",
        "LoadBalancer",
        "ExternalName",
        "Odd",
    ];
    (
        meta(),
        (some(one_of(types)), some(one_of(ADDRESSES)), addresses()),
        option::of(vec(one_of(&["IPv4", "IPv6", "IPv5"]), 0..3)),
        option::of(vec(port, 0..4)),
        (addresses(), option::of(vec(one_of(RANGES), 0..3))),
        (policy(), policy()),
        (
            some(one_of(&["None", "ClientIP", "Odd"])),
            option::of(any::<i32>()),
        ),
        option::of(select(&[0, 31_000, -1][..])),
        option::of(vec(ingress, 0..3)),
    )
        .prop_map(
            |(
                meta,
                (type_, ip, ips),
                families,
                ports,
                rest,
                policies,
                affinity,
                health,
                ingress,
            )| {
                let config = affinity
                    .1
                    .map(|seconds| json!({"clientIP": {"timeoutSeconds": seconds}}));
                without_absent(json!({
                    "metadata": meta,
                    "spec": {
                        "type": type_, "clusterIP": ip, "clusterIPs": ips, "ipFamilies": families,
                        "ports": ports, "externalIPs": rest.0, "loadBalancerSourceRanges": rest.1,
                        "externalTrafficPolicy": policies.0, "internalTrafficPolicy": policies.1,
                        "sessionAffinity": affinity.0, "sessionAffinityConfig": config,
                        "healthCheckNodePort": health, "selector": {"app": "web"},
                        "trafficDistribution": "PreferClose",
                    },
                    "status": {"loadBalancer": {"ingress": ingress}},
                }))
            },
        )
}

fn any_slice() -> impl Strategy<Value = Value> {
    let truth = || option::of(any::<bool>());
    let hints = |name| {
        option::of(vec(one_of(name), 0..3)).prop_map(|names| {
            names.map(|names| {
                let names = names.into_iter().map(|name| json!({"name": name}));
                names.collect::<Vec<_>>()
            })
        })
    };
    let endpoint = (
        vec(one_of(ADDRESSES), 0..3),
        (truth(), truth(), truth()),
        option::of(one_of(&["here", "there", ""])),
        option::of((hints(&["a", "b", ""]), hints(&["here", "there"]))),
    )
        .prop_map(|(addresses, conditions, node, hints)| {
            let hints = hints.map(|(zones, nodes)| json!({"forZones": zones, "forNodes": nodes}));
            json!({
                "addresses": addresses, "nodeName": node, "hints": hints, "zone": "a",
                "conditions": {
                    "ready": conditions.0, "serving": conditions.1, "terminating": conditions.2,
                },
                "targetRef": {"kind": "Pod", "name": "p", "namespace": "ns", "uid": "u"},
            })
        });
    let port = (
        option::of(one_of(&["http", ""])),
        option::of(one_of(&["TCP", "UDP", "QUIC"])),
        option::of(select(&[0, 8080, -1, 70_000][..])),
    )
        .prop_map(|(name, protocol, port)| {
            json!({"name": name, "protocol": protocol, "port": port, "appProtocol": "http"})
        });
    (
        meta(),
        one_of(&["IPv4", "IPv6", "FQDN", "Odd", ""]),
        option::of(vec(port, 0..3)),
        option::of(vec(endpoint, 0..5)),
    )
        .prop_map(|(meta, family, ports, endpoints)| {
            without_absent(json!({
                "metadata": meta, "addressType": family, "ports": ports, "endpoints": endpoints,
            }))
        })
}

fn any_node() -> impl Strategy<Value = Value> {
    let address = (
        one_of(&["InternalIP", "ExternalIP", "Hostname", ""]),
        one_of(ADDRESSES),
    )
        .prop_map(|(type_, address)| json!({"type": type_, "address": address}));
    let taint = one_of(&["ToBeDeletedByClusterAutoscaler", "other"])
        .prop_map(|key| json!({"key": key, "effect": "NoSchedule", "timeAdded": TIMES[0]}));
    (
        meta(),
        some(one_of(RANGES)),
        option::of(vec(one_of(RANGES), 0..3)),
        option::of(vec(taint, 0..3)),
        option::of(vec(address, 0..4)),
    )
        .prop_map(|(meta, cidr, cidrs, taints, addresses)| {
            without_absent(json!({
                "metadata": meta,
                "spec": {"podCIDR": cidr, "podCIDRs": cidrs, "taints": taints, "providerID": "p"},
                "status": {
                    "addresses": addresses, "capacity": {"cpu": "1e18"},
                    "conditions": [{"type": "Ready", "lastHeartbeatTime": TIMES[4]}],
                },
            }))
        })
}

proptest! {
    #[test]
    fn services_are_the_same(object in any_service()) {
        same::<core::Service, _>(&object, Converter::service);
    }

    #[test]
    fn slices_are_the_same(object in any_slice()) {
        same::<discovery::EndpointSlice, _>(&object, Converter::slice);
    }

    #[test]
    fn nodes_are_the_same(object in any_node()) {
        same::<core::Node, _>(&object, Converter::node);
        let mut object = object;
        object["kind"] = "Node".into();
        let json: Outline = object::decode(object.to_string().as_bytes()).unwrap();
        let message: Outline = decode_bare(bare(&object).into()).unwrap();
        prop_assert_eq!(message.claims(), json.claims());
        prop_assert_eq!(&message.metadata().name, &json.metadata().name);
    }

    #[test]
    fn ranges_are_the_same(meta in meta(), cidrs in option::of(vec(one_of(RANGES), 0..3))) {
        let object = without_absent(json!({"metadata": meta, "spec": {"cidrs": cidrs}}));
        same::<networking::ServiceCIDR, _>(&object, Converter::service_cidr);
    }

    /// Whatever the bytes are: an object or an error, and no panic.
    #[test]
    fn any_bytes_are_survived(bytes in vec(any::<u8>(), 0..200), changed in any_service()) {
        drop(decode::<core::Service>(bytes.clone().into()));
        drop(decode_bare::<discovery::EndpointSlice>(bytes.clone().into()));
        let mut changed = changed;
        changed["kind"] = "Service".into();
        let mut whole = bare(&changed);
        for (place, byte) in bytes.chunks_exact(2).map(|pair| (pair[0], pair[1])) {
            let length = whole.len();
            whole[usize::from(place) * 7 % length] = byte;
        }
        drop(decode_bare::<core::Service>(whole.into()));
    }
}

#[test]
fn texts_that_are_none_are_those_of_json() {
    // What Go's encoder makes of each: one U+FFFD for each byte.
    for (bytes, expected) in [
        (&b"a\xffb"[..], "a\u{fffd}b"),
        (b"\xe2\x82", "\u{fffd}\u{fffd}"),
        (b"\xf0\x9f\x92x", "\u{fffd}\u{fffd}\u{fffd}x"),
        ("ä€".as_bytes(), "ä€"),
    ] {
        assert_eq!(lossy(bytes), expected);
    }
}

#[test]
fn what_repeats_is_merged_as_protobuf_says() {
    let object = json!({"kind": "Service", "metadata": {"name": "a", "namespace": "ns"}});
    let more = [
        field(1, &field(1, b"b")),
        field(2, &number(12, 5)),
        field(2, &field(3, b"10.96.0.1")),
    ];
    let bytes = [bare(&object), more.concat()].concat();
    let service: core::Service = decode_bare(bytes.into()).unwrap();
    assert_eq!(service.metadata.name.as_deref(), Some("b"));
    assert_eq!(service.metadata.namespace.as_deref(), Some("ns"));
    let spec = service.spec.unwrap();
    assert_eq!(spec.health_check_node_port, Some(5));
    assert_eq!(spec.cluster_ip.as_deref(), Some("10.96.0.1"));
}

#[test]
fn what_cannot_be_read_is_named_as_far_as_it_goes() {
    let object = json!({"kind": "Service", "metadata": {
        "name": "a", "namespace": "ns", "labels": {"kubernetes.io/service-name": "w", "x": "y"},
    }});
    let bad = [
        bare(&object),
        field(2, &field(14, &field(1, &field(1, b"")))),
    ]
    .concat();
    let error = decode_bare::<core::Service>(bad.into()).unwrap_err();
    assert_eq!(error.metadata.name.as_deref(), Some("a"));
    assert_eq!(error.metadata.labels.unwrap().len(), 2);
    assert_eq!(
        error.field,
        "spec.sessionAffinityConfig.clientIP.timeoutSeconds"
    );
    assert!(
        error.message.starts_with("invalid wire type"),
        "{}",
        error.message
    );
    // It breaks off within the name.
    let cut = bare(&object)[..4].to_vec();
    let error = decode_bare::<core::Service>(cut.into()).unwrap_err();
    assert_eq!(error.field, "metadata");
    let error = decode::<core::Service>(Bytes::from_static(b"{}")).unwrap_err();
    assert_eq!((&*error.field, &*error.message), ("", "malformed"));
}

#[test]
fn an_age_before_the_calendar_is_the_youngest() {
    for (seconds, is_young) in [(i64::MIN, true), (i64::MAX, true), (-1, false), (1, false)] {
        let meta = field(1, &field(8, &number(1, seconds)));
        let service: core::Service = decode_bare(meta.into()).unwrap();
        let created = service.metadata.creation_timestamp.unwrap().0;
        assert_eq!(created.as_second() > 1_000, is_young, "{seconds}");
    }
}
