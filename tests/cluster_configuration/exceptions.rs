// SPDX-License-Identifier: Apache-2.0
//! Where we are meant to differ: each is a row of `docs/design/differences.md`.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{Case, Verdict};

/// A row by its first cell, and whether it covers a case.
type Exception = (&'static str, fn(&Case, &Verdict, &Verdict) -> bool);

const EXCEPTIONS: &[Exception] = &[
    ("`mode: nftables`", |_, _, ours| {
        says(ours, "no nftables mode")
    }),
    (
        "`ipvs.scheduler` that can be no scheduler's name",
        |_, theirs, ours| theirs.is_ok() && says(ours, "KubeProxyIPVSConfiguration.Scheduler"),
    ),
    (
        "interface that no interface can be named",
        |_, theirs, ours| theirs.is_ok() && says(ours, "must have at most 15 bytes"),
    ),
    (
        "`hostnameOverride` of blanks in the file",
        |_, theirs, ours| theirs.is_ok() && says(ours, "HostnameOverride"),
    ),
    (
        "address without a port, with `--write-config-to`",
        |case, theirs, ours| {
            let is_flag = |flag: &String| {
                let name = flag.replace('_', "-");
                name.starts_with("--healthz-bind-address")
                    || name.starts_with("--metrics-bind-address")
            };
            let is_given = case.file.is_none() && case.flags.iter().any(is_flag);
            is_given && ours.is_ok() && says(theirs, "must be IP:port")
        },
    ),
];

fn says(verdict: &Verdict, words: &str) -> bool {
    verdict.as_ref().is_err_and(|error| error.contains(words))
}

/// The row that a difference between verdicts is.
pub(crate) fn excuse(case: &Case, theirs: &Verdict, ours: &Verdict) -> Option<&'static str> {
    let mut all = EXCEPTIONS.iter();
    let found =
        all.find(|(_, covers)| theirs.is_ok() != ours.is_ok() && covers(case, theirs, ours));
    found.map(|(row, _)| *row)
}

/// Gives values that mean the same one form: numbers of nanoseconds, and sizes.
pub(crate) fn normalize(configuration: &mut Value) {
    let qps = &mut configuration["clientConnection"]["qps"];
    *qps = json!(qps.as_f64());
    let flush = &mut configuration["logging"]["flushFrequency"];
    if let Some(nanoseconds) = flush.as_i64() {
        *flush = json!(kpr_core::model::GoDuration::from_nanos(nanoseconds).to_string());
    }
    for format in ["json", "text"] {
        let size = &mut configuration["logging"]["options"][format]["infoBufferSize"];
        if let Some(bytes) = size.as_str().and_then(bytes) {
            *size = json!(bytes);
        }
    }
}

/// The number of bytes (or parts of one) of a quantity.
#[expect(clippy::cast_possible_truncation, reason = "small numbers")]
fn bytes(text: &str) -> Option<i64> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && !"+-.".contains(c))
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number: f64 = number.parse().ok()?;
    let factor = match unit {
        "" => 1.0,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        exponent => 10_f64.powi(exponent.strip_prefix(['e', 'E'])?.parse().ok()?),
    };
    Some((number * factor * 1000.0).round() as i64)
}

/// Each exception is a row.
pub(crate) fn are_documented() -> Result<()> {
    let path = kpr_testkit::repository().join("docs/design/differences.md");
    let text = fs::read_to_string(path)?;
    let part = text
        .split("## Configuration and flags\n")
        .nth(1)
        .context("no table of configuration and flags")?;
    for (row, _) in EXCEPTIONS {
        ensure!(part.contains(&format!("| {row} |")), "no row {row:?}");
    }
    Ok(())
}
