// SPDX-License-Identifier: Apache-2.0
//! PURE: everything that one Service port wants in iptables mode, in one family: its own chains,
//! and the treatment of packets to the addresses and ports at which it answers.

mod endpoint_writer;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use crate::model::topology::{self, Choice};
use crate::model::{Endpoint, Holder, IpFamily, Protocol, ServicePort, ServicePortName};
use crate::plan::claim::{Claim, Right};
use crate::plan::context::{Context, Hairpin};
use crate::plan::iptables::affinity::{AffinitySet, Way};
use crate::plan::iptables::name;
use crate::plan::iptables::static_rules::{LOCALHOST_ACCEPTED, REACHES_ITSELF};
use crate::plan::iptables::syntax::{self, Locality, comment};
use crate::plan::iptables::tree::{Key, TreeId};
use crate::plan::ruleset::{ChainName, Rule};
use crate::plan::unmet::Unmet;

use endpoint_writer::EndpointWriter;

/// A place that two Service ports may claim; one of them gets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Frontend {
    Address(IpAddr, Protocol, u16),
    NodePort(Protocol, u16),
    HealthCheck(u16),
    /// An endpoint on this node, of any Service. All claims want the same.
    LocalEndpoint(IpAddr),
}

impl Frontend {
    /// The node port at which packets to an address and port arrive if nobody else gets them.
    pub fn node_port(self, context: &Context) -> Option<Self> {
        match self {
            Self::Address(address, protocol, port)
                if context.node_port_addresses.contains(&address) =>
            {
                Some(Self::NodePort(protocol, port))
            }
            _ => None,
        }
    }

    /// Its key in trees.
    pub fn key(self) -> Key {
        match self {
            Self::Address(address, protocol, port) => {
                Key::new(Some(address), Some((protocol, port)))
            }
            Self::NodePort(protocol, port) => Key::new(None, Some((protocol, port))),
            Self::HealthCheck(port) => Key::new(None, Some((Protocol::Tcp, port))),
            Self::LocalEndpoint(address) => Key::new(Some(address), None),
        }
    }
}

impl std::fmt::Display for Frontend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address, protocol, port) => {
                write!(f, "{protocol} {}", SocketAddr::new(*address, *port))
            }
            Self::NodePort(protocol, port) => write!(f, "{protocol} node port {port}"),
            Self::HealthCheck(port) => write!(f, "health check node port {port}"),
            Self::LocalEndpoint(address) => write!(f, "endpoint {address}"),
        }
    }
}

/// The rules of a frontend in trees, at most one in each.
pub type Entries = BTreeMap<TreeId, Rule>;

/// The chains of a Service port, all of table `nat`.
pub type Chains = BTreeMap<ChainName, Vec<Rule>>;

/// The rules of one Service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRules {
    pub service_port: ServicePort,
    /// For policy Cluster and Local, sorted and deduplicated.
    cluster: Vec<SocketAddr>,
    local: Vec<SocketAddr>,
    /// Addresses of all endpoints on this node, whatever their condition. Empty if no rule needs
    /// them.
    local_addresses: Vec<IpAddr>,
    has_any: bool,
    /// How its clients are remembered, if they have affinity.
    way: Way,
    /// Number of endpoints in any condition, which kube-proxy counts for its large-cluster mode.
    pub endpoint_count: usize,
}

/// The treatment of a packet that no chain serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// There is no endpoint anywhere: the client gets an immediate error.
    Reject,
    /// There are endpoints elsewhere only: packets are dropped, since a health check sends clients
    /// there.
    Drop,
}

impl PortRules {
    /// From all endpoints of a Service port.
    pub fn new(service_port: ServicePort, endpoints: &[Endpoint], context: &Context) -> Self {
        let choice = topology::choose(&service_port, endpoints, context.zone.as_deref());
        let Choice {
            cluster,
            local,
            has_any,
        } = &choice;
        let needs_addresses = context.iptables.hairpin == Hairpin::PerEndpoint;
        let mut local_addresses: Vec<IpAddr> = endpoints
            .iter()
            .filter(|endpoint| needs_addresses && endpoint.local)
            .map(|endpoint| endpoint.address)
            .collect();
        local_addresses.sort_unstable();
        local_addresses.dedup();
        Self {
            cluster: sockets(cluster),
            local: sockets(local),
            local_addresses,
            has_any: *has_any,
            endpoint_count: endpoints.len(),
            way: context.iptables.memory.way(false),
            service_port,
        }
    }

    /// The same with its clients remembered in the best way, or the best without sets.
    #[must_use]
    pub fn remembering(mut self, context: &Context, without_sets: bool) -> Self {
        self.way = context.iptables.memory.way(without_sets);
        self
    }

    /// Seconds of session affinity, and how clients are remembered; `None` if they are not.
    fn affinity(&self) -> Option<(u32, Way)> {
        let timeout = self.service_port.client_ip_affinity?;
        let seconds = u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX);
        (self.way != Way::None).then_some((seconds, self.way))
    }

    /// What its clients do not get of the session affinity that it asks for.
    pub fn forgets(&self) -> Option<Unmet> {
        self.service_port.client_ip_affinity?;
        match self.way {
            Way::Sets => None,
            Way::Recent { clients } => Some(Unmet::FewClients { clients }),
            Way::None => Some(Unmet::NoAffinity),
        }
    }

    /// The sets of its endpoints' clients. Nothing is computed where there are none.
    pub fn sets(&self, context: &Context) -> Vec<AffinitySet> {
        let Some((timeout, Way::Sets)) = self.affinity() else {
            return Vec::new();
        };
        let texts = Texts::new(self, context);
        let endpoints: BTreeSet<SocketAddr> =
            self.cluster.iter().chain(&self.local).copied().collect();
        let all = endpoints.len();
        let set = |endpoint| {
            let chain = texts.endpoint_chain(endpoint);
            AffinitySet::new(chain, context.family, timeout, all)
        };
        endpoints.into_iter().map(set).collect()
    }

    /// The claim of the Service port on a frontend.
    pub fn claim(&self, frontend: Frontend, name: &ServicePortName) -> Claim {
        let right = match frontend {
            Frontend::Address(address, ..) => Right::of(&self.service_port, address),
            Frontend::NodePort(..) | Frontend::HealthCheck(_) | Frontend::LocalEndpoint(_) => {
                Right::NodePort
            }
        };
        Claim::new(right, self.service_port.created, name.clone())
    }

    /// The external IPs that the Service port does not get because they are somebody's.
    pub fn refused(&self) -> &[(IpAddr, Holder)] {
        let held = self.service_port.held.as_deref();
        held.map_or(&[], |held| &held.refused)
    }

    /// Number of its rules, more or less.
    pub fn size(&self) -> usize {
        let port = &self.service_port;
        // With affinity an endpoint has four rules instead of one.
        let each = if self.affinity().is_some() { 4 } else { 1 };
        let addresses = 1 + port.external_ips.len() + port.load_balancer_vips.len();
        // Each chain costs something by itself, too, and so does each node of a tree.
        1 + (self.cluster.len() + self.local.len()) * each
            + 2 * addresses
            + port.load_balancer_source_ranges.len()
    }

    pub fn lacks_local_internal(&self) -> bool {
        self.service_port.internal_policy_local && self.has_any && self.local.is_empty()
    }

    pub fn lacks_local_external(&self) -> bool {
        self.is_external_local() && self.has_any && self.local.is_empty()
    }

    fn is_external_local(&self) -> bool {
        self.service_port.external_policy_local && self.service_port.is_externally_accessible()
    }

    fn refusal(&self, policy_is_local: bool) -> Option<Refusal> {
        if !self.has_any {
            Some(Refusal::Reject)
        } else if policy_is_local && self.local.is_empty() {
            Some(Refusal::Drop)
        } else {
            None
        }
    }

    fn is_firewalled(&self) -> bool {
        let port = &self.service_port;
        self.has_any
            && !port.load_balancer_vips.is_empty()
            && !port.load_balancer_source_ranges.is_empty()
    }

    fn protocol(&self) -> Protocol {
        self.service_port.name.protocol
    }

    /// The frontends, with the rules that each has if this Service port gets it.
    pub fn frontends(&self, context: &Context) -> BTreeMap<Frontend, Entries> {
        let texts = Texts::new(self, context);
        let port = &self.service_port;
        let mut frontends = BTreeMap::new();
        let at = |address: IpAddr| Frontend::Address(address, self.protocol(), port.port);
        frontends.insert(at(port.cluster_ip), texts.cluster_ip());
        // An address may have two roles. The load balancer's role has the source ranges.
        for vip in &port.load_balancer_vips {
            let entries = || texts.external(*vip, "loadbalancer IP", self.is_firewalled());
            frontends.entry(at(*vip)).or_insert_with(entries);
        }
        for address in &port.external_ips {
            let entries = || texts.external(*address, "external IP", false);
            frontends.entry(at(*address)).or_insert_with(entries);
        }
        if let Some(node_port) = port.node_port {
            let node_port = node_port.get();
            frontends.insert(
                Frontend::NodePort(self.protocol(), node_port),
                texts.node_port(node_port),
            );
        }
        if let Some(health_port) = port.health_check_node_port {
            let health_port = health_port.get();
            frontends.insert(
                Frontend::HealthCheck(health_port),
                texts.health_check(health_port),
            );
        }
        for address in &self.local_addresses {
            let host = syntax::host(*address);
            let note = comment(REACHES_ITSELF);
            let rule = Rule::new(format!("-s {host} -d {host} {note} -j KUBE-MARK-MASQ"));
            frontends.insert(
                Frontend::LocalEndpoint(*address),
                Entries::from([(TreeId::Hairpin, rule)]),
            );
        }
        frontends
    }

    /// The chains. `with_comments`: the rules of endpoints name their Service port.
    pub fn chains(&self, context: &Context, with_comments: bool) -> Chains {
        let texts = Texts::new(self, context);
        let port = &self.service_port;
        let mut chains = Chains::new();
        let internal_local = port.internal_policy_local;
        let masquerade = texts.cluster_ip_masquerade(with_comments);
        let internal_is_served = self.refusal(internal_local).is_none();
        for (prefix, endpoints, is_local) in [
            (name::CLUSTER, &self.cluster, false),
            (name::LOCAL, &self.local, true),
        ] {
            if endpoints.is_empty() {
                continue;
            }
            let is_internal = internal_is_served && is_local == internal_local;
            let first = masquerade.iter().filter(|_| is_internal).cloned().collect();
            let writer = EndpointWriter {
                texts: &texts,
                base: texts.chain(prefix),
                with_comments,
            };
            writer.write(endpoints, first, &mut chains);
        }
        if self.has_any && port.is_externally_accessible() {
            chains.insert(
                ChainName::composed(texts.chain(name::EXTERNAL)),
                texts.external_chain(),
            );
        }
        if self.is_firewalled() {
            chains.insert(
                ChainName::composed(texts.chain(name::FIREWALL)),
                texts.firewall_chain(),
            );
        }
        chains
    }
}

fn sockets(endpoints: &[&Endpoint]) -> Vec<SocketAddr> {
    let mut sockets: Vec<SocketAddr> = endpoints
        .iter()
        .map(|endpoint| SocketAddr::new(endpoint.address, endpoint.port))
        .collect();
    sockets.sort_unstable();
    sockets.dedup();
    sockets
}

/// The chains of one Service port.
struct Texts<'a> {
    port_rules: &'a PortRules,
    context: &'a Context,
    /// `ns/name:port`
    name: String,
    hash: String,
}

impl<'a> Texts<'a> {
    fn new(port_rules: &'a PortRules, context: &'a Context) -> Self {
        let name = port_rules.service_port.name.to_string();
        let hash = name::service_hash(&name, port_rules.protocol());
        Self {
            port_rules,
            context,
            name,
            hash,
        }
    }

    fn chain(&self, prefix: &str) -> String {
        format!("{prefix}{}", self.hash)
    }

    fn endpoint_chain(&self, endpoint: SocketAddr) -> ChainName {
        name::endpoint_chain(&self.name, self.port_rules.protocol(), endpoint)
    }

    fn policy_chain(&self, is_local: bool) -> String {
        self.chain(if is_local { name::LOCAL } else { name::CLUSTER })
    }

    fn destination(&self, address: Option<IpAddr>, port: u16, note: &str) -> String {
        syntax::destination(address, self.port_rules.protocol(), port, note)
    }

    /// The rule of a rejected destination in a tree of `filter`.
    fn refuse(&self, refusal: Refusal, address: Option<IpAddr>, port: u16) -> Rule {
        let (note, target) = match refusal {
            Refusal::Reject => (
                format!("{} has no endpoints", self.name),
                syntax::reject(self.context.family),
            ),
            Refusal::Drop => (format!("{} has no local endpoints", self.name), "DROP"),
        };
        Rule::new(format!(
            "{} -j {target}",
            self.destination(address, port, &note)
        ))
    }

    fn cluster_ip(&self) -> Entries {
        let port = &self.port_rules.service_port;
        let is_local = port.internal_policy_local;
        let address = Some(port.cluster_ip);
        if let Some(refusal) = self.port_rules.refusal(is_local) {
            let rule = self.refuse(refusal, address, port.port);
            return Entries::from([(TreeId::Refused, rule)]);
        }
        let to = self.destination(address, port.port, &format!("{} cluster IP", self.name));
        let rule = Rule::new(format!("{to} -j {}", self.policy_chain(is_local)));
        Entries::from([(TreeId::Services, rule)])
    }

    fn external(&self, address: IpAddr, role: &str, is_firewalled: bool) -> Entries {
        let port = self.port_rules.service_port.port;
        let mut entries = Entries::new();
        if self.port_rules.has_any {
            let matches = self.destination(Some(address), port, &format!("{} {role}", self.name));
            let chain = if is_firewalled {
                name::FIREWALL
            } else {
                name::EXTERNAL
            };
            let dispatch = Rule::new(format!("{matches} -j {}", self.chain(chain)));
            entries.insert(TreeId::Services, dispatch);
        }
        if is_firewalled {
            let note = format!(
                "{} traffic not accepted by {}",
                self.name,
                self.chain(name::FIREWALL)
            );
            let to = self.destination(Some(address), port, &note);
            entries.insert(TreeId::Firewall, Rule::new(format!("{to} -j DROP")));
        }
        if let Some(refusal) = self.port_rules.refusal(self.port_rules.is_external_local()) {
            entries.insert(
                TreeId::RefusedExternal,
                self.refuse(refusal, Some(address), port),
            );
        }
        entries
    }

    fn node_port(&self, port: u16) -> Entries {
        let mut entries = Entries::new();
        if self.port_rules.has_any {
            let to = self.destination(None, port, &self.name);
            let rule = Rule::new(format!("{to} -j {}", self.chain(name::EXTERNAL)));
            entries.insert(TreeId::NodePorts, rule);
        }
        if let Some(refusal) = self.port_rules.refusal(self.port_rules.is_external_local()) {
            entries.insert(TreeId::RefusedNodePorts, self.refuse(refusal, None, port));
        }
        entries
    }

    fn health_check(&self, port: u16) -> Entries {
        let note = format!("{} health check node port", self.name);
        let to = syntax::destination(None, Protocol::Tcp, port, &note);
        Entries::from([(TreeId::HealthChecks, Rule::new(format!("{to} -j ACCEPT")))])
    }

    /// The rule that masquerades packets to the cluster IP from sources other than local pods. Each
    /// match of it costs time whenever a table is written: it names the cluster IP only where the
    /// chain serves other addresses as well.
    fn cluster_ip_masquerade(&self, with_comment: bool) -> Option<Rule> {
        let port = &self.port_rules.service_port;
        let locality = if self.context.masquerade_all {
            Some(Locality::default())
        } else {
            Locality::of(&self.context.local_detector, true)
        };
        // A node that has the cluster IP as an address uses it as the source of its own connections
        // to it.
        let from_itself = || Locality {
            source: format!("-s {} ", syntax::host(port.cluster_ip)),
            interface: String::new(),
        };
        let leaves_ipvs = self.context.iptables.leaves_ipvs;
        let Locality { source, interface } = locality.or_else(|| leaves_ipvs.then(from_itself))?;
        let protocol = self.port_rules.protocol().lowercase();
        let note = if with_comment {
            format!("{} ", comment(&format!("{} cluster IP", self.name)))
        } else {
            String::new()
        };
        let target = "-j KUBE-MARK-MASQ";
        Some(Rule::new(if port.is_externally_accessible() {
            let to = syntax::host(port.cluster_ip);
            let service = format!("-m {protocol} --dport {}", port.port);
            format!("{source}-d {to} {interface}-p {protocol} {note}{service} {target}")
        } else {
            format!("{source}{interface}{note}{target}")
        }))
    }

    fn external_chain(&self) -> Vec<Rule> {
        let cluster = self.chain(name::CLUSTER);
        let external = format!("for {} external destinations", self.name);
        let mut rules: Vec<Rule> = self.count_of_localhost().into_iter().collect();
        if !self.port_rules.is_external_local() {
            let note = comment(&format!("masquerade traffic {external}"));
            rules.push(Rule::new(format!("{note} -j KUBE-MARK-MASQ")));
            rules.push(Rule::new(format!("-j {cluster}")));
            return rules;
        }
        if let Some(local) = Locality::of(&self.context.local_detector, false) {
            let note = comment(&format!("pod traffic {external}"));
            let Locality { source, interface } = local;
            rules.push(Rule::new(format!("{source}{interface}{note} -j {cluster}")));
        }
        let from_node = "-m addrtype --src-type LOCAL";
        let note = comment(&format!("masquerade LOCAL traffic {external}"));
        rules.push(Rule::new(format!("{note} {from_node} -j KUBE-MARK-MASQ")));
        let note = comment(&format!("route LOCAL traffic {external}"));
        rules.push(Rule::new(format!("{note} {from_node} -j {cluster}")));
        if !self.port_rules.local.is_empty() {
            rules.push(Rule::new(format!("-j {}", self.chain(name::LOCAL))));
        }
        rules
    }

    /// Counts packets to the node port on a loopback address: no other external traffic has such an
    /// address.
    fn count_of_localhost(&self) -> Option<Rule> {
        let settings = &self.context.iptables;
        let counts = settings.counts_packets
            && settings.localhost_node_ports
            && self.context.family == IpFamily::V4
            && self.port_rules.service_port.node_port.is_some();
        let count = syntax::counted(LOCALHOST_ACCEPTED);
        counts.then(|| Rule::new(format!("-d 127.0.0.0/8 {count}")))
    }

    fn firewall_chain(&self) -> Vec<Rule> {
        let port = &self.port_rules.service_port;
        let external = self.chain(name::EXTERNAL);
        let note = comment(&format!("{} loadbalancer IP", self.name));
        let mut rules: Vec<Rule> = port
            .load_balancer_source_ranges
            .iter()
            .map(|range| Rule::new(format!("-s {range} {note} -j {external}")))
            .collect();
        if port.admits_node(self.context.node_ip) {
            // A node may have several addresses, including that of the load balancer, and the
            // kernel chooses the source address of the node's own connections.
            rules.push(Rule::new(format!(
                "{note} -m addrtype --src-type LOCAL -j {external}"
            )));
        }
        rules.push(Rule::new(comment(&format!(
            "other traffic to {} will be dropped by KUBE-PROXY-FIREWALL",
            self.name
        ))));
        rules
    }
}
