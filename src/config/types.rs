// SPDX-License-Identifier: Apache-2.0
//! `kubeproxy.config.k8s.io/v1alpha1`, kind `KubeProxyConfiguration`: the fields of the file.
//!
//! Fields are in alphabetical order because the effective configuration is written in that order.
//! `null` means the same as a missing field. Only names and types are checked here.

use std::collections::BTreeMap;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};

use kpr_core::model::GoDuration;

/// The group and version of the configuration file.
pub const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
/// The kind of the configuration file.
pub const KIND: &str = "KubeProxyConfiguration";

/// The whole configuration file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct KubeProxyConfiguration {
    /// [`API_VERSION`].
    #[serde(deserialize_with = "null_is_default")]
    pub api_version: String,
    /// Replaces the node's address; nothing is bound to it.
    #[serde(deserialize_with = "null_is_default")]
    pub bind_address: String,
    /// Failing to listen for health checks and metrics ends the process.
    #[serde(deserialize_with = "null_is_default")]
    pub bind_address_hard_fail: bool,
    /// How to reach the API server.
    #[serde(deserialize_with = "null_is_default")]
    pub client_connection: ClientConnection,
    /// The pods' ranges, separated by commas.
    #[serde(rename = "clusterCIDR", deserialize_with = "null_is_default")]
    pub cluster_cidr: String,
    /// No effect: there is nothing to replay.
    #[serde(deserialize_with = "null_is_default")]
    pub config_sync_period: GoDuration,
    /// Connection tracking.
    #[serde(deserialize_with = "null_is_default")]
    pub conntrack: Conntrack,
    /// Parameters of `detectLocalMode`.
    #[serde(deserialize_with = "null_is_default")]
    pub detect_local: DetectLocalFields,
    /// How traffic from local pods is detected.
    #[serde(deserialize_with = "null_is_default")]
    pub detect_local_mode: String,
    /// No effect: there are no Go profiles.
    #[serde(deserialize_with = "null_is_default")]
    pub enable_profiling: bool,
    /// Feature gates.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub feature_gates: BTreeMap<String, bool>,
    /// Where `/healthz` is served.
    #[serde(deserialize_with = "null_is_default")]
    pub healthz_bind_address: String,
    /// The node's name.
    #[serde(deserialize_with = "null_is_default")]
    pub hostname_override: String,
    /// iptables mode, and masquerading in both modes.
    #[serde(deserialize_with = "null_is_default")]
    pub iptables: Iptables,
    /// ipvs mode.
    #[serde(deserialize_with = "null_is_default")]
    pub ipvs: Ipvs,
    /// [`KIND`].
    #[serde(deserialize_with = "null_is_default")]
    pub kind: String,
    /// Logging.
    #[serde(deserialize_with = "null_is_default")]
    pub logging: Logging,
    /// Where `/metrics` is served.
    #[serde(deserialize_with = "null_is_default")]
    pub metrics_bind_address: String,
    /// `iptables` or `ipvs`.
    #[serde(deserialize_with = "null_is_default")]
    pub mode: String,
    /// No effect: there is no nftables mode.
    #[serde(deserialize_with = "null_is_default")]
    pub nftables: Nftables,
    /// Where node ports answer.
    pub node_port_addresses: Option<Vec<String>>,
    /// For `/proc/self/oom_score_adj`.
    pub oom_score_adj: Option<i32>,
    /// Deprecated, no effect, as upstream.
    #[serde(deserialize_with = "null_is_default")]
    pub port_range: String,
    /// No effect: there are no hidden metrics.
    #[serde(deserialize_with = "null_is_default")]
    pub show_hidden_metrics_for_version: String,
    /// No effect on Linux.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "is_false")]
    pub windows_run_as_service: bool,
    /// No effect on Linux.
    #[serde(deserialize_with = "null_is_default")]
    pub winkernel: Winkernel,
}

/// `clientConnection`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ClientConnection {
    /// No effect: JSON is always used.
    #[serde(deserialize_with = "null_is_default")]
    pub accept_content_types: String,
    /// No effect: requests are few and rate-limited per path.
    #[serde(deserialize_with = "null_is_default")]
    pub burst: i32,
    /// No effect: JSON is always used.
    #[serde(deserialize_with = "null_is_default")]
    pub content_type: String,
    /// Path of a kubeconfig file.
    #[serde(deserialize_with = "null_is_default")]
    pub kubeconfig: String,
    /// No effect: requests are few and rate-limited per path.
    #[serde(deserialize_with = "null_is_default")]
    pub qps: f32,
}

/// `conntrack`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Conntrack {
    /// Table entries per CPU; 0 leaves the kernel's.
    pub max_per_core: Option<i32>,
    /// Least number of table entries.
    pub min: Option<i32>,
    /// Do not call out-of-window packets invalid.
    #[serde(deserialize_with = "null_is_default")]
    pub tcp_be_liberal: bool,
    /// Half-closed connections.
    pub tcp_close_wait_timeout: Option<GoDuration>,
    /// Idle connections.
    pub tcp_established_timeout: Option<GoDuration>,
    /// Answered UDP flows.
    #[serde(deserialize_with = "null_is_default")]
    pub udp_stream_timeout: GoDuration,
    /// Unanswered UDP flows.
    #[serde(deserialize_with = "null_is_default")]
    pub udp_timeout: GoDuration,
}

/// `detectLocal`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DetectLocalFields {
    /// For mode `BridgeInterface`.
    #[serde(deserialize_with = "null_is_default")]
    pub bridge_interface: String,
    /// For mode `InterfaceNamePrefix`.
    #[serde(deserialize_with = "null_is_default")]
    pub interface_name_prefix: String,
}

/// `iptables`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Iptables {
    /// Node ports answer on loopback addresses.
    pub localhost_node_ports: Option<bool>,
    /// Masquerade all that goes to cluster IPs; also in ipvs mode.
    #[serde(deserialize_with = "null_is_default")]
    pub masquerade_all: bool,
    /// Bit of the packet mark; also in ipvs mode.
    pub masquerade_bit: Option<i32>,
    /// Shortest time between two syncs.
    #[serde(deserialize_with = "null_is_default")]
    pub min_sync_period: GoDuration,
    /// Longest time between two syncs.
    #[serde(deserialize_with = "null_is_default")]
    pub sync_period: GoDuration,
}

/// `ipvs`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Ipvs {
    /// Virtual servers that are never touched.
    #[serde(rename = "excludeCIDRs")]
    pub exclude_cidrs: Option<Vec<String>>,
    /// Shortest time between two syncs.
    #[serde(deserialize_with = "null_is_default")]
    pub min_sync_period: GoDuration,
    /// Kernel name of the scheduler; blank means `rr`.
    #[serde(deserialize_with = "null_is_default")]
    pub scheduler: String,
    /// Answer ARP for the asked interface's addresses only.
    #[serde(rename = "strictARP", deserialize_with = "null_is_default")]
    pub strict_arp: bool,
    /// Longest time between two syncs.
    #[serde(deserialize_with = "null_is_default")]
    pub sync_period: GoDuration,
    /// Connections after a FIN.
    #[serde(deserialize_with = "null_is_default")]
    pub tcp_fin_timeout: GoDuration,
    /// Idle connections.
    #[serde(deserialize_with = "null_is_default")]
    pub tcp_timeout: GoDuration,
    /// UDP.
    #[serde(deserialize_with = "null_is_default")]
    pub udp_timeout: GoDuration,
}

/// `nftables`, which no mode of ours reads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Nftables {
    /// No effect.
    #[serde(deserialize_with = "null_is_default")]
    pub masquerade_all: bool,
    /// No effect.
    pub masquerade_bit: Option<i32>,
    /// No effect.
    #[serde(deserialize_with = "null_is_default")]
    pub min_sync_period: GoDuration,
    /// No effect.
    #[serde(deserialize_with = "null_is_default")]
    pub sync_period: GoDuration,
}

/// `winkernel`, which Linux does not read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Winkernel {
    /// No effect.
    #[serde(rename = "enableDSR", deserialize_with = "null_is_default")]
    pub enable_dsr: bool,
    /// No effect.
    #[serde(deserialize_with = "null_is_default")]
    pub forward_health_check_vip: bool,
    /// No effect.
    #[serde(deserialize_with = "null_is_default")]
    pub network_name: String,
    /// No effect.
    #[serde(deserialize_with = "null_is_default")]
    pub root_hns_endpoint_name: String,
    /// No effect.
    #[serde(deserialize_with = "null_is_default")]
    pub source_vip: String,
}

/// `logging`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Logging {
    /// No effect: lines are written at once.
    #[serde(deserialize_with = "duration_or_nanoseconds")]
    pub flush_frequency: GoDuration,
    /// `text` or `json`.
    #[serde(deserialize_with = "null_is_default")]
    pub format: String,
    /// Options of the formats.
    #[serde(deserialize_with = "null_is_default")]
    pub options: LogOptions,
    /// Threshold of what is logged.
    #[serde(deserialize_with = "null_is_default")]
    pub verbosity: u32,
    /// Thresholds of single source files.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub vmodule: Vec<VmoduleItem>,
}

/// `logging.options`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LogOptions {
    /// Options of the JSON format.
    #[serde(deserialize_with = "null_is_default")]
    pub json: OutputRouting,
    /// Options of the text format.
    #[serde(deserialize_with = "null_is_default")]
    pub text: OutputRouting,
}

/// Upstream's buffering of info lines. Not offered: everything goes to stderr at once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct OutputRouting {
    /// No effect: lines are written at once.
    #[serde(deserialize_with = "quantity")]
    pub info_buffer_size: Quantity,
    /// No effect: all lines go to stderr.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "is_false")]
    pub split_stream: bool,
}

/// A Kubernetes quantity, kept as text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Quantity(pub String);

impl From<String> for Quantity {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl Default for Quantity {
    fn default() -> Self {
        Self("0".to_owned())
    }
}

impl Quantity {
    /// Whether it is nothing.
    pub fn is_zero(&self) -> bool {
        let digits = self.0.trim_end_matches(|c: char| !c.is_ascii_digit());
        !digits.bytes().any(|byte| (b'1'..=b'9').contains(&byte))
    }
}

/// One entry of `logging.vmodule`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct VmoduleItem {
    /// Name of a source file without directory and extension.
    #[serde(deserialize_with = "null_is_default")]
    pub file_pattern: String,
    /// Its threshold.
    #[serde(deserialize_with = "null_is_default")]
    pub verbosity: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_false(value: &bool) -> bool {
    !value
}

fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn quantity<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Quantity, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Form {
        Number(u64),
        Text(String),
    }
    Ok(match Option::<Form>::deserialize(deserializer)? {
        None => Quantity::default(),
        Some(Form::Number(number)) => Quantity(number.to_string()),
        Some(Form::Text(text)) => Quantity(text),
    })
}

/// For `logging.flushFrequency`, which is a duration or a number of nanoseconds; null is zero.
fn duration_or_nanoseconds<'de, D>(deserializer: D) -> Result<GoDuration, D::Error>
where
    D: Deserializer<'de>,
{
    struct Either;

    impl Visitor<'_> for Either {
        type Value = GoDuration;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a duration such as 5s, or a number of nanoseconds")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<GoDuration, E> {
            text.parse().map_err(E::custom)
        }

        fn visit_i64<E: de::Error>(self, nanoseconds: i64) -> Result<GoDuration, E> {
            Ok(GoDuration::from_nanos(nanoseconds))
        }

        fn visit_u64<E: de::Error>(self, nanoseconds: u64) -> Result<GoDuration, E> {
            i64::try_from(nanoseconds)
                .map(GoDuration::from_nanos)
                .map_err(E::custom)
        }

        fn visit_unit<E: de::Error>(self) -> Result<GoDuration, E> {
            Ok(GoDuration::ZERO)
        }
    }

    deserializer.deserialize_any(Either)
}
