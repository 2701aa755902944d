// SPDX-License-Identifier: Apache-2.0
//! Decodes one object of the API server, as JSON here, as protobuf in [`message`]. Only the fields
//! that [`super::super::convert`] reads are decoded, into types that take whatever an API server
//! can hold there: nobody can hide an object, or the ones beside it, behind a field that the proxy
//! has no use for (a time at the end of the year 9999 in a condition, a quantity, an enum value of
//! a later version).

use std::collections::BTreeMap;

use bytes::Bytes;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;

use super::encoding::Encoding;
use super::message;

/// An object, or why it cannot be read.
pub(super) type Object<K> = Result<K, Box<Unreadable>>;

/// An object that does not have the fields of its kind.
#[derive(Clone, Debug)]
pub(super) struct Unreadable {
    /// As far as they can be read: name, namespace, labels and resource version.
    pub(super) metadata: ObjectMeta,
    /// Path of the field: `spec.ports[1].port`.
    pub(super) field: String,
    pub(super) message: String,
}

/// A kind with the fields of it that are decoded.
pub(super) trait Decode: Sized {
    /// In JSON.
    type Fields: DeserializeOwned + Into<Self>;
    /// In protobuf.
    type Message: prost::Message + Default + Into<Self>;

    fn metadata(&self) -> &ObjectMeta;
}

/// Metadata of an object that can be read or not.
pub(super) fn metadata<K: Decode>(object: &Object<K>) -> &ObjectMeta {
    match object {
        Ok(object) => object.metadata(),
        Err(unreadable) => &unreadable.metadata,
    }
}

/// Decodes an object that came in this form.
pub(super) fn decode_item<K: Decode>(encoding: Encoding, bytes: Bytes) -> Object<K> {
    match encoding {
        Encoding::Json => decode(&bytes),
        Encoding::Protobuf => message::decode_bare(bytes),
    }
}

/// Decodes an object from JSON.
pub(super) fn decode<K: Decode>(json: &[u8]) -> Object<K> {
    serde_json::from_slice::<K::Fields>(json)
        .map(K::Fields::into)
        .map_err(|_said_below| Box::new(unreadable::<K::Fields>(json)))
}

/// The object in an event of a watch.
#[derive(Deserialize)]
pub(super) struct InEvent<T> {
    pub(super) object: T,
}

/// Decodes the object in an event of a watch, which is one line of JSON.
pub(super) fn decode_in<K: Decode>(line: &[u8]) -> Object<K> {
    if let Ok(event) = serde_json::from_slice::<InEvent<K::Fields>>(line) {
        return Ok(event.object.into());
    }
    let event: Value = serde_json::from_slice(line).unwrap_or_default();
    let object = event.get("object").map(Value::to_string);
    decode(object.unwrap_or_default().as_bytes())
}

/// Reads an object again that could not be read, to say what is wrong with it. Rare.
fn unreadable<F: DeserializeOwned>(json: &[u8]) -> Unreadable {
    let mut track = serde_path_to_error::Track::new();
    let mut json_reader = serde_json::Deserializer::from_slice(json);
    let tracked = serde_path_to_error::Deserializer::new(&mut json_reader, &mut track);
    let message = match F::deserialize(tracked) {
        // It is no JSON from some place on.
        Ok(_) => "malformed".to_owned(),
        // Without the place: an object is one line, and its columns say nothing.
        Err(error) => {
            let text = error.to_string();
            text.split(" at line ").next().unwrap_or(&text).to_owned()
        }
    };
    let field = track.path().to_string();
    let value: Value = serde_json::from_slice(json).unwrap_or_default();
    let text = |name: &str| value.pointer(name)?.as_str().map(str::to_owned);
    let labels = value.pointer("/metadata/labels").and_then(Value::as_object);
    Unreadable {
        metadata: ObjectMeta {
            name: text("/metadata/name"),
            namespace: text("/metadata/namespace"),
            resource_version: text("/metadata/resourceVersion"),
            labels: labels.map(|labels| {
                let labels = labels.iter();
                labels
                    .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
                    .collect()
            }),
            ..ObjectMeta::default()
        },
        field: if field == "." { String::new() } else { field },
        message,
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    creation_timestamp: Option<String>,
    deletion_timestamp: Option<IgnoredAny>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
}

impl From<Meta> for ObjectMeta {
    fn from(meta: Meta) -> Self {
        Self {
            name: meta.name,
            namespace: meta.namespace,
            uid: meta.uid,
            resource_version: meta.resource_version,
            // Age decides between Services: what has none that can be read is the youngest.
            creation_timestamp: meta
                .creation_timestamp
                .map(|text| Time(text.parse().unwrap_or(Timestamp::MAX))),
            // Only that there is one counts.
            deletion_timestamp: meta
                .deletion_timestamp
                .map(|_any| Time(Timestamp::UNIX_EPOCH)),
            labels: meta.labels,
            annotations: meta.annotations,
            ..Self::default()
        }
    }
}

/// Metadata of an object that may have none.
fn meta(meta: Option<Meta>) -> ObjectMeta {
    meta.map(ObjectMeta::from).unwrap_or_default()
}

/// Converts the items of a list that may be missing.
fn list<A, B>(items: Option<Vec<A>>, convert: impl Fn(A) -> B) -> Option<Vec<B>> {
    Some(items?.into_iter().map(convert).collect())
}

#[derive(Deserialize)]
pub(super) struct ServiceFields {
    metadata: Option<Meta>,
    spec: Option<ServiceSpec>,
    status: Option<ServiceStatus>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServiceSpec {
    #[serde(rename = "type")]
    type_: Option<String>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
    ip_families: Option<Vec<String>>,
    ports: Option<Vec<ServicePort>>,
    #[serde(rename = "externalIPs")]
    external_ips: Option<Vec<String>>,
    external_traffic_policy: Option<String>,
    internal_traffic_policy: Option<String>,
    health_check_node_port: Option<i32>,
    load_balancer_source_ranges: Option<Vec<String>>,
    session_affinity: Option<String>,
    session_affinity_config: Option<core::SessionAffinityConfig>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServicePort {
    name: Option<String>,
    protocol: Option<String>,
    #[serde(default)]
    port: i32,
    node_port: Option<i32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServiceStatus {
    load_balancer: Option<LoadBalancer>,
}

#[derive(Deserialize)]
struct LoadBalancer {
    ingress: Option<Vec<Ingress>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ingress {
    ip: Option<String>,
    ip_mode: Option<String>,
}

impl Decode for core::Service {
    type Fields = ServiceFields;
    type Message = message::Service;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}

impl From<ServiceFields> for core::Service {
    fn from(fields: ServiceFields) -> Self {
        Self {
            metadata: meta(fields.metadata),
            spec: fields.spec.map(|spec| core::ServiceSpec {
                type_: spec.type_,
                cluster_ip: spec.cluster_ip,
                cluster_ips: spec.cluster_ips,
                ip_families: spec.ip_families,
                ports: list(spec.ports, |port| core::ServicePort {
                    name: port.name,
                    protocol: port.protocol,
                    port: port.port,
                    node_port: port.node_port,
                    ..core::ServicePort::default()
                }),
                external_ips: spec.external_ips,
                external_traffic_policy: spec.external_traffic_policy,
                internal_traffic_policy: spec.internal_traffic_policy,
                health_check_node_port: spec.health_check_node_port,
                load_balancer_source_ranges: spec.load_balancer_source_ranges,
                session_affinity: spec.session_affinity,
                session_affinity_config: spec.session_affinity_config,
                ..core::ServiceSpec::default()
            }),
            status: fields.status.map(|status| core::ServiceStatus {
                load_balancer: status
                    .load_balancer
                    .map(|balancer| core::LoadBalancerStatus {
                        ingress: list(balancer.ingress, |ingress| core::LoadBalancerIngress {
                            ip: ingress.ip,
                            ip_mode: ingress.ip_mode,
                            ..core::LoadBalancerIngress::default()
                        }),
                    }),
                ..core::ServiceStatus::default()
            }),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SliceFields {
    metadata: Option<Meta>,
    #[serde(default)]
    address_type: String,
    ports: Option<Vec<SlicePort>>,
    endpoints: Option<Vec<Endpoint>>,
}

#[derive(Deserialize)]
struct SlicePort {
    name: Option<String>,
    protocol: Option<String>,
    port: Option<i32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    addresses: Option<Vec<String>>,
    conditions: Option<discovery::EndpointConditions>,
    hints: Option<discovery::EndpointHints>,
    node_name: Option<String>,
    zone: Option<String>,
}

impl Decode for discovery::EndpointSlice {
    type Fields = SliceFields;
    type Message = message::EndpointSlice;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}

impl From<SliceFields> for discovery::EndpointSlice {
    fn from(fields: SliceFields) -> Self {
        Self {
            metadata: meta(fields.metadata),
            address_type: fields.address_type,
            ports: list(fields.ports, |port| discovery::EndpointPort {
                name: port.name,
                protocol: port.protocol,
                port: port.port,
                ..discovery::EndpointPort::default()
            }),
            endpoints: list(fields.endpoints, |endpoint| discovery::Endpoint {
                addresses: endpoint.addresses.unwrap_or_default(),
                conditions: endpoint.conditions,
                hints: endpoint.hints,
                node_name: endpoint.node_name,
                zone: endpoint.zone,
                ..discovery::Endpoint::default()
            }),
        }
    }
}

#[derive(Deserialize)]
pub(super) struct NodeFields {
    metadata: Option<Meta>,
    spec: Option<NodeSpec>,
    status: Option<NodeStatus>,
}

#[derive(Deserialize)]
struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
    taints: Option<Vec<Taint>>,
}

#[derive(Deserialize)]
struct Taint {
    #[serde(default)]
    key: String,
}

#[derive(Deserialize)]
struct NodeStatus {
    addresses: Option<Vec<core::NodeAddress>>,
}

impl Decode for core::Node {
    type Fields = NodeFields;
    type Message = message::Node;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}

impl From<NodeFields> for core::Node {
    fn from(fields: NodeFields) -> Self {
        Self {
            metadata: meta(fields.metadata),
            spec: fields.spec.map(|spec| core::NodeSpec {
                pod_cidr: spec.pod_cidr,
                pod_cidrs: spec.pod_cidrs,
                taints: list(spec.taints, |taint| core::Taint {
                    key: taint.key,
                    ..core::Taint::default()
                }),
                ..core::NodeSpec::default()
            }),
            status: fields.status.map(|status| core::NodeStatus {
                addresses: status.addresses,
                ..core::NodeStatus::default()
            }),
        }
    }
}

#[derive(Deserialize)]
pub(super) struct CidrFields {
    metadata: Option<Meta>,
    spec: Option<CidrSpec>,
}

#[derive(Deserialize)]
struct CidrSpec {
    cidrs: Option<Vec<String>>,
}

impl Decode for networking::ServiceCIDR {
    type Fields = CidrFields;
    type Message = message::ServiceCidr;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}

impl From<CidrFields> for networking::ServiceCIDR {
    fn from(fields: CidrFields) -> Self {
        Self {
            metadata: meta(fields.metadata),
            spec: fields
                .spec
                .map(|spec| networking::ServiceCIDRSpec { cidrs: spec.cidrs }),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests;
