// SPDX-License-Identifier: Apache-2.0
//! The cluster that is measured, as `hack/testbed`'s loader makes it: addresses by number.

use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use crate::Shape;

/// Port of the Services, port of their endpoints.
pub(crate) const PORT: u16 = 80;
pub(crate) const TARGET_PORT: u16 = 8080;

/// The node whose endpoints are local: every fourth.
pub(crate) const NODE: &str = "node-a";

/// Services in one file.
const PER_FILE: u16 = 100;

pub(crate) fn cluster_ip(service: u16) -> Ipv4Addr {
    let [high, low] = service.to_be_bytes();
    Ipv4Addr::new(10, 97, high, low)
}

pub(crate) fn endpoint(service: u16, index: u8) -> Ipv4Addr {
    let [high, low] = service.to_be_bytes();
    Ipv4Addr::new(10, 128 | high, low, index)
}

pub(crate) const fn is_local(index: u8) -> bool {
    index.is_multiple_of(4)
}

/// A Service and its slice for an API server, which chooses the address.
pub(crate) fn objects(number: u16, endpoints: u8) -> anyhow::Result<(Service, EndpointSlice)> {
    let mut object: Service = serde_json::from_value(service(number))?;
    if let Some(spec) = &mut object.spec {
        (spec.cluster_ip, spec.cluster_ips) = (None, None);
    }
    Ok((object, serde_json::from_value(slice(number, endpoints))?))
}

/// Writes the Services and their slices as JSON lists, as `kubectl get -o json` has them.
pub(crate) fn write(folder: &Path, shape: Shape) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder)?;
    let numbers: Vec<u16> = (0..shape.services).collect();
    for (index, chunk) in numbers.chunks(PER_FILE.into()).enumerate() {
        let items: Vec<Value> = chunk
            .iter()
            .flat_map(|number| [service(*number), slice(*number, shape.endpoints)])
            .collect();
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
        let path = folder.join(format!("{index:04}.json"));
        std::fs::write(&path, serde_json::to_string_pretty(&list)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn service(number: u16) -> Value {
    let address = cluster_ip(number);
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": format!("svc-{number:05}"), "namespace": "load" },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address,
            "clusterIPs": [address],
            "ipFamilies": ["IPv4"],
            "ports": [{ "name": "http", "port": PORT, "targetPort": TARGET_PORT, "protocol": "TCP" }],
        },
    })
}

fn slice(number: u16, endpoints: u8) -> Value {
    let endpoints: Vec<Value> = (0..endpoints)
        .map(|index| {
            let node = if is_local(index) { NODE } else { "node-b" };
            json!({
                "addresses": [endpoint(number, index)],
                "nodeName": node,
                "conditions": { "ready": true, "serving": true, "terminating": false },
            })
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("svc-{number:05}-0"),
            "namespace": "load",
            "labels": { "kubernetes.io/service-name": format!("svc-{number:05}") },
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{ "name": "http", "port": TARGET_PORT, "protocol": "TCP" }],
    })
}
