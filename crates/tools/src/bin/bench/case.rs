// SPDX-License-Identifier: Apache-2.0
//! One proxy in one mode from start to exit, on a fresh node.
//!
//! A single process does it all: its open files keep the network namespaces alive until it exits.

mod first_packet;
mod kernel;
mod latency;
mod restore;
mod trace;

use std::collections::BTreeMap;
use std::fs::File;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use kpr_tools::pause;
use kpr_tools::process::{self, Metrics};
use kpr_tools::running::{Running, programmed};
use kube_proxy_rs::clock::Clock;
use serde_json::{Map, Value, json};

use crate::api::Writer;
use crate::probe::{Pods, Probe, TooLate};
use crate::world::{Backend, CLUSTER_CIDR, Node, UPLINK, World, find};
use crate::{Rules, Shape, cluster, rounded, save};

/// Quiet time before a change; longer than the proxy's minimum sync period.
const QUIET: Duration = Duration::from_millis(1_500);

/// A proxy is idle after this long without a round, and at least twice the duration of its rounds.
const SETTLED: Duration = Duration::from_secs(3);

/// Between two reads of the proxy's metrics. When things happened is taken from its timestamps.
const LOOK: Duration = Duration::from_millis(100);

/// Services whose endpoints change, one at a time.
const TARGETS: u16 = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    Ipvs,
    Iptables,
    /// kube-proxy's only.
    Nftables,
}

impl Mode {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ipvs => "ipvs",
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        }
    }
}

#[derive(Args, Debug)]
pub(crate) struct Options {
    /// What the API server already holds.
    #[command(flatten)]
    shape: Shape,
    /// The EndpointSlice controller creates the slices from Pods.
    #[arg(long)]
    controller: bool,
    #[arg(long)]
    mode: Mode,
    #[arg(long, default_value = "legacy")]
    backend: Backend,
    /// Ours in IPVS mode: how it holds its fixed rules and sets.
    #[arg(long)]
    rules: Option<Rules>,
    /// Name of the proxy in the tables.
    #[arg(long)]
    who: String,
    /// Number of this run, for cases that are repeated.
    #[arg(long)]
    run: Option<u16>,
    #[arg(long)]
    program: PathBuf,
    /// Directory of a test bed (`hack/testbed/up`).
    #[arg(long)]
    testbed: PathBuf,
    #[arg(long)]
    bridge: String,
    /// First three bytes of the bridge's subnet.
    #[arg(long)]
    net4: String,
    /// In a guest: the device that leads to the bridge. The bridge is then created here.
    #[arg(long)]
    uplink: Option<String>,
    /// Result file; the proxy's log goes next to it.
    #[arg(long)]
    out: PathBuf,
    /// Seconds after which the case is stopped; later parts are missing from the result.
    #[arg(long, default_value_t = 900)]
    limit: u64,
    /// Number of endpoint changes.
    #[arg(long, default_value_t = 0)]
    endpoint_changes: u16,
    /// Number of Services created and deleted.
    #[arg(long, default_value_t = 0)]
    service_changes: u16,
    /// Number of changes in the burst.
    #[arg(long, default_value_t = 0)]
    burst: u16,
    /// Seconds to observe the idle proxy.
    #[arg(long, default_value_t = 0)]
    idle: u64,
    /// First connections to measure for each row.
    #[arg(long, default_value_t = 0)]
    connections: u16,
    /// Time `iptables-restore` alone with the proxy's rules.
    #[arg(long)]
    restore: bool,
    /// Run the proxy under strace and count its system calls. Timings are meaningless then.
    #[arg(long)]
    trace: bool,
    /// Write the begin and end of each part to this file, for profilers.
    #[arg(long)]
    sections: Option<PathBuf>,
}

pub(crate) fn measure(clock: &Clock, options: &Options) -> anyhow::Result<()> {
    let world = World::new(&options.bridge, &options.net4, options.uplink.as_deref())?;
    let writer = Writer::new(
        &options.testbed.join("admin.kubeconfig"),
        options.controller,
    )?;
    // Left over from a case that was interrupted.
    writer.clear()?;
    let node = world.node("node")?;
    let case = Case {
        clock,
        options,
        world: &world,
        node: &node,
        writer: &writer,
        deadline: clock.monotonic() + Duration::from_secs(options.limit),
    };
    let mut result = Map::new();
    for (key, value) in [
        ("kind", json!(if options.trace { "trace" } else { "case" })),
        ("who", json!(options.who)),
        ("mode", json!(options.mode.as_str())),
        ("backend", json!(options.backend_name())),
        ("services", json!(options.shape.services)),
        ("endpoints", json!(options.shape.endpoints)),
        ("controller", json!(options.controller)),
    ] {
        result.insert(key.to_owned(), value);
    }
    if let Some(run) = options.run {
        result.insert("run".to_owned(), json!(run));
    }
    let mut sections = Vec::new();
    if let Err(error) = case.all(&mut result, &mut sections) {
        // A time-out is a result, too.
        let Some(late) = error.downcast_ref::<TooLate>() else {
            return Err(error);
        };
        let ended = json!({ "limitSeconds": options.limit, "what": late.to_string() });
        result.insert("ended".to_owned(), ended);
    }
    if options.trace {
        if sections.is_empty() {
            // It did not finish its cold start.
            sections.push(("cold".to_owned(), 0.0, case.wall()));
        }
        let trace = trace_file(options);
        for (name, counts) in trace::count(&trace, &sections)? {
            result.insert(format!("{name}Calls"), counts);
        }
        std::fs::remove_file(trace)?;
    }
    if let Some(path) = &options.sections {
        let line = |(name, begin, end): &(String, f64, f64)| format!("{name} {begin} {end}\n");
        std::fs::write(path, sections.iter().map(line).collect::<String>())?;
    }
    save(&options.out, &Value::Object(result))
}

impl Options {
    /// What tells cases of a mode apart.
    fn backend_name(&self) -> String {
        match self.rules {
            Some(rules) => format!("rules-{}", rules.as_str()),
            None => self.backend.as_str().to_owned(),
        }
    }
}

/// Where strace writes to.
fn trace_file(options: &Options) -> PathBuf {
    options.out.with_extension("strace")
}

struct Case<'a> {
    clock: &'a Clock,
    options: &'a Options,
    world: &'a World,
    node: &'a Node,
    writer: &'a Writer,
    /// On the monotonic clock.
    deadline: Duration,
}

/// A proxy's counters at one time.
struct Snapshot {
    at: Duration,
    wall: f64,
    work: BTreeMap<&'static str, f64>,
    cpu: f64,
    forks: u64,
}

impl Case<'_> {
    fn all(
        &self,
        result: &mut Map<String, Value>,
        sections: &mut Vec<(String, f64, f64)>,
    ) -> anyhow::Result<()> {
        let pods = Pods::new(self.world)?;
        let log = File::create(self.options.out.with_extension("log"))?;
        let mut proxy = self.cold(&log, result, sections)?;
        let pid = proxy.pid();
        let mut section =
            |name: &str,
             is_wanted: bool,
             f: &mut dyn FnMut(&mut Map<String, Value>) -> anyhow::Result<()>| {
                if !is_wanted {
                    return Ok(());
                }
                proxy.ensure_runs()?;
                let before = self.snapshot(pid)?;
                let mut values = Map::new();
                // Kept even if incomplete.
                let done = f(&mut values);
                if let Ok(after) = self.snapshot(pid) {
                    self.add_difference(&mut values, &before, &after);
                    sections.push((name.to_owned(), before.wall, after.wall));
                    values.insert("memory".to_owned(), process::memory(pid)?);
                }
                result.insert(name.to_owned(), Value::Object(values));
                done
            };
        section("endpoint", self.options.endpoint_changes > 0, &mut |at| {
            self.endpoints(at)
        })?;
        section("service", self.options.service_changes > 0, &mut |at| {
            self.services(at)
        })?;
        section("burst", self.options.burst > 0, &mut |at| {
            self.burst(at, pid)
        })?;
        section("idle", self.options.idle > 0, &mut |_at| {
            pause(Duration::from_secs(self.options.idle));
            Ok(())
        })?;
        drop(pods);
        if self.options.connections > 0 {
            let bare = self.world.node("bare")?;
            let last = self.writer.cluster_ip(self.options.shape.services - 1)?;
            let rows = first_packet::measure(
                self.clock,
                self.world,
                &bare,
                self.node,
                last,
                self.options.connections,
            )?;
            result.insert("firstPacket".to_owned(), rows);
        }
        drop(proxy);
        if self.options.restore {
            let times = restore::measure(self.clock, self.world, self.node)?;
            result.insert("restore".to_owned(), times);
        }
        Ok(())
    }

    /// Starts the proxy and waits until everything is programmed.
    fn cold(
        &self,
        log: &File,
        result: &mut Map<String, Value>,
        sections: &mut Vec<(String, f64, f64)>,
    ) -> anyhow::Result<Running> {
        let last = self.writer.cluster_ip(self.options.shape.services - 1)?;
        let forks = process::forks()?;
        let (begin, wall) = (self.clock.monotonic(), self.wall());
        let mut proxy = None;
        let answered = self.probe(last).until_answered(|| {
            proxy = Some(self.start(log)?);
            Ok(())
        });
        let mut proxy = proxy.context("no proxy")?;
        proxy.ensure_runs()?;
        let pid = proxy.pid();
        let mut cold = Map::new();
        cold.insert("memory".to_owned(), process::memory(pid)?);
        let answered = answered
            .inspect_err(|_| drop(result.insert("cold".to_owned(), Value::Object(cold.clone()))))?;
        let answered = rounded(answered.saturating_sub(begin).as_secs_f64());
        cold.insert("lastServiceAnswersSeconds".to_owned(), json!(answered));
        result.insert("cold".to_owned(), Value::Object(cold.clone()));

        let programmed = loop {
            let metrics = self.inside(Metrics::read)?;
            if let Some(at) = metrics.as_ref().and_then(programmed) {
                break at - wall;
            }
            proxy.ensure_runs()?;
            self.ensure_in_time("the first round did not finish")?;
            pause(LOOK);
        };
        let cpu = process::cpu_with_children(pid)?;
        cold.insert("seconds".to_owned(), json!(rounded(programmed)));
        cold.insert("cpuSeconds".to_owned(), json!(rounded(cpu)));
        cold.insert("forks".to_owned(), json!(process::forks()? - forks));
        let work = process::difference(&BTreeMap::new(), &self.work()?);
        cold.insert("work".to_owned(), work);
        self.settle()?;
        sections.push(("cold".to_owned(), wall, self.wall()));
        cold.insert("memory".to_owned(), process::memory(pid)?);
        let kernel = self.inside(|| kernel::count(self.options.backend))??;
        cold.insert("kernel".to_owned(), kernel);
        result.insert("cold".to_owned(), Value::Object(cold));
        Ok(proxy)
    }

    fn start(&self, log: &File) -> anyhow::Result<Running> {
        let options = self.options;
        let kubeconfig = options.testbed.join("proxy.kubeconfig");
        // The proxy dies with this process, however that exits.
        let mut command = vec![
            find("setpriv")?.display().to_string(),
            "--pdeathsig=KILL".to_owned(),
        ];
        if options.trace {
            // -D keeps the proxy our child.
            command.push(find("strace")?.display().to_string());
            let flags = "-D -f -ttt -yy -qq -s 0 -o".split(' ');
            command.extend(flags.map(str::to_owned));
            command.push(trace_file(options).display().to_string());
        }
        command.extend([
            options.program.display().to_string(),
            format!("--proxy-mode={}", options.mode.as_str()),
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--hostname-override={}", cluster::NODE),
            format!("--cluster-cidr={CLUSTER_CIDR}"),
            // Machine-wide settings, which a namespace cannot change.
            "--conntrack-max-per-core=0".to_owned(),
            "--conntrack-tcp-timeout-established=0".to_owned(),
            "--conntrack-tcp-timeout-close-wait=0".to_owned(),
        ]);
        if let Some(rules) = options.rules {
            command.push(format!("--ipvs-rules={}", rules.as_str()));
        }
        let environment = self.world.environment(options.backend);
        self.inside(|| Running::start(&command, &environment, log))?
    }

    /// Time from each endpoint change until the kernel has it.
    fn endpoints(&self, at: &mut Map<String, Value>) -> anyhow::Result<()> {
        let count = self.options.endpoint_changes;
        let mut results = Vec::new();
        let targets = latency::targets(self.writer, TARGETS.min(count.div_ceil(2)))?;
        let measured = self.settle().and_then(|()| match self.options.mode {
            Mode::Ipvs => self.inside(|| {
                latency::measure(
                    self.clock,
                    self.writer,
                    &targets,
                    count,
                    self.deadline,
                    &mut results,
                )
            })?,
            Mode::Iptables | Mode::Nftables => {
                self.endpoints_by_packets(&targets, count, &mut results)
            }
        });
        at.insert("changes".to_owned(), json!(results));
        for target in &targets {
            self.writer.delete_service(target.service)?;
        }
        measured?;
        self.settle()
    }

    /// Reading rules is slow, so the last connection that the endpoint answers is taken.
    fn endpoints_by_packets(
        &self,
        targets: &[latency::Target],
        count: u16,
        results: &mut Vec<Value>,
    ) -> anyhow::Result<()> {
        for (_, target) in (0..count).zip(targets.iter().cycle()) {
            let requests = self.writer.without(target.service, 1)?;
            let [with, without] = &requests[..] else {
                anyhow::bail!("expected two requests");
            };
            let victim = cluster::endpoint(target.service, cluster::NEW_ENDPOINTS - 1);
            pause(QUIET);
            let mut begin = Duration::ZERO;
            let gone = self.probe(target.address).until_gone(victim, || {
                begin = self.clock.monotonic();
                self.writer.send(without, 0)
            })?;
            let took = rounded(gone.saturating_sub(begin).as_secs_f64());
            results.push(json!({ "added": false, "seconds": took }));
            self.writer.send(with, 1)?;
            self.settle()?;
        }
        Ok(())
    }

    /// Time from creating a Service to the first answer, and from deleting it to the first refusal.
    fn services(&self, at: &mut Map<String, Value>) -> anyhow::Result<()> {
        let mut results = Vec::new();
        let measured = (0..self.options.service_changes)
            .try_for_each(|index| self.service(cluster::NEW + index, &mut results));
        at.insert("changes".to_owned(), json!(results));
        measured
    }

    fn service(&self, number: u16, results: &mut Vec<Value>) -> anyhow::Result<()> {
        let since = |begin: Duration, at: Duration| rounded(at.saturating_sub(begin).as_secs_f64());
        self.writer.prepare_service(number)?;
        self.settle_quickly()?;
        let begin = self.clock.monotonic();
        let probe = self.probe(self.writer.create_service(number)?);
        let answered = probe.until_answered(|| self.writer.create_endpoints(number))?;

        self.settle_quickly()?;
        let mut deletion = Duration::ZERO;
        let refused = probe.until_refused(|| {
            deletion = self.clock.monotonic();
            self.writer.delete_service(number)
        })?;
        results.push(json!({
            "newSeconds": since(begin, answered),
            "removedSeconds": since(deletion, refused),
        }));
        Ok(())
    }

    /// Removes endpoints of many Services and adds them back.
    fn burst(&self, at: &mut Map<String, Value>, pid: u32) -> anyhow::Result<()> {
        let half = self.options.burst / 2;
        let services = half.min(self.options.shape.services).max(1);
        let depth = (half / services).clamp(1, cluster::NEW_ENDPOINTS - 1);
        let requests = (0..services)
            .map(|service| self.writer.without(service, depth))
            .collect::<anyhow::Result<Vec<_>>>()?;
        // Written last: once it answers, all changes before it are in effect.
        let last = cluster::NEW + 1_000;
        self.writer.prepare_service(last)?;
        self.settle()?;
        let (begin, cpu) = (self.clock.monotonic(), process::cpu_with_children(pid)?);
        for missing in (1..=depth).chain((0..depth).rev()) {
            let round: Vec<_> = requests
                .iter()
                .filter_map(|of| of.get(usize::from(missing)))
                .collect();
            // Endpoints missing before this request: one fewer while removing, one more while
            // adding.
            let before = if at.contains_key("turned") || missing == 0 {
                missing + 1
            } else {
                missing - 1
            };
            self.writer.send_all(&round, before)?;
            if missing == depth {
                at.insert("turned".to_owned(), json!(true));
            }
        }
        at.remove("turned");
        let since = || rounded(self.clock.monotonic().saturating_sub(begin).as_secs_f64());
        at.insert("changes".to_owned(), json!(2 * services * depth));
        at.insert("writtenSeconds".to_owned(), json!(since()));
        let probe = self.probe(self.writer.create_service(last)?);
        let answered = probe.until_answered(|| self.writer.create_endpoints(last));
        if let Ok(answered) = &answered {
            let took = answered.saturating_sub(begin).as_secs_f64();
            at.insert("effectSeconds".to_owned(), json!(rounded(took)));
            self.settle()?;
            let cpu = process::cpu_with_children(pid)? - cpu;
            at.insert("cpuSeconds".to_owned(), json!(rounded(cpu)));
        }
        self.writer.delete_service(last)?;
        answered?;
        self.settle()
    }

    fn inside<T>(&self, f: impl FnOnce() -> T) -> anyhow::Result<T> {
        self.node.namespace.enter(f)
    }

    fn probe(&self, service: IpAddr) -> Probe<'_> {
        Probe {
            clock: self.clock,
            from: &self.node.namespace,
            service,
            deadline: self.deadline,
        }
    }

    /// Unix time in seconds.
    fn wall(&self) -> f64 {
        self.clock.now().as_duration().as_secs_f64()
    }

    fn ensure_in_time(&self, what: &str) -> anyhow::Result<()> {
        if self.clock.monotonic() < self.deadline {
            return Ok(());
        }
        Err(TooLate(what.to_owned()).into())
    }

    /// Number of rounds so far and their total duration in seconds.
    fn rounds(&self) -> anyhow::Result<(f64, f64)> {
        let metrics = self.inside(Metrics::read)?.context("no metrics")?;
        let of = |what: &str| {
            let name = format!("kubeproxy_sync_proxy_rules_duration_seconds_{what}");
            metrics.sum(&name, "").unwrap_or_default()
        };
        Ok((of("count"), of("sum")))
    }

    /// Waits until the proxy is idle.
    fn settle(&self) -> anyhow::Result<()> {
        let (mut last, mut seconds) = self.rounds()?;
        let mut since = self.clock.monotonic();
        let mut pause_wanted = SETTLED.max(mean(seconds, last) * 2);
        while self.clock.monotonic().saturating_sub(since) < pause_wanted {
            self.ensure_in_time("the proxy did not become idle")?;
            pause(LOOK * 5);
            let now = self.rounds()?;
            if now.0 > last {
                pause_wanted = SETTLED.max(mean(now.1 - seconds, now.0 - last) * 2);
                ((last, seconds), since) = (now, self.clock.monotonic());
            }
        }
        Ok(())
    }

    /// Waits less for a proxy whose rounds are short.
    fn settle_quickly(&self) -> anyhow::Result<()> {
        let (rounds, seconds) = self.rounds()?;
        if mean(seconds, rounds) < QUIET / 3 {
            pause(QUIET);
            return Ok(());
        }
        self.settle()
    }

    /// Its own metrics, and what passed the link that leads to the API server and nowhere else.
    fn work(&self) -> anyhow::Result<BTreeMap<&'static str, f64>> {
        let (metrics, link) = self.inside(|| (Metrics::read(), process::link_bytes(UPLINK)))?;
        let mut work = metrics.context("no metrics")?.work();
        let (received, sent) = link?;
        work.extend([("apiBytesReceived", received), ("apiBytesSent", sent)]);
        Ok(work)
    }

    fn snapshot(&self, pid: u32) -> anyhow::Result<Snapshot> {
        Ok(Snapshot {
            at: self.clock.monotonic(),
            wall: self.wall(),
            work: self.work()?,
            cpu: process::cpu_with_children(pid)?,
            forks: process::forks()?,
        })
    }

    fn add_difference(&self, values: &mut Map<String, Value>, before: &Snapshot, after: &Snapshot) {
        let seconds = after.at.saturating_sub(before.at).as_secs_f64();
        values.insert("sectionSeconds".to_owned(), json!(rounded(seconds)));
        let cpu = json!(rounded(after.cpu - before.cpu));
        values.insert("sectionCpuSeconds".to_owned(), cpu);
        let work = process::difference(&before.work, &after.work);
        values.insert("work".to_owned(), work);
        // Only in a guest: on the host other processes fork as well.
        if self.options.uplink.is_some() {
            let forks = after.forks - before.forks;
            values.insert("forks".to_owned(), json!(forks));
        }
    }
}

fn mean(seconds: f64, count: f64) -> Duration {
    Duration::try_from_secs_f64(seconds / count.max(1.0)).unwrap_or_default()
}
