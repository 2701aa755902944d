// SPDX-License-Identifier: Apache-2.0
//! The table of cases: what packets to Services experience. Written once, run with real packets in
//! each mode, in both families and with each protocol.
//!
//! Every case is a Service of its own (its number gives its addresses) and what clients meet at it.
//! The expected value is what the API promises and both modes are to do. Where a mode does
//! something else, the probe says so, with the issue that will change it or the reason why it
//! stays; the test then demands exactly that, so that a change of it is noticed.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::manifests::Service;
use crate::topology::{
    CLUSTER_CIDRS, Family, Host, SECOND_NETWORKS, cluster_ip, external_ip, load_balancer_vip,
    node_port, second, second_node_address,
};

mod basic;
mod detectors;
mod endpoints;
mod explained;
mod localhost;
mod policies;
pub mod run;

/// The proxy's mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Ipvs,
    Iptables,
}

impl Mode {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ipvs => "ipvs",
            Self::Iptables => "iptables",
        }
    }
}

/// One of the two iptables, whose rules do not see each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    Legacy,
    Nft,
}

impl Backend {
    pub const ALL: [Self; 2] = [Self::Legacy, Self::Nft];

    /// As in the names of its programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Legacy => "legacy",
            Self::Nft => "nft",
        }
    }

    /// Its program for a family.
    pub fn program(self, family: Family) -> String {
        let base = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        format!("{base}-{}", self.name())
    }
}

/// What carries out the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dataplane {
    Ipvs,
    Iptables(Backend),
}

impl Dataplane {
    pub const fn mode(self) -> Mode {
        match self {
            Self::Ipvs => Mode::Ipvs,
            Self::Iptables(_) => Mode::Iptables,
        }
    }

    /// The iptables program of the node for a family.
    pub fn program(self, family: Family) -> String {
        match (self, family) {
            (Self::Iptables(backend), family) => backend.program(family),
            (Self::Ipvs, Family::V4) => "iptables".to_owned(),
            (Self::Ipvs, Family::V6) => "ip6tables".to_owned(),
        }
    }
}

impl fmt::Display for Dataplane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ipvs => f.write_str("ipvs"),
            Self::Iptables(backend) => write!(f, "iptables-{}", backend.name()),
        }
    }
}

/// The flags that a case needs. One proxy serves all cases of a setup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setup {
    /// `--cluster-cidr`, as most clusters have it.
    ClusterCidr,
    /// Nothing tells pods from others.
    NoDetector,
    MasqueradeAll,
    /// Node ports only on the node's second address.
    NodePortAddresses,
    /// Pods are those of this node, and node ports answer on its second address and on loopback.
    NodeCidr,
    /// Pods are what comes in by their bridge; no node ports on loopback.
    Bridge,
    /// Pods are what comes in by links of a name; another masquerade bit.
    InterfacePrefix,
    /// The proxy itself forwards node ports of loopback, no rule does.
    Forwarder,
}

impl Setup {
    pub const ALL: [Self; 8] = [
        Self::ClusterCidr,
        Self::NoDetector,
        Self::MasqueradeAll,
        Self::NodePortAddresses,
        Self::NodeCidr,
        Self::Bridge,
        Self::InterfacePrefix,
        Self::Forwarder,
    ];

    pub fn flags(self) -> Vec<String> {
        let cidr = format!("--cluster-cidr={CLUSTER_CIDRS}");
        match self {
            Self::ClusterCidr => vec![cidr],
            Self::NoDetector => Vec::new(),
            Self::MasqueradeAll => vec![cidr, "--masquerade-all".to_owned()],
            Self::NodePortAddresses => {
                vec![cidr, format!("--nodeport-addresses={SECOND_NETWORKS}")]
            }
            Self::NodeCidr => vec![
                "--detect-local-mode=NodeCIDR".to_owned(),
                format!("--nodeport-addresses=127.0.0.0/8,{SECOND_NETWORKS}"),
            ],
            Self::Bridge => vec![
                "--detect-local-mode=BridgeInterface".to_owned(),
                "--pod-bridge-interface=cni0".to_owned(),
                "--iptables-localhost-nodeports=false".to_owned(),
            ],
            Self::InterfacePrefix => vec![
                "--detect-local-mode=InterfaceNamePrefix".to_owned(),
                "--pod-interface-name-prefix=cni".to_owned(),
                "--iptables-masquerade-bit=20".to_owned(),
            ],
            Self::Forwarder => vec![
                cidr,
                "--localhost-nodeports".to_owned(),
                "--iptables-localhost-nodeports=false".to_owned(),
            ],
        }
    }
}

/// A Service and what clients meet at it.
#[derive(Clone, Debug)]
pub struct Case {
    pub setup: Setup,
    pub service: Service,
    pub probes: Vec<Probe>,
}

/// Where a client connects to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    ClusterIp,
    ExternalIp,
    Vip,
    NodePort,
    /// The node port on the node's second address.
    SecondNodePort,
    /// The node port on the loopback address.
    Localhost,
    /// Another external IP and VIP of the same Service.
    SecondExternalIp,
    SecondVip,
}

impl At {
    /// Those from outside the cluster.
    pub const EXTERNAL: [Self; 3] = [Self::NodePort, Self::ExternalIp, Self::Vip];

    /// The address; the port is that of the Service unless it is a node port.
    pub fn address(self, service: &Service, family: Family, port: u16) -> SocketAddr {
        let n = service.n;
        let (ip, port) = match self {
            Self::ClusterIp => (cluster_ip(family, n), port),
            Self::ExternalIp => (external_ip(family, n), port),
            Self::Vip => (load_balancer_vip(family, n), port),
            Self::NodePort => (Host::Node.address(family), node_port(n)),
            Self::SecondNodePort => (second_node_address(family), node_port(n)),
            Self::Localhost => (loopback(family), node_port(n)),
            Self::SecondExternalIp => (external_ip(family, second(n)), port),
            Self::SecondVip => (load_balancer_vip(family, second(n)), port),
        };
        SocketAddr::new(ip, port)
    }

    const fn name(self) -> &'static str {
        match self {
            Self::ClusterIp => "cluster IP",
            Self::ExternalIp => "external IP",
            Self::Vip => "VIP",
            Self::NodePort => "node port",
            Self::SecondNodePort => "node port of the second address",
            Self::Localhost => "node port on localhost",
            Self::SecondExternalIp => "second external IP",
            Self::SecondVip => "second VIP",
        }
    }
}

/// The loopback address.
pub const fn loopback(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Family::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
    }
}

/// Whom a backend sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The client's own address.
    Own,
    /// The node: masqueraded.
    Node,
    /// The node by a client that has reached itself, else the client's own address.
    NodeByItself,
    /// The address that was asked: a client on the node itself has it.
    Asked,
}

impl Source {
    /// Whether a backend may have seen this address.
    pub fn admits(
        self,
        seen: IpAddr,
        by: &str,
        client: Host,
        asked: SocketAddr,
        family: Family,
    ) -> bool {
        match self {
            Self::NodeByItself if by == client.name() => {
                Self::Node.admits(seen, by, client, asked, family)
            }
            Self::Own | Self::NodeByItself => seen == client.address(family),
            Self::Node => Host::Node.addresses(family).contains(&seen),
            Self::Asked => seen == asked.ip(),
        }
    }
}

/// What a client meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Exactly these answer, in turns, each of them sees this source.
    Answer(&'static [Host], Source),
    /// The same, where each host answers at ports of its own.
    AnswerAt(&'static [(Host, &'static [u16])], Source),
    /// One of these answers, always the same one.
    OneOf(&'static [Host], Source),
    /// Told at once that nobody is there.
    Refused,
    /// No answer and no refusal.
    Dropped,
    /// No answer, however the client learns it.
    NoAnswer,
}

impl Want {
    /// Names of the hosts that answer and their ports, and whom they see. `target`: the port of
    /// those that have none of their own.
    pub fn answers(self, target: u16) -> Option<(BTreeSet<(&'static str, u16)>, Source)> {
        match self {
            Self::Answer(hosts, source) | Self::OneOf(hosts, source) => {
                let all = hosts.iter().map(|host| (host.name(), target));
                Some((all.collect(), source))
            }
            Self::AnswerAt(hosts, source) => {
                let all = hosts
                    .iter()
                    .flat_map(|(host, ports)| ports.iter().map(|port| (host.name(), *port)));
                Some((all.collect(), source))
            }
            Self::Refused | Self::Dropped | Self::NoAnswer => None,
        }
    }
}

/// A client, an address, and what it meets there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    pub from: Host,
    pub at: At,
    /// The Service's port.
    pub port: u16,
    /// The port on which the backend listens.
    pub target: u16,
    /// An ICMP echo request, which has no port.
    pub is_ping: bool,
    pub want: Want,
    /// Only in this family.
    pub only: Option<Family>,
    /// What a mode does instead, and why.
    pub instead: Option<(Mode, Want, &'static str)>,
}

impl Probe {
    pub const fn new(from: Host, at: At, want: Want) -> Self {
        Self {
            from,
            at,
            port: 80,
            target: 8080,
            is_ping: false,
            want,
            only: None,
            instead: None,
        }
    }

    #[must_use]
    pub const fn only(self, family: Family) -> Self {
        Self {
            only: Some(family),
            ..self
        }
    }

    #[must_use]
    pub const fn port(self, port: u16, target: u16) -> Self {
        Self {
            port,
            target,
            ..self
        }
    }

    #[must_use]
    pub const fn ping(self) -> Self {
        Self {
            is_ping: true,
            ..self
        }
    }

    /// A mode differs, and why.
    #[must_use]
    pub const fn but(self, mode: Mode, want: Want, why: &'static str) -> Self {
        Self {
            instead: Some((mode, want, why)),
            ..self
        }
    }

    /// What is expected in a mode.
    pub fn expected(&self, mode: Mode) -> Want {
        match self.instead {
            Some((other, want, _)) if other == mode => want,
            _ => self.want,
        }
    }

    pub fn describe(&self) -> String {
        let (from, at) = (self.from, self.at.name());
        if self.is_ping {
            return format!("{from} pings the {at}");
        }
        format!("{from} to the {at}:{}", self.port)
    }
}

impl Case {
    /// The probes of a family that have a port.
    pub fn probes(&self, family: Family) -> impl Iterator<Item = &Probe> {
        self.of_family(family).filter(|probe| !probe.is_ping)
    }

    /// Those that have none.
    pub fn pings(&self, family: Family) -> impl Iterator<Item = &Probe> {
        self.of_family(family).filter(|probe| probe.is_ping)
    }

    fn of_family(&self, family: Family) -> impl Iterator<Item = &Probe> {
        self.probes
            .iter()
            .filter(move |probe| probe.only.is_none_or(|only| only == family))
    }
}

/// All cases, those of a setup together.
pub fn all() -> Vec<Case> {
    let mut cases = basic::cases();
    cases.extend(policies::cases());
    cases.extend(detectors::cases());
    cases.extend(endpoints::cases());
    cases.extend(localhost::cases());
    let order = |case: &Case| Setup::ALL.iter().position(|setup| *setup == case.setup);
    cases.sort_by_key(order);
    cases
}

/// The same probe from several clients or at several addresses.
fn probes(from: &[Host], at: &[At], want: Want) -> Vec<Probe> {
    from.iter()
        .flat_map(|from| at.iter().map(|at| Probe::new(*from, *at, want)))
        .collect()
}
