// SPDX-License-Identifier: Apache-2.0
//! A small cluster: the node under test with pods on a bridge, another node with pods, and a client
//! outside, all on one wire.
//!
//! ```text
//!  shell web-1 web-2        web-3 web-4 remote-shell
//!      \  |  /                  \  |  /
//!      cni0 node                cni0 remote           client
//!             \ eth0              / eth0              / eth0
//!              +------- wire (bridge) ---------------+
//! ```
//!
//! Pods reach everything through their node; nodes have routes to each other's pods. The other node
//! and the client send what goes to Services to the node under test. The client knows no pods.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use anyhow::{Context, Result};

use crate::namespace::Namespace;

/// IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        })
    }
}

/// A machine or a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    /// The node under test.
    Node,
    /// Another node.
    Remote,
    /// Somebody outside the cluster.
    Client,
    /// A server that is no pod, on the wire.
    Lan,
    /// A pod on the node that is never an endpoint.
    Shell,
    Web1,
    Web2,
    /// Pods on the other node.
    Web3,
    Web4,
    /// A pod on the other node that is never an endpoint.
    RemoteShell,
}

impl Host {
    pub const ALL: [Self; 10] = [
        Self::Node,
        Self::Remote,
        Self::Client,
        Self::Lan,
        Self::Shell,
        Self::Web1,
        Self::Web2,
        Self::Web3,
        Self::Web4,
        Self::RemoteShell,
    ];
    /// The pods that serve.
    pub const WEB: [Self; 4] = [Self::Web1, Self::Web2, Self::Web3, Self::Web4];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Remote => "remote",
            Self::Client => "client",
            Self::Lan => "lan",
            Self::Shell => "shell",
            Self::Web1 => "web-1",
            Self::Web2 => "web-2",
            Self::Web3 => "web-3",
            Self::Web4 => "web-4",
            Self::RemoteShell => "remote-shell",
        }
    }

    /// The node of a pod.
    pub const fn node(self) -> Option<Self> {
        match self {
            Self::Shell | Self::Web1 | Self::Web2 => Some(Self::Node),
            Self::Web3 | Self::Web4 | Self::RemoteShell => Some(Self::Remote),
            Self::Node | Self::Remote | Self::Client | Self::Lan => None,
        }
    }

    /// Its first address: that of its `eth0`.
    pub const fn address(self, family: Family) -> IpAddr {
        match self {
            Self::Node => wire_address(family, 10),
            Self::Remote => wire_address(family, 11),
            Self::Client => wire_address(family, 100),
            Self::Lan => wire_address(family, 50),
            Self::Shell => pod_address(family, 1, 10),
            Self::Web1 => pod_address(family, 1, 11),
            Self::Web2 => pod_address(family, 1, 12),
            Self::Web3 => pod_address(family, 2, 11),
            Self::Web4 => pod_address(family, 2, 12),
            Self::RemoteShell => pod_address(family, 2, 10),
        }
    }

    /// All addresses that the node may use as a source towards others.
    pub fn addresses(self, family: Family) -> Vec<IpAddr> {
        match self {
            Self::Node => vec![
                self.address(family),
                second_node_address(family),
                pod_address(family, 1, 1),
            ],
            other => vec![other.address(family)],
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

const fn wire_address(family: Family, host: u8) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(172, 20, 0, host)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0xfd00, 0x20, 0, 0, 0, 0, 0, host as u16)),
    }
}

/// Another address of the node, of another network.
pub const fn second_node_address(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(172, 21, 0, 10)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0xfd00, 0x21, 0, 0, 0, 0, 0, 10)),
    }
}

const fn pod_address(family: Family, node: u8, pod: u8) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(10, 244, node, pod)),
        Family::V6 => {
            let (node, pod) = (node as u16, pod as u16);
            IpAddr::V6(Ipv6Addr::new(0xfd00, 0x244, node, 0, 0, 0, 0, pod))
        }
    }
}

/// All pods: what `--cluster-cidr` is told.
pub const CLUSTER_CIDRS: &str = "10.244.0.0/16,fd00:244::/32";
/// The node's second network, for `--nodeport-addresses`.
pub const SECOND_NETWORKS: &str = "172.21.0.0/24,fd00:21::/64";

/// Cluster IP number `n`.
pub const fn cluster_ip(family: Family, n: u8) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(10, 96, 0, n)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, n as u16)),
    }
}

/// External IP number `n`.
pub const fn external_ip(family: Family, n: u8) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(203, 0, 113, n)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x203, 0, 0, 0, 0, n as u16)),
    }
}

/// Load-balancer VIP number `n`.
pub const fn load_balancer_vip(family: Family, n: u8) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(198, 51, 100, n)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x198, 0, 0, 0, 0, n as u16)),
    }
}

/// The number of the second external IP and VIP of Service number `n`.
pub const fn second(n: u8) -> u8 {
    n + 100
}

/// Node port number `n`.
pub const fn node_port(n: u8) -> u16 {
    30_000 + n as u16
}

const UP: &str = "link set lo up\nlink set eth0 up\n";

/// Makes a neighbour that tries what must not work: to reach what the node serves on its loopback
/// address.
const TO_LOOPBACK_OF_NODE: &str =
    "address del 127.0.0.1/8 dev lo\nroute add 127.0.0.0/8 via 172.20.0.10\n";

/// Where Services have their addresses.
const SERVICE_NETWORKS: [&str; 6] = [
    "10.96.0.0/16",
    "203.0.113.0/24",
    "198.51.100.0/24",
    "fd00:96::/64",
    "2001:db8:203::/64",
    "2001:db8:198::/64",
];

/// The cluster. It is gone when this is dropped.
#[derive(Debug)]
pub struct Topology {
    hosts: BTreeMap<Host, Namespace>,
    /// The bridge between nodes and client.
    wire: Namespace,
}

impl Topology {
    pub fn new() -> Result<Self> {
        if !Path::new("/proc/sys/net/bridge").exists() {
            Namespace::current()?.run("modprobe", &["br_netfilter"])?;
        }
        let wire = Namespace::new()?;
        prepare(&wire)?;
        wire.ip("link set lo up\nlink add br0 type bridge\nlink set br0 up\n")?;
        let mut hosts = BTreeMap::new();
        for host in Host::ALL {
            let namespace = Namespace::new()?;
            prepare(&namespace).with_context(|| format!("in {host}"))?;
            hosts.insert(host, namespace);
        }
        let topology = Self { hosts, wire };
        topology.wire_up()?;
        Ok(topology)
    }

    /// The namespace of a host.
    pub fn host(&self, host: Host) -> &Namespace {
        // `new` makes one for each host.
        &self.hosts[&host]
    }

    fn wire_up(&self) -> Result<()> {
        let plugged = [Host::Node, Host::Remote, Host::Client, Host::Lan].map(|host| {
            let (name, there) = (host.name(), self.host(host).path());
            format!(
                "link add {name} type veth peer name eth0 netns {there}\n\
                 link set {name} master br0 up\n"
            )
        });
        self.wire.ip(&plugged.concat())?;
        for node in [Host::Node, Host::Remote] {
            self.wire_up_node(node)
                .with_context(|| format!("in {node}"))?;
        }
        let to_pods = Family::ALL.map(|f| route(&network(pod_address(f, 1, 0)), Host::Node, f));
        let at_lan = [UP.to_owned(), addresses(Host::Lan), to_pods.concat()];
        self.host(Host::Lan)
            .ip(&at_lan.concat())
            .context("in lan")?;
        let to_second = Family::ALL.map(|f| route(&network(second_node_address(f)), Host::Node, f));
        let at_client = [UP.to_owned(), addresses(Host::Client)]
            .into_iter()
            .chain(to_second)
            .chain([service_routes(), TO_LOOPBACK_OF_NODE.to_owned()]);
        let client = self.host(Host::Client);
        client
            .sysctl(&[("net/ipv4/conf/all/route_localnet", "1")])
            .and_then(|()| client.ip(&at_client.collect::<String>()))
            .context("in client")
    }

    fn wire_up_node(&self, node: Host) -> Result<()> {
        let (number, other, other_number) = match node {
            Host::Node => (1, Host::Remote, 2),
            _ => (2, Host::Node, 1),
        };
        let mut commands = vec![
            UP.to_owned(),
            addresses(node),
            "link add cni0 type bridge\nlink set cni0 up\n".to_owned(),
        ];
        for family in Family::ALL {
            let bits = bits(family);
            let gateway = pod_address(family, number, 1);
            commands.push(format!("address add {gateway}/{bits} dev cni0 nodad\n"));
            let pods_there = network(pod_address(family, other_number, 0));
            commands.push(route(&pods_there, other, family));
            let second = second_node_address(family);
            commands.push(if node == Host::Node {
                format!("address add {second}/{bits} dev eth0 nodad\n")
            } else {
                route(&network(second), Host::Node, family)
            });
        }
        if node == Host::Remote {
            commands.push(service_routes());
        } else {
            // The way to everything else, which swallows what it gets.
            for family in Family::ALL {
                let router = wire_address(family, 254);
                commands.push(format!(
                    "neigh add {router} lladdr 02:00:00:00:00:fe dev eth0 nud permanent\n\
                     route add default via {router}\n"
                ));
            }
        }
        let pods = || Host::ALL.into_iter().filter(|pod| pod.node() == Some(node));
        commands.extend(pods().map(|pod| {
            let there = self.host(pod).path();
            format!(
                "link add {pod} type veth peer name eth0 netns {there}\n\
                 link set {pod} master cni0 up\n\
                 link set {pod} type bridge_slave hairpin on\n"
            )
        }));
        let namespace = self.host(node);
        namespace.ip(&commands.concat())?;
        namespace.sysctl(&[
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            // Two pods on one bridge must not answer each other past the node's translation.
            ("net/bridge/bridge-nf-call-iptables", "1"),
            ("net/bridge/bridge-nf-call-ip6tables", "1"),
            // Refusals by ICMP are counted as answers: none may be held back.
            ("net/ipv4/icmp_ratelimit", "0"),
            ("net/ipv6/icmp/ratelimit", "0"),
            // Nor by the limit that all namespaces of older kernels share: it is for the types of
            // these masks.
            ("net/ipv4/icmp_ratemask", "0"),
            ("net/ipv6/icmp/ratemask", "255"),
        ])?;
        for pod in pods() {
            let gateways = Family::ALL.map(|family| {
                let gateway = pod_address(family, number, 1);
                format!("route add default via {gateway}\n")
            });
            let commands = [UP.to_owned(), addresses(pod), gateways.concat()];
            self.host(pod)
                .ip(&commands.concat())
                .with_context(|| format!("in {pod}"))?;
        }
        Ok(())
    }
}

/// Settings that must be made before there are links.
fn prepare(namespace: &Namespace) -> Result<()> {
    namespace.sysctl(&[
        ("net/ipv6/conf/all/disable_ipv6", "0"),
        ("net/ipv6/conf/default/disable_ipv6", "0"),
        // An address that is still being checked for duplicates cannot be used for a second or two.
        ("net/ipv6/conf/all/accept_dad", "0"),
        ("net/ipv6/conf/default/accept_dad", "0"),
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", "0"),
    ])
}

const fn bits(family: Family) -> u8 {
    match family {
        Family::V4 => 24,
        Family::V6 => 64,
    }
}

/// The network of an address.
fn network(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            format!("{a}.{b}.{c}.0/24")
        }
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}::/64")
        }
    }
}

fn addresses(host: Host) -> String {
    Family::ALL
        .map(|family| {
            let (address, bits) = (host.address(family), bits(family));
            format!("address add {address}/{bits} dev eth0 nodad\n")
        })
        .concat()
}

fn route(to: &str, via: Host, family: Family) -> String {
    format!("route add {to} via {}\n", via.address(family))
}

fn service_routes() -> String {
    SERVICE_NETWORKS
        .map(|network| {
            let family = if network.contains(':') {
                Family::V6
            } else {
                Family::V4
            };
            route(network, Host::Node, family)
        })
        .concat()
}
