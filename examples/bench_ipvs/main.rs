// SPDX-License-Identifier: Apache-2.0
//! The part of `hack/bench-ipvs` that is no shell: what runs inside a guest kernel, and the table.
//!
//! `floor` makes the kernel objects of a cluster through our clients alone; `proxy` starts a proxy
//! and watches what it does with the same cluster; `manifests` writes the cluster as files; `table`
//! reads the results. It measures and judges nothing.

mod cluster;
mod floor;
mod kernel;
mod latency;
mod process;
mod proxy;
mod table;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use kube_proxy_rs::clock::Clock;

/// How large the cluster is. Each Service has one TCP port.
#[derive(Args, Clone, Copy, Debug)]
struct Shape {
    #[arg(long, default_value_t = 1_000)]
    services: u16,
    /// Endpoints of each Service.
    #[arg(long, default_value_t = 10)]
    endpoints: u8,
}

#[derive(Debug, Parser)]
#[command(name = "bench_ipvs")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Writes the objects of the cluster into a folder.
    Manifests {
        folder: PathBuf,
        #[command(flatten)]
        shape: Shape,
    },
    /// Makes all kernel objects of the cluster with prepared messages, and times each kind.
    Floor {
        #[command(flatten)]
        shape: Shape,
        /// File of the result.
        #[arg(long)]
        out: PathBuf,
    },
    /// Starts a proxy, waits until all is programmed, changes endpoints, then lets it idle.
    Proxy(proxy::Options),
    /// Prints the table for a folder of results.
    Table { folder: PathBuf },
}

fn main() -> anyhow::Result<()> {
    let clock = Clock::system();
    match Arguments::parse().command {
        Command::Manifests { folder, shape } => cluster::write(&folder, shape),
        Command::Floor { shape, out } => floor::measure(&clock, shape, &out),
        Command::Proxy(options) => proxy::measure(&clock, &options),
        Command::Table { folder } => table::print(&folder),
    }
}

/// Writes a result.
fn save(path: &std::path::Path, result: &serde_json::Value) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(result)?;
    std::fs::write(path, text + "\n")?;
    Ok(())
}

/// Lets others have the processor for a moment.
#[expect(
    clippy::disallowed_methods,
    reason = "between two looks, not instead of them"
)]
fn pause(time: std::time::Duration) {
    std::thread::sleep(time);
}
