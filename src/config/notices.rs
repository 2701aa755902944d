// SPDX-License-Identifier: Apache-2.0
//! Notices about a valid configuration: fields without effect, defaults that matter.

use super::decode::Finding;
use super::gates::{FeatureGates, exists, is_effective};
use super::settings::Notice;
use super::types::{KubeProxyConfiguration, Nftables, Quantity, Winkernel};
use crate::source::kubernetes::Encoding;

/// Looks at a configuration with its defaults, but before a blank mode is filled.
pub(super) fn notices(config: &KubeProxyConfiguration) -> Vec<Notice> {
    let defaults = KubeProxyConfiguration::with_defaults();
    let logging = &config.logging.options;
    let has_split = logging.text.split_stream || logging.json.split_stream;
    let is_buffered = |quantity: &Quantity| !quantity.is_zero();
    let has_buffer =
        is_buffered(&logging.text.info_buffer_size) || is_buffered(&logging.json.info_buffer_size);
    let content_type = config.client_connection.content_type.as_str();
    let accept = config.client_connection.accept_content_types.as_str();
    let client = &config.client_connection;
    let default_client = &defaults.client_connection;
    let paces =
        client.qps.total_cmp(&default_client.qps).is_ne() || client.burst != default_client.burst;
    let speaks = |text: &str| text.is_empty() || Encoding::first_of(text).is_some();

    let mut notices: Vec<Notice> = [
        (config.mode.is_empty(), "mode", "not set: iptables is used; set it explicitly, since Kubernetes will change the default"),
        (config.detect_local_mode.is_empty() && config.cluster_cidr.is_empty(), "clusterCIDR", "not set: traffic of local pods cannot be distinguished from other traffic, which matters for masqueradeAll and for traffic policy Local"),
        (config.node_port_addresses.is_none(), "nodePortAddresses", "not set: node ports answer on every address of this node; consider `primary`"),
        (one_family_only(config), "nodePortAddresses", "has entries of one family only, while clusterCIDR has both: node ports of the other family answer on every address"),
        (config.nftables != Nftables::default() && config.nftables != defaults.nftables, "nftables", "no effect: there is no nftables mode"),
        (config.winkernel != Winkernel::default(), "winkernel", "no effect on Linux"),
        (config.windows_run_as_service, "windowsRunAsService", "no effect on Linux"),
        (!config.port_range.is_empty(), "portRange", "deprecated, no effect"),
        (!config.show_hidden_metrics_for_version.is_empty(), "showHiddenMetricsForVersion", "no effect: there are no hidden metrics"),
        (config.enable_profiling, "enableProfiling", "no effect: there are no Go profiles"),
        (config.ipvs.exclude_cidrs.is_some() && config.mode != "ipvs", "ipvs.excludeCIDRs", "no effect outside ipvs mode"),
        (!speaks(content_type), "clientConnection.contentType", "no effect: neither protobuf nor JSON"),
        (!speaks(accept), "clientConnection.acceptContentTypes", "no effect: neither protobuf nor JSON"),
        (paces, "clientConnection", "qps and burst have no effect: requests are few and rate-limited per path"),
        (config.config_sync_period != defaults.config_sync_period, "configSyncPeriod", "no effect: there is nothing to replay"),
        (config.logging.flush_frequency != defaults.logging.flush_frequency, "logging.flushFrequency", "no effect: lines are written at once"),
        (has_split, "logging.options", "splitStream has no effect: all lines go to stderr"),
        (has_buffer, "logging.options", "infoBufferSize has no effect: lines are written at once"),
    ]
    .into_iter()
    .filter(|(applies, _, _)| *applies)
    .map(|(_, subject, message)| notice(subject, message))
    .collect();

    let (_, refused) = FeatureGates::from_map(&config.feature_gates);
    let is_refused = |gate: &str| refused.iter().any(|error| error.names(gate));
    notices.extend(
        config
            .feature_gates
            .keys()
            .filter(|gate| exists(gate) && !is_effective(gate) && !is_refused(gate))
            .map(|gate| {
                notice(
                    &format!("featureGates.{gate}"),
                    "accepted, but has no effect",
                )
            }),
    );
    notices
}

/// One remark for all that kube-proxy passes over in a file, in its words.
pub(super) fn lenient(findings: &[Finding]) -> Option<Notice> {
    let found: Vec<String> = findings
        .iter()
        .map(|finding| {
            let (field, line) = (&finding.field, finding.line);
            format!("{field} (line {line}): {}", finding.message)
        })
        .collect();
    let message = format!(
        "Using lenient decoding as strict decoding failed: {}",
        found.join("; ")
    );
    (!found.is_empty()).then(|| notice("--config", &message))
}

/// The flags that `--config` replaces.
pub(super) fn ignored_flags(names: &[String]) -> Vec<Notice> {
    names
        .iter()
        .map(|name| notice(&format!("--{name}"), "ignored, because --config is given"))
        .collect()
}

/// A flag that upstream wants to remove.
pub(super) fn deprecated_port(server: &str) -> Notice {
    let instead = format!("deprecated: use --{server}-bind-address");
    notice(&format!("--{server}-port"), &instead)
}

fn notice(subject: &str, message: &str) -> Notice {
    Notice {
        subject: subject.to_owned(),
        message: message.to_owned(),
    }
}

fn one_family_only(config: &KubeProxyConfiguration) -> bool {
    let entries = config.node_port_addresses.as_deref().unwrap_or_default();
    let is_v6 = |text: &String| text.contains(':');
    let has_keyword = entries.iter().any(|text| !text.contains('/'));
    let dual_stack = config.cluster_cidr.contains(',') && config.cluster_cidr.contains(':');
    !entries.is_empty()
        && !has_keyword
        && dual_stack
        && (entries.iter().all(is_v6) || !entries.iter().any(is_v6))
}
