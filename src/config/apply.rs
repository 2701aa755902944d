// SPDX-License-Identifier: Apache-2.0
//! Applies flags to a configuration.

use super::defaults::{HEALTHZ_PORT, METRICS_PORT, append_port};
use super::flags::{FlagError, Flags, gates, list, vmodule};
use super::types::KubeProxyConfiguration;

/// Sets the fields whose flag was given.
macro_rules! set {
    ($($($field:ident).+ = $flag:expr;)*) => {
        $(if let Some(value) = &$flag {
            $($field).+ = value.clone().into();
        })*
    };
}

/// Flags that count beside a file: those of logging, and the node's name.
pub(super) fn beside_file(
    flags: &Flags,
    config: &mut KubeProxyConfiguration,
) -> Result<(), FlagError> {
    if let Some(name) = &flags.hostname_override {
        let trimmed = name.trim().to_lowercase();
        if trimmed.is_empty() && !name.is_empty() {
            return Err(FlagError::Value {
                flag: "hostname-override",
                value: name.clone(),
                message: "empty hostname-override is invalid".to_owned(),
            });
        }
        if !trimmed.is_empty() {
            config.hostname_override = trimmed;
        }
    }
    let logging = &mut config.logging;
    set! {
        logging.verbosity = flags.verbosity;
        logging.format = flags.logging_format;
        logging.flush_frequency = flags.log_flush_frequency;
        logging.options.text.split_stream = flags.log_text_split_stream;
        logging.options.text.info_buffer_size = flags.log_text_info_buffer_size;
        logging.options.json.split_stream = flags.log_json_split_stream;
        logging.options.json.info_buffer_size = flags.log_json_info_buffer_size;
    }
    // The first match counts, so flags go first.
    logging.vmodule.splice(..0, vmodule(&flags.vmodule)?);
    Ok(())
}

/// All flags of the configuration, when there is no file.
pub(super) fn all(flags: &Flags, config: &mut KubeProxyConfiguration) -> Result<(), FlagError> {
    beside_file(flags, config)?;
    config.feature_gates.extend(gates(&flags.feature_gates)?);

    servers(flags, config);
    set! {
        config.client_connection.kubeconfig = flags.kubeconfig;
        config.client_connection.content_type = flags.kube_api_content_type;
        config.client_connection.qps = flags.kube_api_qps;
        config.client_connection.burst = flags.kube_api_burst;
        config.enable_profiling = flags.profiling;
        config.show_hidden_metrics_for_version = flags.show_hidden_metrics_for_version;

        config.mode = flags.proxy_mode;
        config.iptables.masquerade_bit = flags.iptables_masquerade_bit;
        config.iptables.masquerade_all = flags.masquerade_all;
        config.iptables.localhost_node_ports = flags.iptables_localhost_nodeports;
        config.iptables.sync_period = flags.iptables_sync_period;
        config.iptables.min_sync_period = flags.iptables_min_sync_period;
        config.ipvs.sync_period = flags.ipvs_sync_period;
        config.ipvs.min_sync_period = flags.ipvs_min_sync_period;
        config.ipvs.scheduler = flags.ipvs_scheduler;
        config.ipvs.exclude_cidrs = list(&flags.ipvs_exclude_cidrs);
        config.ipvs.strict_arp = flags.ipvs_strict_arp;
        config.ipvs.tcp_timeout = flags.ipvs_tcp_timeout;
        config.ipvs.tcp_fin_timeout = flags.ipvs_tcpfin_timeout;
        config.ipvs.udp_timeout = flags.ipvs_udp_timeout;

        config.detect_local_mode = flags.detect_local_mode;
        config.detect_local.bridge_interface = flags.pod_bridge_interface;
        config.detect_local.interface_name_prefix = flags.pod_interface_name_prefix;
        config.cluster_cidr = flags.cluster_cidr;
        config.node_port_addresses = list(&flags.nodeport_addresses);

        config.oom_score_adj = flags.oom_score_adj;
        config.conntrack.max_per_core = flags.conntrack_max_per_core;
        config.conntrack.min = flags.conntrack_min;
        config.conntrack.tcp_established_timeout = flags.conntrack_tcp_timeout_established;
        config.conntrack.tcp_close_wait_timeout = flags.conntrack_tcp_timeout_close_wait;
        config.conntrack.tcp_be_liberal = flags.conntrack_tcp_be_liberal;
        config.conntrack.udp_timeout = flags.conntrack_udp_timeout;
        config.conntrack.udp_stream_timeout = flags.conntrack_udp_timeout_stream;
        config.config_sync_period = flags.config_sync_period;
    }
    Ok(())
}

/// Addresses of the two servers, completed from the deprecated port flags. (Upstream forgets the
/// ports together with `--write-config-to`.)
fn servers(flags: &Flags, config: &mut KubeProxyConfiguration) {
    if let Some(address) = flags
        .bind_address
        .as_deref()
        .map(str::trim)
        .filter(|a| !a.is_empty())
    {
        address.clone_into(&mut config.bind_address);
    }
    set! { config.bind_address_hard_fail = flags.bind_address_hard_fail; }
    for (address, given, port, default_port) in [
        (
            &mut config.healthz_bind_address,
            &flags.healthz_bind_address,
            flags.healthz_port,
            HEALTHZ_PORT,
        ),
        (
            &mut config.metrics_bind_address,
            &flags.metrics_bind_address,
            flags.metrics_port,
            METRICS_PORT,
        ),
    ] {
        // As upstream: an empty address keeps the default.
        match (
            given.as_ref().filter(|given| !given.trim().is_empty()),
            port,
        ) {
            (_, Some(0)) => address.clear(),
            (Some(given), port) => {
                given.trim().clone_into(address);
                append_port(address, port.map_or(default_port, port_number));
            }
            (None, Some(port)) => {
                // The default has a port of its own, which this one replaces.
                if let Some(host) = address.strip_suffix(&format!(":{default_port}")) {
                    *address = format!("{host}:{}", port_number(port));
                }
            }
            (None, None) => {}
        }
    }
}

/// An impossible port becomes 0, which validation rejects.
fn port_number(port: i32) -> u16 {
    u16::try_from(port).unwrap_or(0)
}
