// SPDX-License-Identifier: Apache-2.0
//! PURE: the ipsets of IPVS mode and their entries. Names and types are kube-proxy's, byte for byte.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use serde::{Serialize, Serializer};

use crate::model::{IpFamily, Protocol};

/// `maxelem` of a set as kube-proxy creates it. Kept while it suffices: kube-proxy refuses to start
/// with a set of another size, and a roll-back must work.
pub const DEFAULT_MAX_ENTRIES: u32 = 65_536;

/// Longest name of a set in bytes (`IPSET_MAXNAMELEN` is 32 with the NUL).
const MAX_NAME_LEN: usize = 31;

/// The type of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum SetType {
    #[serde(rename = "hash:ip")]
    HashIp,
    #[serde(rename = "hash:ip,port")]
    HashIpPort,
    #[serde(rename = "hash:ip,port,ip")]
    HashIpPortIp,
    #[serde(rename = "hash:ip,port,net")]
    HashIpPortNet,
    #[serde(rename = "bitmap:port")]
    BitmapPort,
}

impl SetType {
    /// ipset's spelling.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::HashIp => "hash:ip",
            Self::HashIpPort => "hash:ip,port",
            Self::HashIpPortIp => "hash:ip,port,ip",
            Self::HashIpPortNet => "hash:ip,port,net",
            Self::BitmapPort => "bitmap:port",
        }
    }

    /// It has a family and a `maxelem`.
    pub const fn is_hash(self) -> bool {
        !matches!(self, Self::BitmapPort)
    }
}

/// The sets of IPVS mode, one of each per family. Entries are removed in this order of sets and added
/// in the reverse one: what admits packets comes last and goes first, and what closes a load
/// balancer to strangers is never there without what opens it to some.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetId {
    LoopBack,
    ClusterIp,
    ExternalIp,
    ExternalIpLocal,
    LoadBalancer,
    LoadBalancerLocal,
    LoadBalancerFw,
    LoadBalancerSourceCidr,
    LoadBalancerSourceIp,
    NodePortTcp,
    NodePortLocalTcp,
    NodePortUdp,
    NodePortLocalUdp,
    NodePortSctp,
    NodePortLocalSctp,
    HealthCheckNodePort,
    IpvsIps,
}

impl SetId {
    pub const ALL: [Self; 17] = [
        Self::LoopBack,
        Self::ClusterIp,
        Self::ExternalIp,
        Self::ExternalIpLocal,
        Self::LoadBalancer,
        Self::LoadBalancerLocal,
        Self::LoadBalancerFw,
        Self::LoadBalancerSourceCidr,
        Self::LoadBalancerSourceIp,
        Self::NodePortTcp,
        Self::NodePortLocalTcp,
        Self::NodePortUdp,
        Self::NodePortLocalUdp,
        Self::NodePortSctp,
        Self::NodePortLocalSctp,
        Self::HealthCheckNodePort,
        Self::IpvsIps,
    ];

    /// Name, type, and the comment of the rules that use the set.
    const fn facts(self) -> (&'static str, SetType, &'static str) {
        use SetType::{BitmapPort, HashIp, HashIpPort, HashIpPortIp, HashIpPortNet};
        match self {
            Self::LoopBack => (
                "KUBE-LOOP-BACK",
                HashIpPortIp,
                "Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose",
            ),
            Self::ClusterIp => (
                "KUBE-CLUSTER-IP",
                HashIpPort,
                "Kubernetes service cluster ip + port for masquerade purpose",
            ),
            Self::ExternalIp => (
                "KUBE-EXTERNAL-IP",
                HashIpPort,
                "Kubernetes service external ip + port for masquerade and filter purpose",
            ),
            Self::ExternalIpLocal => (
                "KUBE-EXTERNAL-IP-LOCAL",
                HashIpPort,
                "Kubernetes service external ip + port with externalTrafficPolicy=local",
            ),
            Self::LoadBalancer => (
                "KUBE-LOAD-BALANCER",
                HashIpPort,
                "Kubernetes service lb portal",
            ),
            Self::LoadBalancerLocal => (
                "KUBE-LOAD-BALANCER-LOCAL",
                HashIpPort,
                "Kubernetes service load balancer ip + port with externalTrafficPolicy=local",
            ),
            Self::LoadBalancerFw => (
                "KUBE-LOAD-BALANCER-FW",
                HashIpPort,
                "Kubernetes service load balancer ip + port for load balancer with sourceRange",
            ),
            Self::LoadBalancerSourceCidr => (
                "KUBE-LOAD-BALANCER-SOURCE-CIDR",
                HashIpPortNet,
                "Kubernetes service load balancer ip + port + source cidr for packet filter purpose",
            ),
            Self::LoadBalancerSourceIp => (
                "KUBE-LOAD-BALANCER-SOURCE-IP",
                HashIpPortIp,
                "Kubernetes service load balancer ip + port + source IP for packet filter purpose",
            ),
            Self::NodePortTcp => (
                "KUBE-NODE-PORT-TCP",
                BitmapPort,
                "Kubernetes nodeport TCP port for masquerade purpose",
            ),
            Self::NodePortLocalTcp => (
                "KUBE-NODE-PORT-LOCAL-TCP",
                BitmapPort,
                "Kubernetes nodeport TCP port with externalTrafficPolicy=local",
            ),
            Self::NodePortUdp => (
                "KUBE-NODE-PORT-UDP",
                BitmapPort,
                "Kubernetes nodeport UDP port for masquerade purpose",
            ),
            Self::NodePortLocalUdp => (
                "KUBE-NODE-PORT-LOCAL-UDP",
                BitmapPort,
                "Kubernetes nodeport UDP port with externalTrafficPolicy=local",
            ),
            Self::NodePortSctp => (
                "KUBE-NODE-PORT-SCTP-HASH",
                HashIpPort,
                "Kubernetes nodeport SCTP port for masquerade purpose with type 'hash ip:port'",
            ),
            Self::NodePortLocalSctp => (
                "KUBE-NODE-PORT-LOCAL-SCTP-HASH",
                HashIpPort,
                "Kubernetes nodeport SCTP port with externalTrafficPolicy=local with type 'hash ip:port'",
            ),
            Self::HealthCheckNodePort => (
                "KUBE-HEALTH-CHECK-NODE-PORT",
                BitmapPort,
                "Kubernetes health check node port",
            ),
            Self::IpvsIps => ("KUBE-IPVS-IPS", HashIp, "Addresses on the ipvs interface"),
        }
    }

    /// The name in a family; IPv6 names are cut to what the kernel takes.
    pub fn name(self, family: IpFamily) -> SetName {
        let (name, ..) = self.facts();
        match family {
            IpFamily::V4 => SetName(name.to_owned()),
            IpFamily::V6 => {
                let mut long = name.replacen("KUBE-", "KUBE-6-", 1);
                long.truncate(MAX_NAME_LEN);
                SetName(long)
            }
        }
    }

    pub const fn set_type(self) -> SetType {
        self.facts().1
    }

    /// The comment of the rules that use the set.
    pub const fn comment(self) -> &'static str {
        self.facts().2
    }
}

/// The name of a set, at most 31 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct SetName(String);

impl SetName {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of the set that takes the place of this one while it is made anew. It differs in
    /// its last letters only, so that it keeps the prefix that says whose it is.
    #[must_use]
    pub fn replacement(&self) -> Self {
        let mut name = self.0.clone();
        name.truncate(MAX_NAME_LEN - 2);
        name.push_str("-n");
        Self(name)
    }
}

impl fmt::Display for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a set is made with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SetSpec {
    pub name: SetName,
    #[serde(rename = "type")]
    pub set_type: SetType,
    pub family: IpFamily,
    /// Most entries (`maxelem`); the kernel ignores it for bitmaps.
    pub max_entries: u32,
}

impl SetSpec {
    pub fn new(id: SetId, family: IpFamily, max_entries: u32) -> Self {
        Self {
            name: id.name(family),
            set_type: id.set_type(),
            family,
            max_entries,
        }
    }
}

/// An entry of a set. Displays as `ipset list` prints it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetEntry {
    Ip(IpAddr),
    Port(u16),
    IpPort(IpAddr, Protocol, u16),
    IpPortIp(IpAddr, Protocol, u16, IpAddr),
    /// The network has no host bits set.
    IpPortNet(IpAddr, Protocol, u16, IpNet),
}

impl SetEntry {
    /// No entry comes before it.
    pub const FIRST: Self = Self::Ip(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
}

impl fmt::Display for SetEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => write!(f, "{ip}"),
            Self::Port(port) => write!(f, "{port}"),
            Self::IpPort(ip, protocol, port) => write!(f, "{ip},{}:{port}", protocol.lowercase()),
            Self::IpPortIp(ip, protocol, port, source) => {
                write!(f, "{ip},{}:{port},{source}", protocol.lowercase())
            }
            Self::IpPortNet(ip, protocol, port, net) => {
                write!(f, "{ip},{}:{port},", protocol.lowercase())?;
                // The kernel's listing leaves out the length of a host's prefix.
                if net.prefix_len() == net.max_prefix_len() {
                    write!(f, "{}", net.addr())
                } else {
                    write!(f, "{net}")
                }
            }
        }
    }
}

impl Serialize for SetEntry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
