// SPDX-License-Identifier: Apache-2.0
//! PURE: the node and the settings, as planning needs them besides Services and endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::model::ipvs_options::Scheduler;
use crate::model::node::LocalDetector;
use crate::model::{Budget, IpFamily, PortRange};
use crate::plan::iptables::affinity::ClientMemory;
use crate::plan::ipvs::object::{SyncDaemon, Timeouts};

/// Node and settings as one family sees them. A change of them requires a full plan.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts")]
pub struct Context {
    pub family: IpFamily,
    /// How much of each Service is programmed.
    pub budget: Budget,
    /// This family also manages what both share: the link, sysctls, timeouts.
    pub owns_node: bool,
    /// Label `topology.kubernetes.io/zone` of this node.
    pub zone: Option<Arc<str>>,
    /// The node's address, to check whether a source range contains it.
    pub node_ip: Option<IpAddr>,
    /// Addresses on other links of this node. They are never bound to our link.
    pub node_addresses: BTreeSet<IpAddr>,
    /// Those of them that accept node ports.
    pub node_port_addresses: BTreeSet<IpAddr>,
    pub scheduler: Arc<str>,
    /// Schedulers that some Service requests and the kernel lacks.
    pub missing_schedulers: BTreeSet<Scheduler>,
    /// Schedulers that some Service requests, that are not loaded, and that no operator allows
    /// Services to load.
    pub refused_schedulers: BTreeSet<Scheduler>,
    /// Tunnels may lead to endpoints in these ranges only.
    pub tunnel_ranges: Vec<IpNet>,
    /// How long a removed endpoint may keep its connections, unless its Service says otherwise.
    pub drain_limit: Duration,
    /// Virtual servers in these ranges are foreign, unless a Service has wanted them since this
    /// process started.
    pub exclude_cidrs: Vec<IpNet>,
    /// The cluster's range of node ports, if the operator says so. It is never guessed.
    pub node_port_range: Option<PortRange>,
    /// The cluster's Service CIDRs, if they are known.
    pub service_cidrs: Vec<IpNet>,
    pub masquerade_all: bool,
    /// The mark of packets to masquerade, a single bit.
    pub masquerade_mark: u32,
    /// How IPVS mode holds its fixed rules and sets.
    pub ipvs_rules: IpvsRules,
    /// Table `security`, the last one before IPVS, can take the bits of others out of marks.
    pub has_security_table: bool,
    pub local_detector: LocalDetector,
    pub strict_arp: bool,
    /// Kernel settings that the operator asks for besides, by path under `/proc/sys`. Services are
    /// served without what the kernel refuses of them.
    pub sysctls: BTreeMap<&'static str, String>,
    pub timeouts: Timeouts,
    /// Connections are exchanged with other nodes.
    pub sync: Option<SyncDaemon>,
    pub kernel: KernelVersion,
    pub iptables: IptablesContext,
}

/// How IPVS mode holds its fixed rules and the sets that they match.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum IpvsRules {
    /// iptables rules and ipsets, with kube-proxy's names.
    #[default]
    Iptables,
    /// One nftables table of our own for each family.
    Nftables,
}

impl IpvsRules {
    /// As the flag `--ipvs-rules` has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        }
    }
}

/// Facts about the node that only iptables mode needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts")]
pub struct IptablesContext {
    /// Node ports are accepted on all addresses of the node, so that rules need not match
    /// addresses.
    pub node_ports_everywhere: bool,
    /// Node ports are accepted on 127.0.0.0/8 (IPv4 only).
    pub localhost_node_ports: bool,
    /// Drop packets that conntrack considers invalid before they can reset a connection; off where
    /// conntrack is set to be liberal.
    pub drop_invalid: bool,
    pub hairpin: Hairpin,
    /// Rules count packets in named counters, for kube-proxy's packet metrics.
    pub counts_packets: bool,
    /// Cluster IPs may still be addresses of this node, left by IPVS mode.
    pub leaves_ipvs: bool,
    /// Changes of more rules than this are made in parts. `None`: all in one batch, where that
    /// costs as much as one of its parts would.
    pub batch_limit: Option<usize>,
    /// How rules remember clients with session affinity.
    pub memory: ClientMemory,
}

/// How rules detect that a pod connects to itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hairpin {
    /// One rule for each endpoint on this node.
    #[default]
    PerEndpoint,
    /// A single rule compares source and destination; it needs `xt_bpf` in the kernel.
    OneRule,
}

/// Major and minor version of the running kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion {
    pub major: u32,
    pub minor: u32,
}

impl KernelVersion {
    /// From `/proc/sys/kernel/osrelease`, such as `6.1.0-25-amd64`.
    pub fn parse(release: &str) -> Option<Self> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(major)), Some(Ok(minor))) => Some(Self { major, minor }),
            _ => None,
        }
    }
}
