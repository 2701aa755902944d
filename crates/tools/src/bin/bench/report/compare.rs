// SPDX-License-Identifier: Apache-2.0
//! Two builds of the proxy, measured in turns: the ratio of each figure, overall and in each run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::path::PathBuf;

use clap::Args;
use serde_json::Value;

use super::figures::{FIGURES, Figure};
use super::results::{AGAINST, Cluster, MODES, Mode, OURS, Results};
use crate::sample::{Sample, short};

/// A figure may be so many times that of the other build.
const TOLERATED: f64 = 1.05;

#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Folder of results, from `hack/bench --against`.
    results: PathBuf,
}

#[expect(clippy::print_stdout, reason = "the answer of a command")]
pub(crate) fn print(options: &Options) -> anyhow::Result<()> {
    println!("{}", table(&Results::read(&options.results)?)?);
    Ok(())
}

/// How a figure of this build stands to that of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Fine,
    /// Too high overall, but in some run not higher than the other build.
    Noise,
    /// Too high overall, and higher in each run.
    Worse,
    /// No ratio: differences can be zero or less.
    None,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fine => "",
            Self::Noise => "noise",
            Self::Worse => "**worse**",
            Self::None => "no ratio",
        })
    }
}

/// The same figure of both builds.
struct Pair {
    ours: Sample,
    against: Sample,
    /// Of medians.
    ratio: f64,
    by_run: Sample,
}

impl Pair {
    fn new(results: &Results, mode: Mode, cluster: Cluster, figure: Figure) -> Option<Self> {
        let of = |who| results.sample(mode, who, cluster, |of| figure.numbers(of));
        let by_run = |who| -> BTreeMap<u64, f64> {
            let runs = results.cases(mode, who, cluster).filter_map(|case| {
                let median = Sample::new(figure.numbers(case)).median();
                let run = case.get("run").and_then(Value::as_u64)?;
                (!median.is_nan()).then_some((run, median))
            });
            runs.collect()
        };
        let (ours, against) = (of(OURS), of(AGAINST));
        if ours.is_empty() || against.is_empty() {
            return None;
        }
        let other = by_run(AGAINST);
        let ratios = by_run(OURS)
            .into_iter()
            .filter_map(|(run, ours)| Some(ratio(ours, *other.get(&run)?)));
        Some(Self {
            ratio: ratio(ours.median(), against.median()),
            by_run: Sample::new(ratios.filter(|ratio| ratio.is_finite()).collect()),
            ours,
            against,
        })
    }

    fn verdict(&self) -> Verdict {
        if self.ratio.is_nan() {
            Verdict::None
        } else if self.ratio <= TOLERATED {
            Verdict::Fine
        } else if self.by_run.min() <= 1.0 {
            Verdict::Noise
        } else {
            Verdict::Worse
        }
    }
}

/// Of two costs. Where there is none on both sides, they are equal.
fn ratio(ours: f64, against: f64) -> f64 {
    if (ours - against).abs() < f64::EPSILON {
        1.0
    } else if ours < 0.0 || against < 0.0 {
        f64::NAN
    } else {
        ours / against
    }
}

fn table(results: &Results) -> Result<String, fmt::Error> {
    let mut text = String::from(
        "| mode | Services x endpoints | what | this build | other build | ratio | in each run | |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    let mut counts = [0_usize; 3];
    for (mode, name) in MODES {
        for cluster in results.clusters() {
            for figure in FIGURES {
                let Some(pair) = Pair::new(results, mode, cluster, figure) else {
                    continue;
                };
                let verdict = pair.verdict();
                let [all, noise, worse] = &mut counts;
                *all += 1;
                *noise += usize::from(verdict == Verdict::Noise);
                *worse += usize::from(verdict == Verdict::Worse);
                writeln!(
                    text,
                    "| {name} | {cluster} | {} | {} | {} | {} | {}..{} | {verdict} |",
                    figure.title(),
                    pair.ours,
                    pair.against,
                    short(pair.ratio),
                    short(pair.by_run.min()),
                    short(pair.by_run.max()),
                )?;
            }
        }
    }
    let [all, noise, worse] = counts;
    let runs: BTreeSet<u64> = results.runs();
    writeln!(
        text,
        "\n{all} figures, {} runs with each build: {worse} worse than {TOLERATED} times, {noise} more only in some runs",
        runs.len()
    )?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Verdict on the cold start after these seconds in each run, of this build and of the other.
    fn verdict(ours: &[f64], against: &[f64]) -> String {
        let folder = tempfile::tempdir().expect("a folder");
        for (who, runs) in [(OURS, ours), (AGAINST, against)] {
            for (run, seconds) in runs.iter().enumerate() {
                let result = json!({
                    "kind": "case", "who": who, "mode": "iptables", "backend": "legacy", "run": run,
                    "services": 100, "endpoints": 10, "cold": { "seconds": seconds },
                });
                let path = folder.path().join(format!("{run}-{who}.json"));
                std::fs::write(path, result.to_string()).expect("written");
            }
        }
        let results = Results::read(folder.path()).expect("results");
        let table = table(&results).expect("a table");
        let line = table.lines().find(|line| line.contains("cold start"));
        let cells: Vec<&str> = line.expect("a line").split(" | ").collect();
        cells.get(5..).expect("cells").join(" ")
    }

    #[test]
    fn a_build_is_worse_if_it_is_so_in_every_run() {
        assert_eq!(verdict(&[1.0, 1.1, 1.2], &[1.0, 1.1, 1.2]), "1 1..1  |");
        assert_eq!(
            verdict(&[1.1, 1.2, 1.3], &[1.0, 1.0, 1.0]),
            "1.20 1.10..1.30 **worse** |"
        );
        assert_eq!(
            verdict(&[0.9, 1.2, 1.3], &[1.0, 1.0, 1.0]),
            "1.20 0.90..1.30 noise |"
        );
        assert_eq!(
            verdict(&[0.5, 0.5, 0.5], &[1.0, 1.0, 1.0]),
            "0.50 0.50..0.50  |"
        );
    }

    #[test]
    fn nothing_on_both_sides_is_equal() {
        assert!((ratio(0.0, 0.0) - 1.0).abs() < f64::EPSILON);
        assert!(ratio(1.0, 0.0).is_infinite());
        assert!(ratio(-0.1, 0.2).is_nan());
    }
}
