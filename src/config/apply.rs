// SPDX-License-Identifier: Apache-2.0
//! Puts flags into a configuration.

use super::defaults::{HEALTHZ_PORT, METRICS_PORT, append_port};
use super::flags::{FlagError, Flags, gates, list, vmodule};
use super::types::{KubeProxyConfiguration, Quantity};

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
    set(&mut logging.verbosity, flags.verbosity.as_ref());
    set(&mut logging.format, flags.logging_format.as_ref());
    set(
        &mut logging.flush_frequency,
        flags.log_flush_frequency.as_ref(),
    );
    set(
        &mut logging.options.text.split_stream,
        flags.log_text_split_stream.as_ref(),
    );
    set(
        &mut logging.options.json.split_stream,
        flags.log_json_split_stream.as_ref(),
    );
    let text_buffer = flags.log_text_info_buffer_size.clone().map(Quantity);
    set(
        &mut logging.options.text.info_buffer_size,
        text_buffer.as_ref(),
    );
    let json_buffer = flags.log_json_info_buffer_size.clone().map(Quantity);
    set(
        &mut logging.options.json.info_buffer_size,
        json_buffer.as_ref(),
    );
    // The first match counts, so flags go first.
    logging.vmodule.splice(..0, vmodule(&flags.vmodule)?);
    Ok(())
}

/// All flags of the configuration, when there is no file.
pub(super) fn all(flags: &Flags, config: &mut KubeProxyConfiguration) -> Result<(), FlagError> {
    beside_file(flags, config)?;
    config.feature_gates.extend(gates(&flags.feature_gates)?);

    let client = &mut config.client_connection;
    set(&mut client.kubeconfig, flags.kubeconfig.as_ref());
    set(
        &mut client.content_type,
        flags.kube_api_content_type.as_ref(),
    );
    set(&mut client.qps, flags.kube_api_qps.as_ref());
    set(&mut client.burst, flags.kube_api_burst.as_ref());

    servers(flags, config);
    set(&mut config.enable_profiling, flags.profiling.as_ref());
    let version = flags.show_hidden_metrics_for_version.as_ref();
    set(&mut config.show_hidden_metrics_for_version, version);

    set(&mut config.mode, flags.proxy_mode.as_ref());
    let iptables = &mut config.iptables;
    set_some(&mut iptables.masquerade_bit, flags.iptables_masquerade_bit);
    set(&mut iptables.masquerade_all, flags.masquerade_all.as_ref());
    set_some(
        &mut iptables.localhost_node_ports,
        flags.iptables_localhost_nodeports,
    );
    set(
        &mut iptables.sync_period,
        flags.iptables_sync_period.as_ref(),
    );
    set(
        &mut iptables.min_sync_period,
        flags.iptables_min_sync_period.as_ref(),
    );

    let ipvs = &mut config.ipvs;
    set(&mut ipvs.sync_period, flags.ipvs_sync_period.as_ref());
    set(
        &mut ipvs.min_sync_period,
        flags.ipvs_min_sync_period.as_ref(),
    );
    set(&mut ipvs.scheduler, flags.ipvs_scheduler.as_ref());
    set_some(&mut ipvs.exclude_cidrs, list(&flags.ipvs_exclude_cidrs));
    set(&mut ipvs.strict_arp, flags.ipvs_strict_arp.as_ref());
    set(&mut ipvs.tcp_timeout, flags.ipvs_tcp_timeout.as_ref());
    set(
        &mut ipvs.tcp_fin_timeout,
        flags.ipvs_tcpfin_timeout.as_ref(),
    );
    set(&mut ipvs.udp_timeout, flags.ipvs_udp_timeout.as_ref());

    set(
        &mut config.detect_local_mode,
        flags.detect_local_mode.as_ref(),
    );
    set(
        &mut config.detect_local.bridge_interface,
        flags.pod_bridge_interface.as_ref(),
    );
    let prefix = flags.pod_interface_name_prefix.as_ref();
    set(&mut config.detect_local.interface_name_prefix, prefix);
    set(&mut config.cluster_cidr, flags.cluster_cidr.as_ref());
    set_some(
        &mut config.node_port_addresses,
        list(&flags.nodeport_addresses),
    );

    set_some(&mut config.oom_score_adj, flags.oom_score_adj);
    let conntrack = &mut config.conntrack;
    set_some(&mut conntrack.max_per_core, flags.conntrack_max_per_core);
    set_some(&mut conntrack.min, flags.conntrack_min);
    set_some(
        &mut conntrack.tcp_established_timeout,
        flags.conntrack_tcp_timeout_established,
    );
    set_some(
        &mut conntrack.tcp_close_wait_timeout,
        flags.conntrack_tcp_timeout_close_wait,
    );
    set(
        &mut conntrack.tcp_be_liberal,
        flags.conntrack_tcp_be_liberal.as_ref(),
    );
    set(
        &mut conntrack.udp_timeout,
        flags.conntrack_udp_timeout.as_ref(),
    );
    set(
        &mut conntrack.udp_stream_timeout,
        flags.conntrack_udp_timeout_stream.as_ref(),
    );
    set(
        &mut config.config_sync_period,
        flags.config_sync_period.as_ref(),
    );
    Ok(())
}

/// Addresses of the two servers, completed from the deprecated port flags. (Upstream forgets the ports together with
/// `--write-config-to`.)
fn servers(flags: &Flags, config: &mut KubeProxyConfiguration) {
    if let Some(address) = flags
        .bind_address
        .as_deref()
        .map(str::trim)
        .filter(|a| !a.is_empty())
    {
        address.clone_into(&mut config.bind_address);
    }
    set(
        &mut config.bind_address_hard_fail,
        flags.bind_address_hard_fail.as_ref(),
    );
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

/// A port that cannot be becomes 0, which validation refuses.
fn port_number(port: i32) -> u16 {
    u16::try_from(port).unwrap_or(0)
}

fn set<T: Clone>(field: &mut T, flag: Option<&T>) {
    if let Some(value) = flag {
        field.clone_from(value);
    }
}

fn set_some<T>(field: &mut Option<T>, flag: Option<T>) {
    if flag.is_some() {
        *field = flag;
    }
}
