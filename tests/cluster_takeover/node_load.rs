// SPDX-License-Identifier: Apache-2.0
//! Load from the node itself: a part of this program that runs in the guest.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use kpr_testkit::guest::Guest;
use kpr_testkit::namespace::Namespace;
use kpr_testkit::steady_load::{Load, Plan};
use kpr_testkit::wait;

/// The argument before file, rate, number of long-lived connections, and targets.
const LOAD: &str = "--load";

/// Plays the part, if the arguments name it.
pub(crate) fn play(arguments: &[String]) -> bool {
    let [first, file, rate, held, targets @ ..] = arguments else {
        return false;
    };
    if first != LOAD {
        return false;
    }
    let result = || -> Result<Value> {
        let plan = Plan {
            targets: targets
                .iter()
                .map(|target| target.parse())
                .collect::<Result<_, _>>()?,
            rate: rate.parse()?,
            held: held.parse()?,
        };
        let load = Load::start(&Namespace::current()?, plan)?;
        fs::write(format!("{file}.started"), "")?;
        while !Path::new(&format!("{file}.stop")).exists() {
            wait::pause();
        }
        let tally = load.finish()?;
        Ok(json!({"line": tally.line(), "failures": tally.failures, "answered": tally.answered}))
    };
    let result = result().unwrap_or_else(|error| json!({"failures": [format!("{error:#}")]}));
    fs::write(format!("{file}.new"), result.to_string()).expect("/run can be written");
    fs::rename(format!("{file}.new"), file).expect("/run can be written");
    true
}

/// The load that runs in there.
#[derive(Debug)]
pub(crate) struct NodeLoad(String);

impl NodeLoad {
    pub(crate) fn start(
        guest: &mut Guest,
        name: &str,
        targets: &[SocketAddr],
        rate: u32,
        held: usize,
    ) -> Result<Self> {
        let file = format!("/run/load-{name}");
        let own = std::env::current_exe()?;
        let targets: Vec<String> = targets.iter().map(ToString::to_string).collect();
        guest.run(&format!(
            "{} {LOAD} {file} {rate} {held} {} </dev/null >{file}.log 2>&1 &",
            own.display(),
            targets.join(" ")
        ));
        wait::until("the node has its connections", || {
            let started = guest.answer(&format!("[ -e {file}.started ] || cat {file} {file}.log"));
            ensure!(
                started.stdout.is_empty() && started.code == Some(0),
                "{started:?}"
            );
            Ok(())
        })?;
        Ok(Self(file))
    }

    /// Ends it; says what came of it.
    pub(crate) fn finish(self, guest: &mut Guest) -> Result<Value> {
        let file = self.0;
        guest.run(&format!("touch {file}.stop"));
        wait::until("the node has ended its connections", || {
            let text = guest.answer(&format!("cat {file}")).stdout;
            serde_json::from_str(&text).with_context(|| format!("it says {text:?}"))
        })
    }
}
