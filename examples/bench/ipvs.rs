// SPDX-License-Identifier: Apache-2.0
//! IPVS mode, in a guest kernel. It measures and judges nothing.
//!
//! `floor` makes the kernel objects of a cluster through our clients alone; `proxy` starts a proxy
//! and watches what it does with the same cluster; `table` reads the results.

mod floor;
mod kernel;
mod latency;
mod proxy;
mod table;

use std::path::PathBuf;

use clap::Subcommand;
use kube_proxy_rs::clock::Clock;

use crate::Shape;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
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

pub(crate) fn run(clock: &Clock, command: Command) -> anyhow::Result<()> {
    match command {
        Command::Floor { shape, out } => floor::measure(clock, shape, &out),
        Command::Proxy(options) => proxy::measure(clock, &options),
        Command::Table { folder } => table::print(&folder),
    }
}
