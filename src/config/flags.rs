// SPDX-License-Identifier: Apache-2.0
//! The command line: upstream's flags, parsed as pflag does, and a few of our own.
//!
//! Every flag is optional here, to distinguish a given flag from its default.

mod commands;
mod shown;
mod values;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Args, CommandFactory, FromArgMatches, Parser};

use super::settings::{IptablesBackend, IpvsRulesChoice};
use super::types::KubeProxyConfiguration;
use kpr_core::model::GoDuration;

pub use commands::{OutputFormat, TopOptions, TopSort};
pub(super) use commands::{Sub, completion, manual};
#[cfg(test)]
pub(super) use shown::OURS;
pub(super) use shown::shown;
use values::{
    address, boolean, csv_text, finite, gate_list, level, path, server_address, size, whole_number,
};
pub(super) use values::{gates, list, strings, vmodule};

/// The proxy's command line.
#[derive(Debug, Parser)]
#[command(
    name = "kube-proxy-rs",
    about = "A replacement for kube-proxy that programs Services as IPVS virtual servers or iptables rules.",
    disable_version_flag = true,
    disable_help_subcommand = true,
    args_override_self = true,
    args_conflicts_with_subcommands = true
)]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) flags: Flags,
    #[command(subcommand)]
    pub(super) command: Option<Sub>,
}

/// Declares the flags, one a row: its type, what its value is called, what it is when it is not
/// given (in the words of kube-proxy's own `/flagz`; empty if not said), `always` if it counts
/// beside `--config`, and the field of the configuration that it sets.
macro_rules! flags {
    ($($(#[$about:meta])* $flag:ident: $type:ty, $value:literal
        $(= $default:literal)? $(, $always:ident)? $(=> $($field:ident).+)?;)*) => {
        /// Upstream's Linux flags. Arguments whose value is called `BOOL` may stand without a
        /// value.
        #[derive(Debug, Default, Args)]
        pub(super) struct Flags {
            $(#[arg(long, value_name = $value)] $(#[$about])* pub(super) $flag: $type,)*
        }

        impl Flags {
            /// Sets the fields of all flags, or only of those that count beside a file.
            pub(super) fn apply(&self, config: &mut KubeProxyConfiguration, has_file: bool) {
                $($(if let Some(value) = &self.$flag
                    && (!has_file || counts_always(stringify!($flag)))
                {
                    config.$($field).+ = value.clone().into();
                })?)*
            }
        }

        /// Name, default and `always` of each flag.
        const FLAGS: &[(&str, &str, &str)] = &[
            $((stringify!($flag), concat!($($default)?), stringify!($($always)?)),)*
        ];
    };
}

flags! {
    /// Configuration file. Flags that it has a field for are then ignored.
    #[arg(value_parser = path())]
    config: Option<PathBuf>, "FILE", always;
    /// Write the effective configuration to this file and exit.
    #[arg(value_parser = path())]
    write_config_to: Option<PathBuf>, "FILE", always;
    /// Remove all rules, virtual servers and addresses created by kube-proxy or this program, and
    /// exit.
    cleanup: Option<bool>, "BOOL" = "false", always;
    /// Perform only the setup that needs more than network privileges, and exit.
    init_only: Option<bool>, "BOOL" = "false", always;
    /// Print the version and exit; `raw` prints all of it, `v1.37.2...` sets the reported version.
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    version: Option<String>, "VERSION" = "false", always;
    /// Read Services and EndpointSlices from the files in this directory instead of an API server,
    /// as the server has them: nobody assigns cluster IPs here.
    #[arg(conflicts_with_all = ["master", "kubeconfig"])]
    manifests: Option<PathBuf>, "DIR", always;
    /// iptables variant to use where both are installed; `auto` picks the one that kubelet uses.
    #[arg(value_enum)]
    iptables_backend: Option<IptablesBackend>, "BACKEND" = "auto", always;
    /// How ipvs mode holds its fixed rules and sets: `iptables` with ipset, `nftables` in a table
    /// of its own, or `auto`: iptables where it works, else nftables, and nftables beside ports
    /// that the CNI plugin portmap publishes there.
    #[arg(value_enum)]
    ipvs_rules: Option<IpvsRulesChoice>, "WAY" = "auto", always;
    /// Feature gates, `Name=true,Other=false`.
    feature_gates: Vec<String>, "LIST";

    /// Kubeconfig file for the API server; in-cluster configuration without it.
    kubeconfig: Option<String>, "FILE" => client_connection.kubeconfig;
    /// URL of the API server; overrides the kubeconfig.
    master: Option<String>, "URL", always;
    /// In which form objects are asked for; `application/json` gives JSON.
    kube_api_content_type: Option<String>, "TYPE" = "application/vnd.kubernetes.protobuf"
        => client_connection.content_type;
    /// No effect: requests are few and rate-limited per path.
    kube_api_qps: Option<f32>, "NUMBER" = "5" => client_connection.qps;
    /// No effect, as `--kube-api-qps`.
    kube_api_burst: Option<i32>, "NUMBER" = "10" => client_connection.burst;
    /// Name of this node's Node object; overrides the host name.
    hostname_override: Option<String>, "NAME", always;

    /// Overrides the node's IP address of that family; no socket is bound to it.
    bind_address: Option<String>, "IP" = "0.0.0.0";
    /// Address to serve /healthz and /livez on.
    healthz_bind_address: Option<String>, "IP[:PORT]" = "0.0.0.0:10256";
    /// Deprecated: port of /healthz; 0 disables it.
    #[arg(hide = true)]
    healthz_port: Option<i32>, "PORT" = "10256";
    /// Address to serve /metrics on.
    metrics_bind_address: Option<String>, "IP[:PORT]" = "127.0.0.1:10249";
    /// Deprecated: port of /metrics; 0 disables it.
    #[arg(hide = true)]
    metrics_port: Option<i32>, "PORT" = "10249";
    /// Exit if the health check or metrics address cannot be bound.
    bind_address_hard_fail: Option<bool>, "BOOL" = "false" => bind_address_hard_fail;
    /// No effect: there are no Go profiles.
    profiling: Option<bool>, "BOOL" = "false" => enable_profiling;
    /// No effect: there are no hidden metrics.
    show_hidden_metrics_for_version: Option<String>, "VERSION" => show_hidden_metrics_for_version;

    /// Proxy mode: `iptables` or `ipvs`.
    #[arg(alias = "mode")]
    proxy_mode: Option<String>, "MODE" = "iptables" => mode;
    /// Bit of the packet mark that requests masquerading, in both modes.
    iptables_masquerade_bit: Option<i32>, "BIT" = "14" => iptables.masquerade_bit;
    /// Masquerade all traffic to cluster IPs, in both modes.
    masquerade_all: Option<bool>, "BOOL" = "false" => iptables.masquerade_all;
    /// Accept node port connections on loopback addresses, with iptables rules.
    iptables_localhost_nodeports: Option<bool>, "BOOL" = "true" => iptables.localhost_node_ports;
    /// Forward TCP and UDP node ports of 127.0.0.1 and `::1` in this process where rules cannot.
    localhost_nodeports: Option<bool>, "BOOL" = "false", always;
    /// Maximum interval between syncs in iptables mode.
    iptables_sync_period: Option<GoDuration>, "DURATION" = "30s" => iptables.sync_period;
    /// Minimum interval between syncs in iptables mode.
    iptables_min_sync_period: Option<GoDuration>, "DURATION" = "1s" => iptables.min_sync_period;
    /// Maximum interval between syncs in ipvs mode.
    ipvs_sync_period: Option<GoDuration>, "DURATION" = "30s" => ipvs.sync_period;
    /// Minimum interval between syncs in ipvs mode.
    ipvs_min_sync_period: Option<GoDuration>, "DURATION" = "1s" => ipvs.min_sync_period;
    /// IPVS scheduler [default: rr].
    ipvs_scheduler: Option<String>, "NAME" => ipvs.scheduler;
    /// Never touch virtual servers in these ranges.
    ipvs_exclude_cidrs: Vec<String>, "CIDRS" = "[]";
    /// Answer ARP requests only for addresses of the receiving interface.
    ipvs_strict_arp: Option<bool>, "BOOL" = "false" => ipvs.strict_arp;
    /// Timeout of idle IPVS TCP connections; 0 keeps the kernel's.
    ipvs_tcp_timeout: Option<GoDuration>, "DURATION" = "0s" => ipvs.tcp_timeout;
    /// Timeout of IPVS TCP connections after a FIN; 0 keeps the kernel's.
    ipvs_tcpfin_timeout: Option<GoDuration>, "DURATION" = "0s" => ipvs.tcp_fin_timeout;
    /// Timeout of IPVS UDP flows; 0 keeps the kernel's.
    ipvs_udp_timeout: Option<GoDuration>, "DURATION" = "0s" => ipvs.udp_timeout;
    /// How long a removed endpoint may keep its connections in ipvs mode.
    ipvs_drain_limit: Option<GoDuration>, "DURATION" = "1h0m0s", always;

    /// Interface on which ipvs mode exchanges connections with other nodes by multicast (master and
    /// backup sync daemon); none: no daemons.
    ipvs_sync_interface: Option<String>, "NAME", always;
    /// Number of 0 to 255 that nodes which exchange connections share; 0 takes in those of all.
    ipvs_sync_id: Option<i32>, "NUMBER" = "1", always;
    /// Multicast group of the sync daemons.
    ipvs_sync_group: Option<String>, "IP" = "224.0.0.81", always;
    /// UDP port of the sync daemons.
    ipvs_sync_port: Option<i32>, "PORT" = "8848", always;
    /// Time to live of the sync daemons' packets.
    ipvs_sync_ttl: Option<i32>, "NUMBER" = "1", always;
    /// Bytes of a sync daemon's message, 1024 to 65487; 0: as many as fit into a packet.
    ipvs_sync_max_length: Option<i32>, "NUMBER" = "0", always;

    /// Whether the kernel adds up and estimates the traffic of virtual and real servers (Linux
    /// 5.15). Empty, as for the next five: left as it is.
    ipvs_run_estimation: Option<String>, "true|false", always;
    /// CPUs of the kernel's threads for that, `0-3,8`, as far as the node has them (Linux 6.2).
    ipvs_est_cpulist: Option<String>, "CPUS", always;
    /// Nice value of those threads, -20 to 19 (Linux 6.2).
    ipvs_est_nice: Option<String>, "NICE", always;
    /// Size of the kernel's table of IPVS connections, -8 (large) to 8 (Linux 7.1).
    ipvs_conn_lfactor: Option<String>, "SHIFT", always;
    /// Size of the kernel's table of virtual servers, -8 (large) to 8 (Linux 7.1).
    ipvs_svc_lfactor: Option<String>, "SHIFT", always;
    /// Maximum number of IPVS connections (Linux 7.2).
    ipvs_conn_max: Option<String>, "COUNT", always;

    /// Settings that annotations of Services and EndpointSlices may change: `drain-limit`,
    /// `forwarding-method`, `one-packet`, `persistence-netmask`, `scheduler`,
    /// `scheduler-flags`, `slow-start`, `thresholds`, `weights`.
    service_annotations: Vec<String>, "LIST"
        = "drain-limit,one-packet,persistence-netmask,scheduler,scheduler-flags,slow-start,thresholds,weights", always;
    /// IPVS schedulers that annotations may request although they are not loaded.
    service_schedulers: Vec<String>, "LIST" = "[]", always;
    /// Longest drain limit that an annotation can set.
    service_max_drain_limit: Option<GoDuration>, "DURATION" = "24h0m0s", always;
    /// Longest slow start that an annotation can set.
    service_max_slow_start: Option<GoDuration>, "DURATION" = "15m0s", always;
    /// Ranges besides the pods' that tunnels of a forwarding method may lead to.
    tunnel_cidrs: Vec<String>, "CIDRS" = "[]", always;
    /// Maximum number of addresses and ports of a Service that are programmed, for each family.
    service_max_frontends: Option<i32>, "NUMBER" = "5000", always;
    /// Maximum number of endpoints of a Service that are programmed, for each family.
    service_max_endpoints: Option<i32>, "NUMBER" = "10000", always;
    /// Maximum number of objects of a Service that are programmed, for each family: its frontends,
    /// and endpoints and source ranges for each of them.
    service_max_objects: Option<i32>, "NUMBER" = "50000", always;

    /// Namespaces whose Services have traffic metrics of their own in ipvs mode; `*` for all.
    service_metrics_namespaces: Vec<String>, "LIST" = "[]", always;
    /// Label selector of the Services that have traffic metrics of their own in ipvs mode.
    service_metrics_selector: Option<String>, "SELECTOR", always;
    /// Traffic metrics of Services also by endpoint.
    service_metrics_endpoints: Option<bool>, "BOOL" = "false", always;
    /// Maximum number of Service ports, and of endpoints, that have traffic metrics.
    service_metrics_limit: Option<i32>, "NUMBER" = "1000", always;

    /// How to detect traffic from local pods: `ClusterCIDR`, `NodeCIDR`, `BridgeInterface`,
    /// `InterfaceNamePrefix`.
    detect_local_mode: Option<String>, "MODE" = "ClusterCIDR" => detect_local_mode;
    /// Bridge that local pods are attached to.
    pod_bridge_interface: Option<String>, "NAME" => detect_local.bridge_interface;
    /// Name prefix of the pods' interfaces.
    pod_interface_name_prefix: Option<String>, "PREFIX" => detect_local.interface_name_prefix;
    /// CIDR of the pods, or one per family.
    cluster_cidr: Option<String>, "CIDRS" => cluster_cidr;
    /// Addresses that accept node port connections: CIDRs, `primary`, `localhost`, `all`.
    nodeport_addresses: Vec<String>, "LIST" = "[]";
    /// The API server's range of node ports, `30000-32767`: virtual servers there are ours, even if
    /// no set lists them.
    service_node_port_range: Option<String>, "RANGE", always;

    /// Value for `/proc/self/oom_score_adj`.
    oom_score_adj: Option<i32>, "NUMBER" = "-999" => oom_score_adj;
    /// Maximum number of conntrack entries per CPU; 0 keeps the kernel's limit.
    conntrack_max_per_core: Option<i32>, "NUMBER" = "32768" => conntrack.max_per_core;
    /// Minimum limit of conntrack entries.
    conntrack_min: Option<i32>, "NUMBER" = "131072" => conntrack.min;
    /// Timeout of idle established TCP connections; 0 keeps the kernel's.
    conntrack_tcp_timeout_established: Option<GoDuration>, "DURATION" = "24h0m0s"
        => conntrack.tcp_established_timeout;
    /// Timeout of TCP connections in `CLOSE_WAIT`; 0 keeps the kernel's.
    conntrack_tcp_timeout_close_wait: Option<GoDuration>, "DURATION" = "1h0m0s"
        => conntrack.tcp_close_wait_timeout;
    /// Do not treat out-of-window TCP packets as invalid.
    conntrack_tcp_be_liberal: Option<bool>, "BOOL" = "false" => conntrack.tcp_be_liberal;
    /// Timeout of unanswered UDP flows; 0 keeps the kernel's.
    conntrack_udp_timeout: Option<GoDuration>, "DURATION" = "0s" => conntrack.udp_timeout;
    /// Timeout of answered UDP flows; 0 keeps the kernel's.
    conntrack_udp_timeout_stream: Option<GoDuration>, "DURATION" = "0s"
        => conntrack.udp_stream_timeout;
    /// No effect: there is nothing to replay.
    config_sync_period: Option<GoDuration>, "DURATION" = "15m0s" => config_sync_period;

    /// Log verbosity.
    #[arg(short = 'v', long = "v")]
    verbosity: Option<u32>, "LEVEL" = "0", always => logging.verbosity;
    /// Log verbosity of single modules, `reconcile=4,health=2`.
    vmodule: Vec<String>, "LIST", always;
    /// Log format: `text` or `json`.
    logging_format: Option<String>, "FORMAT" = "text", always => logging.format;
    /// No effect: lines are written at once.
    log_flush_frequency: Option<GoDuration>, "DURATION" = "5s", always => logging.flush_frequency;
    /// No effect: all lines go to stderr.
    #[arg(hide = true)]
    log_text_split_stream: Option<bool>, "BOOL" = "false", always
        => logging.options.text.split_stream;
    /// No effect: lines are written at once. Needs gate `LoggingAlphaOptions`.
    #[arg(hide = true)]
    log_text_info_buffer_size: Option<String>, "BYTES" = "0", always
        => logging.options.text.info_buffer_size;
    /// No effect: all lines go to stderr.
    #[arg(hide = true)]
    log_json_split_stream: Option<bool>, "BOOL" = "false", always
        => logging.options.json.split_stream;
    /// No effect: lines are written at once. Needs gate `LoggingAlphaOptions`.
    #[arg(hide = true)]
    log_json_info_buffer_size: Option<String>, "BYTES" = "0", always
        => logging.options.json.info_buffer_size;
}

/// Whether a flag counts although `--config` is given. All others are replaced by the file.
pub(super) fn counts_always(id: &str) -> bool {
    ["output", "verbose"].contains(&id)
        || FLAGS
            .iter()
            .any(|(flag, _, always)| *flag == id && !always.is_empty())
}

impl Flags {
    /// `--config=` names no file, as if it were not there.
    fn forget_empty_paths(&mut self) {
        for path in [&mut self.config, &mut self.write_config_to] {
            *path = path.take().filter(|path| !path.as_os_str().is_empty());
        }
    }
}

/// What is wrong with a command line.
#[derive(Debug, thiserror::Error)]
pub enum FlagError {
    /// An unknown flag or a value of the wrong form; prints with the usage.
    #[error(transparent)]
    Usage(#[from] clap::Error),
    /// Flags that kube-proxy has no more, each with what to do about it.
    #[error("{}", gone_flags(.0))]
    Gone(Vec<(String, &'static str)>),
    /// Something that is no flag.
    #[error("\"kube-proxy-rs\" does not take any arguments, got [{0:?}]")]
    Arguments(String),
    /// A value that the flag's type does not show.
    #[error("invalid argument {value:?} for \"--{flag}\" flag: {message}")]
    Value {
        /// The flag.
        flag: &'static str,
        /// The value.
        value: String,
        /// What is wrong with it.
        message: String,
    },
}

/// A parsed command line.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) cli: Cli,
    /// Names of the flags that the file of `--config` replaces.
    pub(super) ignored: Vec<String>,
}

/// Parses arguments, the first of which is the program's name.
pub(super) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Parsed, FlagError> {
    let arguments = as_pflag(arguments);
    let matches = command()
        .try_get_matches_from(&arguments)
        .map_err(|error| gone(&error, &arguments).unwrap_or_else(|| positional(error)))?;
    let mut cli = Cli::from_arg_matches(&matches)?;
    let flags = match &mut cli.command {
        Some(Sub::Plan { flags, .. }) => flags,
        _ => &mut cli.flags,
    };
    flags.forget_empty_paths();
    let given = matches
        .subcommand()
        .map_or(&matches, |(_, matches)| matches);
    let mut ignored = Vec::new();
    if flags.config.is_some() {
        ignored.extend(
            given
                .ids()
                .map(clap::Id::as_str)
                .filter(|id| given.value_source(id) == Some(ValueSource::CommandLine))
                // Groups of derived structs start with a capital letter.
                .filter(|id| id.starts_with(|c: char| c.is_ascii_lowercase()))
                .filter(|id| !counts_always(id))
                .map(|id| id.replace('_', "-")),
        );
        ignored.sort_unstable();
    }
    Ok(Parsed { cli, ignored })
}

/// The derived command with what pflag does and the derive cannot say.
pub(super) fn command() -> clap::Command {
    let has_value = |arg: &clap::Arg, wanted: &[&str]| {
        arg.get_value_names()
            .is_some_and(|names| names.iter().any(|name| wanted.contains(&name.as_str())))
    };
    let pflag = |arg: clap::Arg| {
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let arg = match shown::default_of(arg.get_id().as_str()) {
            Some("" | "[]" | "0" | "0s" | "false") | None => arg,
            Some(default) => arg.help(format!("{help} [default: {default}]")),
        };
        if has_value(&arg, &["BOOL"]) {
            return arg
                .value_parser(boolean())
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
                .hide_possible_values(true);
        }
        let arg = match arg.get_id().as_str() {
            // The only number that is not whole.
            "kube_api_qps" => arg.value_parser(finite),
            "verbosity" => arg.value_parser(level),
            // These are looked at beside `--config`, too, where they do not count.
            "bind_address" => arg.value_parser(address),
            "healthz_bind_address" | "metrics_bind_address" => arg.value_parser(server_address),
            "feature_gates" => arg.value_parser(gate_list),
            "ipvs_exclude_cidrs" | "nodeport_addresses" => arg.value_parser(csv_text),
            _ if has_value(&arg, &["NUMBER", "BIT", "PORT"]) => arg.value_parser(whole_number),
            _ if has_value(&arg, &["BYTES"]) => arg.value_parser(size),
            _ => arg,
        };
        // `--oom-score-adj -999`, `--ipvs-udp-timeout -1s`: the next argument is the value,
        // whatever it begins with; positional arguments must not swallow flags.
        let takes_any = !arg.is_positional();
        arg.allow_hyphen_values(takes_any)
    };
    Cli::command()
        .mut_args(pflag)
        .mut_subcommands(|sub| sub.mut_args(pflag))
}

/// `--proxy_mode=x` is `--proxy-mode=x`.
fn dashes_for_underscores(argument: OsString) -> OsString {
    let Some(text) = argument.to_str().filter(|text| text.starts_with("--")) else {
        return argument;
    };
    match text.split_once('=') {
        Some((name, value)) => format!("{}={value}", name.replace('_', "-")).into(),
        None => text.replace('_', "-").into(),
    }
}

/// Arguments as pflag sees them: dashes for underscores, and without empty ones that are no value
/// of a flag, such as templates leave.
fn as_pflag(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let command = command();
    let is_switch = |name: &str| {
        let mut all = command.get_arguments();
        all.any(|arg| arg.get_long() == Some(name) && arg.is_require_equals_set())
    };
    // A switch has its value behind `=` only.
    let is_flag = |argument: &OsString| {
        let text = argument.to_string_lossy();
        let name = text.strip_prefix("--");
        text.starts_with('-') && !text.contains('=') && !name.is_some_and(is_switch)
    };
    let mut kept: Vec<OsString> = Vec::new();
    for argument in arguments.into_iter().map(dashes_for_underscores) {
        if !argument.is_empty() || kept.last().is_some_and(is_flag) {
            kept.push(argument);
        }
    }
    kept
}

/// The flags among the arguments that kube-proxy has no more, if one was not understood.
fn gone(error: &clap::Error, arguments: &[OsString]) -> Option<FlagError> {
    let names = arguments.iter().filter_map(|argument| {
        let name = argument.to_str()?.strip_prefix("--")?;
        Some(name.split('=').next().unwrap_or(name))
    });
    let gone: Vec<_> = names
        .filter_map(|name| Some((name.to_owned(), super::gone::flag(name)?)))
        .collect();
    let is_unknown = error.kind() == ErrorKind::UnknownArgument;
    (is_unknown && !gone.is_empty()).then_some(FlagError::Gone(gone))
}

fn gone_flags(flags: &[(String, &str)]) -> String {
    let texts: Vec<String> = flags
        .iter()
        .map(|(name, advice)| format!("unknown flag: --{name} ({advice})"))
        .collect();
    texts.join("; ")
}

/// Finds upstream's words for an argument that is no flag.
fn positional(error: clap::Error) -> FlagError {
    use clap::error::{ContextKind, ContextValue};
    let stray = matches!(
        error.kind(),
        ErrorKind::InvalidSubcommand | ErrorKind::UnknownArgument | ErrorKind::ArgumentConflict
    );
    let is_ours = |text: &str| Cli::command().find_subcommand(text).is_some();
    // After a flag, clap takes a stray word for a subcommand that stands in the wrong place.
    let word = [ContextKind::InvalidSubcommand, ContextKind::InvalidArg]
        .into_iter()
        .find_map(|kind| match error.get(kind) {
            Some(ContextValue::String(text)) => Some(text.clone()),
            _ => None,
        });
    match word {
        Some(word) if stray && !word.starts_with('-') && !is_ours(&word) => {
            FlagError::Arguments(word)
        }
        _ => FlagError::Usage(error),
    }
}

#[cfg(test)]
mod tests;
