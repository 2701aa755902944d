// SPDX-License-Identifier: Apache-2.0
//! The node as the planner sees it: its addresses, which traffic is local, which addresses accept
//! node ports.
//!
//! Derived from the configuration and the Node object, for `plan`. Pure: callers pass the addresses
//! of interfaces.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::model::address::{InvalidCidr, parse_cidr};
use crate::model::net::IpFamily;

/// The maximum length of an interface name (`IFNAMSIZ` is 16 with the NUL).
pub const MAX_INTERFACE_NAME: usize = 15;

/// The name of a network interface, or a prefix of names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct InterfaceName(String);

/// Text that is not a valid interface name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a valid interface name: {0:?}: must have 1 to 15 bytes and neither a slash nor a blank"
)]
pub struct InvalidInterfaceName(pub String);

impl InterfaceName {
    /// The name as the kernel writes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for InterfaceName {
    type Err = InvalidInterfaceName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // The rules of the kernel's `dev_valid_name`; a trailing `+` would be iptables' wildcard.
        let valid = (1..=MAX_INTERFACE_NAME).contains(&text.len())
            && text != "."
            && text != ".."
            && !text.ends_with('+')
            && !text
                .chars()
                .any(|c| c == '/' || c == ':' || c.is_whitespace() || c.is_control());
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidInterfaceName(text.to_owned()))
        }
    }
}

/// How to detect traffic from local pods, in one family.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LocalDetector {
    /// By source address (`-s CIDR`).
    Cidr(IpNet),
    /// By input interface (`-i NAME`).
    BridgeInterface(InterfaceName),
    /// By a prefix of the input interface's name (`-i PREFIX+`).
    InterfacePrefix(InterfaceName),
    /// Local traffic cannot be detected: rules that need it are left out.
    None,
}

impl LocalDetector {
    /// The detector of a family if local traffic comes from `cidrs`; the first CIDR of that family
    /// applies.
    pub fn from_cidrs(family: IpFamily, cidrs: &[IpNet]) -> Self {
        cidrs
            .iter()
            .find(|cidr| IpFamily::of(cidr.addr()) == family)
            .map_or(Self::None, |cidr| Self::Cidr(*cidr))
    }
}

/// The configured way to detect local traffic (`detectLocalMode`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DetectLocal {
    /// By the cluster's pod ranges; empty if they are not configured.
    ClusterCidr(Vec<IpNet>),
    /// By the pod ranges of this node's Node object.
    NodeCidr,
    /// By the bridge that pods are attached to.
    BridgeInterface(InterfaceName),
    /// By a prefix of the names of the pods' interfaces.
    InterfaceNamePrefix(InterfaceName),
}

impl DetectLocal {
    /// The detector of one family. `pod_cidrs` are those of this node's Node object.
    pub fn detector(&self, family: IpFamily, pod_cidrs: &[IpNet]) -> LocalDetector {
        match self {
            Self::ClusterCidr(cidrs) => LocalDetector::from_cidrs(family, cidrs),
            Self::NodeCidr => LocalDetector::from_cidrs(family, pod_cidrs),
            Self::BridgeInterface(name) => LocalDetector::BridgeInterface(name.clone()),
            Self::InterfaceNamePrefix(name) => LocalDetector::InterfacePrefix(name.clone()),
        }
    }

    /// Whether [`Self::detector`] depends on the Node object.
    pub const fn needs_pod_cidrs(&self) -> bool {
        matches!(self, Self::NodeCidr)
    }
}

/// The address of this node in each family, and its primary family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeIps {
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    primary: IpFamily,
}

impl Default for NodeIps {
    /// A node of unknown addresses: loopback in both families, IPv4 as the primary.
    fn default() -> Self {
        Self {
            v4: Ipv4Addr::LOCALHOST,
            v6: Ipv6Addr::LOCALHOST,
            primary: IpFamily::V4,
        }
    }
}

impl NodeIps {
    /// Derived from the Node's addresses of type `InternalIP` and `ExternalIP`, in the order of
    /// `status.addresses`, and the setting `bindAddress`. The first address determines the primary
    /// family, and the first of each family is used for that family, internal ones before external
    /// ones. A `bind_address` overrides both unless it is unspecified.
    pub fn new(internal: &[IpAddr], external: &[IpAddr], bind_address: Option<IpAddr>) -> Self {
        let mut ips = Self::default();
        let node: Vec<IpAddr> = internal.iter().chain(external).copied().collect();
        if let Some(first) = node.first() {
            ips.primary = IpFamily::of(*first);
        }
        // In reverse, so that the first address of a family is written last.
        node.into_iter().rev().for_each(|ip| ips.set(ip));
        if let Some(bind) = bind_address.filter(|ip| !ip.is_unspecified()) {
            ips.primary = IpFamily::of(bind);
            ips.set(bind);
        }
        ips
    }

    fn set(&mut self, ip: IpAddr) {
        match ip {
            IpAddr::V4(ip) => self.v4 = ip,
            IpAddr::V6(ip) => self.v6 = ip,
        }
    }

    /// The primary family, which must work on this node.
    pub const fn primary_family(&self) -> IpFamily {
        self.primary
    }

    /// The node's address in a family, loopback if it has none.
    pub const fn ip(&self, family: IpFamily) -> IpAddr {
        match family {
            IpFamily::V4 => IpAddr::V4(self.v4),
            IpFamily::V6 => IpAddr::V6(self.v6),
        }
    }

    /// The node's address in a family; `None` if it has none.
    pub fn known_ip(&self, family: IpFamily) -> Option<IpAddr> {
        Some(self.ip(family)).filter(|ip| !ip.is_loopback())
    }
}

/// One entry of `nodePortAddresses`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NodePortAddress {
    /// The node's own addresses (`primary`).
    Primary,
    /// `127.0.0.0/8` and `::1/128` (`localhost`).
    Localhost,
    /// Every address (`all`).
    All,
    /// The node's addresses in a range.
    Cidr(IpNet),
}

impl FromStr for NodePortAddress {
    type Err = InvalidCidr;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "primary" => Ok(Self::Primary),
            "localhost" => Ok(Self::Localhost),
            "all" => Ok(Self::All),
            cidr => parse_cidr(cidr).map(Self::Cidr),
        }
    }
}

impl fmt::Display for NodePortAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Primary => f.write_str("primary"),
            Self::Localhost => f.write_str("localhost"),
            Self::All => f.write_str("all"),
            Self::Cidr(cidr) => cidr.fmt(f),
        }
    }
}

/// The addresses that accept node ports, as configured (`nodePortAddresses`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodePortAddresses {
    entries: Vec<NodePortAddress>,
}

impl NodePortAddresses {
    /// From the configured entries; without any, every address accepts node ports.
    pub const fn new(entries: Vec<NodePortAddress>) -> Self {
        Self { entries }
    }

    /// The configured entries.
    pub fn entries(&self) -> &[NodePortAddress] {
        &self.entries
    }

    /// The ranges of one family. A family without an entry accepts node ports on every address even
    /// if the other family has entries, as in kube-proxy. `primary` is an entry of both families,
    /// so a family in which the node has no address accepts them nowhere.
    pub fn ranges(&self, family: IpFamily, node: &NodeIps) -> NodePortRanges {
        let mut cidrs = Vec::new();
        let mut configured = false;
        for entry in &self.entries {
            match entry {
                NodePortAddress::All => return NodePortRanges::all(family),
                NodePortAddress::Primary => {
                    configured = true;
                    cidrs.extend(node.known_ip(family).map(IpNet::from));
                }
                NodePortAddress::Localhost => {
                    configured = true;
                    cidrs.push(loopback(family));
                }
                NodePortAddress::Cidr(cidr) if IpFamily::of(cidr.addr()) == family => {
                    configured = true;
                    cidrs.push(*cidr);
                }
                NodePortAddress::Cidr(_) => {}
            }
        }
        if !configured || cidrs.iter().any(|cidr| cidr.prefix_len() == 0) {
            return NodePortRanges::all(family);
        }
        cidrs.sort_unstable();
        cidrs.dedup();
        NodePortRanges {
            family,
            selection: Selection::Within(cidrs),
        }
    }
}

/// The addresses of one family that accept node ports: [`NodePortAddresses`] applied to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePortRanges {
    family: IpFamily,
    selection: Selection,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Selection {
    All,
    Within(Vec<IpNet>),
}

impl NodePortRanges {
    /// Every address of a family.
    pub const fn all(family: IpFamily) -> Self {
        Self {
            family,
            selection: Selection::All,
        }
    }

    /// The family of the ranges.
    pub const fn family(&self) -> IpFamily {
        self.family
    }

    /// Whether every local address is covered, so that rules need no address match.
    pub const fn matches_all(&self) -> bool {
        matches!(self.selection, Selection::All)
    }

    /// Whether an address is covered.
    pub fn contains(&self, address: IpAddr) -> bool {
        IpFamily::of(address) == self.family
            && match &self.selection {
                Selection::All => true,
                Selection::Within(cidrs) => cidrs.iter().any(|cidr| cidr.contains(&address)),
            }
    }

    /// Selects the covered addresses of this family.
    pub fn select<'a>(&self, addresses: impl IntoIterator<Item = &'a IpAddr>) -> BTreeSet<IpAddr> {
        addresses
            .into_iter()
            .copied()
            .filter(|address| self.contains(*address))
            .collect()
    }

    /// Whether `127.0.0.0` or `::1` is covered, which node ports on loopback require.
    pub fn contains_loopback(&self) -> bool {
        match &self.selection {
            Selection::All => true,
            Selection::Within(cidrs) => {
                let loopback = loopback(self.family);
                cidrs
                    .iter()
                    .any(|cidr| cidr.contains(&loopback.addr()) || loopback.contains(cidr))
            }
        }
    }
}

fn loopback(family: IpFamily) -> IpNet {
    match family {
        IpFamily::V4 => IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)),
        IpFamily::V6 => IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128)),
    }
}

#[cfg(test)]
mod tests;
