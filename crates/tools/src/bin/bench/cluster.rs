// SPDX-License-Identifier: Apache-2.0
//! The measured cluster, as the loader of `hack/testbed` creates it: addresses follow from numbers.

use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

/// Port of the Services, and target port of their endpoints.
pub(crate) const PORT: u16 = 80;
pub(crate) const TARGET_PORT: u16 = 8080;

/// The proxy's node; every fourth endpoint is on it.
pub(crate) const NODE: &str = "node-a";

/// Endpoints in a slice, as in upstream's controller.
const PER_SLICE: u16 = 100;

/// First number of the Services that cases create and delete; the loader's are below. They have ten
/// endpoints in every cluster.
pub(crate) const NEW: u16 = 21_000;
pub(crate) const NEW_ENDPOINTS: u16 = 10;

pub(crate) fn name(service: u16) -> String {
    format!("svc-{service:05}")
}

pub(crate) fn slice_name(service: u16) -> String {
    format!("svc-{service:05}-0")
}

pub(crate) fn cluster_ip(service: u16) -> Ipv4Addr {
    let [high, low] = service.to_be_bytes();
    Ipv4Addr::new(10, 97, high, low)
}

/// Unique for up to 24,576 Services with 256 endpoints or 4,096 with 1,024; in 10.128.0.0/10 and,
/// from the 16,385th Service on, 10.192.0.0/11.
pub(crate) fn endpoint(service: u16, index: u16) -> Ipv4Addr {
    let ([high, low], [more, index]) = (service.to_be_bytes(), index.to_be_bytes());
    Ipv4Addr::new(10, 128 | more << 4 | high, low, index)
}

pub(crate) const fn is_local(index: u16) -> bool {
    index.is_multiple_of(4)
}

/// A Service without an address: the API server assigns one. If it selects Pods, the controller
/// creates its slices.
pub(crate) fn service(number: u16, selects_pods: bool) -> anyhow::Result<Service> {
    let selector = selects_pods.then(|| json!({ "app": name(number) }));
    Ok(serde_json::from_value(json!({
        "metadata": { "name": name(number), "namespace": "load" },
        "spec": {
            "ports": [{ "name": "http", "port": PORT, "targetPort": TARGET_PORT, "protocol": "TCP" }],
            "selector": selector,
        },
    }))?)
}

/// The slices of a Service, where no controller creates them.
pub(crate) fn slices(number: u16, endpoints: u16) -> anyhow::Result<Vec<EndpointSlice>> {
    (0..endpoints.div_ceil(PER_SLICE))
        .map(|index| {
            let first = index * PER_SLICE;
            let of_slice: Vec<Value> = (first..endpoints.min(first + PER_SLICE))
                .map(|index| {
                    let node = if is_local(index) { NODE } else { "node-b" };
                    json!({
                        "addresses": [endpoint(number, index)],
                        "nodeName": node,
                        "conditions": { "ready": true, "serving": true, "terminating": false },
                    })
                })
                .collect();
            Ok(serde_json::from_value(json!({
                "metadata": {
                    "name": format!("{}-{index}", name(number)),
                    "namespace": "load",
                    "labels": { "kubernetes.io/service-name": name(number) },
                },
                "addressType": "IPv4",
                "endpoints": of_slice,
                "ports": [{ "name": "http", "port": TARGET_PORT, "protocol": "TCP" }],
            }))?)
        })
        .collect()
}

pub(crate) fn pod_name(service: u16, index: u16) -> String {
    format!("{}-{index}", name(service))
}

/// A Pod that a Service selects. No kubelet runs it; its status is written by [`pod_status`].
pub(crate) fn pod(service: u16, index: u16) -> anyhow::Result<Pod> {
    Ok(serde_json::from_value(json!({
        "metadata": {
            "name": pod_name(service, index),
            "namespace": "load",
            "labels": { "app": name(service) },
        },
        "spec": {
            "nodeName": if is_local(index) { NODE.to_owned() } else { format!("{NODE}-remote-{}", index % 4) },
            "containers": [{ "name": "server", "image": "none" }],
        },
    }))?)
}

/// The status the kubelet would write.
pub(crate) fn pod_status(service: u16, index: u16, is_ready: bool) -> Value {
    let address = endpoint(service, index);
    let ready = if is_ready { "True" } else { "False" };
    json!({ "status": {
        "phase": "Running",
        "podIP": address,
        "podIPs": [{ "ip": address }],
        "conditions": [{ "type": "Ready", "status": ready }],
    }})
}
