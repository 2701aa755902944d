// SPDX-License-Identifier: Apache-2.0
//! The decoder beside that of `k8s_openapi`: what the converter makes of both is the same.

use std::fmt::Debug;

use serde_json::json;

use super::super::super::convert::{Converted, Converter};
use super::super::super::{Options, Problem};
use super::*;

fn converter() -> Converter {
    Converter::new(&Options {
        node_name: "here".into(),
        allow_external_ips: true,
        annotations: crate::source::Annotations::default(),
        cluster: crate::source::ClusterSize::default(),
    })
}

/// Each field that the converter reads counts in both.
fn same<K, T>(object: &Value, convert: impl Fn(&mut Converter, &K) -> Converted<T>) -> T
where
    K: Decode + DeserializeOwned,
    T: PartialEq + Debug,
{
    let ours: K = decode(object.to_string().as_bytes()).expect("it can be read");
    let theirs: K = serde_json::from_value(object.clone()).expect("it can be read");
    let (ours, problems) = convert(&mut converter(), &ours);
    let (theirs, their_problems) = convert(&mut converter(), &theirs);
    assert_eq!(ours, theirs);
    assert_eq!(problems, their_problems);
    assert_eq!(problems, Vec::<Problem>::new());
    ours.expect("it is one that counts")
}

#[test]
fn no_field_of_a_service_is_lost() {
    let object = json!({
        "metadata": {
            "name": "web", "namespace": "ns", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"a": "b"}, "annotations": {"kube-proxy-rs.io/scheduler": "rr"},
        },
        "spec": {
            "type": "LoadBalancer", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"],
            "ipFamilies": ["IPv4", "IPv6"],
            "ports": [{"name": "a", "port": 80, "protocol": "UDP", "nodePort": 30080}],
            "externalIPs": ["192.0.2.1"], "externalTrafficPolicy": "Local",
            "internalTrafficPolicy": "Local", "healthCheckNodePort": 31000,
            "loadBalancerSourceRanges": ["10.0.0.0/8"], "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 30}},
        },
        "status": {"loadBalancer": {"ingress": [
            {"ip": "192.0.2.2", "ipMode": "VIP"}, {"ip": "192.0.2.3", "ipMode": "Proxy"},
        ]}},
    });
    let service = same::<core::Service, _>(&object, Converter::service);
    assert_eq!(service.load_balancer_vips.len(), 1);
    assert!(service.created > 0);
    assert!(service.health_check_node_port.is_some());
    let another = json!({"metadata": {
        "name": "web", "labels": {"service.kubernetes.io/service-proxy-name": "x"},
    }, "spec": {"clusterIP": "10.96.0.1"}});
    let another: core::Service = decode(another.to_string().as_bytes()).unwrap();
    assert_eq!(converter().service(&another), (None, Vec::new()));
}

#[test]
fn no_field_of_a_slice_is_lost() {
    let object = json!({
        "metadata": {
            "name": "web-1", "namespace": "ns", "labels": {"kubernetes.io/service-name": "web"},
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:00Z"},
        },
        "addressType": "IPv4", "ports": [{"name": "a", "port": 8080, "protocol": "UDP"}],
        "endpoints": [
            {
                "addresses": ["10.0.0.1"], "nodeName": "here",
                "conditions": {"ready": false, "serving": true, "terminating": true},
                "hints": {"forZones": [{"name": "z"}], "forNodes": [{"name": "here"}]},
            },
            {"addresses": ["10.0.0.2"]},
        ],
    });
    let slice = same::<discovery::EndpointSlice, _>(&object, Converter::slice);
    assert!(slice.endpoints[0].local);
    assert!(slice.last_change_trigger.is_some());
}

#[test]
fn no_field_of_a_node_or_a_range_is_lost() {
    let object = json!({
        "metadata": {
            "name": "here", "labels": {"topology.kubernetes.io/zone": "z"},
            "deletionTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {
            "podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd00::/64"],
            "taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}],
        },
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
    });
    let node = same::<core::Node, _>(&object, Converter::node);
    assert!(node.being_deleted && node.marked_by_autoscaler);
    assert!(node.zone.is_some());
    let object = json!({"metadata": {"name": "a"}, "spec": {"cidrs": ["10.96.0.0/16"]}});
    same::<networking::ServiceCIDR, _>(&object, Converter::service_cidr);
}

#[test]
fn an_age_that_cannot_be_read_is_the_youngest() {
    for time in ["9999-12-31T23:59:59Z", "10000-01-01T00:00:00Z", "soon"] {
        let object = json!({"metadata": {"name": "a", "creationTimestamp": time}});
        let service: core::Service = decode(object.to_string().as_bytes()).unwrap();
        let created = service.metadata.creation_timestamp.unwrap();
        assert!(
            created.0 > "9999-12-29T00:00:00Z".parse().unwrap(),
            "{time}"
        );
    }
}

#[test]
fn an_object_without_anything_is_one() {
    for text in ["{}", r#"{"metadata": null, "spec": null, "status": null}"#] {
        assert!(decode::<core::Service>(text.as_bytes()).is_ok());
        assert!(decode::<core::Node>(text.as_bytes()).is_ok());
        assert!(decode::<discovery::EndpointSlice>(text.as_bytes()).is_ok());
        assert!(decode::<networking::ServiceCIDR>(text.as_bytes()).is_ok());
    }
}

#[test]
fn what_cannot_be_read_is_named_as_far_as_it_goes() {
    let text = r#"{"type": "ADDED", "object": {"metadata": {"name": "a", "namespace": "ns", "labels": {"l": "x", "m": 5}}}}"#;
    let error = decode_in::<core::Service>(text.as_bytes()).unwrap_err();
    assert_eq!(error.metadata.name.as_deref(), Some("a"));
    assert_eq!(error.metadata.labels.unwrap().len(), 1);
    assert_eq!(error.field, "metadata.labels.m");
    assert_eq!(
        error.message,
        "invalid type: integer `5`, expected a string"
    );
    let error = decode::<core::Service>(b"[]").unwrap_err();
    assert_eq!(error.field, "");
}
