// SPDX-License-Identifier: Apache-2.0
//! Measures for `hack/bench`, and turns results into tables and plots.
//!
//! `case` runs one proxy in one mode on a fresh node, `floor` times raw netlink messages for IPVS,
//! `model` measures the memory of the model alone; each writes one file. `report` and `compare`
//! read them. `profile` belongs to `hack/profile`.

mod api;
mod case;
mod cluster;
mod floor;
mod model;
mod probe;
mod profile;
mod report;
mod sample;
mod world;

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use kube_proxy_rs::clock::Clock;
use serde_json::Value;

/// Size of the cluster. Each Service has one TCP port.
#[derive(Args, Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    #[arg(long, default_value_t = 1_000)]
    services: u16,
    /// Endpoints of each Service.
    #[arg(long, default_value_t = 10)]
    endpoints: u16,
}

/// How IPVS mode holds its fixed rules and sets: both ways are measured in one kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Rules {
    Iptables,
    Nftables,
}

impl Rules {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        }
    }
}

#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measures one proxy from start to exit.
    Case(case::Options),
    /// Creates all IPVS-mode kernel objects from prepared messages and times each kind.
    Floor {
        #[command(flatten)]
        shape: Shape,
        /// How the fixed rules and sets are held, to be compared with cases of the same option.
        #[arg(long)]
        rules: Option<Rules>,
        /// Result file.
        #[arg(long)]
        out: PathBuf,
    },
    /// Measures the memory of the model filled with the cluster.
    Model {
        #[command(flatten)]
        shape: Shape,
        /// Result file.
        #[arg(long)]
        out: PathBuf,
    },
    /// Prints the tables for a directory of results.
    Report(report::Options),
    /// Prints the ratio of each figure between two builds of the proxy.
    Compare(report::compare::Options),
    /// Turns the recordings of `hack/profile` into stacks for flame graphs and tables.
    Profile(profile::Options),
}

fn main() -> anyhow::Result<()> {
    let clock = Clock::system();
    match Arguments::parse().command {
        Command::Case(options) => case::measure(&clock, &options),
        Command::Floor { shape, rules, out } => floor::measure(&clock, shape, rules, &out),
        Command::Model { shape, out } => model::measure(shape, &out),
        Command::Report(options) => report::make(&options),
        Command::Compare(options) => report::compare::print(&options),
        Command::Profile(options) => profile::make(&options),
    }
}

/// Writes a result atomically: an existing file is complete.
fn save(path: &Path, result: &Value) -> anyhow::Result<()> {
    let part = path.with_extension("part");
    std::fs::write(&part, result.to_string() + "\n")?;
    std::fs::rename(part, path)?;
    Ok(())
}

/// Rounded to microseconds.
fn rounded(seconds: f64) -> f64 {
    (seconds * 1e6).round() / 1e6
}
