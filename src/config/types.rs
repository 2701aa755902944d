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

/// Declares sections of the file, in which every field may be missing or null.
macro_rules! sections {
    ($($(#[$about:meta])* pub struct $section:ident {
        $($(#[$field_about:meta])* pub $field:ident: $type:ty,)*
    })*) => {$(
        $(#[$about])*
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
        pub struct $section {
            $(
                $(#[$field_about])*
                #[serde(deserialize_with = "null_is_default")]
                pub $field: $type,
            )*
        }
    )*};
}

sections! {
    /// The whole configuration file.
    pub struct KubeProxyConfiguration {
        /// [`API_VERSION`].
        pub api_version: String,
        /// Replaces the node's address; nothing is bound to it.
        pub bind_address: String,
        /// Failing to listen for health checks and metrics ends the process.
        pub bind_address_hard_fail: bool,
        /// How to reach the API server.
        pub client_connection: ClientConnection,
        /// The pods' ranges, separated by commas.
        #[serde(rename = "clusterCIDR")]
        pub cluster_cidr: String,
        /// No effect: there is nothing to replay.
        pub config_sync_period: GoDuration,
        /// Connection tracking.
        pub conntrack: Conntrack,
        /// Parameters of `detectLocalMode`.
        pub detect_local: DetectLocalFields,
        /// How traffic from local pods is detected.
        pub detect_local_mode: String,
        /// No effect: there are no Go profiles.
        pub enable_profiling: bool,
        /// Feature gates.
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        pub feature_gates: BTreeMap<String, bool>,
        /// Where `/healthz` is served.
        pub healthz_bind_address: String,
        /// The node's name.
        pub hostname_override: String,
        /// iptables mode, and masquerading in both modes.
        pub iptables: Iptables,
        /// ipvs mode.
        pub ipvs: Ipvs,
        /// [`KIND`].
        pub kind: String,
        /// Logging.
        pub logging: Logging,
        /// Where `/metrics` is served.
        pub metrics_bind_address: String,
        /// `iptables` or `ipvs`.
        pub mode: String,
        /// No effect: there is no nftables mode.
        pub nftables: Nftables,
        /// Where node ports answer.
        pub node_port_addresses: Option<Vec<String>>,
        /// For `/proc/self/oom_score_adj`.
        pub oom_score_adj: Option<i32>,
        /// Deprecated, no effect, as upstream.
        pub port_range: String,
        /// No effect: there are no hidden metrics.
        pub show_hidden_metrics_for_version: String,
        /// No effect on Linux.
        #[serde(skip_serializing_if = "is_false")]
        pub windows_run_as_service: bool,
        /// No effect on Linux.
        pub winkernel: Winkernel,
    }

    /// `clientConnection`.
    pub struct ClientConnection {
        /// No effect: JSON is always used.
        pub accept_content_types: String,
        /// No effect: requests are few and rate-limited per path.
        pub burst: i32,
        /// No effect: JSON is always used.
        pub content_type: String,
        /// Path of a kubeconfig file.
        pub kubeconfig: String,
        /// No effect: requests are few and rate-limited per path.
        pub qps: f32,
    }

    /// `conntrack`.
    pub struct Conntrack {
        /// Table entries per CPU; 0 leaves the kernel's.
        pub max_per_core: Option<i32>,
        /// Least number of table entries.
        pub min: Option<i32>,
        /// Do not call out-of-window packets invalid.
        pub tcp_be_liberal: bool,
        /// Half-closed connections.
        pub tcp_close_wait_timeout: Option<GoDuration>,
        /// Idle connections.
        pub tcp_established_timeout: Option<GoDuration>,
        /// Answered UDP flows.
        pub udp_stream_timeout: GoDuration,
        /// Unanswered UDP flows.
        pub udp_timeout: GoDuration,
    }

    /// `detectLocal`.
    pub struct DetectLocalFields {
        /// For mode `BridgeInterface`.
        pub bridge_interface: String,
        /// For mode `InterfaceNamePrefix`.
        pub interface_name_prefix: String,
    }

    /// `iptables`.
    pub struct Iptables {
        /// Node ports answer on loopback addresses.
        pub localhost_node_ports: Option<bool>,
        /// Masquerade all that goes to cluster IPs; also in ipvs mode.
        pub masquerade_all: bool,
        /// Bit of the packet mark; also in ipvs mode.
        pub masquerade_bit: Option<i32>,
        /// Shortest time between two syncs.
        pub min_sync_period: GoDuration,
        /// Longest time between two syncs.
        pub sync_period: GoDuration,
    }

    /// `ipvs`.
    pub struct Ipvs {
        /// Virtual servers that are never touched.
        #[serde(rename = "excludeCIDRs")]
        pub exclude_cidrs: Option<Vec<String>>,
        /// Shortest time between two syncs.
        pub min_sync_period: GoDuration,
        /// Kernel name of the scheduler; blank means `rr`.
        pub scheduler: String,
        /// Answer ARP for the asked interface's addresses only.
        #[serde(rename = "strictARP")]
        pub strict_arp: bool,
        /// Longest time between two syncs.
        pub sync_period: GoDuration,
        /// Connections after a FIN.
        pub tcp_fin_timeout: GoDuration,
        /// Idle connections.
        pub tcp_timeout: GoDuration,
        /// UDP.
        pub udp_timeout: GoDuration,
    }

    /// `nftables`, which no mode of ours reads.
    pub struct Nftables {
        /// No effect.
        pub masquerade_all: bool,
        /// No effect.
        pub masquerade_bit: Option<i32>,
        /// No effect.
        pub min_sync_period: GoDuration,
        /// No effect.
        pub sync_period: GoDuration,
    }

    /// `winkernel`, which Linux does not read.
    pub struct Winkernel {
        /// No effect.
        #[serde(rename = "enableDSR")]
        pub enable_dsr: bool,
        /// No effect.
        pub forward_health_check_vip: bool,
        /// No effect.
        pub network_name: String,
        /// No effect.
        pub root_hns_endpoint_name: String,
        /// No effect.
        pub source_vip: String,
    }

    /// `logging.options`.
    pub struct LogOptions {
        /// Options of the JSON format.
        pub json: OutputRouting,
        /// Options of the text format.
        pub text: OutputRouting,
    }

    /// Upstream's buffering of info lines. Not offered: everything goes to stderr at once.
    pub struct OutputRouting {
        /// No effect: lines are written at once.
        pub info_buffer_size: Quantity,
        /// No effect: all lines go to stderr.
        #[serde(skip_serializing_if = "is_false")]
        pub split_stream: bool,
    }

    /// One entry of `logging.vmodule`.
    pub struct VmoduleItem {
        /// Name of a source file without directory and extension.
        pub file_pattern: String,
        /// Its threshold.
        pub verbosity: u32,
    }
}

/// `logging`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
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

/// A Kubernetes quantity, kept as text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "QuantityForm")]
pub struct Quantity(pub String);

impl From<String> for Quantity {
    fn from(text: String) -> Self {
        Self(text)
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum QuantityForm {
    Number(u64),
    Text(String),
}

impl From<QuantityForm> for Quantity {
    fn from(form: QuantityForm) -> Self {
        Self(match form {
            QuantityForm::Number(number) => number.to_string(),
            QuantityForm::Text(text) => text,
        })
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
