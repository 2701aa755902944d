// SPDX-License-Identifier: Apache-2.0
//! Two proxies on two equal nodes read the same API server while Services and EndpointSlices change
//! at random. When both have caught up, the same packets are sent on both nodes, and they must meet
//! the same fate, but for [`exceptions`]. A case that fails is printed with its seed and made
//! small.
//!
//! `KPR_SEED=N` repeats a case, `KPR_SOAK=N` goes on with new ones for N minutes.

pub mod api;
pub mod case;
pub mod dice;
pub mod exceptions;
pub mod objects;
pub mod probe;
pub mod run;
pub mod side;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

use case::Size;
use exceptions::Pair;
use run::Plan;

/// Runs these pairs, with so many cases each. `binary` is our program.
pub fn main(binary: &'static Path, pairs: &'static [Pair], size: Size, count: usize) -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One API server for all.
    arguments.test_threads = Some(1);
    let testbed = std::env::var_os("KPR_TESTBED").map(PathBuf::from);
    let told = |error: anyhow::Error| Failed::from(format!("{error:?}"));
    let mut trials: Vec<Trial> = pairs
        .iter()
        .map(|pair| {
            let directory = testbed.clone();
            let run = move || {
                let directory = directory.ok_or("KPR_TESTBED is not set")?;
                let plan = Plan::new(binary, size, count).map_err(told)?;
                run::run(*pair, &directory, plan).map_err(told)
            };
            Trial::test(pair.name(), run).with_ignored_flag(testbed.is_none())
        })
        .collect();
    trials.push(Trial::test(
        "each_exception_is_a_row_of_architecture_md",
        move || exceptions::are_documented().map_err(told),
    ));
    libtest_mimic::run(&arguments, trials).exit_code()
}
