// SPDX-License-Identifier: Apache-2.0
//! The part of the benchmarks under `hack/` that is no shell. It measures and prints tables.
//!
//! `manifests` writes a cluster as files, `ipvs` is what runs inside a guest kernel for `hack/bench-ipvs`, `iptables` what
//! `hack/bench-iptables` does in network namespaces of this machine.

mod api;
mod cluster;
mod iptables;
mod ipvs;
#[path = "../../tests/common/namespace.rs"]
#[allow(unreachable_pub, dead_code, reason = "the tests use more of it")]
mod namespace;
mod process;
mod running;
mod sample;

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
#[command(name = "bench")]
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
    /// IPVS mode, in a guest kernel.
    #[command(subcommand)]
    Ipvs(ipvs::Command),
    /// iptables mode, on this machine's kernel.
    #[command(subcommand)]
    Iptables(iptables::Command),
}

fn main() -> anyhow::Result<()> {
    let clock = Clock::system();
    match Arguments::parse().command {
        Command::Manifests { folder, shape } => cluster::write(&folder, shape),
        Command::Ipvs(command) => ipvs::run(&clock, command),
        Command::Iptables(command) => iptables::run(&clock, command),
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

fn micros(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
