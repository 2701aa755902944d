// SPDX-License-Identifier: Apache-2.0
//! One port of one Service in one IP family (compare kube-proxy's `ServicePort`).

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::{IpFamily, IpvsOptions, Service, ServicePortName};

#[cfg(test)]
mod tests;

/// What a family's dataplane must provide for a Service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    pub name: ServicePortName,
    pub family: IpFamily,
    /// The Service's creation time in Unix seconds: on a conflict the older Service gets the
    /// address and port.
    pub created: i64,
    pub cluster_ip: IpAddr,
    pub port: u16,
    pub node_port: Option<NonZeroU16>,
    pub external_ips: Vec<IpAddr>,
    pub load_balancer_vips: Vec<IpAddr>,
    /// Sorted and deduplicated. Empty: all sources are allowed.
    pub load_balancer_source_ranges: Vec<IpNet>,
    pub client_ip_affinity: Option<Duration>,
    pub internal_policy_local: bool,
    pub external_policy_local: bool,
    pub health_check_node_port: Option<NonZeroU16>,
    /// The Service's settings for IPVS mode.
    pub ipvs: Option<Arc<IpvsOptions>>,
}

impl ServicePort {
    /// The ports of a Service in a family; empty if the Service has no cluster IP of it.
    pub fn of(service: &Service, family: IpFamily) -> Vec<Self> {
        let mine = |address: &IpAddr| IpFamily::of(*address) == family;
        let Some(cluster_ip) = service.cluster_ips.iter().copied().find(|ip| mine(ip)) else {
            return Vec::new();
        };
        let sorted = |addresses: &[IpAddr]| {
            let mut addresses: Vec<_> = addresses.iter().copied().filter(|ip| mine(ip)).collect();
            addresses.sort_unstable();
            addresses.dedup();
            addresses
        };
        let external_ips = sorted(&service.external_ips);
        let load_balancer_vips = sorted(&service.load_balancer_vips);
        let source_ranges = source_ranges(&service.load_balancer_source_ranges, family);
        service
            .ports
            .iter()
            .map(|spec| Self {
                name: ServicePortName {
                    service: service.name.clone(),
                    port: spec.name.clone(),
                    protocol: spec.protocol,
                },
                family,
                created: service.created,
                cluster_ip,
                port: spec.port,
                node_port: spec.node_port,
                external_ips: external_ips.clone(),
                load_balancer_vips: load_balancer_vips.clone(),
                load_balancer_source_ranges: source_ranges.clone(),
                client_ip_affinity: service.client_ip_affinity,
                internal_policy_local: service.internal_policy_local,
                external_policy_local: service.external_policy_local,
                health_check_node_port: service.health_check_node_port,
                ipvs: service.ipvs.clone(),
            })
            .collect()
    }

    /// Whether it has an address or port that is reachable from outside the cluster.
    pub fn is_externally_accessible(&self) -> bool {
        self.node_port.is_some()
            || !self.load_balancer_vips.is_empty()
            || !self.external_ips.is_empty()
    }

    pub fn uses_cluster_endpoints(&self) -> bool {
        !self.internal_policy_local || self.is_externally_accessible()
    }

    pub fn uses_local_endpoints(&self) -> bool {
        self.internal_policy_local
            || (self.external_policy_local && self.is_externally_accessible())
    }

    /// Whether a source range contains this node's address. Then clients whose source is the VIP
    /// itself are admitted too: traffic from the node to a VIP that is bound locally has that
    /// source.
    pub fn admits_node(&self, node_ip: Option<IpAddr>) -> bool {
        node_ip.is_some_and(|ip| {
            self.load_balancer_source_ranges
                .iter()
                .any(|range| range.contains(&ip))
        })
    }
}

/// The ranges of one family. `0.0.0.0/0` or `::/0` means no restriction in its family.
fn source_ranges(ranges: &[IpNet], family: IpFamily) -> Vec<IpNet> {
    let mut mine: Vec<IpNet> = ranges
        .iter()
        .filter(|range| IpFamily::of(range.addr()) == family)
        .map(IpNet::trunc)
        .collect();
    if mine.iter().any(|range| range.prefix_len() == 0) {
        return Vec::new();
    }
    mine.sort_unstable();
    mine.dedup();
    mine
}
