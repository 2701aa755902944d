// SPDX-License-Identifier: Apache-2.0
//! The messages of each kind. Fields that an API server always writes have no `optional`: empty is
//! absent, as in its JSON.

use std::collections::BTreeMap;

use bytes::Bytes;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time as MetaTime};
use k8s_openapi::jiff::Timestamp;
use prost::Message;

use super::super::all_nodes::Outline;
use super::{lossy, text};
use crate::source::convert;

/// A text that may be empty.
fn given(bytes: Option<&Bytes>) -> Option<String> {
    bytes.map(|bytes| lossy(bytes))
}

fn texts(list: &[Bytes]) -> Option<Vec<String>> {
    (!list.is_empty()).then(|| list.iter().map(|bytes| lossy(bytes)).collect())
}

/// The entries of a map whose keys count.
fn chosen(entries: &[Entry], is_read: fn(&str) -> bool) -> BTreeMap<String, String> {
    let entries = entries.iter().filter_map(|entry| {
        let key = std::str::from_utf8(&entry.key).ok()?;
        is_read(key).then(|| (key.to_owned(), lossy(&entry.value)))
    });
    entries.collect()
}

/// Converts the items of a list.
fn list<A, B>(items: Vec<A>, convert: impl FnMut(A) -> B) -> Option<Vec<B>> {
    (!items.is_empty()).then(|| items.into_iter().map(convert).collect())
}

/// Any object, as far as its name.
#[derive(Clone, PartialEq, Message)]
pub(in super::super) struct Named {
    #[prost(message, optional, tag = "1")]
    pub(in super::super) metadata: Option<Metadata>,
}

#[derive(Clone, PartialEq, Message)]
pub(in super::super) struct Metadata {
    #[prost(bytes = "bytes", tag = "1")]
    name: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    namespace: Bytes,
    #[prost(bytes = "bytes", tag = "5")]
    uid: Bytes,
    #[prost(bytes = "bytes", tag = "6")]
    resource_version: Bytes,
    #[prost(message, optional, tag = "8")]
    creation_timestamp: Option<Time>,
    #[prost(message, optional, tag = "9")]
    deletion_timestamp: Option<Time>,
    #[prost(message, repeated, tag = "11")]
    labels: Vec<Entry>,
    #[prost(message, repeated, tag = "12")]
    annotations: Vec<Entry>,
}

/// An entry of a map.
#[derive(Clone, PartialEq, Message)]
struct Entry {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Time {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

/// The begin of the year 0: JSON has no earlier times.
const YEAR_0: i64 = -62_167_219_200;

impl Time {
    /// `None`: no time, which is written as none of its fields.
    fn timestamp(self) -> Option<Timestamp> {
        if (self.seconds, self.nanos) == (0, 0) {
            return None;
        }
        let seconds = Some(self.seconds).filter(|seconds| *seconds >= YEAR_0);
        let time = seconds.and_then(|seconds| Timestamp::from_second(seconds).ok());
        // Age decides between Services: what has none that can be read is the youngest.
        Some(time.unwrap_or(Timestamp::MAX))
    }
}

impl Metadata {
    /// The value of an annotation.
    pub(in super::super) fn annotation(&self, name: &str) -> Option<&[u8]> {
        let mut entries = self.annotations.iter().rev();
        let entry = entries.find(|entry| entry.key == name)?;
        Some(&entry.value)
    }

    pub(in super::super) fn resource_version(&self) -> Option<String> {
        text(&self.resource_version)
    }
}

impl From<Metadata> for ObjectMeta {
    fn from(meta: Metadata) -> Self {
        let time = |time: Option<Time>| time.and_then(Time::timestamp).map(MetaTime);
        Self {
            name: text(&meta.name),
            namespace: text(&meta.namespace),
            uid: text(&meta.uid),
            resource_version: text(&meta.resource_version),
            creation_timestamp: time(meta.creation_timestamp),
            deletion_timestamp: time(meta.deletion_timestamp),
            // All: operators choose Services by any label.
            labels: Some(chosen(&meta.labels, |_| true)),
            annotations: Some(chosen(&meta.annotations, convert::reads_annotation)),
            ..Self::default()
        }
    }
}

fn meta(meta: Option<Metadata>) -> ObjectMeta {
    meta.map(ObjectMeta::from).unwrap_or_default()
}

#[derive(Clone, PartialEq, Message)]
pub(in super::super) struct Service {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Metadata>,
    #[prost(message, optional, tag = "2")]
    spec: Option<ServiceSpec>,
    #[prost(message, optional, tag = "3")]
    status: Option<ServiceStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct ServiceSpec {
    #[prost(message, repeated, tag = "1")]
    ports: Vec<ServicePort>,
    #[prost(bytes = "bytes", tag = "3")]
    cluster_ip: Bytes,
    #[prost(bytes = "bytes", tag = "4")]
    r#type: Bytes,
    #[prost(bytes = "bytes", repeated, tag = "5")]
    external_ips: Vec<Bytes>,
    #[prost(bytes = "bytes", tag = "7")]
    session_affinity: Bytes,
    #[prost(bytes = "bytes", repeated, tag = "9")]
    load_balancer_source_ranges: Vec<Bytes>,
    #[prost(bytes = "bytes", tag = "11")]
    external_traffic_policy: Bytes,
    #[prost(int32, tag = "12")]
    health_check_node_port: i32,
    #[prost(message, optional, tag = "14")]
    session_affinity_config: Option<SessionAffinityConfig>,
    #[prost(bytes = "bytes", repeated, tag = "18")]
    cluster_ips: Vec<Bytes>,
    #[prost(bytes = "bytes", repeated, tag = "19")]
    ip_families: Vec<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "22")]
    internal_traffic_policy: Option<Bytes>,
}

#[derive(Clone, PartialEq, Message)]
struct ServicePort {
    #[prost(bytes = "bytes", tag = "1")]
    name: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    protocol: Bytes,
    #[prost(int32, tag = "3")]
    port: i32,
    #[prost(int32, tag = "5")]
    node_port: i32,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct SessionAffinityConfig {
    #[prost(message, optional, tag = "1")]
    client_ip: Option<ClientIpConfig>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct ClientIpConfig {
    #[prost(int32, optional, tag = "1")]
    timeout_seconds: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct ServiceStatus {
    #[prost(message, optional, tag = "1")]
    load_balancer: Option<LoadBalancerStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct LoadBalancerStatus {
    #[prost(message, repeated, tag = "1")]
    ingress: Vec<Ingress>,
}

#[derive(Clone, PartialEq, Message)]
struct Ingress {
    #[prost(bytes = "bytes", tag = "1")]
    ip: Bytes,
    #[prost(bytes = "bytes", optional, tag = "3")]
    ip_mode: Option<Bytes>,
}

impl From<Service> for core::Service {
    fn from(service: Service) -> Self {
        Self {
            metadata: meta(service.metadata),
            spec: service.spec.map(ServiceSpec::into),
            status: service.status.map(|status| core::ServiceStatus {
                load_balancer: status.load_balancer.map(LoadBalancerStatus::into),
                ..core::ServiceStatus::default()
            }),
        }
    }
}

impl From<ServiceSpec> for core::ServiceSpec {
    fn from(spec: ServiceSpec) -> Self {
        let affinity = |config: SessionAffinityConfig| core::SessionAffinityConfig {
            client_ip: config.client_ip.map(|config| core::ClientIPConfig {
                timeout_seconds: config.timeout_seconds,
            }),
        };
        Self {
            type_: text(&spec.r#type),
            cluster_ip: text(&spec.cluster_ip),
            cluster_ips: texts(&spec.cluster_ips),
            ip_families: texts(&spec.ip_families),
            ports: list(spec.ports, |port| core::ServicePort {
                name: text(&port.name),
                protocol: text(&port.protocol),
                port: port.port,
                node_port: Some(port.node_port),
                ..core::ServicePort::default()
            }),
            external_ips: texts(&spec.external_ips),
            external_traffic_policy: text(&spec.external_traffic_policy),
            internal_traffic_policy: given(spec.internal_traffic_policy.as_ref()),
            health_check_node_port: Some(spec.health_check_node_port),
            load_balancer_source_ranges: texts(&spec.load_balancer_source_ranges),
            session_affinity: text(&spec.session_affinity),
            session_affinity_config: spec.session_affinity_config.map(affinity),
            ..Self::default()
        }
    }
}

impl From<LoadBalancerStatus> for core::LoadBalancerStatus {
    fn from(status: LoadBalancerStatus) -> Self {
        Self {
            ingress: list(status.ingress, |ingress| core::LoadBalancerIngress {
                ip: text(&ingress.ip),
                ip_mode: given(ingress.ip_mode.as_ref()),
                ..core::LoadBalancerIngress::default()
            }),
        }
    }
}

#[derive(Clone, PartialEq, Message)]
pub(in super::super) struct EndpointSlice {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Metadata>,
    #[prost(message, repeated, tag = "2")]
    endpoints: Vec<Endpoint>,
    #[prost(message, repeated, tag = "3")]
    ports: Vec<EndpointPort>,
    #[prost(bytes = "bytes", tag = "4")]
    address_type: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct Endpoint {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    addresses: Vec<Bytes>,
    #[prost(message, optional, tag = "2")]
    conditions: Option<Conditions>,
    #[prost(bytes = "bytes", optional, tag = "6")]
    node_name: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "7")]
    zone: Option<Bytes>,
    #[prost(message, optional, tag = "8")]
    hints: Option<Hints>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Conditions {
    #[prost(bool, optional, tag = "1")]
    ready: Option<bool>,
    #[prost(bool, optional, tag = "2")]
    serving: Option<bool>,
    #[prost(bool, optional, tag = "3")]
    terminating: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
struct Hints {
    #[prost(message, repeated, tag = "1")]
    for_zones: Vec<Hint>,
    #[prost(message, repeated, tag = "2")]
    for_nodes: Vec<Hint>,
}

#[derive(Clone, PartialEq, Message)]
struct Hint {
    #[prost(bytes = "bytes", tag = "1")]
    name: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct EndpointPort {
    #[prost(bytes = "bytes", optional, tag = "1")]
    name: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "2")]
    protocol: Option<Bytes>,
    #[prost(int32, optional, tag = "3")]
    port: Option<i32>,
}

impl From<EndpointSlice> for discovery::EndpointSlice {
    fn from(slice: EndpointSlice) -> Self {
        Self {
            metadata: meta(slice.metadata),
            address_type: lossy(&slice.address_type),
            ports: list(slice.ports, |port| discovery::EndpointPort {
                name: given(port.name.as_ref()),
                protocol: given(port.protocol.as_ref()),
                port: port.port,
                ..discovery::EndpointPort::default()
            }),
            endpoints: list(slice.endpoints, Endpoint::into),
        }
    }
}

impl From<Endpoint> for discovery::Endpoint {
    fn from(endpoint: Endpoint) -> Self {
        Self {
            addresses: endpoint.addresses.iter().map(|ip| lossy(ip)).collect(),
            conditions: endpoint.conditions.map(|it| discovery::EndpointConditions {
                ready: it.ready,
                serving: it.serving,
                terminating: it.terminating,
            }),
            hints: endpoint.hints.map(|hints| discovery::EndpointHints {
                for_zones: list(hints.for_zones, |zone| discovery::ForZone {
                    name: lossy(&zone.name),
                }),
                for_nodes: list(hints.for_nodes, |node| discovery::ForNode {
                    name: lossy(&node.name),
                }),
            }),
            node_name: given(endpoint.node_name.as_ref()),
            zone: given(endpoint.zone.as_ref()),
            ..Self::default()
        }
    }
}

#[derive(Clone, PartialEq, Message)]
pub(in super::super) struct Node {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Metadata>,
    #[prost(message, optional, tag = "2")]
    spec: Option<NodeSpec>,
    #[prost(message, optional, tag = "3")]
    status: Option<NodeStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct NodeSpec {
    #[prost(bytes = "bytes", tag = "1")]
    pod_cidr: Bytes,
    #[prost(message, repeated, tag = "5")]
    taints: Vec<Taint>,
    #[prost(bytes = "bytes", repeated, tag = "7")]
    pod_cidrs: Vec<Bytes>,
}

#[derive(Clone, PartialEq, Message)]
struct Taint {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct NodeStatus {
    #[prost(message, repeated, tag = "5")]
    addresses: Vec<NodeAddress>,
}

#[derive(Clone, PartialEq, Message)]
struct NodeAddress {
    #[prost(bytes = "bytes", tag = "1")]
    r#type: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    address: Bytes,
}

impl From<Node> for core::Node {
    fn from(node: Node) -> Self {
        Self {
            metadata: meta(node.metadata),
            spec: node.spec.map(|spec| core::NodeSpec {
                pod_cidr: text(&spec.pod_cidr),
                pod_cidrs: texts(&spec.pod_cidrs),
                taints: list(spec.taints, |taint| core::Taint {
                    key: lossy(&taint.key),
                    ..core::Taint::default()
                }),
                ..core::NodeSpec::default()
            }),
            status: node.status.map(|status| core::NodeStatus {
                addresses: list(status.addresses, |address| core::NodeAddress {
                    type_: lossy(&address.r#type),
                    address: lossy(&address.address),
                }),
                ..core::NodeStatus::default()
            }),
        }
    }
}

impl From<Node> for Outline {
    fn from(node: Node) -> Self {
        let meta = node.metadata.unwrap_or_default();
        let spec = node.spec.unwrap_or_default();
        let addresses = node.status.unwrap_or_default().addresses;
        Self::new(
            (text(&meta.name), text(&meta.resource_version)),
            (text(&spec.pod_cidr), texts(&spec.pod_cidrs)),
            addresses.iter().map(|address| lossy(&address.address)),
        )
    }
}

#[derive(Clone, PartialEq, Message)]
pub(in super::super) struct ServiceCidr {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Metadata>,
    #[prost(message, optional, tag = "2")]
    spec: Option<ServiceCidrSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct ServiceCidrSpec {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    cidrs: Vec<Bytes>,
}

impl From<ServiceCidr> for networking::ServiceCIDR {
    fn from(cidr: ServiceCidr) -> Self {
        Self {
            metadata: meta(cidr.metadata),
            spec: cidr.spec.map(|spec| networking::ServiceCIDRSpec {
                cidrs: texts(&spec.cidrs),
            }),
            ..Self::default()
        }
    }
}
