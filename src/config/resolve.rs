// SPDX-License-Identifier: Apache-2.0
//! Validates a configuration and turns it into [`Settings`] in one pass, so that exactly what was
//! validated is used.
//!
//! The order of the checks and the paths are upstream's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use kpr_core::model::address::{parse_cidr, parse_ip};
use kpr_core::model::net::IpFamily;
use kpr_core::model::node::{DetectLocal, InterfaceName, NodePortAddress, NodePortAddresses};
use kpr_core::model::{GoDuration, PortRange, ProxyMode};
use kpr_core::plan::conntrack::tuning::Tuning;

use super::defaults::{IPVS_DRAIN_LIMIT, MASQUERADE_BIT, SCHEDULER, split_host_port};
use super::flags::Flags;
use super::gates::FeatureGates;
use super::settings::{IpvsSettings, IpvsTimeouts, LogFormat, LogSettings, Settings, SyncSettings};
use super::types::{ClientConnection, KubeProxyConfiguration, Logging};
use super::validation::{Errors, Problem, ValidationErrors};
use crate::source::Source;
use crate::source::kubernetes::{self, Encoding};

mod services;
mod sync;
mod sysctls;

const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
const POSITIVE: &str = "must be greater than 0";
const CIDR_COUNT: &str = "must be either a single CIDR or a dual-stack pair of CIDRs (e.g. 10.100.0.0/16,fde4:8dba:82e1::/48)";
const LOCAL_MODES: [&str; 5] = [
    "ClusterCIDR",
    "NodeCIDR",
    "BridgeInterface",
    "InterfaceNamePrefix",
    "",
];
/// `IP_VS_SCHEDNAME_MAXLEN` of the kernel's `ip_vs.h` is 16 with the final zero.
const MAX_SCHEDULER_NAME: usize = 15;

/// Checks a configuration that has its defaults. Of the flags, it reads those that the file has no
/// place for, as it must stay one that kube-proxy takes.
pub(super) fn resolve(
    mut configuration: KubeProxyConfiguration,
    flags: &Flags,
) -> Result<Settings, ValidationErrors> {
    let config = &configuration;
    let mut errors = Errors::default();

    let (gates, gate_errors) = FeatureGates::from_map(&config.feature_gates);
    for error in gate_errors {
        errors.invalid_text("featureGates", &config.feature_gates, &error.to_string());
    }
    let bit = config.iptables.masquerade_bit.unwrap_or(MASQUERADE_BIT);
    let path = "KubeProxyIPTablesConfiguration.MasqueradeBit";
    let masquerade_bit = within(path, bit, 0..=31, &mut errors);
    let mut ipvs = ipvs(config, &mut errors);
    if let Some(limit) = flags.ipvs_drain_limit {
        if limit.is_negative() {
            errors.invalid_duration("--ipvs-drain-limit", limit, NOT_NEGATIVE);
        }
        ipvs.drain_limit = limit.to_duration();
    }
    services::of_ipvs(flags, &mut ipvs, &mut errors);
    let is_ipvs = config.mode == ProxyMode::IPVS.as_str();
    ipvs.sync = sync::daemons(flags, &mut errors).filter(|_| is_ipvs);
    let sysctls = sysctls::asked(flags, &mut errors);
    if is_ipvs {
        ipvs.sysctls = sysctls;
    }
    let budget = services::budget(flags, &mut errors);
    let annotations = services::annotations(flags, &mut errors);
    let service_metrics = services::metrics(flags, &mut errors);
    let node_port_range = node_port_range(flags, &mut errors);
    let conntrack = conntrack(config, &mut errors);
    let path = "KubeProxyLinuxConfiguration.OOMScoreAdj";
    let oom_score = config.oom_score_adj.unwrap_or(0);
    let oom_score_adj = within(path, oom_score, -1000..=1000, &mut errors);
    let mode = mode(&config.mode, gates, &mut errors);
    let burst = config.client_connection.burst;
    if burst < 0 {
        errors.invalid("ClientConnection.Burst", burst, NOT_NEGATIVE);
    }
    let sync = sync(config, &mut errors);
    let bind_address = parse_ip(&config.bind_address).unwrap_or_else(|_invalid| {
        let message = "not a valid textual representation of an IP address";
        errors.invalid_text("BindAddress", &config.bind_address, message);
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    });
    let healthz = Some(&config.healthz_bind_address).filter(|address| !address.is_empty());
    let healthz_address =
        healthz.and_then(|text| host_port("HealthzBindAddress", text, &mut errors));
    let metrics_disabled = flags.config.is_none() && flags.metrics_port == Some(0);
    let metrics = Some(&config.metrics_bind_address).filter(|_| !metrics_disabled);
    let metrics_address =
        metrics.and_then(|text| host_port("MetricsBindAddress", text, &mut errors));
    let node_port_addresses = node_port_addresses(config, &mut errors);
    hidden_metrics(&config.show_hidden_metrics_for_version, &mut errors);
    // Given empty, it is one range that is none.
    let has_cluster_cidr =
        !config.cluster_cidr.is_empty() || (flags.config.is_none() && flags.cluster_cidr.is_some());
    let detect_local = detect_local(config, has_cluster_cidr, &mut errors);
    let hostname_override = hostname(&config.hostname_override, &mut errors);
    let logging = logging(&config.logging, flags, gates, &mut errors);

    let client = &config.client_connection;
    let source = match &flags.manifests {
        Some(directory) => Source::Manifests(directory.clone()),
        None => Source::Kubernetes(kubernetes::Config {
            kubeconfig: Some(PathBuf::from(&client.kubeconfig))
                .filter(|path| !path.as_os_str().is_empty()),
            master: flags.master.clone().filter(|url| !url.is_empty()),
            encoding: encoding(client),
        }),
    };
    let mut settings = Settings {
        mode,
        source,
        hostname_override,
        bind_address,
        healthz_address,
        metrics_address,
        bind_address_hard_fail: config.bind_address_hard_fail,
        sync,
        masquerade_all: config.iptables.masquerade_all,
        masquerade_bit,
        iptables_backend: flags.iptables_backend.unwrap_or_default(),
        ipvs_rules: flags.ipvs_rules.unwrap_or_default(),
        iptables_localhost_node_ports: config.iptables.localhost_node_ports.unwrap_or(true),
        localhost_node_ports: flags.localhost_nodeports.unwrap_or(false),
        node_port_range,
        ipvs,
        detect_local,
        node_port_addresses,
        conntrack,
        budget,
        annotations,
        service_metrics,
        allow_external_ips: gates.allow_service_external_ips,
        oom_score_adj,
        logging,
        kubernetes_version: String::new(),
        config_file: flags.config.clone(),
        notices: Vec::new(),
        configuration: KubeProxyConfiguration::default(),
    };
    configuration.forget_other_modes();
    settings.configuration = configuration;
    errors.into_result(settings)
}

/// A number within a range, and zero in the place of any other.
fn within<T: TryFrom<i32> + Default>(
    path: &str,
    value: i32,
    range: RangeInclusive<i32>,
    errors: &mut Errors,
) -> T {
    let in_range = range
        .contains(&value)
        .then(|| T::try_from(value).ok())
        .flatten();
    in_range.unwrap_or_else(|| {
        let (first, last) = range.into_inner();
        errors.invalid(
            path,
            value,
            &format!("must be within the range [{first}, {last}]"),
        );
        T::default()
    })
}

/// A duration that may be zero, which stands for the kernel's value.
fn timeout(path: &str, value: GoDuration, errors: &mut Errors) -> Option<Duration> {
    if value.is_negative() {
        errors.invalid_duration(path, value, NOT_NEGATIVE);
    }
    value.positive()
}

/// Checked in ipvs mode only; other modes ignore the section.
fn ipvs(config: &KubeProxyConfiguration, errors: &mut Errors) -> IpvsSettings {
    const PATH: &str = "KubeProxyIPVSConfiguration";
    let section = &config.ipvs;
    let mut settings = IpvsSettings {
        scheduler: SCHEDULER.to_owned(),
        exclude_cidrs: Vec::new(),
        strict_arp: section.strict_arp,
        timeouts: IpvsTimeouts::default(),
        drain_limit: IPVS_DRAIN_LIMIT,
        service_schedulers: BTreeSet::new(),
        tunnel_cidrs: Vec::new(),
        sync: None,
        sysctls: BTreeMap::new(),
    };
    if config.mode != ProxyMode::IPVS.as_str() {
        return settings;
    }
    settings.timeouts = IpvsTimeouts {
        tcp: timeout(&format!("{PATH}.TCPTimeout"), section.tcp_timeout, errors),
        tcp_fin: timeout(
            &format!("{PATH}.TCPFinTimeout"),
            section.tcp_fin_timeout,
            errors,
        ),
        udp: timeout(&format!("{PATH}.UDPTimeout"), section.udp_timeout, errors),
    };
    for (i, text) in section.exclude_cidrs.iter().flatten().enumerate() {
        if let Ok(cidr) = parse_cidr(text) {
            settings.exclude_cidrs.push(cidr);
        } else {
            errors.invalid_text(
                &format!("{PATH}.ExcludeCidrs[{i}]"),
                text,
                "must be a valid CIDR",
            );
        }
    }
    let scheduler = section.scheduler.as_str();
    let is_name = scheduler.len() <= MAX_SCHEDULER_NAME
        && scheduler
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    if !is_name {
        let message = "must be the name of a scheduler of the kernel, such as rr, wrr, lc or sh";
        errors.invalid_text(&format!("{PATH}.Scheduler"), scheduler, message);
    } else if !scheduler.is_empty() {
        scheduler.clone_into(&mut settings.scheduler);
    }
    settings
}

fn conntrack(config: &KubeProxyConfiguration, errors: &mut Errors) -> Tuning {
    let section = &config.conntrack;
    let path =
        |name: &str| format!("KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration.{name}");
    let count = |name: &str, value: Option<i32>, errors: &mut Errors| {
        let value = value.unwrap_or(0);
        u32::try_from(value).unwrap_or_else(|_negative| {
            errors.invalid(&path(name), value, NOT_NEGATIVE);
            0
        })
    };
    let max_per_core = count("MaxPerCore", section.max_per_core, errors);
    let min = count("Min", section.min, errors);
    let established = section.tcp_established_timeout.unwrap_or_default();
    let close_wait = section.tcp_close_wait_timeout.unwrap_or_default();
    Tuning {
        max_per_core: Some(max_per_core).filter(|&entries| entries > 0),
        min,
        tcp_established_timeout: timeout(&path("TCPEstablishedTimeout"), established, errors),
        tcp_close_wait_timeout: timeout(&path("TCPCloseWaitTimeout"), close_wait, errors),
        tcp_be_liberal: section.tcp_be_liberal,
        udp_timeout: timeout(&path("UDPTimeout"), section.udp_timeout, errors),
        udp_stream_timeout: timeout(
            &path("UDPStreamTimeout"),
            section.udp_stream_timeout,
            errors,
        ),
    }
}

fn mode(text: &str, gates: FeatureGates, errors: &mut Errors) -> ProxyMode {
    const PATH: &str = "Mode.ProxyMode";
    match text.parse() {
        Ok(ProxyMode::IPVS) if !gates.kube_proxy_ipvs => {
            let message = "must be iptables or blank: feature gate KubeProxyIPVS is set to false";
            errors.invalid_text(PATH, text, message);
        }
        Ok(mode) => return mode,
        Err(_) if text == "nftables" => {
            let message = "kube-proxy-rs has no nftables mode: use ipvs, or iptables (with iptables-nft its rules are in nftables too)";
            errors.invalid_text(PATH, text, message);
        }
        Err(_) => {
            errors.invalid_text(
                PATH,
                text,
                "must be iptables, ipvs or blank (blank means iptables)",
            );
        }
    }
    ProxyMode::IPTABLES
}

/// Each mode has its own periods; all other modes' are ignored.
fn sync(config: &KubeProxyConfiguration, errors: &mut Errors) -> SyncSettings {
    let (period, min_period) = if config.mode == ProxyMode::IPVS.as_str() {
        (config.ipvs.sync_period, config.ipvs.min_sync_period)
    } else {
        (config.iptables.sync_period, config.iptables.min_sync_period)
    };
    if config.config_sync_period <= GoDuration::ZERO {
        errors.invalid_duration("ConfigSyncPeriod", config.config_sync_period, POSITIVE);
    }
    if period <= GoDuration::ZERO {
        errors.invalid_duration("SyncPeriod", period, POSITIVE);
    }
    if min_period.is_negative() {
        errors.invalid_duration("MinSyncPeriod", min_period, NOT_NEGATIVE);
    }
    if min_period > period {
        let message = "must be greater than or equal to KubeProxyConfiguration.MinSyncPeriod";
        errors.invalid_duration("SyncPeriod", period, message);
    }
    SyncSettings {
        period: period.to_duration(),
        min_period: min_period.to_duration(),
    }
}

fn host_port(path: &str, text: &str, errors: &mut Errors) -> Option<SocketAddr> {
    let Some((host, port)) = split_host_port(text) else {
        errors.invalid_text(path, text, "must be IP:port");
        return None;
    };
    let ip = parse_ip(host).ok();
    if ip.is_none() {
        errors.invalid_text(path, host, "must be a valid IP");
    }
    let number = port.parse::<u16>().ok().filter(|&number| number > 0);
    if number.is_none() {
        errors.invalid_text(path, port, "must be a valid port");
    }
    Some(SocketAddr::new(ip?, number?))
}

fn node_port_addresses(config: &KubeProxyConfiguration, errors: &mut Errors) -> NodePortAddresses {
    let mut entries = Vec::new();
    for (i, text) in config.node_port_addresses.iter().flatten().enumerate() {
        let path = format!("NodePortAddresses[{i}]");
        match text.parse() {
            Ok(NodePortAddress::Cidr(cidr)) => entries.push(NodePortAddress::Cidr(cidr)),
            Ok(keyword) if entries.contains(&keyword) => {
                errors.push(
                    path,
                    Problem::Duplicate {
                        value: format!("{text:?}"),
                    },
                );
            }
            Ok(keyword) => entries.push(keyword),
            Err(_) => {
                let message =
                    "must be a valid CIDR or one of the keywords 'primary', 'localhost', 'all'";
                errors.invalid_text(&path, text, message);
            }
        }
    }
    NodePortAddresses::new(entries)
}

fn hidden_metrics(version: &str, errors: &mut Errors) {
    let previous = super::PREVIOUS_MINOR;
    if !version.is_empty() && version != previous {
        let message = format!("must be omitted or have the value '{previous}'");
        errors.invalid_text("ShowHiddenMetricsForVersion", version, &message);
    }
}

fn node_port_range(flags: &Flags, errors: &mut Errors) -> Option<PortRange> {
    let text = flags.service_node_port_range.as_deref()?;
    let text = Some(text).filter(|text| !text.is_empty())?;
    text.parse()
        .map_err(|_invalid| {
            let message = "must be a range of ports, such as 30000-32767";
            errors.invalid_text("--service-node-port-range", text, message);
        })
        .ok()
}

fn detect_local(
    config: &KubeProxyConfiguration,
    has_cluster_cidr: bool,
    errors: &mut Errors,
) -> DetectLocal {
    const PATH: &str = "DetectLocalConfiguration";
    let by_cidr = DetectLocal::ClusterCidr(Vec::new());
    match config.detect_local_mode.as_str() {
        "" | "ClusterCIDR" if has_cluster_cidr => {
            DetectLocal::ClusterCidr(cluster_cidrs(config, errors))
        }
        "" | "ClusterCIDR" => by_cidr,
        "NodeCIDR" => DetectLocal::NodeCidr,
        "BridgeInterface" => {
            let name = &config.detect_local.bridge_interface;
            interface(&format!("{PATH}.InterfaceName"), name, errors)
                .map_or(by_cidr, DetectLocal::BridgeInterface)
        }
        "InterfaceNamePrefix" => {
            let prefix = &config.detect_local.interface_name_prefix;
            interface(&format!("{PATH}.InterfacePrefix"), prefix, errors)
                .map_or(by_cidr, DetectLocal::InterfaceNamePrefix)
        }
        other => {
            let value = format!("{other:?}");
            let supported = LOCAL_MODES.to_vec();
            errors.push("DetectLocalMode", Problem::Unsupported { value, supported });
            by_cidr
        }
    }
}

/// Upstream checks only that there is a name; a name that no interface can have would match
/// nothing.
fn interface(path: &str, text: &str, errors: &mut Errors) -> Option<InterfaceName> {
    if text.is_empty() {
        errors.invalid_text(path, text, "must not be empty");
        return None;
    }
    let name = text.parse().ok();
    if name.is_none() {
        let message = "must have at most 15 bytes and no slash, colon, blank or final plus sign";
        errors.invalid_text(path, text, message);
    }
    name
}

fn cluster_cidrs(config: &KubeProxyConfiguration, errors: &mut Errors) -> Vec<IpNet> {
    const PATH: &str = "DetectLocalConfiguration.ClusterCIDRs";
    // Not trimmed: upstream refuses blanks.
    let texts: Vec<&str> = config.cluster_cidr.split(',').collect();
    if texts.len() > 2 {
        errors.invalid_text(PATH, &texts, CIDR_COUNT);
        return Vec::new();
    }
    let mut cidrs = Vec::new();
    for (i, text) in texts.iter().enumerate() {
        if let Ok(cidr) = parse_cidr(text) {
            cidrs.push(cidr);
        } else {
            let message = "must be a valid CIDR block (e.g. 10.100.0.0/16 or fde4:8dba:82e1::/48)";
            errors.invalid_text(&format!("{PATH}[{i}]"), text, message);
        }
    }
    if let [first, second] = cidrs.as_slice()
        && IpFamily::of(first.addr()) == IpFamily::of(second.addr())
    {
        errors.invalid_text(PATH, &texts, CIDR_COUNT);
    }
    cidrs
}

/// In which form to ask for objects. What is neither has no effect, which is noticed.
fn encoding(client: &ClientConnection) -> Encoding {
    let accepted = Encoding::first_of(&client.accept_content_types);
    let encoding = accepted.or_else(|| Encoding::first_of(&client.content_type));
    encoding.unwrap_or_default()
}

fn hostname(text: &str, errors: &mut Errors) -> Option<String> {
    let name = text.trim().to_lowercase();
    if name.is_empty() && !text.is_empty() {
        errors.invalid_text("HostnameOverride", text, "must not consist of blanks");
    }
    Some(name).filter(|name| !name.is_empty())
}

fn logging(
    section: &Logging,
    flags: &Flags,
    gates: FeatureGates,
    errors: &mut Errors,
) -> LogSettings {
    const MAX_VERBOSITY: u32 = i32::MAX.cast_unsigned();
    let flush_frequency = section.flush_frequency.0;
    if flush_frequency <= GoDuration::ZERO {
        let message = "Must be greater than zero";
        errors.invalid_duration("logging.flushFrequency", flush_frequency, message);
    }
    let format = match section.format.as_str() {
        "text" => LogFormat::Text,
        "json" => {
            if !gates.logging_beta_options {
                let message = "Log format json is disabled, see LoggingBetaOptions feature";
                errors.push("logging.format", Problem::Forbidden(message.to_owned()));
            }
            LogFormat::Json
        }
        other => {
            errors.invalid_text("logging.format", other, "Unsupported log format");
            LogFormat::Text
        }
    };
    if section.verbosity > MAX_VERBOSITY {
        let message = format!("Must be <= {MAX_VERBOSITY}");
        errors.invalid("logging.verbosity", section.verbosity, &message);
    }
    if !section.vmodule.is_empty() && format != LogFormat::Text {
        let message = "Only supported for text log format";
        errors.push("logging.vmodule", Problem::Forbidden(message.to_owned()));
    }
    for (i, item) in section.vmodule.iter().enumerate() {
        let path = format!("logging.vmodule[{i}]");
        if item.file_pattern.is_empty() {
            let message = "File pattern must not be empty";
            errors.push(&*path, Problem::Required(message.to_owned()));
        }
        if item.file_pattern.contains(['=', ',']) {
            let message = "File pattern must not contain equal sign or comma";
            errors.invalid_text(&path, &item.file_pattern, message);
        }
        if item.verbosity > MAX_VERBOSITY {
            let message = format!("Must be <= {MAX_VERBOSITY}");
            errors.invalid(&path, item.verbosity, &message);
        }
    }
    let options = &section.options;
    for (name, options, split_stream) in [
        ("text", &options.text, flags.log_text_split_stream),
        ("json", &options.json, flags.log_json_split_stream),
    ] {
        // What a file says of `splitStream` does not count, as upstream.
        for (field, is_set) in [
            ("splitStream", split_stream == Some(true)),
            ("infoBufferSize", !options.info_buffer_size.is_zero()),
        ] {
            if is_set && !gates.logging_alpha_options {
                let message = "Feature LoggingAlphaOptions is disabled";
                let path = format!("logging.options.{name}.{field}");
                errors.push(path, Problem::Forbidden(message.to_owned()));
            }
        }
    }
    LogSettings {
        format,
        verbosity: section.verbosity,
        vmodule: section
            .vmodule
            .iter()
            .map(|item| (item.file_pattern.clone(), item.verbosity))
            .collect(),
    }
}

#[cfg(test)]
mod tests;
