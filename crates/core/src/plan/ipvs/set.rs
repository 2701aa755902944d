// SPDX-License-Identifier: Apache-2.0
//! PURE: the ipsets of IPVS mode and their entries. Names and types are byte for byte kube-proxy's
//! where it has them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use serde::{Serialize, Serializer};

use crate::model::{IpFamily, Protocol};
use crate::plan::context::IpvsRules;
use crate::plan::ipvs::mark::bits_of;
use crate::plan::ipvs::object::VirtualServerKey;
use crate::plan::ipvs::state::State;

/// `maxelem` of a set as kube-proxy creates it. Kept while it suffices: kube-proxy fails to start
/// if a set has another size, and a rollback must work.
pub const DEFAULT_MAX_ENTRIES: u32 = 65_536;

/// Maximum length of a set's name in bytes (`IPSET_MAXNAMELEN` is 32 with the NUL).
const MAX_NAME_LEN: usize = 31;

/// The type of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum SetType {
    #[serde(rename = "hash:ip")]
    HashIp,
    #[serde(rename = "hash:ip,port")]
    HashIpPort,
    /// Whether its entries carry a firewall mark.
    #[serde(rename = "hash:ip,port skbinfo")]
    HashIpPortMark,
    #[serde(rename = "hash:ip,port,ip")]
    HashIpPortIp,
    #[serde(rename = "hash:ip,port,net")]
    HashIpPortNet,
    #[serde(rename = "bitmap:port")]
    BitmapPort,
}

impl SetType {
    /// The name that ipset uses.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::HashIp => "hash:ip",
            Self::HashIpPort => "hash:ip,port",
            Self::HashIpPortMark => "hash:ip,port skbinfo",
            Self::HashIpPortIp => "hash:ip,port,ip",
            Self::HashIpPortNet => "hash:ip,port,net",
            Self::BitmapPort => "bitmap:port",
        }
    }

    /// Whether it has a family and a `maxelem`.
    pub const fn is_hash(self) -> bool {
        !matches!(self, Self::BitmapPort)
    }
}

/// The sets of IPVS mode, one of each per family. Entries are removed in this order of sets and
/// added in the reverse one, but for those of [`Self::IpvsIps`], which come last. So what admits
/// packets is removed first, a load balancer is never closed to all sources without the entries
/// that admit some, and an address that is served already, because rules of another kind admit its
/// ports, never refuses them.
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
    NodePort,
    NodePortLocal,
    NoLocalEndpoints,
    LocalPolicyMark,
    HealthCheckNodePort,
    HealthCheckVip,
    IpvsIps,
}

impl SetId {
    pub const ALL: [Self; 16] = [
        Self::LoopBack,
        Self::ClusterIp,
        Self::ExternalIp,
        Self::ExternalIpLocal,
        Self::LoadBalancer,
        Self::LoadBalancerLocal,
        Self::LoadBalancerFw,
        Self::LoadBalancerSourceCidr,
        Self::LoadBalancerSourceIp,
        Self::NodePort,
        Self::NodePortLocal,
        Self::NoLocalEndpoints,
        Self::LocalPolicyMark,
        Self::HealthCheckNodePort,
        Self::HealthCheckVip,
        Self::IpvsIps,
    ];

    /// The sets that rules held in a way match: those of nftables compare addresses by themselves
    /// instead of knowing every endpoint on this node.
    pub fn of(rules: IpvsRules) -> impl Iterator<Item = Self> {
        let is_used = move |id: &Self| *id != Self::LoopBack || rules == IpvsRules::Iptables;
        Self::ALL.into_iter().filter(is_used)
    }

    /// Name, type, and the comment of the rules that use the set.
    const fn facts(self) -> (&'static str, SetType, &'static str) {
        use SetType::{
            BitmapPort, HashIp, HashIpPort, HashIpPortIp, HashIpPortMark, HashIpPortNet,
        };
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
            Self::NodePort => (
                "KUBE-NODE-PORT-HASH",
                HashIpPort,
                "Kubernetes nodeport address and port for masquerade purpose",
            ),
            Self::NodePortLocal => (
                "KUBE-NODE-PORT-LOCAL-HASH",
                HashIpPort,
                "Kubernetes nodeport address and port with externalTrafficPolicy=local",
            ),
            Self::NoLocalEndpoints => (
                "KUBE-NO-LOCAL-ENDPOINTS",
                HashIpPort,
                "Kubernetes service address and port with a local policy and no local endpoints for drop purpose",
            ),
            Self::LocalPolicyMark => (
                "KUBE-LOCAL-POLICY-MARK",
                HashIpPortMark,
                "Kubernetes service address and port with externalTrafficPolicy=local for all endpoints purpose",
            ),
            Self::HealthCheckNodePort => (
                "KUBE-HEALTH-CHECK-NODE-PORT",
                BitmapPort,
                "Kubernetes health check node port",
            ),
            Self::HealthCheckVip => (
                "KUBE-HEALTH-CHECK-VIP",
                HashIpPort,
                "Kubernetes service load balancer ip + health check node port",
            ),
            Self::IpvsIps => ("KUBE-IPVS-IPS", HashIp, "Addresses on the ipvs interface"),
        }
    }

    /// The name in a family; IPv6 names are cut to the kernel's maximum.
    pub fn name(self, family: IpFamily) -> SetName {
        let (name, ..) = self.facts();
        SetName::of(name, family)
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

/// Sets of kube-proxy that ours replace under other names, because the types differ: kube-proxy's
/// match the port alone, so they treat a Service's port on any address as a node port of the same
/// number.
const RETIRED: [&str; 6] = [
    "KUBE-NODE-PORT-TCP",
    "KUBE-NODE-PORT-LOCAL-TCP",
    "KUBE-NODE-PORT-UDP",
    "KUBE-NODE-PORT-LOCAL-UDP",
    "KUBE-NODE-PORT-SCTP-HASH",
    "KUBE-NODE-PORT-LOCAL-SCTP-HASH",
];

/// The names in a family of the sets that only kube-proxy has. They are deleted once no rule uses
/// them.
pub fn retired(family: IpFamily) -> impl Iterator<Item = SetName> {
    RETIRED
        .into_iter()
        .map(move |name| SetName::of(name, family))
}

/// kube-proxy's set of the node ports of a protocol.
pub fn node_ports_of_kube_proxy(protocol: Protocol, family: IpFamily) -> SetName {
    let name = match protocol {
        Protocol::Tcp => "KUBE-NODE-PORT-TCP",
        Protocol::Udp => "KUBE-NODE-PORT-UDP",
        Protocol::Sctp => "KUBE-NODE-PORT-SCTP-HASH",
    };
    SetName::of(name, family)
}

/// Whether a virtual server is that of a node port, by kube-proxy's set or ours; `None` if there is
/// no such set.
pub fn lists_node_port(observed: &State, key: &VirtualServerKey) -> Option<bool> {
    let VirtualServerKey::Address {
        address,
        port,
        protocol,
    } = *key
    else {
        return Some(false);
    };
    let family = key.family();
    let names = [
        SetId::NodePort.name(family),
        node_ports_of_kube_proxy(protocol, family),
    ];
    // kube-proxy's has the port alone, except for SCTP.
    let entries = [
        SetEntry::IpPort(address, protocol, port),
        SetEntry::Port(port),
    ];
    let mut present = names
        .iter()
        .flat_map(|name| observed.all_sets(name))
        .peekable();
    present.peek()?;
    Some(present.any(|set| entries.iter().any(|entry| set.entries.contains(entry))))
}

impl SetName {
    /// The name that a set has in a family.
    pub(in crate::plan) fn of(name: &str, family: IpFamily) -> Self {
        match family {
            IpFamily::V4 => Self(name.to_owned()),
            IpFamily::V6 => {
                let mut long = name.replacen("KUBE-", "KUBE-6-", 1);
                long.truncate(MAX_NAME_LEN);
                Self(long)
            }
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of the temporary set that is swapped with this one to recreate it. It differs in
    /// the last letters only, so that it keeps the prefix that identifies the owner.
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

/// The parameters with which a set is created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SetSpec {
    pub name: SetName,
    #[serde(rename = "type")]
    pub set_type: SetType,
    pub family: IpFamily,
    /// Maximum number of entries (`maxelem`); the kernel ignores it for bitmaps.
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
    /// Matching packets get the mark, whose other bits stay. A set has one mark for each address
    /// and port: adding another replaces it.
    IpPortMark(IpAddr, Protocol, u16, u32),
    IpPortIp(IpAddr, Protocol, u16, IpAddr),
    /// The network has no host bits set.
    IpPortNet(IpAddr, Protocol, u16, IpNet),
}

impl SetEntry {
    /// The smallest entry.
    pub const FIRST: Self = Self::Ip(IpAddr::V4(Ipv4Addr::UNSPECIFIED));

    /// The address that it begins with.
    pub const fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Port(_) => None,
            Self::Ip(ip)
            | Self::IpPort(ip, ..)
            | Self::IpPortMark(ip, ..)
            | Self::IpPortIp(ip, ..)
            | Self::IpPortNet(ip, ..) => Some(*ip),
        }
    }

    /// The entry of a virtual server in the set of node ports, if it is at an address.
    pub const fn of_node_port(key: &VirtualServerKey) -> Option<Self> {
        match *key {
            VirtualServerKey::Address {
                address,
                port,
                protocol,
            } => Some(Self::IpPort(address, protocol, port)),
            VirtualServerKey::Mark { .. } => None,
        }
    }

    /// All entries of which a set has one at a time, including this one: the first and the last.
    pub const fn alternatives(self) -> (Self, Self) {
        match self {
            Self::IpPortMark(ip, protocol, port, _) => (
                Self::IpPortMark(ip, protocol, port, 0),
                Self::IpPortMark(ip, protocol, port, u32::MAX),
            ),
            _ => (self, self),
        }
    }
}

impl fmt::Display for SetEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => write!(f, "{ip}"),
            Self::Port(port) => write!(f, "{port}"),
            Self::IpPort(ip, protocol, port) => write!(f, "{ip},{}:{port}", protocol.lowercase()),
            Self::IpPortMark(ip, protocol, port, mark) => {
                let (protocol, bits) = (protocol.lowercase(), bits_of(*mark));
                write!(f, "{ip},{protocol}:{port} skbmark {mark:#x}/{bits:#x}")
            }
            Self::IpPortIp(ip, protocol, port, source) => {
                write!(f, "{ip},{}:{port},{source}", protocol.lowercase())
            }
            Self::IpPortNet(ip, protocol, port, net) => {
                write!(f, "{ip},{}:{port},", protocol.lowercase())?;
                // The kernel's listing omits the prefix length of a single host.
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
