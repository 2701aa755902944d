// SPDX-License-Identifier: Apache-2.0
//! PURE: addresses that are somebody's. A Service does not get them by asking.
//!
//! Any user may write `spec.externalIPs`: an address that is somebody's is neither bound nor caught
//! for it. Only who runs the cluster writes `status.loadBalancer`: such an address is served where
//! packets arrive, but not bound while somebody else on the network needs to be reached at it. A
//! cluster IP is its Service's alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Protocol, Service};

/// Who has an address that a Service claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    /// Another link of this node has the address.
    OtherLink,
    /// The Node object lists it.
    Node,
    /// The object of another node lists it.
    OtherNode,
    /// Nodes are not listed yet; soon it is somebody's or nobody's.
    Unknown,
    /// A default route has it as its next hop.
    Gateway,
    ApiServer,
    /// `/etc/resolv.conf` of this node lists it.
    Resolver,
    /// It is in a range that pods get their addresses from.
    Pods,
    /// It is in the network of one of this node's links, so that a neighbour may have it.
    Neighbour,
    /// A process of this node listens there.
    Listener(Protocol, u16),
    /// An endpoint of some Service has it.
    Endpoint,
    /// Nobody can have it: it is of this kind.
    Unusable(&'static str),
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OtherLink => "it is on another link of this node",
            Self::Node => "it is this node's address",
            Self::OtherNode => "it is another node's address",
            Self::Unknown => "the nodes of the cluster are not listed yet",
            Self::Gateway => "it is the default gateway's address",
            Self::ApiServer => "it is the API server's address",
            Self::Resolver => "it is the address of a DNS server of this node",
            Self::Pods => "it is in the range of pods' addresses",
            Self::Neighbour => {
                "it is in the network of a link of this node, and no load balancer gave it to the Service"
            }
            Self::Listener(protocol, port) => {
                return write!(f, "a process of this node listens on {protocol} port {port}");
            }
            Self::Endpoint => "it is an endpoint's address",
            Self::Unusable(what) => return write!(f, "it is {what}"),
        })
    }
}

/// The addresses that are somebody's, as one node sees them, of both families.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holders {
    /// On other links of this node.
    pub own: BTreeSet<IpAddr>,
    /// Of this Node object.
    pub node: BTreeSet<IpAddr>,
    /// Of all Node objects.
    pub nodes: BTreeSet<IpAddr>,
    /// Those are not listed yet: any address may be a Node's.
    pub nodes_are_unknown: bool,
    /// Next hops of default routes.
    pub gateways: BTreeSet<IpAddr>,
    /// Of the API server, as this proxy is told to reach it.
    pub api_servers: BTreeSet<IpAddr>,
    /// Of the API servers, as slice `default/kubernetes` has them. Its writers are not as trusted
    /// as the configuration: it takes no address from a load balancer.
    pub listed_api_servers: BTreeSet<IpAddr>,
    /// DNS servers of this node. One of them may well be a Service at a load balancer's address.
    pub resolvers: BTreeSet<IpAddr>,
    /// Ranges of pods' addresses.
    pub pods: BTreeSet<IpNet>,
    /// The networks of this node's links.
    pub networks: BTreeSet<IpNet>,
    /// Ports on which processes of this node listen; `None`: on all of its addresses.
    pub listening: BTreeMap<(Protocol, u16), BTreeSet<Option<IpAddr>>>,
}

impl Holders {
    /// Who prevents this node from binding an address that a load balancer gave to a Service.
    pub fn of_vip(&self, address: &IpAddr) -> Option<Holder> {
        if self.own.contains(address) {
            return Some(Holder::OtherLink);
        }
        [
            (&self.node, Holder::Node),
            (&self.nodes, Holder::OtherNode),
            (&self.api_servers, Holder::ApiServer),
            (&self.gateways, Holder::Gateway),
        ]
        .into_iter()
        .find_map(|(addresses, holder)| addresses.contains(address).then_some(holder))
        .or_else(|| self.nodes_are_unknown.then_some(Holder::Unknown))
    }

    /// Who prevents a Service from having an address and port of its `spec.externalIPs`. An address
    /// of this node may serve a Service on ports that the node does not use itself.
    pub fn of_external_ip(
        &self,
        address: &IpAddr,
        protocol: Protocol,
        port: u16,
    ) -> Option<Holder> {
        if self.own.contains(address) || self.node.contains(address) {
            let at = self.listening.get(&(protocol, port))?;
            let listens = at.contains(&None) || at.contains(&Some(*address));
            return listens.then_some(Holder::Listener(protocol, port));
        }
        let has = |addresses: &BTreeSet<IpAddr>| addresses.contains(address);
        let within = |ranges: &BTreeSet<IpNet>| ranges.iter().any(|range| range.contains(address));
        self.of_vip(address)
            .or_else(|| has(&self.listed_api_servers).then_some(Holder::ApiServer))
            .or_else(|| has(&self.resolvers).then_some(Holder::Resolver))
            .or_else(|| within(&self.pods).then_some(Holder::Pods))
            .or_else(|| within(&self.networks).then_some(Holder::Neighbour))
    }

    /// Whether a Service has other addresses by these holders than by others. Costs nothing for a
    /// Service that is reachable inside the cluster only.
    pub(super) fn differ_about(&self, other: &Self, service: &Service) -> bool {
        let vips = &service.load_balancer_vips;
        let of_external_ip = |holders: &Self, address: &IpAddr| -> Vec<Option<Holder>> {
            let ports = service.ports.iter();
            ports
                .map(|port| holders.of_external_ip(address, port.protocol, port.port))
                .collect()
        };
        vips.iter().any(|vip| self.of_vip(vip) != other.of_vip(vip))
            || service
                .external_ips
                .iter()
                .any(|address| of_external_ip(self, address) != of_external_ip(other, address))
    }

    /// Whether a Service claims an address of this node beside others, so that it matters on which
    /// ports processes of the node listen.
    pub fn listening_matters(&self, service: &Service) -> bool {
        let is_mine = |address: &IpAddr| self.own.contains(address) || self.node.contains(address);
        service.external_ips.iter().any(is_mine)
    }
}

/// The addresses of a Service port that are somebody's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Of `spec.externalIPs`, and what is no host's address in `status.loadBalancer`: not served.
    pub refused: Vec<(IpAddr, Holder)>,
    /// Of `status.loadBalancer`: served where packets arrive, and not bound.
    pub unbound: Vec<(IpAddr, Holder)>,
}

#[cfg(test)]
mod tests;
