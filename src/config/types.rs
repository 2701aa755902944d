// SPDX-License-Identifier: Apache-2.0
//! `kubeproxy.config.k8s.io/v1alpha1`, kind `KubeProxyConfiguration`: the fields of the file.
//!
//! Fields are in alphabetical order because the effective configuration is written in that order.
//! `null` means the same as a missing field. Only names and types are checked here.

use std::collections::BTreeMap;

use serde::Serialize;

use kpr_core::model::GoDuration;

use super::decode::{Decoder, Field};
use crate::yaml::{Node, Value};

/// The group and version of the configuration file.
pub const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
/// The kind of the configuration file.
pub const KIND: &str = "KubeProxyConfiguration";

/// Declares sections of the file, in which every field may be missing or null. A field has the name
/// of upstream in camel case, or the one that stands behind its type.
macro_rules! sections {
    ($($(#[$about:meta])* pub struct $section:ident {
        $($(#[$field_about:meta])* pub $field:ident: $type:ty $(= $name:literal)?,)*
    })*) => {$(
        $(#[$about])*
        #[derive(Clone, Debug, Default, PartialEq, Serialize)]
        #[serde(rename_all = "camelCase")]
        pub struct $section {
            $(
                $(#[$field_about])*
                $(#[serde(rename = $name)])?
                pub $field: $type,
            )*
        }

        impl Field for $section {
            fn set(&mut self, node: &Node, to: &mut Decoder) {
                to.section(node, |name, value, to| {
                    $(if is_named(name, stringify!($field), &[$($name)?]) {
                        self.$field.set(value, to);
                        return true;
                    })*
                    false
                });
            }
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
        pub cluster_cidr: String = "clusterCIDR",
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
        /// In which form objects are asked for; counts before `contentType`. Anything but
        /// `application/vnd.kubernetes.protobuf` and `application/json` has no effect.
        pub accept_content_types: String,
        /// No effect: requests are few and rate-limited per path.
        pub burst: i32,
        /// In which form objects are asked for: `application/vnd.kubernetes.protobuf` (from a
        /// server that will not, JSON) or `application/json`. Others have no effect.
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
        pub exclude_cidrs: Option<Vec<String>> = "excludeCIDRs",
        /// Shortest time between two syncs.
        pub min_sync_period: GoDuration,
        /// Kernel name of the scheduler; blank means `rr`.
        pub scheduler: String,
        /// Answer ARP for the asked interface's addresses only.
        pub strict_arp: bool = "strictARP",
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
        pub enable_dsr: bool = "enableDSR",
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

    /// `logging`.
    pub struct Logging {
        /// No effect: lines are written at once.
        pub flush_frequency: FlushFrequency,
        /// `text` or `json`.
        pub format: String,
        /// Options of the formats.
        pub options: LogOptions,
        /// Threshold of what is logged.
        pub verbosity: u32,
        /// Thresholds of single source files.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        pub vmodule: Vec<VmoduleItem>,
    }
}

/// Whether `name` is that of a field: the one that was given, or else the field's in camel case.
fn is_named(name: &str, field: &str, given: &[&str]) -> bool {
    if let Some(given) = given.first() {
        return name == *given;
    }
    let mut camel_case = String::with_capacity(field.len());
    for word in field.split('_') {
        let mut letters = word.chars();
        if let Some(first) = letters.next().filter(|_| !camel_case.is_empty()) {
            camel_case.push(first.to_ascii_uppercase());
            camel_case.push_str(letters.as_str());
        } else {
            camel_case.push_str(word);
        }
    }
    name == camel_case
}

/// A duration, or a number of nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct FlushFrequency(pub GoDuration);

impl From<GoDuration> for FlushFrequency {
    fn from(duration: GoDuration) -> Self {
        Self(duration)
    }
}

impl Field for FlushFrequency {
    fn set(&mut self, node: &Node, to: &mut Decoder) {
        match &node.value {
            Value::Null => self.0 = GoDuration::ZERO,
            Value::Number(number) => match number.parse() {
                Ok(nanoseconds) => self.0 = GoDuration::from_nanos(nanoseconds),
                Err(_) => to.wrong(node, "a duration such as 5s, or a number of nanoseconds"),
            },
            _ => self.0.set(node, to),
        }
    }
}

/// A Kubernetes quantity, kept as text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Quantity(pub String);

impl From<String> for Quantity {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl Field for Quantity {
    fn set(&mut self, node: &Node, to: &mut Decoder) {
        match &node.value {
            Value::Null => *self = Self::default(),
            Value::Number(text) | Value::Text(text) if is_quantity(text.trim()) => {
                text.trim().clone_into(&mut self.0);
            }
            _ => to.wrong(node, "a size such as 512, 4k or 4Ki"),
        }
    }
}

/// Whether a text has the form of a quantity: `[+-]`, a number, and a unit or an exponent.
pub(super) fn is_quantity(text: &str) -> bool {
    let text = text.strip_prefix(['+', '-']).unwrap_or(text);
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let exponent = unit.strip_prefix(['e', 'E']).unwrap_or_default();
    let is_number = number.contains(|c: char| c.is_ascii_digit())
        && number.bytes().filter(|byte| *byte == b'.').count() <= 1;
    let is_unit = matches!(
        unit,
        "" | "n"
            | "u"
            | "m"
            | "k"
            | "M"
            | "G"
            | "T"
            | "P"
            | "E"
            | "Ki"
            | "Mi"
            | "Gi"
            | "Ti"
            | "Pi"
            | "Ei"
    );
    is_number && (is_unit || exponent.parse::<i32>().is_ok())
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
