// SPDX-License-Identifier: Apache-2.0
//! A Service, reduced to what a proxy needs, with both IP families; [`super::ServicePort`] is the
//! view of one family.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::{IpvsOptions, Protocol, ServiceName};

/// A Service that the proxy serves. Headless and `ExternalName` Services, and those that another
/// proxy serves, never become one (`source::convert` drops them).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub name: ServiceName,
    /// `metadata.uid`; empty if a manifest has none. Events need it.
    pub uid: Arc<str>,
    /// `metadata.creationTimestamp` in Unix seconds, 0 if there is none. If two Services claim the
    /// same address and port, the older one gets it.
    pub created: i64,
    /// The cluster IPs, at most one for each family.
    pub cluster_ips: Vec<IpAddr>,
    pub ports: Vec<PortSpec>,
    /// `sessionAffinity: ClientIP` with its timeout.
    pub client_ip_affinity: Option<Duration>,
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip` with `ipMode` VIP (or none).
    pub load_balancer_vips: Vec<IpAddr>,
    pub load_balancer_source_ranges: Vec<IpNet>,
    /// `externalTrafficPolicy: Local` of a Service that is reachable from outside the cluster.
    pub external_policy_local: bool,
    /// `internalTrafficPolicy: Local`.
    pub internal_policy_local: bool,
    /// `healthCheckNodePort` of a `LoadBalancer` Service with `externalTrafficPolicy: Local`.
    pub health_check_node_port: Option<NonZeroU16>,
    /// The settings for IPVS mode from its annotations.
    pub ipvs: Option<Arc<IpvsOptions>>,
}

impl Service {
    /// Whether it claims addresses that are no cluster IPs.
    pub fn claims_addresses(&self) -> bool {
        !self.external_ips.is_empty() || !self.load_balancer_vips.is_empty()
    }
}

/// `spec.ports[]` of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortSpec {
    /// Empty for the unnamed port.
    pub name: Arc<str>,
    pub protocol: Protocol,
    pub port: u16,
    /// Used regardless of the Service's type, as in kube-proxy.
    pub node_port: Option<NonZeroU16>,
}
