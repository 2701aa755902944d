// SPDX-License-Identifier: Apache-2.0
//! The table of cases: what packets to Services experience. Written once, run with real packets in each
//! mode, in both families and with each protocol.
//!
//! Every case is a Service of its own (its number gives its addresses) and what clients meet at it. The
//! expected value is what the API promises and both modes are to do. Where a mode does something else, the
//! probe says so, with the issue that will change it or the reason why it stays; the test then
//! demands exactly that, so that a change of it is noticed.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "every test program is a crate of its own and uses a part of this"
)]

use std::net::{IpAddr, SocketAddr};

use crate::common::manifests::Service;
use crate::common::topology::{
    CLUSTER_CIDRS, Family, Host, SECOND_NETWORKS, cluster_ip, external_ip, load_balancer_vip,
    node_port, second_node_address,
};

mod basic;
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
}

impl Setup {
    pub const ALL: [Self; 4] = [
        Self::ClusterCidr,
        Self::NoDetector,
        Self::MasqueradeAll,
        Self::NodePortAddresses,
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
        }
    }
}

/// Whom a backend sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The client's own address.
    Own,
    /// The node: masqueraded.
    Node,
    /// The address that was asked: a client on the node itself has it.
    Asked,
}

impl Source {
    pub fn admits(self, seen: IpAddr, client: Host, asked: SocketAddr, family: Family) -> bool {
        match self {
            Self::Own => seen == client.address(family),
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
    /// One of these answers, always the same one.
    OneOf(&'static [Host], Source),
    /// Told at once that nobody is there.
    Refused,
    /// No answer and no refusal.
    Dropped,
    /// No answer, however the client learns it.
    NoAnswer,
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
    pub want: Want,
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
            want,
            instead: None,
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
        format!("{} to the {}:{}", self.from, self.at.name(), self.port)
    }
}

/// All cases, those of a setup together.
pub fn all() -> Vec<Case> {
    let mut cases = basic::cases();
    cases.extend(policies::cases());
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
