// SPDX-License-Identifier: Apache-2.0
//! Costs of the largest size: extrapolated from the small sizes, and measured.

#![expect(
    clippy::indexing_slicing,
    reason = "indexing JSON: a missing value is null"
)]

use std::path::Path;

use anyhow::ensure;
use serde_json::Value;

/// A row: its name, and how to read it from a result.
type Row = (&'static str, fn(&Value) -> Option<f64>);

/// Costs that grow with the cluster: extrapolated linearly from the two smallest sizes.
const ROWS: [Row; 4] = [
    ("list, MB", |it| Some(it["listBytes"].as_f64()? / 1e6)),
    ("start, CPU s", |it| it["cold"]["cpu"].as_f64()),
    ("memory, idle, MB", |it| {
        Some(it["idle"]["memory"]["rssKb"].as_f64()? / 1e3)
    }),
    ("memory, peak, MB", |it| {
        Some(it["busy"]["memory"]["peakKb"].as_f64()? / 1e3)
    }),
];

/// Costs of a change, which should not grow: the mean of the two smallest sizes is expected.
const CHANGES: [Row; 6] = [
    ("bytes per change", |it| {
        per_change(it, it["changeBytes"].as_f64()?)
    }),
    ("own CPU us per change", |it| {
        per_change(it, 1e6 * grown(it, "ownCpu")?)
    }),
    ("CPU us per change with processes", |it| {
        per_change(it, 1e6 * grown(it, "cpu")?)
    }),
    ("netlink messages sent per change", |it| {
        per_change(it, worked(it, "messagesSent")?)
    }),
    ("rounds per change", |it| {
        per_change(it, worked(it, "rounds")?)
    }),
    ("processes per change", |it| {
        per_change(it, worked(it, "processes")?)
    }),
];

/// Costs of half a minute idle, scaled to a minute.
const IDLE: [Row; 2] = [
    ("idle, CPU ms per minute", |it| {
        let cpu = |when: &str| it[when]["cpu"].as_f64();
        Some((cpu("idle")? - cpu("idleBegin")?) * 2e3)
    }),
    ("idle, processes per minute", |it| {
        let count = |when: &str| it[when]["work"]["processes"].as_f64();
        Some((count("idle")? - count("idleBegin")?) * 2.0)
    }),
];

fn per_change(it: &Value, all: f64) -> Option<f64> {
    Some(all / it["changes"].as_f64()?)
}

fn grown(it: &Value, key: &str) -> Option<f64> {
    Some(it["busy"][key].as_f64()? - it["idle"][key].as_f64()?)
}

fn worked(it: &Value, key: &str) -> Option<f64> {
    Some(it["busy"]["work"][key].as_f64()? - it["idle"]["work"][key].as_f64()?)
}

#[expect(clippy::print_stdout, reason = "the answer of a command")]
pub(crate) fn print(folder: &Path) -> anyhow::Result<()> {
    let mut results: Vec<Value> = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            results.push(serde_json::from_str(&std::fs::read_to_string(path)?)?);
        }
    }
    let label = |it: &Value| {
        it["label"]
            .as_str()
            .unwrap_or_default()
            .rsplit_once('-')
            .map(|(label, _)| label.to_owned())
    };
    results.sort_by_key(|it| (label(it), it["services"].as_u64()));
    while !results.is_empty() {
        let name = results.first().and_then(label);
        let (group, others): (Vec<Value>, Vec<Value>) =
            results.into_iter().partition(|it| label(it) == name);
        results = others;
        ensure!(group.len() >= 3, "{name:?} has fewer than three sizes");
        println!(
            "\n{}: Services {}",
            name.unwrap_or_default(),
            list(&group, |it| it["services"].as_f64())
        );
        println!(
            "{:<34} {:>30} {:>12} {:>12}",
            "", "by size", "computed", "measured"
        );
        for (row, of) in ROWS {
            show(row, &group, of, true)?;
        }
        for (row, of) in IDLE.into_iter().chain(CHANGES) {
            show(row, &group, of, false)?;
        }
        for (row, key) in [
            ("seconds until programmed", "startSeconds"),
            ("event of 1 endpoint, bytes", "eventOf1"),
            ("event of 100 endpoints, bytes", "eventOf100"),
        ] {
            println!("{row:<34} {:>30}", list(&group, |it| it[key].as_f64()));
        }
        println!(
            "{:<34} {:>30}",
            "seconds for the changes",
            list(&group, |it| grown(it, "seconds"))
        );
    }
    Ok(())
}

fn list(group: &[Value], of: impl Fn(&Value) -> Option<f64>) -> String {
    let words = group
        .iter()
        .map(|it| of(it).map_or_else(|| "-".to_owned(), brief));
    words.collect::<Vec<_>>().join(" ")
}

fn brief(number: f64) -> String {
    if number.abs() >= 100.0 {
        format!("{number:.0}")
    } else {
        format!("{number:.2}")
    }
}

#[expect(clippy::print_stdout, reason = "the answer of a command")]
fn show(
    row: &str,
    group: &[Value],
    of: fn(&Value) -> Option<f64>,
    grows: bool,
) -> anyhow::Result<()> {
    let point = |it: &Value| Some((it["services"].as_f64()?, of(it)?));
    let points: Option<Vec<(f64, f64)>> = group.iter().map(point).collect();
    let Some(points) = points else {
        println!("{row:<34} {:>30}", list(group, of));
        return Ok(());
    };
    let [(x0, y0), (x1, y1), .., (x, y)] = *points.as_slice() else {
        anyhow::bail!("needs three sizes")
    };
    let computed = if grows {
        y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    } else {
        f64::midpoint(y0, y1)
    };
    ensure!(computed.is_finite(), "two sizes are equal");
    println!(
        "{row:<34} {:>30} {:>12} {:>12}",
        list(group, of),
        brief(computed),
        brief(y)
    );
    Ok(())
}
