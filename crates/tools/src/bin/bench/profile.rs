// SPDX-License-Identifier: Apache-2.0
//! Stacks for flame graphs, and tables, from the recordings of `hack/profile`.

mod guest;
mod stacks;
mod tables;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use serde_json::Value;

use guest::Guest;
use stacks::{Sample, Stacks};

/// The profiled parts of a case: their name in `--sections` and in tables.
const PHASES: [(&str, &str); 2] = [("cold", "cold start"), ("burst", "burst")];

#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Directory with the recordings; the stacks are written there as well.
    folder: PathBuf,
    /// Samples per second.
    #[arg(long)]
    frequency: u32,
    /// Also write the tables into this page.
    #[arg(long)]
    page: Option<PathBuf>,
}

/// The recordings of one mode.
struct Mode {
    name: &'static str,
    /// By phase, in the order of `PHASES`.
    cpu: Vec<Stacks>,
    heap: Option<Stacks>,
    /// Results of the sampled case and of the one under strace.
    case: Value,
    trace: Value,
}

#[expect(clippy::print_stdout, reason = "the answer of a command")]
pub(crate) fn make(options: &Options) -> anyhow::Result<()> {
    let mut modes = Vec::new();
    for name in ["iptables", "ipvs"] {
        // Not all modes need have been recorded.
        if options.folder.join(format!("{name}.json")).exists() {
            modes.push(mode(&options.folder, name)?);
        }
    }
    let tables = tables::write(&modes, options.frequency)?;
    println!("{tables}");
    if let Some(page) = &options.page {
        let text = crate::report::between_markers(page, "hack/profile", &tables)?;
        std::fs::write(page, text)?;
    }
    Ok(())
}

fn mode(folder: &Path, name: &'static str) -> anyhow::Result<Mode> {
    let read = |file: String| {
        let path = folder.join(file);
        std::fs::read_to_string(&path).with_context(|| path.display().to_string())
    };
    let json = |file: String| anyhow::Ok(serde_json::from_str::<Value>(&read(file)?)?);
    let mut samples = Sample::parse(&read(format!("{name}-perf.json"))?)?;
    let sections = read(format!("{name}.sections"))?;
    if name == "ipvs" {
        Guest::new(
            &read("ipvs.maps".to_owned())?,
            &read("symbols".to_owned())?,
            &read("ipvs.kallsyms".to_owned())?,
        )?
        .name_all(
            &mut samples,
            section(&sections, "cold").context("no section cold")?.0,
        );
    }
    let mut cpu = Vec::new();
    for (key, phase) in PHASES {
        let (begin, end) = section(&sections, key).with_context(|| format!("no section {key}"))?;
        let during = samples.iter().filter(|of| begin <= of.at && of.at < end);
        let stacks = Stacks::of_samples(during);
        let file = format!("{name}-{}.folded", phase.replace(' ', "-"));
        std::fs::write(folder.join(file), stacks.folded())?;
        cpu.push(stacks);
    }
    let heap = folder.join(format!("{name}-heap.folded"));
    let heap = heap
        .exists()
        .then(|| Stacks::parse(&read(format!("{name}-heap.folded"))?))
        .transpose()?;
    Ok(Mode {
        name,
        cpu,
        heap,
        case: json(format!("{name}.json"))?,
        trace: json(format!("{name}-trace.json"))?,
    })
}

/// Begin and end of a section in Unix seconds.
fn section(sections: &str, name: &str) -> Option<(f64, f64)> {
    sections.lines().find_map(|line| {
        let mut words = line.split(' ');
        let is_it = words.next() == Some(name);
        let mut number = || words.next()?.parse().ok();
        is_it.then_some((number()?, number()?))
    })
}
