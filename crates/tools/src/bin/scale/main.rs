// SPDX-License-Identifier: Apache-2.0
//! What one node's proxy costs in a large cluster. The cluster is generated: [`stream`] serves
//! lists and watches as the API server does, the real proxy reads them over HTTP, and its CPU time,
//! memory, bytes and netlink messages are recorded. `hack/scale` runs it at several sizes; `table`
//! prints the values extrapolated from the small sizes next to those measured at the largest.

mod objects;
mod stream;
mod table;
mod tenant;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::{Parser, Subcommand};
use kpr_tools::running::{LAST_ROUND, Running};
use kpr_tools::{pause, process};
use kube_proxy_rs::clock::Clock;
use serde_json::{Value, json};

use stream::Stream;

#[derive(Debug, Parser)]
#[command(name = "scale")]
enum Arguments {
    #[command(flatten)]
    Command(Action),
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Measures one size and mode. Run it in a fresh network namespace or guest kernel.
    Run(Run),
    /// Measures what one greedy Service costs, and exits with 1 if it is too much. Run it in a
    /// fresh network namespace or guest kernel.
    Tenant(tenant::Options),
    /// Prints the table for a directory of results.
    Table { folder: PathBuf },
}

#[derive(clap::Args, Debug)]
struct Run {
    /// The proxy's executable.
    #[arg(long)]
    proxy: PathBuf,
    /// The proxy's mode.
    #[arg(long)]
    mode: String,
    #[arg(long)]
    services: u32,
    /// EndpointSlice changes per second.
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// Seconds of changes.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Label in the table: MODE-SIZE.
    #[arg(long)]
    label: String,
    #[arg(long)]
    out: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let Arguments::Command(action) = Arguments::parse();
    match action {
        Action::Run(run) => measure(&run),
        Action::Tenant(options) => tenant::measure(&options),
        Action::Table { folder } => table::print(&folder),
    }
}

/// Longer than any cold start in a guest kernel.
const LIMIT: Duration = Duration::from_mins(25);

fn measure(run: &Run) -> anyhow::Result<()> {
    let clock = Clock::system();
    let stream = Stream::start(run.services)?;
    let folder = run.out.parent().unwrap_or(Path::new("."));
    let kubeconfig = folder.join(format!("{}.kubeconfig", run.label));
    std::fs::write(&kubeconfig, stream::kubeconfig(stream.port()))?;
    let log = File::create(folder.join(format!("{}.log", run.label)))?;
    let mut proxy = start(&run.proxy, &run.mode, &kubeconfig, &log)?;
    let pid = proxy.pid();
    let look = || -> anyhow::Result<Value> {
        Ok(json!({
            "seconds": clock.monotonic().as_secs_f64(),
            "cpu": process::cpu_with_children(pid)?,
            "ownCpu": process::cpu_seconds(pid)?,
            "memory": process::memory(pid)?,
            "bytes": stream.bytes(),
            "work": process::Metrics::read().context("no metrics")?.work(),
        }))
    };
    let begin = clock.monotonic();
    let is_late = || clock.monotonic().saturating_sub(begin) > LIMIT;
    let mut caught_up = |changes: u64| -> anyhow::Result<()> {
        loop {
            let metrics = process::Metrics::read();
            let is_done = metrics.is_some_and(|metrics| {
                let pending = metrics.sum(PENDING, "").unwrap_or(1.0);
                let synced = metrics
                    .series(LAST_ROUND)
                    .filter(|(_, time)| *time > 0.0)
                    .count();
                pending == 0.0 && synced > 0
            });
            if is_done && stream.sent() >= changes && stream.is_listed() {
                return Ok(());
            }
            proxy.ensure_runs()?;
            ensure!(!is_late(), "the proxy does not catch up");
            pause(Duration::from_millis(200));
        }
    };
    caught_up(0)?;
    let start_seconds = clock.monotonic().saturating_sub(begin).as_secs_f64();
    let cold = look()?;
    pause(SETTLE);
    let idle_begin = look()?;
    pause(Duration::from_secs(30));
    let idle = look()?;
    let changes = u64::from(run.rate) * u64::from(run.seconds);
    stream.change(run.rate, run.seconds);
    caught_up(changes)?;
    pause(SETTLE);
    caught_up(changes)?;
    let busy = look()?;
    let result = json!({
        "label": run.label, "mode": run.mode, "services": run.services,
        "endpoints": objects::endpoints(run.services), "rate": run.rate, "changes": changes,
        "startSeconds": start_seconds,
        "cold": cold, "idleBegin": idle_begin, "idle": idle, "busy": busy,
        "listBytes": stream.list_bytes(), "changeBytes": stream.bytes() - stream.list_bytes(),
        "eventOf100": objects::event_of(100).len(), "eventOf1": objects::event_of(1).len(),
    });
    std::fs::write(&run.out, serde_json::to_string_pretty(&result)? + "\n")?;
    Ok(())
}

/// Changes that no round has applied yet.
const PENDING: &str = "kubeproxy_sync_proxy_rules_service_changes_pending";
/// Time after which the allocator has returned memory to the kernel.
const SETTLE: Duration = Duration::from_secs(5);

fn start(proxy: &Path, mode: &str, kubeconfig: &Path, log: &File) -> anyhow::Result<Running> {
    let command = [
        proxy.display().to_string(),
        format!("--proxy-mode={mode}"),
        format!("--kubeconfig={}", kubeconfig.display()),
        "--hostname-override=node-0".to_owned(),
        "--cluster-cidr=10.128.0.0/9".to_owned(),
        "--conntrack-max-per-core=0".to_owned(),
        "--conntrack-min=0".to_owned(),
    ];
    Running::start(&command, &[], log)
}
