// SPDX-License-Identifier: Apache-2.0
//! One port of one Service in one IP family (compare kube-proxy's `ServicePort`).

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::address::unusable;
use super::budget::Share;
use super::holders::{Held, Holder, Holders};
use super::{Budget, Cut, IpFamily, IpvsOptions, Service, ServicePortName};

#[cfg(test)]
mod tests;

/// Up to this many frontends of a Service may each have a table of the kernel's: those of the
/// scheduler `mh` are 32 KiB.
pub const WIDE: usize = 100;

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
    /// Sorted and deduplicated, like the external IPs.
    pub load_balancer_vips: Vec<IpAddr>,
    /// Which of the addresses that it claims are somebody's; nearly always none.
    pub held: Option<Box<Held>>,
    /// Sorted and deduplicated. Empty: all sources are allowed.
    pub load_balancer_source_ranges: Vec<IpNet>,
    pub client_ip_affinity: Option<Duration>,
    pub internal_policy_local: bool,
    pub external_policy_local: bool,
    pub health_check_node_port: Option<NonZeroU16>,
    /// All ports of the Service together have more than [`WIDE`] frontends.
    pub is_wide: bool,
    /// The Service's settings for IPVS mode.
    pub ipvs: Option<Arc<IpvsOptions>>,
}

impl ServicePort {
    /// The ports of a Service in a family; empty if the Service has no cluster IP of it.
    pub fn of(service: &Service, family: IpFamily) -> Vec<Self> {
        Self::within(service, family, &Budget::default()).0
    }

    /// The ports of a Service in a family as far as a budget goes, and what it leaves out. Cluster
    /// IPs come first, then the addresses of the load balancer, node ports, external IPs; of
    /// addresses, each is left out at all ports or at none.
    pub fn within(service: &Service, family: IpFamily, budget: &Budget) -> (Vec<Self>, Cut) {
        let mut cut = Cut::default();
        let mine = |address: &IpAddr| IpFamily::of(*address) == family;
        let Some(cluster_ip) = service.cluster_ips.iter().copied().find(|ip| mine(ip)) else {
            return (Vec::new(), cut);
        };
        if service.ports.is_empty() {
            return (Vec::new(), cut);
        }
        let sorted = |addresses: &[IpAddr]| {
            let mut addresses: Vec<_> = addresses.iter().copied().filter(|ip| mine(ip)).collect();
            addresses.sort_unstable();
            addresses.dedup();
            addresses
        };
        cut.ports = Share::within(service.ports.len(), budget.frontends);
        let ports = cut.ports.kept;
        let specs = || service.ports.iter().take(ports);
        let mut left = budget.frontends - ports;
        let keep = |addresses: &[IpAddr], share: &mut Share, left: &mut usize| {
            let mut addresses = sorted(addresses);
            *share = Share::within(addresses.len(), *left / ports.max(1));
            addresses.truncate(share.kept);
            *left -= share.kept * ports;
            addresses
        };
        let vips = &service.load_balancer_vips;
        let load_balancer_vips = keep(vips, &mut cut.load_balancer_vips, &mut left);
        let with_node_port = specs().filter(|spec| spec.node_port.is_some()).count();
        cut.node_ports = Share::within(with_node_port, left);
        left -= cut.node_ports.kept;
        let external_ips = keep(&service.external_ips, &mut cut.external_ips, &mut left);
        let mut source_ranges = source_ranges(&service.load_balancer_source_ranges, family);
        // At least one: without any, all sources are admitted.
        let room = budget.objects / 2 / (load_balancer_vips.len() * ports).max(1);
        cut.source_ranges = Share::within(source_ranges.len(), room.max(1));
        source_ranges.truncate(cut.source_ranges.kept);
        let addresses = 1 + load_balancer_vips.len() + external_ips.len();
        let is_wide = ports * addresses + cut.node_ports.kept > WIDE;
        let mut node_ports_left = cut.node_ports.kept;
        let mut node_port = |wanted: Option<NonZeroU16>| {
            let wanted = wanted.filter(|_| node_ports_left > 0)?;
            node_ports_left -= 1;
            Some(wanted)
        };
        let ports = specs().map(|spec| Self {
            name: ServicePortName {
                service: service.name.clone(),
                port: spec.name.clone(),
                protocol: spec.protocol,
            },
            family,
            created: service.created,
            cluster_ip,
            port: spec.port,
            node_port: node_port(spec.node_port),
            external_ips: external_ips.clone(),
            load_balancer_vips: load_balancer_vips.clone(),
            held: None,
            load_balancer_source_ranges: source_ranges.clone(),
            client_ip_affinity: service.client_ip_affinity,
            internal_policy_local: service.internal_policy_local,
            external_policy_local: service.external_policy_local,
            health_check_node_port: service.health_check_node_port,
            is_wide,
            ipvs: service.ipvs.clone(),
        });
        (ports.collect(), cut)
    }

    /// Number of addresses and ports at which it answers; its node port counts once.
    pub fn frontend_count(&self) -> usize {
        let addresses = self.external_ips.len() + self.load_balancer_vips.len();
        1 + addresses + usize::from(self.node_port.is_some())
    }

    /// Number of source ranges of all its frontends.
    pub(super) fn range_count(&self) -> usize {
        self.load_balancer_vips.len() * self.load_balancer_source_ranges.len()
    }

    /// The same port without the addresses that it does not get: they are nobody's or somebody's.
    #[must_use]
    pub fn yielding_to(mut self, holders: &Holders) -> Self {
        let (protocol, port) = (self.name.protocol, self.port);
        let mut held = Held::default();
        let mut refuses = |address: &IpAddr, by_whom: Option<Holder>| {
            let holder = unusable(*address).map(Holder::Unusable).or(by_whom);
            held.refused.extend(holder.map(|holder| (*address, holder)));
            holder.is_some()
        };
        let vips = &mut self.load_balancer_vips;
        vips.retain(|vip| !refuses(vip, None));
        self.external_ips.retain(|address| {
            // What the load balancer gave is the Service's, whoever else lists it.
            let is_given = vips.binary_search(address).is_ok();
            let of_others = || holders.of_external_ip(address, protocol, port);
            !refuses(address, if is_given { None } else { of_others() })
        });
        let unbound = vips
            .iter()
            .filter_map(|vip| Some((*vip, holders.of_vip(vip)?)));
        held.unbound.extend(unbound);
        held.refused.sort_unstable();
        held.refused.dedup();
        self.held = (held != Held::default()).then(|| Box::new(held));
        self
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
