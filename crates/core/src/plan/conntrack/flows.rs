// SPDX-License-Identifier: Apache-2.0
//! PURE: stale UDP flows.
//!
//! Conntrack keeps the endpoint of a flow for as long as its client keeps sending, whatever the
//! rules or virtual servers now say: a client with a fixed source port would send to a removed
//! endpoint forever. A flow that began before its Service existed would bypass all endpoints
//! forever. Only UDP is affected: a TCP connection or SCTP association to a removed endpoint
//! breaks, and its client opens another.
//!
//! ```text
//! changed Services -> update -> due -> (kernel) -> done
//! ```
//! What is due depends only on what changed since the last clean-up, never on the order of the
//! changes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::model::{Endpoint, IpFamily, Protocol, ServicePort, ServicePortName, ServiceView};
use crate::plan::by_port::ByPort;
use crate::plan::claim::{Claim, Claims, Right};

/// Maximum number of ports that are listed one by one. The kernel walks its whole table each time:
/// with 262,144 buckets that takes as long as listing ten to twenty thousand flows, and few nodes
/// have more.
const MOST_FILTERS: usize = 2;

/// A place where clients reach a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Frontend {
    Address(SocketAddr),
    /// A node port, on each address of the node that accepts node ports.
    NodePort(u16),
}

/// A flow as conntrack reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// The original destination, as the client sends it.
    pub destination: SocketAddr,
    /// The source of replies: the endpoint, or the destination itself if nothing translated it.
    pub answerer: SocketAddr,
}

impl Flow {
    fn is_translated(&self) -> bool {
        self.answerer != self.destination
    }
}

/// Sorted and deduplicated.
type Endpoints = Arc<[SocketAddr]>;

/// The endpoints that may answer at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answering {
    These(Endpoints),
    /// No longer a frontend.
    Gone,
}

/// Flows to these frontends are stale unless one of the current endpoints answers them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cleanup {
    pub family: IpFamily,
    frontends: BTreeMap<Frontend, Answering>,
    node_port_addresses: Arc<BTreeSet<IpAddr>>,
}

/// A filter for listing flows that the kernel supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filter {
    pub address: Option<IpAddr>,
    pub port: Option<u16>,
}

impl Filter {
    /// Every flow.
    pub const ALL: Self = Self {
        address: None,
        port: None,
    };

    pub fn admits(&self, flow: &Flow) -> bool {
        self.address.is_none_or(|ip| flow.destination.ip() == ip)
            && self.port.is_none_or(|port| flow.destination.port() == port)
    }
}

impl Cleanup {
    /// Whether the flow is stale.
    pub fn is_stale(&self, flow: &Flow) -> bool {
        match self.answering(flow) {
            None => false,
            Some(Answering::These(endpoints)) => endpoints.binary_search(&flow.answerer).is_err(),
            // Not a Service, so the flow is not ours.
            Some(Answering::Gone) => flow.is_translated(),
        }
    }

    fn answering(&self, flow: &Flow) -> Option<&Answering> {
        let destination = flow.destination;
        if let Some(answering) = self.frontends.get(&Frontend::Address(destination)) {
            return Some(answering);
        }
        // Another program on the node may use the same port on a loopback address, where not every
        // node port is served.
        let answers_node_ports = self.node_port_addresses.contains(&destination.ip())
            || (destination.ip().is_loopback() && flow.is_translated());
        if !answers_node_ports {
            return None;
        }
        self.frontends.get(&Frontend::NodePort(destination.port()))
    }

    /// The filters that together cover all stale flows: few, and as narrow as possible.
    pub fn filters(&self) -> Vec<Filter> {
        let mut ports: BTreeMap<u16, BTreeSet<Option<IpAddr>>> = BTreeMap::new();
        for frontend in self.frontends.keys() {
            let (port, address) = match frontend {
                Frontend::Address(address) => (address.port(), Some(address.ip())),
                Frontend::NodePort(port) => (*port, None),
            };
            ports.entry(port).or_default().insert(address);
        }
        if ports.len() > MOST_FILTERS {
            return vec![Filter::ALL];
        }
        ports
            .into_iter()
            .map(|(port, addresses)| Filter {
                // For IPv6 some kernels list all flows except those to the address
                // (`ctnetlink_filter_match_tuple`, as of 6.18).
                address: match addresses.first() {
                    Some(address) if addresses.len() == 1 && self.family == IpFamily::V4 => {
                        *address
                    }
                    _ => None,
                },
                port: Some(port),
            })
            .collect()
    }

    pub fn frontends(&self) -> impl ExactSizeIterator<Item = &Frontend> {
        self.frontends.keys()
    }
}

/// What a Service port contributes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Share {
    created: i64,
    frontends: BTreeMap<Frontend, Right>,
    endpoints: Endpoints,
}

impl Share {
    /// The same choice as in both dataplanes.
    fn claim(&self, place: Frontend, name: &ServicePortName) -> Claim {
        let right = self.frontends.get(&place).copied();
        Claim::new(right.unwrap_or_default(), self.created, name.clone())
    }
}

/// The UDP frontends of one family, and those whose flows must be checked.
#[derive(Clone, Debug)]
pub struct Flows {
    family: IpFamily,
    node_port_addresses: Arc<BTreeSet<IpAddr>>,
    shares: ByPort<Share>,
    claims: Claims<Frontend>,
    due: BTreeSet<Frontend>,
    /// The flows of all frontends are unknown, as at start.
    is_full: bool,
}

impl Flows {
    /// The addresses are those of the node that accept node ports.
    pub fn new(family: IpFamily, node_port_addresses: BTreeSet<IpAddr>) -> Self {
        Self {
            family,
            node_port_addresses: Arc::new(node_port_addresses),
            shares: ByPort::default(),
            claims: Claims::default(),
            due: BTreeSet::new(),
            is_full: true,
        }
    }

    /// Replaces the addresses that accept node ports.
    pub fn set_node_port_addresses(&mut self, addresses: &BTreeSet<IpAddr>) {
        if *self.node_port_addresses == *addresses {
            return;
        }
        self.node_port_addresses = Arc::new(addresses.clone());
        let node_ports = self.claims.places();
        let node_ports = node_ports.filter(|place| matches!(place, Frontend::NodePort(_)));
        self.due.extend(node_ports);
    }

    /// Takes in a changed Service. Costs what that Service costs.
    pub fn update(&mut self, changed: &ServiceView<'_>) {
        let udp = changed.ports.iter();
        let udp = udp.filter(|port| port.name.protocol == Protocol::Udp);
        let shares: BTreeMap<ServicePortName, Share> = udp
            .map(|port| (port.name.clone(), share(port, changed.endpoints_of(port))))
            .collect();
        for port in self.shares.gone(changed.name, &shares) {
            self.replace(port, None);
        }
        for (port, share) in shares {
            self.replace(port, Some(share));
        }
    }

    /// Makes all frontends due again, because another program changed the kernel.
    pub fn recheck(&mut self) {
        self.is_full = true;
    }

    /// Whether [`Self::due`] may have something.
    pub fn is_due(&self) -> bool {
        self.is_full || !self.due.is_empty()
    }

    /// The flows to check, if any.
    pub fn due(&self) -> Option<Cleanup> {
        let mut frontends = self.due.clone();
        if self.is_full {
            frontends.extend(self.claims.places());
        }
        // An address of the node may also be a frontend of its own with the same port.
        let node_ports: Vec<u16> = frontends
            .iter()
            .filter_map(|place| match place {
                Frontend::NodePort(port) => Some(*port),
                Frontend::Address(_) => None,
            })
            .collect();
        for port in node_ports {
            let addresses = self.node_port_addresses.iter();
            let places = addresses.map(|ip| Frontend::Address(SocketAddr::new(*ip, port)));
            frontends.extend(places.filter(|place| self.claims.contains(place)));
        }
        (!frontends.is_empty()).then(|| Cleanup {
            family: self.family,
            frontends: frontends
                .into_iter()
                .map(|place| match self.endpoints(place) {
                    Some(endpoints) => (place, Answering::These(endpoints)),
                    None => (place, Answering::Gone),
                })
                .collect(),
            node_port_addresses: self.node_port_addresses.clone(),
        })
    }

    /// Marks everything that was due as done.
    pub fn done(&mut self) {
        self.due.clear();
        self.is_full = false;
    }

    fn replace(&mut self, name: ServicePortName, share: Option<Share>) {
        let old = self.shares.get(&name).cloned();
        if old == share {
            return;
        }
        let places: BTreeSet<Frontend> = old
            .iter()
            .chain(&share)
            .flat_map(|share| share.frontends.keys().copied())
            .collect();
        let before: Vec<Option<Endpoints>> =
            places.iter().map(|place| self.endpoints(*place)).collect();
        if let Some(old) = self.shares.remove(&name) {
            for place in old.frontends.keys() {
                self.claims.withdraw(*place, &old.claim(*place, &name));
            }
        }
        if let Some(share) = share {
            for place in share.frontends.keys() {
                self.claims.claim(*place, share.claim(*place, &name));
            }
            self.shares.insert(name, share);
        }
        for (place, before) in places.into_iter().zip(before) {
            if leaves_stale_flows(before.as_ref(), self.endpoints(place).as_ref()) {
                self.due.insert(place);
            }
        }
    }

    /// The endpoints that may answer at a frontend; `None` if it is not one.
    fn endpoints(&self, place: Frontend) -> Option<Endpoints> {
        let at_node_port = match place {
            Frontend::Address(address) if self.node_port_addresses.contains(&address.ip()) => {
                self.claims.winner(&Frontend::NodePort(address.port()))
            }
            _ => None,
        };
        let own = self.claims.winner(&place);
        let yields = self.claims.right(&place) == Some(Right::ExternalIp);
        let winner = match (own, at_node_port) {
            (Some(_), Some(of_node_port)) if yields => of_node_port,
            (Some(own), _) => own,
            (None, of_node_port) => of_node_port?,
        };
        Some(self.shares.get(winner)?.endpoints.clone())
    }
}

/// Whether the change may leave stale flows: flows to a removed endpoint, or flows past all
/// endpoints because there were none.
fn leaves_stale_flows(before: Option<&Endpoints>, after: Option<&Endpoints>) -> bool {
    match (before, after) {
        (None, None) => false,
        (None, Some(_)) | (Some(_), None) => true,
        (Some(before), Some(after)) => {
            (before.is_empty() && !after.is_empty())
                || before.iter().any(|gone| after.binary_search(gone).is_err())
        }
    }
}

fn share(port: &ServicePort, endpoints: &[Endpoint]) -> Share {
    let addresses = std::iter::once(&port.cluster_ip)
        .chain(&port.external_ips)
        .chain(&port.load_balancer_vips);
    let at = |ip: &IpAddr| {
        let place = Frontend::Address(SocketAddr::new(*ip, port.port));
        (place, Right::of(port, *ip))
    };
    let mut frontends: BTreeMap<Frontend, Right> = addresses.map(at).collect();
    let node_port = port.node_port.map(|port| Frontend::NodePort(port.get()));
    frontends.extend(node_port.map(|place| (place, Right::NodePort)));
    // Whatever policies and hints now prefer, an endpoint that still serves may finish its flows.
    let answering = endpoints
        .iter()
        .filter(|endpoint| endpoint.conditions.serving || endpoint.is_ready());
    let answering: BTreeSet<SocketAddr> = answering
        .map(|endpoint| SocketAddr::new(endpoint.address, endpoint.port))
        .collect();
    Share {
        created: port.created,
        frontends,
        endpoints: answering.into_iter().collect(),
    }
}

#[cfg(test)]
mod tests;
