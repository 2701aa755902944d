// SPDX-License-Identifier: Apache-2.0
//! Derives what planning needs to know of the node from settings, Node object and addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::config::settings::{IpvsTimeouts, Settings};
use crate::dataplane::kernel::NodeSurroundings;
use crate::dataplane::surroundings::Listening;
use kpr_core::model::address::parse_cidr;
use kpr_core::model::ipvs_options::Scheduler;
use kpr_core::model::node::{DetectLocal, NodeIps, NodePortRanges};
use kpr_core::model::{
    Holders, IpFamily, NodeClaims, NodeInfo, ProxyMode, Service, ServiceName, SliceName, Tracker,
};
use kpr_core::plan::iptables::affinity::ClientMemory;
use kpr_core::plan::ipvs::object::{SyncDaemon, Timeouts};
use kpr_core::plan::{Context, Hairpin, IptablesContext, IpvsRules, KernelVersion};

/// Current facts about the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// The name of our Node object.
    pub name: Arc<str>,
    /// The Node object, if it exists.
    pub info: Option<NodeInfo>,
    /// What the kernel says of the node besides Services.
    pub around: NodeSurroundings,
    /// What iptables rules need and this machine's iptables or kernel does not have.
    pub missing_matches: BTreeSet<&'static str>,
    /// The kernel settings that the operator asks for and this node can have.
    pub sysctls: BTreeMap<&'static str, String>,
    /// Addresses of the API server, as its URL has them, by name or not.
    pub api_servers: BTreeSet<IpAddr>,
    /// What the Nodes of the cluster have, once that is known.
    pub nodes: Option<NodeClaims>,
    /// Where processes of this node listen. Read only while a Service claims an address of the
    /// node as an external IP.
    pub listening: Listening,
    pub service_cidrs: Vec<IpNet>,
    pub kernel: KernelVersion,
    /// Conntrack accepts TCP packets outside of their connection's window.
    pub tcp_is_liberal: bool,
    /// IPVS schedulers that some Service requests and the kernel lacks.
    pub missing_schedulers: BTreeSet<Scheduler>,
    /// Those that are not loaded and that Services may not load.
    pub refused_schedulers: BTreeSet<Scheduler>,
    /// Families in which one rule can compare source and destination.
    pub comparing: BTreeSet<IpFamily>,
    /// How rules of iptables mode can remember clients; in families that are not named in the best
    /// way.
    pub memory: BTreeMap<IpFamily, ClientMemory>,
    /// How IPVS mode holds its fixed rules and sets.
    pub ipvs_rules: IpvsRules,
    /// Families with a table `security` that can change marks.
    pub security_tables: BTreeSet<IpFamily>,
    /// Rules can count packets by name.
    pub counts_packets: bool,
    /// IPVS mode ran before, and its objects are not all removed yet.
    pub leaves_ipvs: bool,
    /// The most rules of one batch, where larger ones cost more than in proportion.
    pub batch_limit: Option<usize>,
}

/// The node in the light of the settings.
#[derive(Clone, Copy, Debug)]
pub struct NodeView<'a> {
    pub settings: &'a Settings,
    pub facts: &'a NodeFacts,
}

impl<'a> NodeView<'a> {
    pub const fn new(settings: &'a Settings, facts: &'a NodeFacts) -> Self {
        Self { settings, facts }
    }

    /// Ports that others publish by nftables take those of Services: addresses of Services are
    /// local in IPVS mode, and no rule of iptables comes before.
    pub fn loses_ports(self) -> bool {
        self.facts.around.network.publishes_ports
            && self.settings.mode == ProxyMode::IPVS
            && self.facts.ipvs_rules == IpvsRules::Iptables
    }

    /// The node's own addresses.
    pub fn ips(self) -> NodeIps {
        let info = self.facts.info.as_ref();
        let addresses = info.map_or(&[][..], |info| &info.addresses);
        NodeIps::new(addresses, &[], Some(self.settings.bind_address))
    }

    /// The addresses that accept node ports.
    pub fn node_port_ranges(self, family: IpFamily) -> NodePortRanges {
        self.settings
            .node_port_addresses
            .ranges(family, &self.ips())
    }
}

/// What the first round waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The Node object, with an address: without it zone and node address are unknown.
    Node,
    /// `spec.podCIDRs`, if local traffic is detected by them.
    PodCidrs,
    /// The other Node objects, if a Service claims addresses that may be theirs.
    OtherNodes,
}

impl Missing {
    /// The maximum wait, counted from the start of the process. It is as long as kube-proxy's.
    pub const fn patience(self) -> Duration {
        match self {
            Self::Node | Self::OtherNodes => Duration::from_secs(30),
            Self::PodCidrs => Duration::from_secs(30 + 5 * 60),
        }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Node => "there is no Node object with an address",
            Self::PodCidrs => "the Node object has no pod CIDRs",
            Self::OtherNodes => "the other Node objects are not listed",
        })
    }
}

#[cfg(test)]
impl NodeFacts {
    /// Those of a node with these addresses.
    pub(super) fn at(addresses: &[&str]) -> Self {
        let addresses = addresses.iter().map(|address| address.parse().unwrap());
        Self {
            around: NodeSurroundings {
                addresses: addresses.collect(),
                ..NodeSurroundings::default()
            },
            ..Self::default()
        }
    }
}

impl NodeFacts {
    /// What a correct first round needs and the Node object lacks.
    pub fn missing(&self, settings: &Settings, tracker: &Tracker) -> Option<Missing> {
        // Files need no Node object.
        if !settings.source.needs_node() {
            return None;
        }
        match &self.info {
            Some(info) if !info.addresses.is_empty() => {
                let lacks = settings.detect_local.needs_pod_cidrs() && info.pod_cidrs.is_empty();
                let needs_others =
                    || self.nodes.is_none() && tracker.services().any(Service::claims_addresses);
                if lacks {
                    Some(Missing::PodCidrs)
                } else {
                    needs_others().then_some(Missing::OtherNodes)
                }
            }
            _ => Some(Missing::Node),
        }
    }

    /// Who has addresses that Services may claim.
    pub fn holders(&self, settings: &Settings, tracker: &Tracker) -> Holders {
        let nodes = self.nodes.as_ref();
        let mut pods: BTreeSet<IpNet> =
            nodes.map_or_else(BTreeSet::new, |nodes| nodes.pod_cidrs.clone());
        pods.extend(self.info.iter().flat_map(|info| &info.pod_cidrs));
        // Whatever local traffic is detected by, and already validated where that is it.
        let configured = settings.configuration.cluster_cidr.split(',');
        pods.extend(configured.filter_map(|text| parse_cidr(text).ok()));
        Holders {
            own: self.around.addresses.clone(),
            node: self
                .info
                .iter()
                .flat_map(|info| &info.addresses)
                .copied()
                .collect(),
            nodes: nodes.map_or_else(BTreeSet::new, |nodes| nodes.addresses.clone()),
            nodes_are_unknown: nodes.is_none() && settings.source.needs_node(),
            gateways: self.around.gateways.clone(),
            api_servers: self.api_servers.clone(),
            listed_api_servers: listed_api_servers(tracker),
            resolvers: self.around.resolvers.clone(),
            pods,
            networks: self.around.networks.clone(),
            listening: self.listening.clone(),
        }
    }
}

/// The Service of the API servers. They write its slice themselves.
pub(super) fn api_service() -> ServiceName {
    ServiceName::new("default", "kubernetes")
}

/// The addresses of the API servers as they say themselves.
fn listed_api_servers(tracker: &Tracker) -> BTreeSet<IpAddr> {
    let name = SliceName {
        namespace: "default".into(),
        name: "kubernetes".into(),
    };
    let service = api_service();
    let slices = tracker.slices_of(&service);
    let own = slices.filter(|slice| slice.name == name);
    own.flat_map(|slice| &slice.endpoints)
        .map(|endpoint| endpoint.address)
        .collect()
}

/// The sync daemons, where they can run.
fn sync(node: NodeView<'_>) -> Option<SyncDaemon> {
    let link = Some(node.facts.around.sync_link?);
    let daemon = node.settings.ipvs.sync.clone()?;
    Some(SyncDaemon { link, ..daemon })
}

/// The context of one family. `owns_node`: it manages what both families share.
pub fn context(node: NodeView<'_>, family: IpFamily, owns_node: bool) -> Context {
    let NodeView { settings, facts } = node;
    let mine: BTreeSet<IpAddr> = facts
        .around
        .addresses
        .iter()
        .copied()
        .filter(|ip| IpFamily::of(*ip) == family)
        .collect();
    let ranges = node.node_port_ranges(family);
    let pod_cidrs = facts.info.as_ref().map_or(&[][..], |info| &info.pod_cidrs);
    Context {
        family,
        budget: settings.budget,
        owns_node,
        zone: facts.info.as_ref().and_then(|info| info.zone.clone()),
        node_ip: node.ips().known_ip(family),
        node_port_addresses: ranges.select(&mine),
        node_addresses: mine,
        scheduler: Arc::from(settings.ipvs.scheduler.as_str()),
        missing_schedulers: facts.missing_schedulers.clone(),
        refused_schedulers: facts.refused_schedulers.clone(),
        tunnel_ranges: tunnel_ranges(settings, pod_cidrs),
        drain_limit: settings.ipvs.drain_limit,
        exclude_cidrs: settings.ipvs.exclude_cidrs.clone(),
        node_port_range: settings.node_port_range,
        service_cidrs: facts.service_cidrs.clone(),
        masquerade_all: settings.masquerade_all,
        masquerade_mark: settings.masquerade_mark(),
        ipvs_rules: facts.ipvs_rules,
        has_security_table: facts.security_tables.contains(&family),
        local_detector: settings.detect_local.detector(family, pod_cidrs),
        strict_arp: settings.ipvs.strict_arp,
        sysctls: facts.sysctls.clone(),
        timeouts: timeouts(&settings.ipvs.timeouts),
        sync: sync(node),
        kernel: facts.kernel,
        iptables: IptablesContext {
            node_ports_everywhere: ranges.matches_all(),
            localhost_node_ports: family == IpFamily::V4
                && settings.iptables_localhost_node_ports
                && ranges.contains_loopback(),
            drop_invalid: !settings.conntrack.tcp_be_liberal && !facts.tcp_is_liberal,
            counts_packets: facts.counts_packets,
            leaves_ipvs: facts.leaves_ipvs,
            batch_limit: facts.batch_limit,
            memory: facts.memory.get(&family).copied().unwrap_or_default(),
            hairpin: if facts.comparing.contains(&family) {
                Hairpin::OneRule
            } else {
                Hairpin::PerEndpoint
            },
        },
    }
}

/// The pods' ranges that are known, and those that the operator allows besides.
fn tunnel_ranges(settings: &Settings, pod_cidrs: &[IpNet]) -> Vec<IpNet> {
    let cluster = match &settings.detect_local {
        DetectLocal::ClusterCidr(ranges) => ranges.as_slice(),
        _ => &[],
    };
    let allowed = settings.ipvs.tunnel_cidrs.iter();
    cluster
        .iter()
        .chain(pod_cidrs)
        .chain(allowed)
        .copied()
        .collect()
}

/// The kernel counts whole seconds. A fraction is rounded up to one: 0 would mean "unchanged".
fn timeouts(settings: &IpvsTimeouts) -> Timeouts {
    let seconds = |timeout: Option<Duration>| {
        timeout.map_or(0, |timeout| {
            u32::try_from(timeout.as_millis().div_ceil(1_000)).unwrap_or(u32::MAX)
        })
    };
    Timeouts {
        tcp: seconds(settings.tcp),
        tcp_fin: seconds(settings.tcp_fin),
        udp: seconds(settings.udp),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::config::{self, Command};

    #[test]
    fn invalid_packets_pass_where_operator_or_kernel_is_liberal() {
        let drops = |flags: &[&str], tcp_is_liberal| {
            let arguments = ["kube-proxy-rs"].iter().chain(flags).map(OsString::from);
            let Command::Run(settings) = config::parse(arguments).unwrap() else {
                panic!("not a command to run")
            };
            let facts = NodeFacts {
                tcp_is_liberal,
                ..NodeFacts::default()
            };
            let context = context(NodeView::new(&settings, &facts), IpFamily::V4, true);
            context.iptables.drop_invalid
        };
        assert!(drops(&[], false));
        assert!(!drops(&[], true));
        assert!(!drops(&["--conntrack-tcp-be-liberal"], false));
    }
}
