// SPDX-License-Identifier: Apache-2.0
//! PURE: what planning needs to know besides Services and endpoints: the node and the settings.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::model::IpFamily;
use crate::model::ipvs_options::Scheduler;
use crate::model::node::LocalDetector;
use crate::plan::ipvs::object::Timeouts;
use crate::plan::unmet::Holder;

/// Node and settings as one family sees them. A change of it is a full plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    pub family: IpFamily,
    /// This family also looks after what both share: the link, sysctls, time-outs.
    pub owns_node: bool,
    /// Label `topology.kubernetes.io/zone` of our node.
    pub zone: Option<Arc<str>>,
    /// The node's address, for "is the node itself in a source range".
    pub node_ip: Option<IpAddr>,
    /// Addresses that are on other links of this node. They are never bound to ours.
    pub node_addresses: BTreeSet<IpAddr>,
    /// Those of them on which node ports answer.
    pub node_port_addresses: BTreeSet<IpAddr>,
    /// Others' addresses. They are not bound either, but as a cluster IP, which is nobody else's.
    pub held_addresses: BTreeMap<IpAddr, Holder>,
    pub scheduler: Arc<str>,
    /// Schedulers that some Service asked for and that the kernel lacks.
    pub missing_schedulers: BTreeSet<Scheduler>,
    /// How long a removed endpoint may keep its connections, where its Service does not say.
    pub drain_limit: Duration,
    /// Virtual servers in these ranges are somebody else's, unless a Service wants or wanted them
    /// since we started.
    pub exclude_cidrs: Vec<IpNet>,
    /// The cluster's ranges of Service addresses, where they are known.
    pub service_cidrs: Vec<IpNet>,
    pub masquerade_all: bool,
    /// The mark of packets to masquerade, one bit.
    pub masquerade_mark: u32,
    pub local_detector: LocalDetector,
    pub strict_arp: bool,
    pub timeouts: Timeouts,
    pub kernel: KernelVersion,
    pub iptables: IptablesContext,
}

/// What only iptables mode asks about the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact by itself")]
pub struct IptablesContext {
    /// Node ports answer on all addresses of the node, so that rules need not name them.
    pub node_ports_everywhere: bool,
    /// Node ports answer on 127.0.0.0/8 (IPv4 only).
    pub localhost_node_ports: bool,
    /// Packets that conntrack calls invalid are dropped before they can reset a connection; not
    /// where conntrack is told to be liberal.
    pub drop_invalid: bool,
    pub hairpin: Hairpin,
    /// Rules count packets by name, for kube-proxy's metrics of them.
    pub counts_packets: bool,
    /// Cluster IPs may still be addresses of this node, which IPVS mode gave it.
    pub leaves_ipvs: bool,
}

/// How it is told that a pod reaches itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hairpin {
    /// Each endpoint on this node has a rule.
    #[default]
    PerEndpoint,
    /// One rule compares source and destination; the kernel needs `xt_bpf` for it.
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
