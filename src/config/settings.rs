// SPDX-License-Identifier: Apache-2.0
//! The valid configuration, in the types that the other parts use.
//!
//! Made from a [`KubeProxyConfiguration`] that passed validation.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::types::KubeProxyConfiguration;
use crate::source::{Annotations, Source};
use kpr_core::model::ipvs_options::Scheduler;
use kpr_core::model::node::{DetectLocal, NodePortAddresses};
use kpr_core::model::{Budget, PortRange, ProxyMode};
use kpr_core::plan::conntrack::tuning::Tuning;
use kpr_core::plan::ipvs::object::SyncDaemon;

/// When rounds happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyncSettings {
    /// Longest time between two looks at everything. A change that waits for twice as long is
    /// unhealthy.
    pub period: Duration,
    /// Shortest time between two syncs. As upstream, 1 s by default, but zero in ipvs mode with a
    /// configuration file.
    pub min_period: Duration,
}

/// Which of the two iptables of a machine is written to (`--iptables-backend`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum IptablesBackend {
    /// The one that kubelet uses.
    #[default]
    Auto,
    Legacy,
    Nft,
}

/// How ipvs mode holds its fixed rules and sets (`--ipvs-rules`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum IpvsRulesChoice {
    /// iptables where it works, else nftables, and nftables beside ports that are published there.
    #[default]
    Auto,
    Iptables,
    Nftables,
}

/// Settings of ipvs mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpvsSettings {
    /// Kernel name of the scheduler, never empty.
    pub scheduler: String,
    /// Virtual servers in these ranges are never touched.
    pub exclude_cidrs: Vec<IpNet>,
    /// Answer ARP only for addresses of the interface that is asked (`arp_ignore`, `arp_announce`).
    pub strict_arp: bool,
    /// Time-outs of connection entries.
    pub timeouts: IpvsTimeouts,
    /// How long a removed endpoint may keep its connections.
    pub drain_limit: Duration,
    /// Schedulers that Services may request although they are not loaded.
    pub service_schedulers: BTreeSet<Scheduler>,
    /// Ranges besides the pods' that tunnels may lead to.
    pub tunnel_cidrs: Vec<IpNet>,
    /// Connections are exchanged with other nodes.
    pub sync: Option<SyncDaemon>,
    /// Kernel settings to write besides those that this mode needs, by path under `/proc/sys`.
    pub sysctls: BTreeMap<&'static str, String>,
}

/// The kernel's three IPVS time-outs; `None` leaves the kernel's value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IpvsTimeouts {
    /// Idle established TCP connections.
    pub tcp: Option<Duration>,
    /// TCP connections after a FIN.
    pub tcp_fin: Option<Duration>,
    /// UDP.
    pub udp: Option<Duration>,
}

impl IpvsTimeouts {
    /// Whether nothing is to be set.
    pub const fn is_empty(&self) -> bool {
        self.tcp.is_none() && self.tcp_fin.is_none() && self.udp.is_none()
    }
}

/// How much of the Services' traffic is in metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceMetrics {
    /// Also by endpoint.
    pub by_endpoint: bool,
    /// Of Service ports, and of endpoints.
    pub limit: usize,
}

impl Default for ServiceMetrics {
    fn default() -> Self {
        Self {
            by_endpoint: false,
            limit: 1000,
        }
    }
}

/// Form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// What is logged and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogSettings {
    /// `--logging-format`.
    pub format: LogFormat,
    /// `-v`.
    pub verbosity: u32,
    /// `--vmodule`: verbosity of single source files, named without directory and extension. The
    /// first match counts.
    pub vmodule: Vec<(String, u32)>,
}

/// Something about the configuration that its author should know; logged at start and shown by
/// `check-config`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The flag or field.
    pub subject: String,
    /// What about it.
    pub message: String,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.message)
    }
}

/// The proxy's settings, valid and with defaults filled in.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch of the operator's"
)]
pub struct Settings {
    /// Which dataplane runs.
    pub mode: ProxyMode,
    /// Where objects come from.
    pub source: Source,
    /// The node's name, trimmed and in lower case, if it is not the host's.
    pub hostname_override: Option<String>,
    /// Replaces the node's address in its family unless unspecified. Nothing is bound to it.
    pub bind_address: IpAddr,
    /// Where `/healthz` and `/livez` are served; `None` if disabled.
    pub healthz_address: Option<SocketAddr>,
    /// Where `/metrics` is served; `None` if disabled.
    pub metrics_address: Option<SocketAddr>,
    /// Failing to listen ends the process.
    pub bind_address_hard_fail: bool,
    /// When rounds happen.
    pub sync: SyncSettings,
    /// Masquerade everything that goes to a cluster IP.
    pub masquerade_all: bool,
    /// Bit of the packet mark that asks for masquerading: 0 to 31.
    pub masquerade_bit: u8,
    /// Which iptables is written to.
    pub iptables_backend: IptablesBackend,
    /// How ipvs mode holds its fixed rules and sets.
    pub ipvs_rules: IpvsRulesChoice,
    /// `--iptables-localhost-nodeports`: rules of iptables mode accept node ports on IPv4 loopback
    /// addresses.
    pub iptables_localhost_node_ports: bool,
    /// `--localhost-nodeports`: this process forwards node ports of loopback addresses where rules
    /// do not.
    pub localhost_node_ports: bool,
    /// Settings of ipvs mode.
    pub ipvs: IpvsSettings,
    /// How traffic from local pods is detected.
    pub detect_local: DetectLocal,
    /// Where node ports answer.
    pub node_port_addresses: NodePortAddresses,
    /// The cluster's range of node ports, if the operator says so (`--service-node-port-range`).
    pub node_port_range: Option<PortRange>,
    /// Connection tracking.
    pub conntrack: Tuning,
    /// How much of each Service is programmed.
    pub budget: Budget,
    /// Which annotations count, and which Services have metrics of their own.
    pub annotations: Annotations,
    /// How much of the Services' traffic is in metrics.
    pub service_metrics: ServiceMetrics,
    /// `spec.externalIPs` counts (feature gate `AllowServiceExternalIPs`).
    pub allow_external_ips: bool,
    /// For `/proc/self/oom_score_adj`.
    pub oom_score_adj: i16,
    /// Logging.
    pub logging: LogSettings,
    /// The Kubernetes version that is reported, `v1.37.2` unless `--version` says otherwise.
    pub kubernetes_version: String,
    /// The file that the configuration came from, to be watched.
    pub config_file: Option<PathBuf>,
    /// Notices for the operator, logged once at start.
    pub notices: Vec<Notice>,
    /// The effective configuration, for `/configz` and `--write-config-to`.
    pub configuration: KubeProxyConfiguration,
}

impl Settings {
    /// The mark that asks for masquerading.
    pub const fn masquerade_mark(&self) -> u32 {
        // Validation keeps the bit below 32; the mask keeps the shift total.
        1 << (self.masquerade_bit & 31)
    }
}
