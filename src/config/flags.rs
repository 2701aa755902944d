// SPDX-License-Identifier: Apache-2.0
//! The command line: upstream's flags, parsed as pflag does, and a few of our own.
//!
//! Every flag is optional here, to distinguish a given flag from its default.

mod shown;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, PossibleValuesParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use super::settings::IptablesBackend;
use super::types::VmoduleItem;
use kpr_core::model::GoDuration;

#[cfg(test)]
pub(super) use shown::OURS;
pub(super) use shown::shown;

/// Flags that count although `--config` is given. All others are replaced by the file.
pub(super) const BESIDE_CONFIG: [&str; 20] = [
    "config",
    "write_config_to",
    "cleanup",
    "init_only",
    "version",
    "master",
    "manifests",
    "iptables_backend",
    "hostname_override",
    "ipvs_drain_limit",
    "localhost_nodeports",
    "verbosity",
    "vmodule",
    "logging_format",
    "log_flush_frequency",
    "log_text_split_stream",
    "log_text_info_buffer_size",
    "log_json_split_stream",
    "log_json_info_buffer_size",
    "output",
];

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

#[derive(Debug, Subcommand)]
pub(super) enum Sub {
    /// Print the changes that this node's kernel needs, without making them. Exits with 2 if there
    /// are any.
    #[command(args_override_self = true)]
    Plan {
        #[command(flatten)]
        flags: Box<Flags>,
        /// Output format.
        #[arg(long, short, value_enum, default_value_t)]
        output: OutputFormat,
    },
    /// Report errors and unsupported or deprecated fields in a configuration file.
    CheckConfig {
        /// The configuration file.
        file: PathBuf,
    },
}

/// How a command prints its result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// One line per fact, for people.
    #[default]
    Text,
    /// One JSON value.
    Json,
}

/// Upstream's Linux flags. Arguments whose value is called `BOOL` may stand without a value.
#[derive(Debug, Default, Args)]
pub(super) struct Flags {
    /// Configuration file. Flags that it has a field for are then ignored.
    #[arg(long, value_name = "FILE", value_parser = path())]
    pub(super) config: Option<PathBuf>,
    /// Write the effective configuration to this file and exit.
    #[arg(long, value_name = "FILE", value_parser = path())]
    pub(super) write_config_to: Option<PathBuf>,
    /// Remove all rules, virtual servers and addresses created by kube-proxy or this program, and
    /// exit.
    #[arg(long, value_name = "BOOL", value_parser = boolean())]
    pub(super) cleanup: Option<bool>,
    /// Perform only the setup that needs more than network privileges, and exit.
    #[arg(long, value_name = "BOOL", value_parser = boolean())]
    pub(super) init_only: Option<bool>,
    /// Print the version and exit; `raw` prints all of it, `v1.37.2...` sets the reported version.
    #[arg(long, value_name = "VERSION", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) version: Option<String>,
    /// Read Services and EndpointSlices from the files in this directory instead of an API server.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["master", "kubeconfig"])]
    pub(super) manifests: Option<PathBuf>,
    /// iptables variant to use where both are installed; `auto` picks the one that kubelet uses.
    #[arg(long, value_name = "BACKEND", value_enum)]
    pub(super) iptables_backend: Option<IptablesBackend>,
    /// Feature gates, `Name=true,Other=false`.
    #[arg(long, value_name = "LIST")]
    pub(super) feature_gates: Vec<String>,

    /// Kubeconfig file for the API server; in-cluster configuration without it.
    #[arg(long, value_name = "FILE")]
    pub(super) kubeconfig: Option<String>,
    /// URL of the API server; overrides the kubeconfig.
    #[arg(long, value_name = "URL")]
    pub(super) master: Option<String>,
    /// No effect: JSON is always used.
    #[arg(long, value_name = "TYPE")]
    pub(super) kube_api_content_type: Option<String>,
    /// No effect: requests are few and rate-limited per path.
    #[arg(long, value_name = "NUMBER")]
    pub(super) kube_api_qps: Option<f32>,
    /// No effect, as `--kube-api-qps`.
    #[arg(long, value_name = "NUMBER")]
    pub(super) kube_api_burst: Option<i32>,
    /// Name of this node's Node object; overrides the host name.
    #[arg(long, value_name = "NAME")]
    pub(super) hostname_override: Option<String>,

    /// Overrides the node's IP address of that family; no socket is bound to it.
    #[arg(long, value_name = "IP")]
    pub(super) bind_address: Option<String>,
    /// Address to serve /healthz and /livez on.
    #[arg(long, value_name = "IP[:PORT]")]
    pub(super) healthz_bind_address: Option<String>,
    /// Deprecated: port of /healthz; 0 disables it.
    #[arg(long, value_name = "PORT", hide = true)]
    pub(super) healthz_port: Option<i32>,
    /// Address to serve /metrics on.
    #[arg(long, value_name = "IP[:PORT]")]
    pub(super) metrics_bind_address: Option<String>,
    /// Deprecated: port of /metrics; 0 disables it.
    #[arg(long, value_name = "PORT", hide = true)]
    pub(super) metrics_port: Option<i32>,
    /// Exit if the health check or metrics address cannot be bound.
    #[arg(long, value_name = "BOOL", value_parser = boolean())]
    pub(super) bind_address_hard_fail: Option<bool>,
    /// No effect: there are no Go profiles.
    #[arg(long, value_name = "BOOL", value_parser = boolean())]
    pub(super) profiling: Option<bool>,
    /// No effect: there are no hidden metrics.
    #[arg(long, value_name = "VERSION")]
    pub(super) show_hidden_metrics_for_version: Option<String>,

    /// Proxy mode: `iptables` or `ipvs`.
    #[arg(long, alias = "mode", value_name = "MODE")]
    pub(super) proxy_mode: Option<String>,
    /// Bit of the packet mark that requests masquerading, in both modes.
    #[arg(long, value_name = "BIT")]
    pub(super) iptables_masquerade_bit: Option<i32>,
    /// Masquerade all traffic to cluster IPs, in both modes.
    #[arg(long, value_name = "BOOL", value_parser = boolean())]
    pub(super) masquerade_all: Option<bool>,
    /// Accept node port connections on loopback addresses, with iptables rules.
    #[arg(long, value_name = "BOOL", value_parser = boolean())]
    pub(super) iptables_localhost_nodeports: Option<bool>,
    /// Forward TCP and UDP node ports of 127.0.0.1 and `::1` in this process where rules cannot.
    #[arg(long, value_name = "BOOL", value_parser = boolean())]
    pub(super) localhost_nodeports: Option<bool>,
    /// Maximum interval between syncs in iptables mode.
    #[arg(long, value_name = "DURATION")]
    pub(super) iptables_sync_period: Option<GoDuration>,
    /// Minimum interval between syncs in iptables mode.
    #[arg(long, value_name = "DURATION")]
    pub(super) iptables_min_sync_period: Option<GoDuration>,
    /// Maximum interval between syncs in ipvs mode.
    #[arg(long, value_name = "DURATION")]
    pub(super) ipvs_sync_period: Option<GoDuration>,
    /// Minimum interval between syncs in ipvs mode.
    #[arg(long, value_name = "DURATION")]
    pub(super) ipvs_min_sync_period: Option<GoDuration>,
    /// IPVS scheduler [default: rr].
    #[arg(long, value_name = "NAME")]
    pub(super) ipvs_scheduler: Option<String>,
    /// Never touch virtual servers in these ranges.
    #[arg(long, value_name = "CIDRS")]
    pub(super) ipvs_exclude_cidrs: Vec<String>,
    /// Answer ARP requests only for addresses of the receiving interface.
    #[arg(long, value_name = "BOOL", value_parser = boolean())]
    pub(super) ipvs_strict_arp: Option<bool>,
    /// Timeout of idle IPVS TCP connections; 0 keeps the kernel's.
    #[arg(long, value_name = "DURATION")]
    pub(super) ipvs_tcp_timeout: Option<GoDuration>,
    /// Timeout of IPVS TCP connections after a FIN; 0 keeps the kernel's.
    #[arg(long, value_name = "DURATION")]
    pub(super) ipvs_tcpfin_timeout: Option<GoDuration>,
    /// Timeout of IPVS UDP flows; 0 keeps the kernel's.
    #[arg(long, value_name = "DURATION")]
    pub(super) ipvs_udp_timeout: Option<GoDuration>,
    /// How long a removed endpoint may keep its connections in ipvs mode.
    #[arg(long, value_name = "DURATION")]
    pub(super) ipvs_drain_limit: Option<GoDuration>,

    /// How to detect traffic from local pods: `ClusterCIDR`, `NodeCIDR`, `BridgeInterface`,
    /// `InterfaceNamePrefix`.
    #[arg(long, value_name = "MODE")]
    pub(super) detect_local_mode: Option<String>,
    /// Bridge that local pods are attached to.
    #[arg(long, value_name = "NAME")]
    pub(super) pod_bridge_interface: Option<String>,
    /// Name prefix of the pods' interfaces.
    #[arg(long, value_name = "PREFIX")]
    pub(super) pod_interface_name_prefix: Option<String>,
    /// CIDR of the pods, or one per family.
    #[arg(long, value_name = "CIDRS")]
    pub(super) cluster_cidr: Option<String>,
    /// Addresses that accept node port connections: CIDRs, `primary`, `localhost`, `all`.
    #[arg(long, value_name = "LIST")]
    pub(super) nodeport_addresses: Vec<String>,

    /// Value for `/proc/self/oom_score_adj`.
    #[arg(long, value_name = "NUMBER")]
    pub(super) oom_score_adj: Option<i32>,
    /// Maximum number of conntrack entries per CPU; 0 keeps the kernel's limit.
    #[arg(long, value_name = "NUMBER")]
    pub(super) conntrack_max_per_core: Option<i32>,
    /// Minimum limit of conntrack entries.
    #[arg(long, value_name = "NUMBER")]
    pub(super) conntrack_min: Option<i32>,
    /// Timeout of idle established TCP connections; 0 keeps the kernel's.
    #[arg(long, value_name = "DURATION")]
    pub(super) conntrack_tcp_timeout_established: Option<GoDuration>,
    /// Timeout of TCP connections in `CLOSE_WAIT`; 0 keeps the kernel's.
    #[arg(long, value_name = "DURATION")]
    pub(super) conntrack_tcp_timeout_close_wait: Option<GoDuration>,
    /// Do not treat out-of-window TCP packets as invalid.
    #[arg(long, value_name = "BOOL", value_parser = boolean())]
    pub(super) conntrack_tcp_be_liberal: Option<bool>,
    /// Timeout of unanswered UDP flows; 0 keeps the kernel's.
    #[arg(long, value_name = "DURATION")]
    pub(super) conntrack_udp_timeout: Option<GoDuration>,
    /// Timeout of answered UDP flows; 0 keeps the kernel's.
    #[arg(long, value_name = "DURATION")]
    pub(super) conntrack_udp_timeout_stream: Option<GoDuration>,
    /// No effect: there is nothing to replay.
    #[arg(long, value_name = "DURATION")]
    pub(super) config_sync_period: Option<GoDuration>,

    /// Log verbosity.
    #[arg(short = 'v', long = "v", value_name = "LEVEL")]
    pub(super) verbosity: Option<u32>,
    /// Log verbosity of single modules, `reconcile=4,health=2`.
    #[arg(long, value_name = "LIST")]
    pub(super) vmodule: Vec<String>,
    /// Log format: `text` or `json`.
    #[arg(long, value_name = "FORMAT")]
    pub(super) logging_format: Option<String>,
    /// No effect: lines are written at once.
    #[arg(long, value_name = "DURATION")]
    pub(super) log_flush_frequency: Option<GoDuration>,
    /// No effect: all lines go to stderr.
    #[arg(long, value_name = "BOOL", value_parser = boolean(), hide = true)]
    pub(super) log_text_split_stream: Option<bool>,
    /// No effect: lines are written at once. Needs gate `LoggingAlphaOptions`.
    #[arg(long, value_name = "BYTES", hide = true)]
    pub(super) log_text_info_buffer_size: Option<String>,
    /// No effect: all lines go to stderr.
    #[arg(long, value_name = "BOOL", value_parser = boolean(), hide = true)]
    pub(super) log_json_split_stream: Option<bool>,
    /// No effect: lines are written at once. Needs gate `LoggingAlphaOptions`.
    #[arg(long, value_name = "BYTES", hide = true)]
    pub(super) log_json_info_buffer_size: Option<String>,
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
    let arguments = arguments.into_iter().map(dashes_for_underscores);
    let matches = command()
        .try_get_matches_from(arguments)
        .map_err(positional)?;
    let mut cli = Cli::from_arg_matches(&matches)?;
    cli.flags.forget_empty_paths();
    if let Some(Sub::Plan { flags, .. }) = &mut cli.command {
        flags.forget_empty_paths();
    }
    let given = matches
        .subcommand()
        .map_or(&matches, |(_, matches)| matches);
    let mut ignored = Vec::new();
    if given
        .try_get_one::<PathBuf>("config")
        .ok()
        .flatten()
        .is_some_and(|path| !path.as_os_str().is_empty())
    {
        ignored.extend(
            given
                .ids()
                .map(clap::Id::as_str)
                .filter(|id| given.value_source(id) == Some(ValueSource::CommandLine))
                // Groups of derived structs start with a capital letter.
                .filter(|id| id.starts_with(|c: char| c.is_ascii_lowercase()))
                .filter(|id| !BESIDE_CONFIG.contains(id))
                .map(|id| id.replace('_', "-")),
        );
        ignored.sort_unstable();
    }
    Ok(Parsed { cli, ignored })
}

/// The derived command with what pflag does and the derive cannot say.
pub(super) fn command() -> clap::Command {
    let pflag = |arg: clap::Arg| {
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let arg = match arg.get_long().and_then(shown::default_of) {
            Some("" | "[]" | "0" | "0s" | "false") | None => arg,
            Some(default) => arg.help(format!("{help} [default: {default}]")),
        };
        let is_switch = arg
            .get_value_names()
            .is_some_and(|names| names.iter().any(|name| name == "BOOL"));
        if is_switch {
            return arg
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
                .hide_possible_values(true);
        }
        // `--oom-score-adj -999`; positional arguments must not swallow flags.
        let negative = !arg.is_positional();
        arg.allow_negative_numbers(negative)
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

/// A path that may be empty.
fn path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// What Go's `strconv.ParseBool` takes.
fn boolean() -> impl TypedValueParser<Value = bool> {
    PossibleValuesParser::new([
        "true", "false", "1", "0", "t", "f", "T", "F", "TRUE", "FALSE", "True", "False",
    ])
    .map(|text| matches!(text.as_str(), "true" | "1" | "t" | "T" | "TRUE" | "True"))
}

/// All values of a list flag: `--x=a,b --x=c`. `None` if it was not given, empty for `--x=`.
pub(super) fn list(values: &[String]) -> Option<Vec<String>> {
    (!values.is_empty()).then(|| {
        values
            .iter()
            .filter(|value| !value.is_empty())
            .flat_map(|value| value.split(','))
            .map(str::to_owned)
            .collect()
    })
}

/// `--feature-gates`.
pub(super) fn gates(values: &[String]) -> Result<BTreeMap<String, bool>, FlagError> {
    let invalid = |value: &str, message: String| FlagError::Value {
        flag: "feature-gates",
        value: value.to_owned(),
        message,
    };
    let pairs = list(values).unwrap_or_default();
    pairs
        .iter()
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair
                .split_once('=')
                .ok_or_else(|| invalid(pair, "malformed pair, expect string=bool".to_owned()))?;
            match value.trim() {
                "true" | "1" | "t" | "T" | "TRUE" | "True" => Ok((name.trim().to_owned(), true)),
                "false" | "0" | "f" | "F" | "FALSE" | "False" => {
                    Ok((name.trim().to_owned(), false))
                }
                value => Err(invalid(
                    pair,
                    format!("invalid value of {}: {value}", name.trim()),
                )),
            }
        })
        .collect()
}

/// `--vmodule`.
pub(super) fn vmodule(values: &[String]) -> Result<Vec<VmoduleItem>, FlagError> {
    let items = list(values).unwrap_or_default();
    items
        .iter()
        .filter(|item| !item.is_empty())
        .map(|item| {
            let parsed = item.split_once('=').and_then(|(pattern, level)| {
                let verbosity = level.parse().ok()?;
                (!pattern.is_empty()).then(|| VmoduleItem {
                    file_pattern: pattern.to_owned(),
                    verbosity,
                })
            });
            parsed.ok_or_else(|| FlagError::Value {
                flag: "vmodule",
                value: item.clone(),
                message: "want pattern=N".to_owned(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests;
