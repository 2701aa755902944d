// SPDX-License-Identifier: Apache-2.0
//! What decoding an object of the API server costs, in each form, and converting it to the model.
#![allow(clippy::unwrap_used, reason = "a benchmark may fail loudly")]

use bytes::Bytes;
use divan::counter::BytesCount;
use divan::{AllocProfiler, Bencher};
use serde_json::{Value, json};

use kpr_testkit::protobuf;
use kube_proxy_rs::source::convert::Converter;
use kube_proxy_rs::source::kubernetes::{Encoding, decode_service, decode_slice};
use kube_proxy_rs::source::{Annotations, ClusterSize, Options};

/// Counts what is allocated.
#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

const FORMS: [Encoding; 2] = [Encoding::Protobuf, Encoding::Json];

/// As an API server has them, with what the proxy has no use for.
fn metadata(name: &str, owners: &[Value]) -> Value {
    json!({
        "name": name,
        "namespace": "shop",
        "uid": "6f3e7a0e-5a39-4a5c-9a53-3f0a4a1f4a77",
        "resourceVersion": "1234567",
        "generation": 3,
        "ownerReferences": owners,
        "creationTimestamp": "2026-11-27T01:15:00Z",
        "labels": {
            "app.kubernetes.io/name": "web",
            "kubernetes.io/service-name": "web",
            "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"
        },
        "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-11-27T01:15:00Z"},
        "managedFields": [{
            "manager": "kube-controller-manager",
            "operation": "Update",
            "apiVersion": "v1",
            "time": "2026-11-27T01:15:00Z",
            "fieldsType": "FieldsV1",
            "fieldsV1": {"f:metadata": {"f:labels": {".": {}, "f:app.kubernetes.io/name": {}}}}
        }]
    })
}

fn service() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata("web", &[]),
        "spec": {
            "type": "NodePort",
            "clusterIP": "10.96.7.9",
            "clusterIPs": ["10.96.7.9"],
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster",
            "externalTrafficPolicy": "Cluster",
            "sessionAffinity": "None",
            "selector": {"app.kubernetes.io/name": "web"},
            "ports": [
                {"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080, "nodePort": 30080},
                {"name": "https", "protocol": "TCP", "port": 443, "targetPort": "tls", "nodePort": 30443}
            ]
        },
        "status": {"loadBalancer": {}}
    })
}

fn slice(endpoints: usize) -> Value {
    let endpoint = |index: usize| {
        json!({
            "addresses": [format!("10.1.{}.{}", index / 250, index % 250 + 1)],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": format!("worker-{}", index % 50),
            "zone": "zone-a",
            "targetRef": {
                "kind": "Pod",
                "namespace": "shop",
                "name": format!("web-7d9c5b8f6d-{index:05}"),
                "uid": "0c1f2d3e-4b5a-6978-8796-a5b4c3d2e1f0"
            }
        })
    };
    let owner = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "name": "web",
        "uid": "6f3e7a0e-5a39-4a5c-9a53-3f0a4a1f4a77",
        "controller": true,
        "blockOwnerDeletion": true
    });
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": metadata("web-x7k2p", &[owner]),
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": (0..endpoints).map(endpoint).collect::<Vec<_>>()
    })
}

fn converter() -> Converter {
    Converter::new(&Options {
        node_name: "worker-0".into(),
        allow_external_ips: true,
        annotations: Annotations::unlimited(),
        cluster: ClusterSize::default(),
    })
}

fn in_form(encoding: Encoding, object: &Value) -> Bytes {
    match encoding {
        Encoding::Protobuf => protobuf::bare(object).into(),
        Encoding::Json => object.to_string().into(),
    }
}

#[divan::bench(args = FORMS)]
fn of_service(bencher: Bencher<'_, '_>, encoding: Encoding) {
    let bytes = in_form(encoding, &service());
    let mut converter = converter();
    bencher
        .counter(BytesCount::of_slice(&bytes))
        .bench_local(|| converter.service(&decode_service(encoding, bytes.clone()).unwrap()));
}

#[divan::bench(args = FORMS, consts = [1, 10, 100])]
fn of_slice<const ENDPOINTS: usize>(bencher: Bencher<'_, '_>, encoding: Encoding) {
    let bytes = in_form(encoding, &slice(ENDPOINTS));
    let mut converter = converter();
    bencher
        .counter(BytesCount::of_slice(&bytes))
        .bench_local(|| converter.slice(&decode_slice(encoding, bytes.clone()).unwrap()));
}

fn main() {
    divan::main();
}
