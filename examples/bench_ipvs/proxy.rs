// SPDX-License-Identifier: Apache-2.0
//! A proxy from its start on: until all is programmed, while endpoints change, while nothing happens.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use kube_proxy_rs::clock::Clock;
use serde_json::{Map, Value, json};

use crate::latency::{self, Writer};
use crate::process::{self, Metrics};
use crate::{Shape, kernel, pause, save};

/// Between two looks at the proxy's metrics. Its own timestamps tell when things happened.
const LOOK: Duration = Duration::from_millis(100);

/// A cold start that takes longer has failed.
const LIMIT: Duration = Duration::from_mins(30);

const LAST_ROUND: &str = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";

#[derive(Args, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    shape: Shape,
    /// What the table calls this.
    #[arg(long)]
    label: String,
    /// File of the result; the proxy's log goes beside it.
    #[arg(long)]
    out: PathBuf,
    /// How many endpoints to add or remove through the API server.
    #[arg(long, default_value_t = 0)]
    changes: u16,
    /// For the changes: who may make them, and where.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    #[arg(long, default_value = "load")]
    namespace: String,
    /// How long to look at an idle proxy.
    #[arg(long, default_value_t = 0)]
    idle_seconds: u64,
    /// The proxy and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// The proxy; it is ended with this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Running {
    #[expect(
        clippy::disallowed_methods,
        reason = "the program that is measured, not a tool of the proxy"
    )]
    fn start(options: &Options) -> anyhow::Result<Self> {
        let (program, arguments) = options.command.split_first().context("no proxy named")?;
        let log = std::fs::File::create(options.out.with_extension("log"))?;
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        Ok(Self(child))
    }

    /// Waits until each IP family had its first successful round.
    fn wait_programmed(&mut self, clock: &Clock) -> anyhow::Result<Metrics> {
        let begin = clock.monotonic();
        loop {
            if let Some(metrics) = Metrics::read()
                && metrics
                    .series(LAST_ROUND)
                    .filter(|(_, at)| *at > 0.0)
                    .count()
                    >= 2
            {
                return Ok(metrics);
            }
            if let Some(status) = self.0.try_wait()? {
                anyhow::bail!("the proxy ended: {status}");
            }
            anyhow::ensure!(
                clock.monotonic().saturating_sub(begin) < LIMIT,
                "not programmed after {LIMIT:?}"
            );
            pause(LOOK);
        }
    }
}

pub(crate) fn measure(clock: &Clock, options: &Options) -> anyhow::Result<()> {
    let shape = options.shape;
    let mut result = Map::new();
    result.insert("kind".to_owned(), json!("proxy"));
    result.insert("label".to_owned(), json!(options.label));
    result.insert("services".to_owned(), json!(shape.services));
    result.insert("endpoints".to_owned(), json!(shape.endpoints));

    let forks = process::forks()?;
    let begin = clock.now();
    let mut proxy = Running::start(options)?;
    let pid = proxy.0.id();
    let metrics = proxy.wait_programmed(clock)?;
    let begin = begin.as_duration().as_secs_f64();
    let rounds = metrics.series(LAST_ROUND);
    let last = rounds.map(|(_, at)| at - begin).fold(0.0, f64::max);
    let cold = json!({
        "seconds": last,
        "cpuSeconds": process::cpu_seconds(pid)?,
        "forks": process::forks()? - forks,
        "work": process::difference(&std::collections::BTreeMap::new(), &metrics.work()),
        "memory": process::memory(pid)?,
        "kernel": kernel::count()?.to_json(),
    });
    result.insert("cold".to_owned(), cold);
    save(&options.out, &Value::Object(result.clone()))?;

    if options.changes > 0 {
        let kubeconfig = options.kubeconfig.as_ref();
        let kubeconfig = kubeconfig.context("--changes needs --kubeconfig")?;
        let writer = Writer::new(kubeconfig, &options.namespace)?;
        let before = Metrics::read().context("no metrics")?.work();
        let cpu = process::cpu_seconds(pid)?;
        let changes = latency::measure(clock, &writer, options.changes)?;
        let cpu = process::cpu_seconds(pid)? - cpu;
        let after = Metrics::read().context("no metrics")?.work();
        let section = json!({
            "changes": changes,
            "cpuSeconds": cpu,
            "work": process::difference(&before, &after),
            "memory": process::memory(pid)?,
        });
        result.insert("latency".to_owned(), section);
        save(&options.out, &Value::Object(result.clone()))?;
    }
    if options.idle_seconds > 0 {
        // What was removed last is drained.
        pause(Duration::from_secs(5));
        let before = Metrics::read().context("no metrics")?.work();
        let (cpu, ticks, forks) = (
            process::cpu_seconds(pid)?,
            process::ticks(pid)?,
            process::forks()?,
        );
        pause(Duration::from_secs(options.idle_seconds));
        let idle = json!({
            "seconds": options.idle_seconds,
            "forks": process::forks()? - forks,
            "cpuSeconds": process::cpu_seconds(pid)? - cpu,
            "cpuTickSeconds": process::ticks(pid)? - ticks,
            "work": process::difference(&before, &Metrics::read().context("no metrics")?.work()),
            "memory": process::memory(pid)?,
        });
        result.insert("idle".to_owned(), idle);
    }
    save(&options.out, &Value::Object(result))
}
