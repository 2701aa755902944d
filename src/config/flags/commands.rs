// SPDX-License-Identifier: Apache-2.0
//! The commands besides being the proxy.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{Flags, command};

#[derive(Debug, Subcommand)]
pub(in crate::config) enum Sub {
    /// Print the changes that this node's kernel needs, without making them: a summary. Exits with
    /// 0 if there are none, with 2 if there are any, with 1 if that cannot be told.
    #[command(args_override_self = true)]
    Plan {
        #[command(flatten)]
        flags: Box<Flags>,
        /// Output format.
        #[arg(long, short, value_enum, default_value_t)]
        output: OutputFormat,
        /// Print every step.
        #[arg(long, value_name = "BOOL")]
        verbose: Option<bool>,
    },
    /// Print the state of the proxy that runs in this network namespace. Exits with 1 if none runs,
    /// with 2 if it is unhealthy.
    Status {
        /// Output format.
        #[arg(long, short, value_enum, default_value_t)]
        output: OutputFormat,
    },
    /// Show which Services have the traffic, in IPVS mode, from the kernel's statistics. Keys sort
    /// and filter; the last line names them.
    Top(TopOptions),
    /// Explain what connections to a Service meet on this node, and why. Exits with 2 if none is
    /// answered.
    Explain {
        /// `SERVICE[.NAMESPACE][:PORT]` or `ADDRESS:PORT[/PROTO]`.
        target: String,
        /// Where connections come from: `pod`, `node`, `outside` or an IP address. Otherwise the
        /// first three.
        #[arg(long)]
        from: Option<String>,
        /// Output format.
        #[arg(long, short, value_enum, default_value_t)]
        output: OutputFormat,
    },
    /// Print a completion script for a shell.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page, in the format of man(7).
    Man,
    /// Report errors and unsupported or deprecated fields in a configuration file. Exits with 1 if
    /// the proxy would not start with it.
    CheckConfig {
        /// The configuration file.
        file: PathBuf,
        /// Output format.
        #[arg(long, short, value_enum, default_value_t)]
        output: OutputFormat,
        /// Print the effective configuration too.
        #[arg(long, value_name = "BOOL")]
        verbose: Option<bool>,
    },
}

/// What `top` prints.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct TopOptions {
    /// Print once and exit.
    #[arg(long, value_name = "BOOL")]
    pub once: Option<bool>,
    /// Order of the lines, largest first.
    #[arg(long, value_enum, default_value_t)]
    pub sort: TopSort,
    /// Only virtual servers whose address or Service contains this, such as `:443` or `shop/`.
    #[arg(long)]
    pub filter: Option<String>,
    /// Maximum number of lines: as many as the terminal has, or 20.
    #[arg(long)]
    pub limit: Option<usize>,
    /// One line for each endpoint.
    #[arg(long, value_name = "BOOL")]
    pub endpoints: Option<bool>,
}

/// What `top` sorts by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum TopSort {
    /// New connections a second.
    #[default]
    Connections,
    /// Packets a second.
    Packets,
    /// Bytes a second.
    Bytes,
    /// Active connections.
    Active,
    /// Connections since the virtual server was created.
    Total,
}

/// How a command prints its result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// One line per fact, for people.
    #[default]
    Text,
    /// One JSON value.
    Json,
    /// One YAML document.
    Yaml,
}

/// A script that completes our command line in a shell.
pub(in crate::config) fn completion(shell: clap_complete::Shell) -> String {
    let mut command = command();
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// The manual page.
pub(in crate::config) fn manual() -> String {
    let mut page = Vec::new();
    // Writing to memory cannot fail.
    drop(clap_mangen::Man::new(command()).render(&mut page));
    String::from_utf8_lossy(&page).into_owned()
}
