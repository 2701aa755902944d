// SPDX-License-Identifier: Apache-2.0
//! The objects of a large cluster, with all the metadata the API server adds.

use std::net::Ipv4Addr;

use kpr_testkit::protobuf;
use kube_proxy_rs::source::kubernetes::Encoding;
use serde_json::{Value, json};

/// Nodes the endpoints are spread over.
const NODES: u32 = 5_000;
const CLUSTER_IPS: u32 = u32::from_be_bytes([10, 96, 1, 0]);
const PODS: u32 = u32::from_be_bytes([10, 128, 0, 0]);

/// Number of endpoints of a Service: 12 or 13.
const fn endpoints_of(service: u32) -> u32 {
    12 + service % 2
}

/// Number of endpoints of all Services together.
pub(crate) const fn endpoints(services: u32) -> u32 {
    services * 12 + services / 2
}

fn metadata(kind: &str, service: u32, version: u64) -> Value {
    let name = match kind {
        "EndpointSlice" => format!("service-{service}-x7k2p"),
        _ => format!("service-{service}"),
    };
    json!({
        "name": name,
        "namespace": format!("team-{}", service % 50),
        "uid": format!("6f1d2a34-{:04x}-4c1b-9d7e-{service:012x}", service % 0x1_0000),
        "resourceVersion": version.to_string(),
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "labels": {
            "app.kubernetes.io/name": format!("service-{service}"),
            "kubernetes.io/service-name": format!("service-{service}"),
            "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
        },
        "managedFields": [{
            "manager": "kube-controller-manager", "operation": "Update",
            "apiVersion": "v1", "time": "2026-01-01T00:00:00Z", "fieldsType": "FieldsV1",
            "fieldsV1": {"f:addressType": {}, "f:endpoints": {}, "f:metadata": {"f:labels": {
                ".": {}, "f:app.kubernetes.io/name": {}, "f:kubernetes.io/service-name": {}}}, "f:ports": {}},
        }],
    })
}

pub(crate) fn service(service: u32) -> Value {
    let address = Ipv4Addr::from(CLUSTER_IPS + service);
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": metadata("Service", service, 1),
        "spec": {
            "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
            "selector": {"app": format!("service-{service}")},
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}],
        },
        "status": {"loadBalancer": {}},
    })
}

/// A slice. Each change replaces its last endpoint.
pub(crate) fn slice(service: u32, version: u64, change: u32) -> Value {
    slice_of(service, endpoints_of(service), version, change)
}

fn slice_of(service: u32, count: u32, version: u64, change: u32) -> Value {
    let endpoint = |index: u32| {
        // Unique addresses, also for endpoints that later changes bring.
        let slot = service * 128
            + if index + 1 == count {
                100 + change % 2
            } else {
                index
            };
        json!({
            "addresses": [Ipv4Addr::from(PODS + slot)],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": format!("node-{}", (service * 13 + index) % NODES),
            "zone": format!("zone-{}", index % 3),
            "targetRef": {
                "kind": "Pod", "namespace": format!("team-{}", service % 50),
                "name": format!("service-{service}-5d9c7b6f4-{slot:05x}"),
                "uid": format!("0b6f63a2-8f1e-4a53-b1c4-{slot:012x}"),
            },
        })
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": metadata("EndpointSlice", service, version),
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": (0..count).map(endpoint).collect::<Vec<_>>(),
    })
}

pub(crate) fn node() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "node-0", "uid": "node-0", "resourceVersion": "1", "labels": {"topology.kubernetes.io/zone": "zone-0"}},
        "spec": {"podCIDR": "10.128.0.0/24", "podCIDRs": ["10.128.0.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
    })
}

/// An event of a watch, in this form.
pub(crate) fn event(form: Encoding, kind: &str, object: &Value) -> Vec<u8> {
    let event = json!({"type": kind, "object": object});
    match form {
        Encoding::Json => format!("{event}\n").into_bytes(),
        Encoding::Protobuf => protobuf::event(&event),
    }
}

pub(crate) const fn media_type(form: Encoding) -> &'static str {
    match form {
        Encoding::Json => "application/json",
        Encoding::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
    }
}

/// The event for a change of a slice with that many endpoints, in the form that kube-proxy and we
/// ask for by default.
pub(crate) fn event_of(endpoints: u32) -> Vec<u8> {
    event(
        Encoding::Protobuf,
        "MODIFIED",
        &slice_of(1, endpoints, 1_000_000, 0),
    )
}
