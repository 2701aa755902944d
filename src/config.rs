// SPDX-License-Identifier: Apache-2.0
//! Flags and the KubeProxyConfiguration file: what kube-proxy takes, taken the same way.
//!
//! ```text
//! arguments -> flags -> (--config: file, else defaults + flags) -> KubeProxyConfiguration
//!   -> resolve (validation) -> Settings -> Command
//! ```
//!
//! Nothing here touches the system, apart from reading and writing configuration files.

mod apply;
pub mod changes;
pub mod check;
mod decode;
pub mod defaults;
pub mod file;
pub mod flags;
pub mod gates;
mod gone;
mod notices;
mod resolve;
pub mod settings;
pub mod types;
pub mod validation;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;

pub use flags::{OutputFormat, TopOptions, TopSort};
pub use settings::{
    IpvsSettings, IpvsTimeouts, LogFormat, LogSettings, Notice, Settings, SyncSettings,
};

use file::FileError;
use flags::{FlagError, Flags, Sub};
use types::KubeProxyConfiguration;
use validation::{Stage, ValidationErrors};

use crate::error_chain::ErrorChain;

/// The kube-proxy version whose behaviour this implements.
pub const KUBERNETES_VERSION: &str = "v1.37.2";
/// The only value that `showHiddenMetricsForVersion` may have.
const PREVIOUS_MINOR: &str = "1.36";

/// The parsed command.
#[derive(Debug)]
pub enum Command {
    /// Be the proxy.
    Run(Box<Settings>),
    /// Print what would change.
    Plan {
        /// As for [`Self::Run`].
        settings: Box<Settings>,
        /// How to print.
        output: OutputFormat,
        /// Every step.
        verbose: bool,
    },
    /// Print the state of the running proxy.
    Status {
        /// How to print.
        output: OutputFormat,
    },
    /// Print who has the traffic.
    Top(TopOptions),
    /// Ask the running proxy what connections meet.
    Explain {
        /// A Service, or an address and port.
        target: String,
        /// Where connections come from.
        from: Option<String>,
        /// How to print.
        output: OutputFormat,
    },
    /// Look at a configuration file; see [`check::check`].
    CheckConfig {
        /// The file.
        file: PathBuf,
        /// How to print.
        output: OutputFormat,
        /// With the effective configuration.
        verbose: bool,
    },
    /// Write the effective configuration; see [`file::write`].
    WriteConfig {
        /// Where to.
        path: PathBuf,
        /// Valid settings, which hold the configuration.
        settings: Box<Settings>,
    },
    /// Remove all that is ours from the kernel.
    Cleanup(Box<Settings>),
    /// Do what needs more privileges than running does.
    InitOnly(Box<Settings>),
    /// Print this text: the version.
    Version(String),
    /// Print this text: the usage, or what is made of it.
    Help(String),
}

/// Why a command line or its configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The command line is wrong.
    #[error(transparent)]
    Flags(#[from] FlagError),
    /// The configuration file cannot be used.
    #[error("failed complete")]
    Complete(#[source] FileError),
    /// Feature gates are wrong.
    #[error("failed complete")]
    Gates(#[source] ValidationErrors),
    /// Values of the section `logging` are wrong.
    #[error("initialize logging")]
    Logging(#[source] ValidationErrors),
    /// Values are wrong.
    #[error("failed validate")]
    Validate(#[source] ValidationErrors),
}

impl From<ValidationErrors> for ConfigError {
    fn from(errors: ValidationErrors) -> Self {
        match errors.of_first_stage() {
            (Stage::Complete, errors) => Self::Gates(errors),
            (Stage::Logging, errors) => Self::Logging(errors),
            (Stage::Validate, errors) => Self::Validate(errors),
        }
    }
}

impl ConfigError {
    /// What to print on stderr, with a final newline. The exit code is 1.
    pub fn report(&self) -> String {
        if let Self::Flags(FlagError::Usage(error)) = self {
            let text = error.to_string();
            return format!("Error: {}", text.trim_start_matches("error: "));
        }
        format!("Error: {}\n", ErrorChain(self))
    }
}

/// All flags with their values, in order: as given, or else as they are by default.
pub fn shown_flags(
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<Vec<(String, String)>, ConfigError> {
    Ok(flags::shown(arguments)?)
}

/// Reads the command line (the first argument being the program's name) and the configuration file
/// that it names.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, ConfigError> {
    let parsed = match flags::parse(arguments) {
        Ok(parsed) => parsed,
        Err(FlagError::Usage(error)) if error.kind() == ErrorKind::DisplayHelp => {
            return Ok(Command::Help(error.to_string()));
        }
        Err(error) => return Err(error.into()),
    };
    let ignored = parsed.ignored;
    match parsed.cli.command {
        Some(Sub::CheckConfig {
            file,
            output,
            verbose,
        }) => Ok(Command::CheckConfig {
            file,
            output,
            verbose: verbose == Some(true),
        }),
        Some(Sub::Completion { shell }) => Ok(Command::Help(flags::completion(shell))),
        Some(Sub::Man) => Ok(Command::Help(flags::manual())),
        Some(Sub::Top(options)) => Ok(Command::Top(options)),
        Some(Sub::Explain {
            target,
            from,
            output,
        }) => Ok(Command::Explain {
            target,
            from,
            output,
        }),
        Some(Sub::Status { output }) => Ok(Command::Status { output }),
        Some(Sub::Plan {
            flags,
            output,
            verbose,
        }) => {
            let kubernetes_version = KUBERNETES_VERSION.to_owned();
            let settings = Box::new(settings(&flags, kubernetes_version, &ignored)?);
            Ok(Command::Plan {
                settings,
                output,
                verbose: verbose == Some(true),
            })
        }
        None => top_level(&parsed.cli.flags, &ignored),
    }
}

fn top_level(flags: &Flags, ignored: &[String]) -> Result<Command, ConfigError> {
    let kubernetes_version = match flags.version.as_deref() {
        None | Some("false") => KUBERNETES_VERSION.to_owned(),
        Some("true") => return Ok(Command::Version(version_line())),
        Some("raw") => return Ok(Command::Version(raw_version())),
        Some(version) if is_our_version(version) => version.to_owned(),
        Some(version) => {
            return Err(ConfigError::Flags(FlagError::Value {
                flag: "version",
                value: version.to_owned(),
                message: format!("must be true, raw or start with {KUBERNETES_VERSION}"),
            }));
        }
    };
    let settings = Box::new(settings(flags, kubernetes_version, ignored)?);
    Ok(if let Some(path) = flags.write_config_to.clone() {
        Command::WriteConfig { path, settings }
    } else if flags.cleanup == Some(true) {
        Command::Cleanup(settings)
    } else if flags.init_only == Some(true) {
        Command::InitOnly(settings)
    } else {
        Command::Run(settings)
    })
}

fn settings(
    flags: &Flags,
    kubernetes_version: String,
    ignored: &[String],
) -> Result<Settings, ConfigError> {
    let (mut configuration, findings);
    if let Some(path) = &flags.config {
        let loaded = file::load(path).map_err(ConfigError::Complete)?;
        findings = loaded.findings;
        configuration = loaded.configuration;
        configuration.set_defaults();
        apply::beside_file(flags, &mut configuration)?;
    } else {
        findings = Vec::new();
        configuration = KubeProxyConfiguration::with_flag_defaults();
        apply::all(flags, &mut configuration)?;
    }
    let mut notices = notices::notices(&configuration);
    if flags.config.is_some() {
        apply::forget_split_streams(flags, &mut configuration);
        notices.splice(..0, notices::lenient(&findings));
        notices.extend(notices::ignored_flags(ignored));
    } else {
        for (server, port) in [
            ("healthz", flags.healthz_port),
            ("metrics", flags.metrics_port),
        ] {
            notices.extend(port.map(|_| notices::deprecated_port(server)));
        }
    }
    configuration.set_platform_defaults();
    Ok(Settings {
        kubernetes_version,
        notices,
        ..resolve::resolve(configuration, flags)?
    })
}

/// Whether a version differs from ours behind the patch number only.
fn is_our_version(version: &str) -> bool {
    version
        .strip_prefix(KUBERNETES_VERSION)
        .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// Starts as kube-proxy's does, because scripts take the second word.
fn version_line() -> String {
    format!(
        "Kubernetes {KUBERNETES_VERSION} (kube-proxy-rs v{})\n",
        env!("CARGO_PKG_VERSION")
    )
}

fn raw_version() -> String {
    format!(
        "kubernetesVersion: {KUBERNETES_VERSION}\nversion: v{}\nplatform: {}/{}\n",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS,
        std::env::consts::ARCH
    )
}

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
