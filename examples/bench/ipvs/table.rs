// SPDX-License-Identifier: Apache-2.0
//! Results to a table: medians with their spread, and ratios within the run.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use serde_json::Value;

use crate::sample::{self, Sample};

/// The results of one folder.
struct Results(Vec<Value>);

impl Results {
    fn of<'a>(&'a self, label: &'a str, services: u64) -> impl Iterator<Item = &'a Value> {
        self.0
            .iter()
            .filter(move |result| label_of(result) == label && services_of(result) == services)
    }

    fn sample(&self, label: &str, services: u64, pointer: &str) -> Sample {
        let values = self.of(label, services);
        Sample::new(
            values
                .filter_map(|value| value.pointer(pointer)?.as_f64())
                .collect(),
        )
    }

    /// The changes of all runs, `number` of each, in milliseconds.
    fn changes(
        &self,
        label: &str,
        services: u64,
        number: impl Fn(&Value) -> Option<f64>,
    ) -> Sample {
        let changes = self
            .of(label, services)
            .filter_map(|result| result.pointer("/latency/changes")?.as_array())
            .flatten();
        Sample::new(
            changes
                .filter_map(|change| Some(number(change)? / 1_000.0))
                .collect(),
        )
    }

    /// What was measured, by label and number of Services.
    fn cases(&self) -> BTreeSet<(&str, u64)> {
        let cases = self.0.iter();
        cases
            .map(|result| (label_of(result), services_of(result)))
            .collect()
    }

    /// The cases that have a part.
    fn with(&self, part: &str) -> Vec<(&str, u64)> {
        let has = |(label, services): &(&str, u64)| {
            self.of(label, *services)
                .any(|result| result.get(part).is_some())
        };
        self.cases().into_iter().filter(has).collect()
    }
}

fn label_of(result: &Value) -> &str {
    match result.get("kind").and_then(Value::as_str) {
        Some("floor") => "floor",
        _ => result.get("label").and_then(Value::as_str).unwrap_or("?"),
    }
}

fn services_of(result: &Value) -> u64 {
    result.get("services").and_then(Value::as_u64).unwrap_or(0)
}

/// Both times of a change.
fn kernel_us(change: &Value) -> Option<f64> {
    change.get("kernelUs")?.as_f64()
}

/// From the answer of the API server. The kernel may have a change before its writer knows.
fn after_answer_us(change: &Value) -> Option<f64> {
    Some((kernel_us(change)? - change.get("answerUs")?.as_f64()?).max(0.0))
}

#[expect(clippy::print_stdout, reason = "the answer of a command")]
pub(crate) fn print(folder: &Path) -> anyhow::Result<()> {
    let results = Results(sample::read(folder)?);
    let mut text = String::new();
    write(&mut text, &results)?;
    println!("{text}");
    Ok(())
}

fn write(out: &mut impl fmt::Write, results: &Results) -> fmt::Result {
    cold_start(out, results)?;
    changes(out, results)?;
    idle(out, results)?;
    memory(out, results)?;
    counts(out, results)
}

fn cold_start(out: &mut impl fmt::Write, results: &Results) -> fmt::Result {
    writeln!(
        out,
        "COLD START, seconds until all is programmed (each case in fresh guest kernels)"
    )?;
    for (label, services) in results.cases() {
        if label == "floor" {
            floor(out, results, services)?;
            continue;
        }
        let sample = results.sample(label, services, "/cold/seconds");
        let floor = results.sample("floor", services, "/seconds").median();
        let process = results
            .sample("floor", services, "/processSeconds")
            .median();
        write!(out, "  {services:>6} x 10  {label:<34} {sample}")?;
        if floor.is_finite() {
            write!(out, "  = {:.2} x floor", sample.median() / floor)?;
            // The floor has two already.
            let processes = results
                .sample(label, services, "/cold/work/processes")
                .median()
                - 2.0;
            if processes > 0.0 && process.is_finite() {
                let more = floor + processes * process;
                write!(
                    out,
                    ", {:.2} x floor with {processes} more processes ({:.0} ms each here)",
                    sample.median() / more,
                    process * 1e3,
                )?;
            }
        }
        writeln!(out)?;
        let rounds = results.sample(label, services, "/cold/work/roundSeconds");
        let cpu = results.sample(label, services, "/cold/cpuSeconds");
        let (rounds, cpu) = (rounds.median(), cpu.median());
        writeln!(
            out,
            "               of which rounds {rounds:.2} s; CPU of the proxy's own threads {cpu:.2} s"
        )?;
    }
    writeln!(out)
}

/// The floor and its parts.
fn floor(out: &mut impl fmt::Write, results: &Results, services: u64) -> fmt::Result {
    let total = results.sample("floor", services, "/seconds");
    writeln!(
        out,
        "  {services:>6} x 10  {:<34} {total}",
        "floor: all kernel objects"
    )?;
    for index in 0..5 {
        let part = |field: &str| format!("/phases/{index}/{field}");
        let seconds = results.sample("floor", services, &part("seconds"));
        let objects = results.sample("floor", services, &part("objects")).median();
        let what = results
            .of("floor", services)
            .find_map(|result| result.pointer(&part("what"))?.as_str());
        let what = format!("  {objects} {}", what.unwrap_or("?"));
        writeln!(out, "               {what:<36} {seconds}")?;
    }
    Ok(())
}

fn changes(out: &mut impl fmt::Write, results: &Results) -> fmt::Result {
    let cases = results.with("latency");
    if cases.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "ONE ENDPOINT MORE OR LESS, milliseconds until the kernel has it"
    )?;
    for (label, services) in &cases {
        let after = results.changes(label, *services, after_answer_us);
        let whole = results.changes(label, *services, kernel_us);
        let blur = results.changes(label, *services, |change| change.get("blurUs")?.as_f64());
        writeln!(
            out,
            "  {services:>6} x 10  {label:<22} from the API's answer: median {:.1} p99 {:.1} max {:.1}; from the request: median {:.1} p99 {:.1}; n={} (resolution {:.1})",
            after.median(),
            after.percentile(99),
            after.percentile(100),
            whole.median(),
            whole.percentile(99),
            after.0.len(),
            blur.median(),
        )?;
        let count = results.changes(label, *services, kernel_us).0.len();
        #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
        let per_change = |field: &str| {
            let sums = results.sample(label, *services, &format!("/latency/{field}"));
            sums.0.iter().sum::<f64>() / count as f64
        };
        let round = per_change("work/roundSeconds") * 1e3;
        let cpu = per_change("cpuSeconds") * 1e3;
        writeln!(
            out,
            "                 per change: rounds {round:.2} ms, CPU of the proxy {cpu:.2} ms, netlink messages {:.1} out {:.1} in, bytes {:.0} out {:.0} in, round trips {:.1}, processes {:.2}",
            per_change("work/messagesSent"),
            per_change("work/messagesReceived"),
            per_change("work/bytesSent"),
            per_change("work/bytesReceived"),
            per_change("work/roundTrips"),
            per_change("work/processes"),
        )?;
    }
    let labels: BTreeSet<&str> = cases.iter().map(|(label, _)| *label).collect();
    for label in labels {
        let sizes = cases
            .iter()
            .filter(|(of, _)| *of == label)
            .map(|(_, size)| *size);
        let (Some(least), Some(most)) = (sizes.clone().min(), sizes.max()) else {
            continue;
        };
        if least < most {
            let ratio = |number: fn(&Value) -> Option<f64>| {
                results.changes(label, most, number).median()
                    / results.changes(label, least, number).median()
            };
            writeln!(
                out,
                "  {label}: {most} over {least} Services: {:.2} from the answer, {:.2} from the request",
                ratio(after_answer_us),
                ratio(kernel_us),
            )?;
        }
    }
    writeln!(out)
}

fn idle(out: &mut impl fmt::Write, results: &Results) -> fmt::Result {
    let cases = results.with("idle");
    if cases.is_empty() {
        return Ok(());
    }
    writeln!(out, "IDLE, per minute")?;
    for (label, services) in cases {
        let seconds = results.sample(label, services, "/idle/seconds").median();
        let minute = |pointer: &str| {
            let sample = results.sample(label, services, &format!("/idle/{pointer}"));
            sample.scaled(60.0 / seconds).median()
        };
        writeln!(
            out,
            "  {services:>6} x 10  {label:<22} processes and threads started {:.0} (by the proxy {:.0}), CPU {:.3} s, netlink messages {:.0} out {:.0} in, round trips {:.0}, rounds {:.0} in {:.3} s",
            minute("forks"),
            minute("work/processes"),
            minute("cpuSeconds"),
            minute("work/messagesSent"),
            minute("work/messagesReceived"),
            minute("work/roundTrips"),
            minute("work/rounds"),
            minute("work/roundSeconds"),
        )?;
    }
    writeln!(out)
}

fn memory(out: &mut impl fmt::Write, results: &Results) -> fmt::Result {
    writeln!(out, "RESIDENT MEMORY, MB")?;
    for (label, services) in results.with("cold") {
        let mb = |pointer: &str| {
            results
                .sample(label, services, pointer)
                .scaled(1.0 / 1024.0)
        };
        write!(
            out,
            "  {services:>6} x 10  {label:<22} after the cold start {:.1} (without the program's own pages {:.1}), peak {:.1}",
            mb("/cold/memory/rssKb").median(),
            mb("/cold/memory/anonymousKb").median(),
            mb("/cold/memory/peakKb").median(),
        )?;
        for part in ["latency", "idle"] {
            let now = mb(&format!("/{part}/memory/rssKb"));
            if !now.0.is_empty() {
                let peak = mb(&format!("/{part}/memory/peakKb")).median();
                let name = if part == "idle" { "idling" } else { "changes" };
                write!(out, "; after {name} {:.1}, peak {peak:.1}", now.median())?;
            }
        }
        writeln!(out)?;
    }
    writeln!(out)
}

fn counts(out: &mut impl fmt::Write, results: &Results) -> fmt::Result {
    writeln!(out, "COUNTS OF A COLD START, which hold on every machine")?;
    for (label, services) in results.with("cold") {
        let count = |pointer: &str| {
            let sample = results.sample(label, services, &format!("/cold/{pointer}"));
            sample.median()
        };
        writeln!(
            out,
            "  {services:>6} x 10  {label:<22} netlink messages {:.0} out {:.0} in, bytes {:.0} out {:.0} in, round trips {:.0}, processes {:.0} (and threads: {:.0}); kernel: {:.0} virtual servers, {:.0} real servers, {:.0} addresses, {:.0} entries in {:.0} sets",
            count("work/messagesSent"),
            count("work/messagesReceived"),
            count("work/bytesSent"),
            count("work/bytesReceived"),
            count("work/roundTrips"),
            count("work/processes"),
            count("forks"),
            count("kernel/virtualServers"),
            count("kernel/realServers"),
            count("kernel/addresses"),
            count("kernel/entries"),
            count("kernel/sets"),
        )?;
    }
    Ok(())
}
