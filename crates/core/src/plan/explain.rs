// SPDX-License-Identifier: Apache-2.0
//! PURE: what a new connection to an address and port meets, and why: the promises that both modes
//! keep, said in words. `docs/design/differences.md` has where a mode cannot keep one.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use serde::{Serialize, Serializer};

use crate::model::node::LocalDetector;
use crate::model::topology::{self, Choice};
use crate::model::{
    Endpoint, IpFamily, Protocol, Service, ServiceName, ServicePort, ServicePortName, ServiceView,
    Tracker,
};
use crate::plan::claim::{Claim, Right};
use crate::plan::context::Context;
use crate::plan::iptables::affinity::Way;

/// An address, a port and a protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub address: IpAddr,
    pub port: u16,
    pub protocol: Protocol,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let socket = SocketAddr::new(self.address, self.port);
        write!(f, "{} {socket}", self.protocol)
    }
}

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// A pod of this node, or of the cluster if pods are known by the cluster's range.
    Pod(Option<IpAddr>),
    /// This node itself.
    Node,
    /// Everybody else.
    Outside(Option<IpAddr>),
}

impl Client {
    /// Who has an address. Pods that are known by their interface only are those with an endpoint
    /// on this node.
    pub fn at(address: IpAddr, context: &Context, tracker: &Tracker) -> Self {
        let is_pod = || match &context.local_detector {
            LocalDetector::Cidr(cidr) => cidr.contains(&address),
            LocalDetector::BridgeInterface(_) | LocalDetector::InterfacePrefix(_) => {
                let mut endpoints = tracker.slices().flat_map(|slice| &slice.endpoints);
                endpoints.any(|endpoint| endpoint.local && endpoint.address == address)
            }
            LocalDetector::None => false,
        };
        if address.is_loopback() || context.node_addresses.contains(&address) {
            Self::Node
        } else if is_pod() {
            Self::Pod(Some(address))
        } else {
            Self::Outside(Some(address))
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Pod(_) => "a pod",
            Self::Node => "this node",
            Self::Outside(_) => "outside",
        }
    }
}

/// What a new connection meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    Answered,
    /// At once.
    Refused,
    /// Without a word.
    Dropped,
    /// Depends on the client's address, which was not given.
    Depends,
    /// No Service has the place.
    NotServed,
}

/// The answer for one place and one client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    #[serde(serialize_with = "as_text")]
    pub place: Place,
    pub from: &'static str,
    pub verdict: Verdict,
    pub why: String,
    /// The virtual server that serves this client, in IPVS mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtual_server: Option<String>,
    /// The Service port that has the place.
    pub service: Option<String>,
    pub role: Option<Right>,
    /// Service ports that claim the place and do not get it.
    pub without: Vec<String>,
    /// The traffic policy that applies to this client.
    pub policy: Option<&'static str>,
    pub affinity_seconds: Option<u64>,
    /// How many clients of each endpoint are remembered, where that is few.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity_clients: Option<u32>,
    /// The number of connections at which IPVS gives an endpoint no new ones.
    pub upper_threshold: Option<u32>,
    /// The time in which a new endpoint gets its whole share in IPVS.
    pub slow_start_seconds: Option<u64>,
    pub source_ranges: Vec<String>,
    /// Why the endpoint sees the node as the client; `None` if it sees the client itself.
    pub masqueraded: Option<&'static str>,
    pub endpoints: Vec<ExplainedEndpoint>,
}

fn as_text<S: Serializer>(place: &Place, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(place)
}

/// One endpoint of the Service port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedEndpoint {
    pub address: SocketAddr,
    /// Whether it may answer this client.
    pub may_answer: bool,
    pub why: &'static str,
    pub is_local: bool,
}

/// Settings that are not part of the context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The mode accepts node ports on 127.0.0.1 by rules.
    pub localhost_by_rules: bool,
    /// The proxy itself forwards node ports of loopback addresses.
    pub localhost_by_forwarder: bool,
    /// Ports that Services do not have at their addresses are refused (IPVS); otherwise packets go
    /// wherever the address is routed.
    pub refuses_other_ports: bool,
}

/// Explains one place.
pub fn place(
    tracker: &Tracker,
    context: &Context,
    settings: Settings,
    place: Place,
    client: Client,
) -> Explanation {
    let mut claims = Vec::new();
    let mut is_known = false;
    for service in tracker
        .services()
        .filter(|service| may_have(service, place))
    {
        // As the rounds resolve it: without addresses that others hold, within the budget.
        let view = ServiceView::within(tracker, &service.name, context.family, &context.budget);
        for port in &view.ports {
            is_known |= has_address(port, place.address);
            if let Some(right) = right(port, place, context, settings) {
                let claim = Claim::new(right, port.created, port.name.clone());
                let endpoints = view.endpoints_of(port).to_vec();
                claims.push((claim, right, port.clone(), endpoints));
            }
        }
    }
    claims.sort_by(|(one, ..), (other, ..)| one.cmp(other));
    let mut claims = claims.into_iter();
    let Some((_, right, port, endpoints)) = claims.next() else {
        return not_served(context, settings, place, client, is_known);
    };
    let mut explanation = served(context, place, client, right, &port, &endpoints);
    explanation.without = claims
        .map(|(_, _, port, _)| port.name.to_string())
        .collect();
    if place.address.is_loopback() && client != Client::Node {
        explanation.verdict = Verdict::Refused;
        "a loopback address is the client's own".clone_into(&mut explanation.why);
    }
    explanation
}

/// The places of a Service in a family; those of one port if it is given.
pub fn places(
    tracker: &Tracker,
    context: &Context,
    name: &ServiceName,
    wanted: Option<u16>,
) -> Vec<Place> {
    let view = ServiceView::within(tracker, name, context.family, &context.budget);
    let mut places = Vec::new();
    for port in &view.ports {
        let node_port = port.node_port.map(NonZeroU16::get);
        if wanted.is_some_and(|wanted| wanted != port.port && Some(wanted) != node_port) {
            continue;
        }
        let at = |address: &IpAddr, number| Place {
            address: *address,
            port: number,
            protocol: port.name.protocol,
        };
        let addresses = std::iter::once(&port.cluster_ip)
            .chain(&port.load_balancer_vips)
            .chain(&port.external_ips);
        places.extend(addresses.map(|address| at(address, port.port)));
        let nodes = context.node_port_addresses.iter();
        places.extend(
            node_port
                .into_iter()
                .flat_map(|number| nodes.clone().map(move |address| at(address, number))),
        );
    }
    places
}

/// Whether it can be of a Service at all: spares the others the resolving.
fn may_have(service: &Service, place: Place) -> bool {
    let mut addresses = service
        .cluster_ips
        .iter()
        .chain(&service.load_balancer_vips)
        .chain(&service.external_ips);
    let node_port = |port: NonZeroU16| port.get() == place.port;
    let mut ports = service.ports.iter();
    addresses.any(|address| *address == place.address)
        || ports.any(|port| port.node_port.is_some_and(node_port))
}

fn has_address(port: &ServicePort, address: IpAddr) -> bool {
    port.cluster_ip == address
        || port.load_balancer_vips.contains(&address)
        || port.external_ips.contains(&address)
}

fn right(port: &ServicePort, place: Place, context: &Context, settings: Settings) -> Option<Right> {
    if port.name.protocol != place.protocol {
        return None;
    }
    let node_port = port.node_port.map(NonZeroU16::get);
    if node_port == Some(place.port) && takes_node_ports(place, context, settings) {
        return Some(Right::NodePort);
    }
    if port.port != place.port {
        return None;
    }
    has_address(port, place.address).then(|| Right::of(port, place.address))
}

fn takes_node_ports(place: Place, context: &Context, settings: Settings) -> bool {
    if !place.address.is_loopback() {
        return context.node_port_addresses.contains(&place.address);
    }
    let by_rules = settings.localhost_by_rules && IpFamily::of(place.address) == IpFamily::V4;
    by_rules || (settings.localhost_by_forwarder && place.protocol != Protocol::Sctp)
}

fn not_served(
    context: &Context,
    settings: Settings,
    place: Place,
    client: Client,
    is_known: bool,
) -> Explanation {
    let (verdict, why) = if is_known && settings.refuses_other_ports {
        let why = "a Service has this address, but none has this port";
        (Verdict::Refused, why)
    } else if is_known {
        let why = "a Service has this address, but none has this port: the packet is sent on to wherever the address is routed";
        (Verdict::NotServed, why)
    } else if context.node_addresses.contains(&place.address) {
        let why = "an address of this node, and no node port here: the node's own programs answer";
        (Verdict::NotServed, why)
    } else {
        (Verdict::NotServed, "no Service has this address")
    };
    Explanation {
        place,
        from: client.name(),
        verdict,
        why: why.to_owned(),
        virtual_server: None,
        service: None,
        role: None,
        without: Vec::new(),
        policy: None,
        affinity_seconds: None,
        affinity_clients: None,
        upper_threshold: None,
        slow_start_seconds: None,
        source_ranges: Vec::new(),
        masqueraded: None,
        endpoints: Vec::new(),
    }
}

fn served(
    context: &Context,
    place: Place,
    client: Client,
    right: Right,
    port: &ServicePort,
    endpoints: &[Endpoint],
) -> Explanation {
    let choice = topology::choose(port, endpoints, context.zone.as_deref());
    let is_local = is_local(right, client, port, context);
    let chosen = if is_local {
        &choice.local
    } else {
        &choice.cluster
    };
    let ranges = if right == Right::LoadBalancer {
        port.load_balancer_source_ranges.as_slice()
    } else {
        &[]
    };
    let admitted = admits(port, ranges, client, context);
    let (verdict, why) = match admitted {
        _ if !choice.has_any => (Verdict::Refused, "no endpoint can answer"),
        Some(false) => {
            let why = "the client is not in loadBalancerSourceRanges";
            (Verdict::Dropped, why)
        }
        None => {
            let why = "the client must be in loadBalancerSourceRanges";
            (Verdict::Depends, why)
        }
        Some(true) if chosen.is_empty() => {
            let why = "the policy is Local and no endpoint on this node can answer";
            (Verdict::Dropped, why)
        }
        Some(true) => (Verdict::Answered, "endpoints can answer"),
    };
    // IPVS remembers all.
    let way = context.iptables.memory.way(false);
    let affinity = port.client_ip_affinity.filter(|_| way != Way::None);
    let mut explained: Vec<ExplainedEndpoint> = endpoints
        .iter()
        .map(|endpoint| explain_endpoint(endpoint, &choice, chosen, is_local))
        .collect();
    explained.sort_unstable();
    explained.dedup();
    Explanation {
        place,
        from: client.name(),
        verdict,
        why: why.to_owned(),
        virtual_server: None,
        service: Some(shown(&port.name)),
        role: Some(right),
        without: Vec::new(),
        policy: Some(if is_local { "Local" } else { "Cluster" }),
        affinity_seconds: affinity.map(|timeout| timeout.as_secs()),
        affinity_clients: match way {
            Way::Recent { clients } => affinity.map(|_| clients),
            Way::Sets | Way::None => None,
        },
        upper_threshold: port
            .ipvs
            .as_deref()
            .map(|options| options.thresholds.upper)
            .filter(|upper| *upper > 0),
        slow_start_seconds: port
            .ipvs
            .as_deref()
            .and_then(|options| options.slow_start)
            .map(|length| length.as_secs()),
        source_ranges: ranges.iter().map(ToString::to_string).collect(),
        masqueraded: masqueraded(right, client, port, context, place)
            .or_else(|| reaches_itself(client, chosen)),
        endpoints: explained,
    }
}

fn shown(name: &ServicePortName) -> String {
    format!("{name} {}", name.protocol)
}

/// Whether only endpoints on this node may answer. Pods and the node itself reach all endpoints by
/// external addresses: they are not outside.
fn is_local(right: Right, client: Client, port: &ServicePort, context: &Context) -> bool {
    if right == Right::ClusterIp {
        return port.internal_policy_local;
    }
    port.external_policy_local && is_outside(client, context)
}

/// A pod is as good as outside where nothing tells pods from others.
pub fn is_outside(client: Client, context: &Context) -> bool {
    match client {
        Client::Outside(_) => true,
        Client::Pod(_) => context.local_detector == LocalDetector::None,
        Client::Node => false,
    }
}

/// Whether source ranges let a client in; `None` if that depends on its address.
fn admits(
    port: &ServicePort,
    ranges: &[ipnet::IpNet],
    client: Client,
    context: &Context,
) -> Option<bool> {
    if ranges.is_empty() {
        return Some(true);
    }
    let address = match client {
        Client::Node => return Some(port.admits_node(context.node_ip)),
        Client::Pod(address) | Client::Outside(address) => address?,
    };
    Some(ranges.iter().any(|range| range.contains(&address)))
}

fn masqueraded(
    right: Right,
    client: Client,
    port: &ServicePort,
    context: &Context,
    place: Place,
) -> Option<&'static str> {
    let is_pod = matches!(client, Client::Pod(_));
    if place.address.is_loopback() {
        return Some("a loopback address means nothing elsewhere");
    }
    if right != Right::ClusterIp {
        return match client {
            _ if !port.external_policy_local => {
                Some("external traffic policy Cluster: the answer must come back this way")
            }
            Client::Node => Some("the node's address for the Service is not its own"),
            _ => None,
        };
    }
    if context.masquerade_all {
        return Some("--masquerade-all");
    }
    let can_tell = context.local_detector != LocalDetector::None;
    (can_tell && !is_pod).then_some("the client is not a pod")
}

/// A pod that is its own only endpoint would answer itself past the node.
fn reaches_itself(client: Client, chosen: &[&Endpoint]) -> Option<&'static str> {
    let (Client::Pod(Some(address)) | Client::Outside(Some(address))) = client else {
        return None;
    };
    let itself = chosen.iter().all(|endpoint| endpoint.address == address);
    (itself && !chosen.is_empty()).then_some("the client is its own endpoint")
}

fn explain_endpoint(
    endpoint: &Endpoint,
    choice: &Choice<'_>,
    chosen: &[&Endpoint],
    is_local: bool,
) -> ExplainedEndpoint {
    let may_answer = chosen.contains(&endpoint);
    let is_near = choice.cluster.contains(&endpoint);
    let why = if may_answer && endpoint.is_ready() {
        "ready"
    } else if may_answer {
        "terminating, and no endpoint is ready"
    } else if endpoint.is_serving_while_terminating() && !endpoint.is_ready() {
        "terminating, and others are ready"
    } else if endpoint.conditions.terminating {
        "terminating, and does not serve any more"
    } else if !endpoint.is_ready() {
        "not ready"
    } else if is_local && !endpoint.local {
        "on another node"
    } else if !is_near {
        "topology hints send clients of this node elsewhere"
    } else {
        "not chosen"
    };
    ExplainedEndpoint {
        address: SocketAddr::new(endpoint.address, endpoint.port),
        may_answer,
        why,
        is_local: endpoint.local,
    }
}

#[cfg(test)]
mod tests;
