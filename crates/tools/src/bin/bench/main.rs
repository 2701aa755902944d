// SPDX-License-Identifier: Apache-2.0
//! The part of `hack/bench` that is no shell. It measures, and makes tables and plots of what was measured.
//!
//! `case` is one proxy in one mode on a fresh node, `floor` what the kernel alone needs for IPVS, `model` what the model alone
//! needs of memory; each writes one file. `report` reads them all. `profile` belongs to `hack/profile`.

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

use clap::{Args, Parser, Subcommand};
use kube_proxy_rs::clock::Clock;
use serde_json::Value;

/// How large the cluster is. Each Service has one TCP port.
#[derive(Args, Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    #[arg(long, default_value_t = 1_000)]
    services: u16,
    /// Endpoints of each Service.
    #[arg(long, default_value_t = 10)]
    endpoints: u16,
}

#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// One proxy from its start to its end.
    Case(case::Options),
    /// Makes all kernel objects of the cluster in IPVS mode with prepared messages, and times each kind.
    Floor {
        #[command(flatten)]
        shape: Shape,
        /// File of the result.
        #[arg(long)]
        out: PathBuf,
    },
    /// Fills the model with the cluster and says what memory that takes.
    Model {
        #[command(flatten)]
        shape: Shape,
        /// File of the result.
        #[arg(long)]
        out: PathBuf,
    },
    /// Prints the table for a folder of results.
    Report(report::Options),
    /// Prints how the figures of two builds of the proxy compare, for a folder of results.
    Compare(report::compare::Options),
    /// Makes stacks for flame graphs, and tables, of what `hack/profile` recorded.
    Profile(profile::Options),
}

fn main() -> anyhow::Result<()> {
    let clock = Clock::system();
    match Arguments::parse().command {
        Command::Case(options) => case::measure(&clock, &options),
        Command::Floor { shape, out } => floor::measure(&clock, shape, &out),
        Command::Model { shape, out } => model::measure(shape, &out),
        Command::Report(options) => report::make(&options),
        Command::Compare(options) => report::compare::print(&options),
        Command::Profile(options) => profile::make(&options),
    }
}

/// Writes a result. Its file is there when it is complete.
fn save(path: &Path, result: &Value) -> anyhow::Result<()> {
    let part = path.with_extension("part");
    std::fs::write(&part, result.to_string() + "\n")?;
    std::fs::rename(part, path)?;
    Ok(())
}

/// Not more digits than mean something.
fn rounded(seconds: f64) -> f64 {
    (seconds * 1e6).round() / 1e6
}
