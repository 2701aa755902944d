// SPDX-License-Identifier: Apache-2.0
//! Results to one table: what the budget is, what was measured, and whether that keeps it.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::Value;

use super::Who;
use crate::sample::{self, Sample};

/// Most that our number may be.
#[derive(Clone, Copy)]
enum Budget {
    /// So much.
    Absolute(f64),
    /// This part of kube-proxy's number.
    Share(f64),
    /// For information.
    None,
}

/// A line of the table.
struct Row<'a> {
    what: &'a str,
    unit: &'a str,
    budget: Budget,
    ours: Sample,
    theirs: Sample,
    note: String,
}

/// Numbers of the proxies' results, in the unit of the table.
struct Proxies<'a> {
    results: &'a [Value],
    backend: &'a str,
}

impl Proxies<'_> {
    fn sample(&self, who: Who, number: impl Fn(&Value) -> Vec<f64>) -> Sample {
        let is_it = |value: &&Value| {
            let is =
                |field: &str, text: &str| value.get(field).and_then(Value::as_str) == Some(text);
            is("kind", "proxy") && is("label", who.label()) && is("backend", self.backend)
        };
        Sample::new(self.results.iter().filter(is_it).flat_map(number).collect())
    }

    fn row<'a>(
        &self,
        what: &'a str,
        unit: &'a str,
        budget: Budget,
        number: impl Fn(&Value) -> Vec<f64>,
    ) -> Row<'a> {
        Row {
            what,
            unit,
            budget,
            ours: self.sample(Who::Ours, &number),
            theirs: self.sample(Who::Theirs, &number),
            note: String::new(),
        }
    }
}

/// One number of each result.
fn at(pointer: &str, factor: f64) -> impl Fn(&Value) -> Vec<f64> {
    move |value| {
        let number = value.pointer(pointer).and_then(Value::as_f64);
        number.map(|number| number * factor).into_iter().collect()
    }
}

/// The greatest of some numbers of each result.
fn max<'a>(pointers: &'a [&str], factor: f64) -> impl Fn(&Value) -> Vec<f64> {
    move |value| {
        let numbers = pointers.iter().filter_map(|at| value.pointer(at)?.as_f64());
        let max = numbers.reduce(f64::max);
        max.map(|number| number * factor).into_iter().collect()
    }
}

/// A field of each change.
fn changes(field: &str) -> impl Fn(&Value) -> Vec<f64> {
    move |value| {
        let changes = value.pointer("/changes/changes").and_then(Value::as_array);
        let fields = changes.into_iter().flatten();
        fields
            .filter_map(|change| change.get(field)?.as_f64())
            .collect()
    }
}

/// Mean time of a partial round.
fn partial(value: &Value) -> Vec<f64> {
    let of = |name: &str| value.pointer("/changes/rounds")?.get(name)?.as_f64();
    let (Some(count), Some(seconds)) = (of("partial"), of("partialSeconds")) else {
        return Vec::new();
    };
    if count > 0.0 {
        vec![seconds / count]
    } else {
        Vec::new()
    }
}

const MEMORY: [&str; 3] = [
    "/cold/memory/rssKb",
    "/burst/memory/rssKb",
    "/idle/memory/rssKb",
];
const PEAK: [&str; 1] = ["/idle/memory/peakKb"];
const MB: f64 = 1.0 / 1024.0;

#[expect(clippy::print_stdout, reason = "the answer of a command")]
pub(crate) fn print(folder: &Path) -> anyhow::Result<()> {
    let results = sample::read(folder)?;
    let mut text = String::new();
    let budgets = budgets(&results);
    write(&mut text, &budgets)?;
    for backend in ["legacy", "nft"] {
        writeln!(text, "\nfor information, {backend}:")?;
        write(&mut text, &information(&results, backend))?;
    }
    print!("{text}");
    std::fs::write(folder.join("table.txt"), text)?;
    Ok(())
}

fn budgets(results: &[Value]) -> Vec<Row<'static>> {
    let proxies = Proxies {
        results,
        backend: "legacy",
    };
    let floor = |field: &str| {
        let of = |who: Who| {
            let is_it = |value: &&Value| {
                let is = |field: &str, text: &str| {
                    value.get(field).and_then(Value::as_str) == Some(text)
                };
                is("kind", "floor") && is("label", who.label())
            };
            let times = results
                .iter()
                .find(is_it)
                .and_then(|value| value.get(field)?.as_array());
            Sample::new(
                times
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_f64)
                    .collect(),
            )
            .median()
        };
        format!(
            "iptables-restore alone: {:.2}, {:.2}",
            of(Who::Ours),
            of(Who::Theirs)
        )
    };
    let mut rows = vec![
        proxies.row(
            "rules, IPv4",
            "",
            Budget::Absolute(65_000.0),
            at("/cold/rules/IPv4", 1.0),
        ),
        Row {
            note: floor("fullSeconds"),
            ..proxies.row(
                "cold start",
                "s",
                Budget::Share(0.30),
                at("/cold/seconds", 1.0),
            )
        },
        proxies.row(
            "new Service to first connection",
            "s",
            Budget::Share(0.15),
            changes("newServiceSeconds"),
        ),
        Row {
            note: floor("partialSeconds"),
            ..proxies.row("partial round", "s", Budget::Share(0.33), partial)
        },
        proxies.row(
            "resident memory",
            "MB",
            Budget::Absolute(45.0),
            max(&MEMORY, MB),
        ),
    ];
    for (what, name) in [
        (
            "first packet, forwarded, no Service",
            "forwarded, no Service",
        ),
        (
            "first packet, forwarded, last Service",
            "forwarded, last Service",
        ),
        (
            "first packet, from node, no Service",
            "from the node, no Service",
        ),
        (
            "first packet, from node, last Service",
            "from the node, last Service",
        ),
    ] {
        rows.push(first_packet(results, what, name));
    }
    rows
}

/// Connections that were measured in one turn; see `first_packet`.
const TURN: usize = 20;

/// Turns are compared with the turn of the node without rules that was next to them.
fn first_packet(results: &[Value], what: &'static str, name: &str) -> Row<'static> {
    let turns = |node: &str| -> Vec<f64> {
        let times = results
            .iter()
            .find_map(|value| value.get("rows")?.get(name)?.get(node)?.as_array());
        let times: Vec<f64> = times
            .into_iter()
            .flatten()
            .filter_map(Value::as_f64)
            .collect();
        let medians = times
            .chunks(TURN)
            .map(|turn| Sample::new(turn.to_vec()).median());
        medians.map(|nanos| nanos / 1e3).collect()
    };
    let none = turns("none");
    let more = |who: Who| {
        let turns = turns(who.label());
        Sample::new(
            turns
                .iter()
                .zip(&none)
                .map(|(turn, none)| turn - none)
                .collect(),
        )
    };
    Row {
        what,
        unit: "us more",
        budget: Budget::Absolute(3.0),
        ours: more(Who::Ours),
        theirs: more(Who::Theirs),
        note: format!("without rules: {:.1}", Sample::new(none.clone()).median()),
    }
}

fn information(results: &[Value], backend: &str) -> Vec<Row<'static>> {
    let proxies = Proxies { results, backend };
    let row = |what, unit, number: &dyn Fn(&Value) -> Vec<f64>| {
        proxies.row(what, unit, Budget::None, number)
    };
    let mut rows = vec![
        row(
            "cold start until last Service answers",
            "s",
            &at("/cold/lastServiceAnswersSeconds", 1.0),
        ),
        row(
            "cold start, CPU with programs",
            "s",
            &at("/cold/cpuSeconds", 1.0),
        ),
        row(
            "cold start, processes and threads",
            "",
            &at("/cold/forks", 1.0),
        ),
        row("resident memory after cold start", "MB", &at(MEMORY[0], MB)),
        row("peak memory", "MB", &max(&PEAK, MB)),
        row(
            "endpoint removed to effect",
            "s",
            &changes("endpointRemovedSeconds"),
        ),
        row(
            "Service removed to refusal",
            "s",
            &changes("serviceRemovedSeconds"),
        ),
        row("three changes, processes and threads", "", &per_change),
        row(
            "burst, CPU with programs",
            "s",
            &at("/burst/cpuSeconds", 1.0),
        ),
        row(
            "burst, first write to effect of last",
            "s",
            &at("/burst/effectSeconds", 1.0),
        ),
        row("burst, processes and threads", "", &at("/burst/forks", 1.0)),
        row(
            "idle for 5 s, CPU with programs",
            "s",
            &at("/idle/cpuSeconds", 1.0),
        ),
    ];
    if backend == "nft" {
        rows.push(row("rules, IPv4", "", &at("/cold/rules/IPv4", 1.0)));
        rows.push(row("cold start", "s", &at("/cold/seconds", 1.0)));
        rows.push(row(
            "new Service to first connection",
            "s",
            &changes("newServiceSeconds"),
        ));
        rows.push(row("partial round", "s", &partial));
    }
    rows
}

/// Processes that one Service's coming, change and going started.
fn per_change(value: &Value) -> Vec<f64> {
    let count = changes("newServiceSeconds")(value).len();
    let forks = value.pointer("/changes/forks").and_then(Value::as_f64);
    #[expect(clippy::cast_precision_loss, reason = "a few")]
    forks
        .map(|forks| forks / count as f64)
        .into_iter()
        .collect()
}

fn write(text: &mut String, rows: &[Row<'_>]) -> std::fmt::Result {
    writeln!(
        text,
        "{:<39} {:<8} {:>9}   {:<36} {:<36} {:>7}  verdict",
        "what", "unit", "budget", "ours: median [min .. max] n", "kube-proxy", "ratio"
    )?;
    for row in rows.iter().filter(|row| !row.ours.0.is_empty()) {
        let (ours, theirs) = (row.ours.median(), row.theirs.median());
        let limit = match row.budget {
            Budget::Absolute(limit) => Some(limit),
            Budget::Share(share) => Some(share * theirs),
            Budget::None => None,
        };
        let budget = match row.budget {
            Budget::Absolute(limit) => format!("{limit}"),
            Budget::Share(share) => format!("{:.0} %", share * 100.0),
            Budget::None => String::new(),
        };
        let verdict = match limit {
            Some(limit) if limit.is_nan() => "not compared",
            Some(limit) if ours <= limit => "kept",
            Some(_) => "MISSED",
            None => "",
        };
        let ratio = if theirs.is_nan() {
            String::new()
        } else {
            format!("{:.1} %", ours / theirs * 100.0)
        };
        let note = if row.note.is_empty() {
            String::new()
        } else {
            format!("  ({})", row.note)
        };
        writeln!(
            text,
            "{:<39} {:<8} {budget:>9}   {:<36} {:<36} {ratio:>7}  {verdict}{note}",
            row.what,
            row.unit,
            row.ours.to_string().trim_start(),
            row.theirs.to_string().trim_start()
        )?;
    }
    Ok(())
}
