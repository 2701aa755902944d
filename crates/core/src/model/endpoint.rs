// SPDX-License-Identifier: Apache-2.0
//! EndpointSlices, reduced to what a proxy needs, and the endpoints merged from them.

use std::net::IpAddr;
use std::sync::Arc;

use super::ipvs_options::Weight;
use super::{IpFamily, Protocol, ServiceName, SliceName};

/// An EndpointSlice (discovery.k8s.io/v1) of one Service and one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    pub name: SliceName,
    /// The Service in label `kubernetes.io/service-name`.
    pub service: ServiceName,
    pub family: IpFamily,
    pub ports: Vec<SlicePort>,
    pub endpoints: Vec<SliceEndpoint>,
    /// Annotation `endpoints.kubernetes.io/last-change-trigger-time` in Unix nanoseconds.
    pub last_change_trigger: Option<i64>,
}

/// `ports[]` of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// Empty for the unnamed port.
    pub name: Arc<str>,
    pub protocol: Protocol,
    pub port: u16,
}

/// `endpoints[]` of an EndpointSlice. Node names are compared with our own when the object is
/// converted: a node's name never changes while the process runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// `addresses[0]`; the API leaves the meaning of the others to the client.
    pub address: IpAddr,
    /// Whether it runs on our node.
    pub local: bool,
    pub conditions: Conditions,
    pub node_hint: NodeHint,
    pub zones: Arc<Zones>,
    /// From an annotation of the slice.
    pub weight: Option<Weight>,
}

/// The zones of an endpoint. Few are different, so endpoints share them.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Zones {
    /// `zone`: where it is.
    pub zone: Option<Arc<str>>,
    /// `hints.forZones[].name`: for whose clients it is. Empty if there is no hint.
    pub hints: Vec<Arc<str>>,
}

/// `conditions` of an endpoint with the API's defaults filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conditions {
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
}

impl Conditions {
    /// `None` means ready, serving and not terminating (API: `EndpointConditions`).
    pub fn from_api(ready: Option<bool>, serving: Option<bool>, terminating: Option<bool>) -> Self {
        Self {
            ready: ready.unwrap_or(true),
            serving: serving.unwrap_or(true),
            terminating: terminating.unwrap_or(false),
        }
    }
}

/// `hints.forNodes` with regard to this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeHint {
    /// It names no node.
    Absent,
    /// It names our node.
    Here,
    /// It names other nodes only.
    Elsewhere,
}

/// One address and port that can answer for a Service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub address: IpAddr,
    pub port: u16,
    pub local: bool,
    pub conditions: Conditions,
    pub node_hint: NodeHint,
    pub zones: Arc<Zones>,
    pub weight: Option<Weight>,
}

impl Endpoint {
    pub fn is_ready(&self) -> bool {
        self.conditions.ready
    }

    /// Whether it terminates but still serves: used only when no endpoint is ready.
    pub fn is_serving_while_terminating(&self) -> bool {
        self.conditions.serving && self.conditions.terminating
    }
}
