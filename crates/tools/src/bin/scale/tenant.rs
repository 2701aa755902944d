// SPDX-License-Identifier: Apache-2.0
//! What one Service that asks for far too much costs a node, and how long others wait because of
//! it. `hack/scale --tenant` runs it in each mode; the limits are those of `docs/security.md`.

mod cluster;
mod server;

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use kpr_testkit::namespace::Namespace;
use kpr_tools::pause;
use kpr_tools::process::{self, Metrics};
use kpr_tools::running::{LAST_ROUND, Running};
use kube_proxy_rs::clock::Clock;
use serde_json::{Value, json};

use cluster::{Demand, Victim};
use server::Server;

/// How much more memory and processor time one Service object may cost, however much it asks for.
const MEMORY_KB: u64 = 20 * 1024;
const PROCESSOR: f64 = 1.0;

/// How long another Service's change may take, at most: in iptables mode one restore and the least
/// distance of two, in IPVS mode some messages.
const WAIT: Duration = Duration::from_secs(2);

/// The same where each restore exchanges the whole table, with all that the Service has in it.
const WAIT_LEGACY: Duration = Duration::from_secs(5);

/// Changes of the victim for each row.
const CHANGES: usize = 20;

/// Longer than anything that is measured.
const LIMIT: Duration = Duration::from_mins(5);

/// Large Services wait up to 5 s for their turn.
const QUIET: Duration = Duration::from_secs(7);

#[derive(clap::Args, Debug)]
pub(crate) struct Options {
    /// The proxy's executable.
    #[arg(long)]
    proxy: PathBuf,
    /// The proxy's mode.
    #[arg(long)]
    mode: String,
    /// Label in the table, and name of the files.
    #[arg(long)]
    label: String,
    /// Folder of results and logs.
    #[arg(long)]
    out: PathBuf,
    /// The kernel is a guest's, which counts system calls, at many times their cost, as the proxy's
    /// own time: processor time has no limit.
    #[arg(long)]
    guest: bool,
}

struct Bench<'a> {
    options: &'a Options,
    clock: Clock,
    server: Server,
    victim: Victim,
    proxy: Running,
    /// What was too much.
    faults: Vec<String>,
}

/// Processor time in seconds.
#[derive(Clone, Copy, Debug)]
struct Spent {
    own_user: f64,
    own: f64,
    with_programs: f64,
}

#[expect(clippy::print_stdout, reason = "the answer of a command")]
pub(crate) fn measure(options: &Options) -> anyhow::Result<()> {
    let here = Namespace::current()?;
    // Without a route to them, packets to Services would not get to the rules.
    here.ip("link set lo up\nroute add 10.96.0.0/12 dev lo\n")?;
    let server = Server::start()?;
    let victim = Victim::start(&here, &server)?;
    server.apply(&crate::objects::node());
    let file = |end: &str| options.out.join(format!("{}.{end}", options.label));
    std::fs::write(file("kubeconfig"), crate::stream::kubeconfig(server.port()))?;
    let log = File::create(file("log"))?;
    let proxy = crate::start(&options.proxy, &options.mode, &file("kubeconfig"), &log)?;
    let mut bench = Bench {
        options,
        clock: Clock::system(),
        server,
        victim,
        proxy,
        faults: Vec::new(),
    };
    let mut rows = vec![json!({"label": options.label})];
    bench.settle()?;
    let alone = bench.changes("alone")?;
    rows.push(alone);
    for demand in [
        Demand::external_ips(),
        Demand::endpoints(),
        Demand::slices(),
    ] {
        let row = bench.cost(&demand)?;
        rows.push(row);
    }
    let row = bench.changes_beside("beside one at its budget", &Demand::at_the_budget())?;
    rows.push(row);
    let row = bench.life(&Demand::far_too_much())?;
    rows.push(row);
    for row in &rows {
        println!("{row}");
    }
    let rows = serde_json::to_string_pretty(&rows)? + "\n";
    std::fs::write(file("json"), rows)?;
    match bench.faults.as_slice() {
        [] => Ok(()),
        faults => bail!("{}: {}", options.label, faults.join("; ")),
    }
}

impl Bench<'_> {
    fn spent(&self) -> anyhow::Result<Spent> {
        let pid = self.proxy.pid();
        Ok(Spent {
            own_user: process::user_seconds(pid)?,
            own: process::cpu_seconds(pid)?,
            with_programs: process::cpu_with_children(pid)?,
        })
    }

    fn memory(&self, what: &str) -> anyhow::Result<u64> {
        let all = process::memory(self.proxy.pid())?;
        all.get(what)
            .and_then(Value::as_u64)
            .context("the kernel does not say")
    }

    /// Waits until the proxy has had nothing to do for a while.
    fn settle(&mut self) -> anyhow::Result<()> {
        let begin = self.clock.monotonic();
        let mut quiet_since = begin;
        let mut rounds = None;
        loop {
            let now = self.clock.monotonic();
            ensure!(now.saturating_sub(begin) < LIMIT, "the proxy is never idle");
            self.proxy.ensure_runs()?;
            let metrics = Metrics::read();
            let found = metrics.as_ref().and_then(|metrics| {
                let synced = metrics.series(LAST_ROUND).filter(|(_, time)| *time > 0.0);
                let work = metrics.work();
                (synced.count() > 0).then(|| work.get("steps").copied().unwrap_or_default())
            });
            if found.is_none() || found != rounds {
                (rounds, quiet_since) = (found, now);
            }
            if found.is_some() && now.saturating_sub(quiet_since) > QUIET {
                return Ok(());
            }
            pause(Duration::from_millis(250));
        }
    }

    /// Memory and processor time of a Service that asks for so much.
    fn cost(&mut self, demand: &Demand) -> anyhow::Result<Value> {
        let (resident, before) = (self.memory("rssKb")?, self.spent()?);
        demand.apply(&self.server, 0);
        self.settle()?;
        let created = self.spent()?;
        let peak = self.memory("peakKb")?;
        let events = self.server.events("all", "OverBudget");
        demand.delete(&self.server);
        self.settle()?;
        let deleted = self.spent()?;
        let grown = peak.saturating_sub(resident);
        let all = |after: Spent, before: Spent| after.with_programs - before.with_programs;
        let most = all(created, before).max(all(deleted, created));
        let name = demand.name;
        // The others are many objects, or as much as is programmed for anybody.
        let is_limited = demand.is_one_object();
        if is_limited && grown > MEMORY_KB {
            self.faults.push(format!("{name}: {grown} kB more memory"));
        }
        if is_limited && most > PROCESSOR && !self.options.guest {
            self.faults
                .push(format!("{name}: {most:.2} s of processor time"));
        }
        if events == 0 {
            self.faults.push(format!("{name}: no Event"));
        }
        let spent = |after: Spent, before: Spent| {
            json!({
                "user": after.own_user - before.own_user,
                "own": after.own - before.own,
                "withPrograms": after.with_programs - before.with_programs,
            })
        };
        Ok(json!({
            "demand": name, "bytes": demand.bytes(), "memoryKb": grown,
            "created": spent(created, before), "deleted": spent(deleted, created),
            "events": events,
        }))
    }

    /// How long so many changes of the victim take.
    fn times(&mut self, count: usize) -> anyhow::Result<Vec<Duration>> {
        let mut times = Vec::new();
        while times.len() < count {
            let begin = self.clock.monotonic();
            self.victim.change(&self.server);
            while !self.victim.has_changed() {
                self.proxy.ensure_runs()?;
                let waited = self.clock.monotonic().saturating_sub(begin);
                ensure!(waited < LIMIT, "the victim's change does not arrive");
            }
            times.push(self.clock.monotonic().saturating_sub(begin));
            pause(Duration::from_millis(300));
        }
        Ok(times)
    }

    fn row(&mut self, name: &str, mut times: Vec<Duration>) -> Value {
        times.sort_unstable();
        let most = times.last().copied().unwrap_or_default();
        let limit = if self.options.label == "legacy" {
            WAIT_LEGACY
        } else {
            WAIT
        };
        if most > limit {
            self.faults.push(format!("{name}: a change took {most:?}"));
        }
        let ms = |time: Option<&Duration>| time.map(|time| time.as_secs_f64() * 1e3);
        json!({
            "changes": name, "count": times.len(), "medianMs": ms(times.get(times.len() / 2)),
            "mostMs": ms(times.last()),
        })
    }

    fn changes(&mut self, name: &str) -> anyhow::Result<Value> {
        let times = self.times(CHANGES)?;
        Ok(self.row(name, times))
    }

    /// The same while a Service that has as much as one may have changes all of it ten times a
    /// second.
    fn changes_beside(&mut self, name: &str, demand: &Demand) -> anyhow::Result<Value> {
        demand.apply(&self.server, 0);
        self.settle()?;
        let stop = AtomicBool::new(false);
        let handle = self.server.clone();
        let times = std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut version = 0;
                while !stop.load(Ordering::Relaxed) {
                    version += 1;
                    demand.apply(&handle, version);
                    pause(Duration::from_millis(100));
                }
            });
            let times = self.times(2 * CHANGES);
            stop.store(true, Ordering::Relaxed);
            times
        })?;
        demand.delete(&self.server);
        self.settle()?;
        Ok(self.row(name, times))
    }

    /// While a Service is created, changed and deleted.
    fn life(&mut self, demand: &Demand) -> anyhow::Result<Value> {
        let mut all = Vec::new();
        for step in 0..3 {
            match step {
                0 | 1 => demand.apply(&self.server, step),
                _ => demand.delete(&self.server),
            }
            all.extend(self.times(CHANGES)?);
            self.settle()?;
        }
        Ok(self.row(demand.name, all))
    }
}
