// SPDX-License-Identifier: Apache-2.0
//! Results as a table of budgets, a table of all figures, a CSV file and plots.

mod budgets;
pub(crate) mod compare;
mod figures;
mod plot;
mod results;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;

use results::Results;

#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Directory of results, or the `results.jsonl` that `--docs` wrote.
    results: PathBuf,
    /// Also write results, plots and the tables of `benchmarks.md` to this directory.
    #[arg(long)]
    docs: Option<PathBuf>,
}

#[expect(clippy::print_stdout, reason = "the answer of a command")]
pub(crate) fn make(options: &Options) -> anyhow::Result<()> {
    let results = Results::read(&options.results)?;
    let tables = tables(&results)?;
    println!("{tables}");
    if let Some(docs) = &options.docs {
        let folder = docs.join("benchmarks");
        std::fs::create_dir_all(&folder)?;
        let write = |path: PathBuf, text: String| {
            std::fs::write(&path, text).with_context(|| path.display().to_string())
        };
        write(folder.join("results.jsonl"), results.to_lines())?;
        write(folder.join("results.csv"), figures::csv(&results)?)?;
        write(docs.join("benchmarks.svg"), plot::draw(&results)?)?;
        let page = docs.join("benchmarks.md");
        write(
            page.clone(),
            between_markers(&page, "hack/bench --docs", &tables)?,
        )?;
    }
    Ok(())
}

fn tables(results: &Results) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    writeln!(text, "### Budgets\n")?;
    budgets::write(&mut text, results)?;
    writeln!(text, "\n### All figures\n")?;
    figures::write(&mut text, results)?;
    writeln!(
        text,
        "\n### Counts, under strace, 100 Services x 10 endpoints\n"
    )?;
    figures::write_counts(&mut text, results)?;
    Ok(text)
}

/// The page with the tables between a command's markers replaced.
pub(crate) fn between_markers(page: &Path, command: &str, tables: &str) -> anyhow::Result<String> {
    let begin = format!("<!-- begin: {command} -->");
    let end = format!("<!-- end: {command} -->");
    let text = std::fs::read_to_string(page).with_context(|| page.display().to_string())?;
    let parts = text.split_once(&begin).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(&end)?;
        Some((before, after))
    });
    let (before, after) = parts.context("the page has no begin and end markers")?;
    Ok(format!("{before}{begin}\n{tables}{end}{after}"))
}
