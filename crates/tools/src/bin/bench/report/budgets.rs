// SPDX-License-Identifier: Apache-2.0
//! Performance budgets, and whether the measured figures meet them.

use std::fmt::Write as _;

use super::figures::{
    self, BURST_CPU, BYTES, COLD, ENDPOINT, Figure, IDLE_MEMORY, IDLE_PROCESSES, MEMORY, MESSAGES,
    NEW_SERVICE, PLAIN_PACKET, RULES, SERVICE_PACKET,
};
use super::results::{
    Cluster, IPTABLES, IPVS, Mode, OURS, RULES_IPTABLES, RULES_NFTABLES, Results, THEIRS,
};
use crate::sample::{Sample, short};

const SMALL: Cluster = Cluster::new(100, 10);
const MIDDLE: Cluster = Cluster::new(1_000, 10);
const LARGE: Cluster = Cluster::new(5_000, 10);
const LARGEST: Cluster = Cluster::new(10_000, 10);
const WIDE: Cluster = Cluster::new(100, 1_000);

/// A row of the table.
struct Line {
    what: String,
    budget: String,
    /// Upper bound for `ours`.
    limit: f64,
    ours: f64,
    shown: String,
    theirs: String,
}

pub(super) fn write(text: &mut String, results: &Results) -> std::fmt::Result {
    let mut lines = vec![
        over_floor(results),
        most(results, IPVS, ENDPOINT, MIDDLE, 50.0),
        flat(results),
        most(results, IPVS, IDLE_PROCESSES, MIDDLE, 0.0),
        most(results, IPTABLES, COLD, LARGE, 1.5),
        most(results, IPTABLES, NEW_SERVICE, LARGE, 400.0),
        most(results, IPTABLES, RULES, LARGE, 65_000.0),
        most(results, IPTABLES, PLAIN_PACKET, LARGE, 3.0),
        most(results, IPTABLES, SERVICE_PACKET, LARGE, 3.0),
    ];
    for mode in [IPVS, IPTABLES] {
        lines.push(most(results, mode, MEMORY, LARGE, 45.0));
    }
    for mode in [IPVS, IPTABLES] {
        lines.push(memory_slope(results, mode, MIDDLE, LARGEST));
        lines.push(memory_slope(results, mode, SMALL, WIDE));
    }
    for mode in [IPVS, IPTABLES] {
        for cluster in [SMALL, MIDDLE, LARGE, LARGEST, WIDE] {
            lines.extend(burst(results, mode, cluster));
        }
    }
    lines.extend(ways(results));
    writeln!(
        text,
        "| what | budget | measured | kube-proxy in the same run | met |\n|---|---|---|---|---|"
    )?;
    for line in lines {
        let met = if line.ours.is_nan() {
            "not measured"
        } else if line.ours <= line.limit {
            "yes"
        } else {
            "**no**"
        };
        writeln!(
            text,
            "| {} | {} | {} | {} | {met} |",
            line.what, line.budget, line.shown, line.theirs
        )?;
    }
    writeln!(
        text,
        "| packets lost or connections reset by restart, takeover, mode switch | 0 | covered by the tests `netns_drop_in`, `cluster_drop_in`, `netns_resilience` | | |"
    )
}

fn sample(results: &Results, mode: Mode, who: &str, cluster: Cluster, figure: Figure) -> Sample {
    results.sample(mode, who, cluster, |of| figure.numbers(of))
}

fn name(mode: Mode) -> &'static str {
    if mode == IPVS {
        "IPVS (guest)"
    } else {
        "iptables"
    }
}

/// A figure with an absolute budget.
fn most(results: &Results, mode: Mode, figure: Figure, cluster: Cluster, limit: f64) -> Line {
    let of = |who| sample(results, mode, who, cluster, figure);
    let (ours, theirs) = (of(OURS), of(THEIRS));
    let ended = results.limit(mode, THEIRS, cluster);
    Line {
        what: format!("{}, {cluster}: {}", name(mode), figure.what),
        budget: format!("{limit} {}", figure.unit).trim_end().to_owned(),
        limit,
        ours: ours.median(),
        shown: ours.to_string(),
        theirs: figures::cell(&theirs, ended),
    }
}

/// Cold start, as a multiple of raw netlink messages.
fn over_floor(results: &Results) -> Line {
    let floor = results.other("floor", MIDDLE, "/seconds");
    let of = |who| sample(results, IPVS, who, MIDDLE, COLD);
    let (ours, theirs) = (of(OURS), of(THEIRS));
    let ended = results.limit(IPVS, THEIRS, MIDDLE);
    let times = |sample: &Sample| short(sample.median() / floor.median());
    Line {
        what: format!("IPVS (guest), {MIDDLE}: cold start, as a multiple of raw netlink messages"),
        budget: "1.2".to_owned(),
        limit: 1.2,
        ours: ours.median() / floor.median(),
        shown: format!("{}: {ours} s over {floor} s", times(&ours)),
        theirs: if theirs.is_empty() {
            figures::cell(&theirs, ended)
        } else {
            format!("{}: {theirs} s", times(&theirs))
        },
    }
}

/// IPVS mode with rules in nftables against rules in iptables, where both were measured.
fn ways(results: &Results) -> Vec<Line> {
    let of = |mode, cluster, figure| sample(results, mode, OURS, cluster, figure);
    let mut lines = Vec::new();
    let mut line = |what: String, budget: f64, ours: &Sample, other: &Sample| {
        if ours.is_empty() || other.is_empty() {
            return;
        }
        let ratio = ours.median() / other.median();
        lines.push(Line {
            what: format!("IPVS with rules in nftables (qemu), {what}"),
            budget: budget.to_string(),
            limit: budget,
            ours: ratio,
            shown: format!("{}: {ours} over {other}", short(ratio)),
            theirs: String::new(),
        });
    };
    let floor = results.other("floor-rules-nftables", MIDDLE, "/seconds");
    line(
        format!("{MIDDLE}: cold start, as a multiple of raw netlink messages"),
        1.15,
        &of(RULES_NFTABLES, MIDDLE, COLD),
        &floor,
    );
    for cluster in [SMALL, LARGEST] {
        for figure in [ENDPOINT, MESSAGES, BYTES] {
            line(
                format!("{cluster}: {}, over rules in iptables", figure.what),
                1.0,
                &of(RULES_NFTABLES, cluster, figure),
                &of(RULES_IPTABLES, cluster, figure),
            );
        }
    }
    line(
        "one endpoint changed, 10,000 Services over 100".to_owned(),
        1.2,
        &of(RULES_NFTABLES, LARGEST, ENDPOINT),
        &of(RULES_NFTABLES, SMALL, ENDPOINT),
    );
    lines
}

/// One change at 10,000 Services, as a multiple of one at 100 measured right before.
fn flat(results: &Results) -> Line {
    let large = sample(results, IPVS, OURS, LARGEST, ENDPOINT);
    let mut small = results.named("flat-", |of| ENDPOINT.numbers(of));
    if small.is_empty() {
        small = sample(results, IPVS, OURS, SMALL, ENDPOINT);
    }
    let theirs = |cluster| sample(results, IPVS, THEIRS, cluster, ENDPOINT);
    let (their_large, their_small) = (theirs(MIDDLE), theirs(SMALL));
    let ratio = large.median() / small.median();
    Line {
        what: "IPVS (guest): one endpoint changed, 10,000 Services over 100".to_owned(),
        budget: "1.2".to_owned(),
        limit: 1.2,
        ours: ratio,
        shown: format!("{}: {large} ms over {small} ms", short(ratio)),
        theirs: format!(
            "1,000 over 100: {}",
            figures::ratio(&their_large, &their_small)
        ),
    }
}

/// Bytes per additional endpoint, beyond the model's own.
fn memory_slope(results: &Results, mode: Mode, few: Cluster, many: Cluster) -> Line {
    let count = |cluster: Cluster| number(cluster.services * cluster.endpoints);
    let endpoints = count(many) - count(few);
    let slope =
        |many: &Sample, few: &Sample, unit: f64| (many.median() - few.median()) * unit / endpoints;
    let model = |cluster| results.other("model", cluster, "/memory/rssKb");
    let model = slope(&model(many), &model(few), 1024.0);
    let of = |who, cluster| sample(results, mode, who, cluster, IDLE_MEMORY);
    let total = |who| slope(&of(who, many), &of(who, few), 1024.0 * 1024.0);
    let beyond = total(OURS) - model;
    Line {
        what: format!(
            "{}: memory per endpoint from {few} to {many}, beyond the model's own",
            name(mode)
        ),
        budget: "600 bytes".to_owned(),
        limit: 600.0,
        ours: beyond,
        shown: format!(
            "{}: {} minus the model's {}",
            short(beyond),
            short(total(OURS)),
            short(model)
        ),
        theirs: format!("{} in total", short(total(THEIRS))),
    }
}

#[expect(clippy::cast_precision_loss, reason = "at most 100,000")]
fn number(count: u64) -> f64 {
    count as f64
}

/// CPU of a burst, at most a tenth of kube-proxy's; `None` where either was not measured.
fn burst(results: &Results, mode: Mode, cluster: Cluster) -> Option<Line> {
    let of = |who| sample(results, mode, who, cluster, BURST_CPU);
    let (ours, theirs) = (of(OURS), of(THEIRS));
    if ours.is_empty() || theirs.is_empty() {
        return None;
    }
    let share = ours.median() / theirs.median();
    Some(Line {
        what: format!(
            "{}, {cluster}: CPU of a burst, as a fraction of kube-proxy's",
            name(mode)
        ),
        budget: "0.1".to_owned(),
        limit: 0.1,
        ours: share,
        shown: format!("{}: {ours} s", short(share)),
        theirs: format!("{theirs} s"),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The table for bursts that take this much CPU, of ours and of kube-proxy.
    fn table(ours: f64, theirs: f64) -> String {
        let folder = tempfile::tempdir().expect("a folder");
        for (who, seconds) in [(OURS, ours), (THEIRS, theirs)] {
            let result: Value = json!({
                "kind": "case", "who": who, "mode": "iptables", "backend": "legacy",
                "services": 5_000, "endpoints": 10, "controller": false,
                "burst": { "cpuSeconds": seconds },
            });
            let path = folder.path().join(format!("{who}.json"));
            std::fs::write(path, result.to_string()).expect("written");
        }
        let results = Results::read(folder.path()).expect("results");
        let mut text = String::new();
        write(&mut text, &results).expect("a table");
        text
    }

    #[test]
    fn a_budget_is_met_up_to_its_limit() {
        let line = |text: String| {
            let mut lines = text.lines();
            lines
                .find(|line| line.contains("5000 x 10: CPU of a burst"))
                .map(str::to_owned)
        };
        let kept = line(table(1.0, 20.0)).expect("a line");
        assert!(kept.ends_with("| yes |"), "{kept}");
        let missed = line(table(3.0, 20.0)).expect("a line");
        assert!(missed.ends_with("| **no** |"), "{missed}");
    }

    #[test]
    fn a_figure_that_was_not_measured_does_not_meet_its_budget() {
        let text = table(1.0, 20.0);
        let rules = text.lines().find(|line| line.contains("rules, IPv4"));
        assert!(rules.is_some_and(|line| line.ends_with("| not measured |")));
    }
}
