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

/// A figure may be this many times the other build's.
const TOLERATED: f64 = 1.05;

#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Directory of results of `hack/bench --against`.
    results: PathBuf,
}

#[expect(clippy::print_stdout, reason = "the answer of a command")]
pub(crate) fn print(options: &Options) -> anyhow::Result<()> {
    println!("{}", table(&Results::read(&options.results)?)?);
    Ok(())
}

/// How a figure compares with the other build's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Fine,
    /// Above the tolerance, but the runs of both builds overlap, or the difference is below the
    /// resolution.
    Noise,
    /// Above the tolerance, and every run is above every run of the other build.
    Worse,
    /// A negative figure: the difference of two measurements.
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
    /// Of the medians.
    ratio: f64,
    /// Ratio of the medians in each run.
    by_run: Sample,
    is_apart: bool,
    /// Identical builds differ by less.
    resolution: f64,
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
        let (our_runs, other_runs) = (by_run(OURS), by_run(AGAINST));
        let ratios = our_runs
            .iter()
            .filter_map(|(run, ours)| Some(ratio(*ours, *other_runs.get(run)?)));
        let ratios = ratios.filter(|ratio| ratio.is_finite()).collect();
        let least = our_runs.into_values().fold(f64::INFINITY, f64::min);
        let most = other_runs.into_values().fold(f64::NEG_INFINITY, f64::max);
        Some(Self {
            ratio: ratio(ours.median(), against.median()),
            by_run: Sample::new(ratios),
            is_apart: least > most,
            resolution: if figure.unit == "us" { 1.0 } else { 0.0 },
            ours,
            against,
        })
    }

    fn verdict(&self) -> Verdict {
        if self.ratio.is_nan() {
            Verdict::None
        } else if self.ratio <= TOLERATED {
            Verdict::Fine
        } else if self.is_apart && self.ours.median() - self.against.median() > self.resolution {
            Verdict::Worse
        } else {
            Verdict::Noise
        }
    }
}

/// Ratio of two costs: 1 if both are zero, NaN if one is negative.
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
        "| mode | Services x endpoints | what | this build | other build | ratio | by run | |\n\
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
        "\n{all} figures, {} runs with each build: {worse} worse than {TOLERATED} times, {noise} more within noise",
        runs.len()
    )?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The last cells for cold starts of these seconds, of this build and of the other.
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
    fn a_build_is_worse_if_all_its_runs_are() {
        assert_eq!(verdict(&[1.0, 1.1, 1.2], &[1.0, 1.1, 1.2]), "1 1..1  |");
        assert_eq!(
            verdict(&[1.1, 1.2, 1.3], &[1.0, 1.0, 1.0]),
            "1.20 1.10..1.30 **worse** |"
        );
        assert_eq!(
            verdict(&[1.1, 1.2, 1.4], &[1.0, 1.0, 1.2]),
            "1.20 1.10..1.20 noise |"
        );
        assert_eq!(
            verdict(&[0.5, 0.5, 0.5], &[1.0, 1.0, 1.0]),
            "0.50 0.50..0.50  |"
        );
    }

    #[test]
    fn two_zeros_are_equal() {
        assert!((ratio(0.0, 0.0) - 1.0).abs() < f64::EPSILON);
        assert!(ratio(1.0, 0.0).is_infinite());
        assert!(ratio(-0.1, 0.2).is_nan());
    }
}
