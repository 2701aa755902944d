// SPDX-License-Identifier: Apache-2.0
//! iptables mode beside kube-proxy, on this machine's kernel, each in network namespaces of its own.
//!
//! One process does it all, because its open files keep the namespaces: they are gone when it ends.

mod case;
mod first_packet;
mod floor;
mod probe;
mod table;
mod world;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use kube_proxy_rs::clock::Clock;

use crate::Shape;
use crate::api::Writer;
use crate::save;
use case::Case;
use world::{Backend, World};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Measures, and prints the table.
    Run(Options),
    /// Prints the table for a folder of results.
    Table { folder: PathBuf },
}

#[derive(Args, Debug)]
pub(crate) struct Options {
    /// What the API server has already.
    #[command(flatten)]
    shape: Shape,
    /// Folder of a test bed (`hack/testbed/up`).
    #[arg(long)]
    testbed: PathBuf,
    #[arg(long)]
    bridge: String,
    /// The first three bytes of addresses in the bridge.
    #[arg(long)]
    net4: String,
    /// Folder of the results.
    #[arg(long)]
    out: PathBuf,
    /// kube-proxy-rs.
    #[arg(long)]
    ours: PathBuf,
    /// kube-proxy.
    #[arg(long)]
    theirs: Option<PathBuf>,
    /// Each proxy is started so often on the legacy backend.
    #[arg(long, default_value_t = 2)]
    runs: u16,
    /// Services that are created, changed and removed in each run.
    #[arg(long, default_value_t = 4)]
    changes: u16,
    /// Changes of a burst.
    #[arg(long, default_value_t = 1_000)]
    burst: u16,
    /// First connections that are measured for each row.
    #[arg(long, default_value_t = 4_000)]
    connections: u16,
    /// Leaves out the nft backend, which is for information.
    #[arg(long)]
    without_nft: bool,
}

/// Whose proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Ours,
    Theirs,
}

impl Who {
    const fn label(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Theirs => "kube-proxy",
        }
    }
}

pub(crate) fn run(clock: &Clock, command: Command) -> anyhow::Result<()> {
    match command {
        Command::Run(options) => {
            std::fs::create_dir_all(&options.out)?;
            measure(clock, &options)?;
            table::print(&options.out)
        }
        Command::Table { folder } => table::print(&folder),
    }
}

fn measure(clock: &Clock, options: &Options) -> anyhow::Result<()> {
    let world = World::new(&options.bridge, &options.net4)?;
    let writer = Writer::new(&options.testbed.join("admin.kubeconfig"), "load")?;
    let proxies: Vec<(Who, &Path)> = [
        Some((Who::Ours, options.ours.as_path())),
        options.theirs.as_deref().map(|path| (Who::Theirs, path)),
    ]
    .into_iter()
    .flatten()
    .collect();

    let bare = world.node("bare")?;
    let mut last = Vec::new();
    for run in 0..options.runs {
        // The one that was first is last in the next run.
        let turn = usize::from(run) % proxies.len();
        last.clear();
        for (who, program) in proxies.iter().cycle().skip(turn).take(proxies.len()) {
            let node = world.node(who.label())?;
            let case = Case {
                clock,
                world: &world,
                node: &node,
                writer: &writer,
                options,
                who: *who,
                backend: Backend::Legacy,
                changes: options.changes,
                burst: options.burst,
            };
            let out = options.out.join(format!("{}-legacy-{run}", who.label()));
            case.measure(program, &out)?;
            last.push((*who, node));
        }
    }

    eprint("floor");
    let saved = |who: Who| last.iter().find(|(of, _)| *of == who).map(|(_, node)| node);
    for (who, node) in &last {
        let result = floor::measure(clock, &world, node, *who)?;
        save(
            &options.out.join(format!("floor-{}.json", who.label())),
            &result,
        )?;
    }

    eprint("first packets");
    let ours = saved(Who::Ours).context("nothing of ours was measured")?;
    let mut nodes = vec![("none", &bare), (Who::Ours.label(), ours)];
    nodes.extend(saved(Who::Theirs).map(|node| (Who::Theirs.label(), node)));
    let name = format!("svc-{:05}", options.shape.services - 1);
    let service = writer.cluster_ip(&name)?;
    let result = first_packet::measure(clock, &world, &nodes, service, options.connections)?;
    save(&options.out.join("first-packet.json"), &result)?;
    drop(last);

    if !options.without_nft {
        for (who, program) in &proxies {
            let node = world.node(who.label())?;
            let case = Case {
                clock,
                world: &world,
                node: &node,
                writer: &writer,
                options,
                who: *who,
                backend: Backend::Nft,
                changes: options.changes.min(2),
                burst: 0,
            };
            let out = options.out.join(format!("{}-nft-0", who.label()));
            // For information: kube-proxy may be too slow there to be waited for.
            if let Err(error) = case.measure(program, &out) {
                eprint(&format!("{}, nft: {error:#}", who.label()));
            }
        }
    }
    Ok(())
}

#[expect(clippy::print_stderr, reason = "says how far it is")]
fn eprint(what: &str) {
    eprintln!("bench: {what}");
}
