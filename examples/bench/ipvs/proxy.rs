// SPDX-License-Identifier: Apache-2.0
//! A proxy from its start on: until all is programmed, while endpoints change, while nothing happens.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use kube_proxy_rs::clock::Clock;
use serde_json::{Map, Value, json};

use super::{kernel, latency};
use crate::api::Writer;
use crate::process::{self, Metrics};
use crate::running::{LAST_ROUND, Running};
use crate::{Shape, pause, save};

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

pub(crate) fn measure(clock: &Clock, options: &Options) -> anyhow::Result<()> {
    let shape = options.shape;
    let mut result = Map::new();
    result.insert("kind".to_owned(), json!("proxy"));
    result.insert("label".to_owned(), json!(options.label));
    result.insert("services".to_owned(), json!(shape.services));
    result.insert("endpoints".to_owned(), json!(shape.endpoints));

    let forks = process::forks()?;
    let begin = clock.now();
    let log = std::fs::File::create(options.out.with_extension("log"))?;
    let mut proxy = Running::start(&options.command, &[], &log)?;
    let pid = proxy.pid();
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
