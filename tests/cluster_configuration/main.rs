// SPDX-License-Identifier: Apache-2.0
//! Random configuration files and command lines are given to kube-proxy v1.37.2
//! (`--write-config-to`) and to our reader: both take them or both refuse them, and the effective
//! configuration has the same fields, but for [`exceptions`].
//!
//! `KPR_CASES=N` plays so many of each instead of 100, `KPR_SEED=N` begins with another one. Of the
//! test bed only kube-proxy is used; without `KPR_TESTBED` the tests read *ignored*, as the rest of
//! their tier.
#![cfg(test)]
#![expect(clippy::disallowed_methods, reason = "kube-proxy is started")]

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail, ensure};
use kpr_testkit::differential::dice::Dice;
use kpr_testkit::testbed::Testbed;
use kube_proxy_rs::config::{self, ConfigError, file};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;

mod exceptions;
mod files;
mod flags;

/// Cases of each kind.
const CASES: usize = 100;

/// What both are given.
#[derive(Clone, Debug)]
struct Case {
    /// The lines of a file for `--config`.
    file: Option<Vec<String>>,
    flags: Vec<String>,
}

impl Case {
    fn new(file: Option<&str>, flags: Vec<String>) -> Self {
        let lines = |text: &str| text.split_inclusive('\n').map(str::to_owned).collect();
        Self {
            file: file.map(lines),
            flags,
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            writeln!(f, "the file\n{}", file.concat())?;
        }
        write!(f, "the flags {:?}", self.flags)
    }
}

/// Makes the case of a seed.
type Make = fn(u64) -> Case;

/// The effective configuration, or why there is none.
type Verdict = std::result::Result<Value, String>;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let has_bed = std::env::var_os("KPR_TESTBED").is_some();
    let tests: [(&str, Make); 4] = [
        ("files_mean_the_same", |seed| {
            let file = files::file(&mut Dice::new(seed));
            Case::new(Some(&file), Vec::new())
        }),
        ("flags_mean_the_same", |seed| {
            Case::new(None, flags::flags(&mut Dice::new(seed)))
        }),
        // Each alone, off and on: 600 cases are enough for all.
        ("gates_mean_the_same", |seed| {
            let gates = files::all_gates();
            let number = usize::try_from(seed / 2).unwrap_or_default();
            let (gate, value) = (gates[number % gates.len()], seed % 2 == 0);
            Case::new(None, vec![format!("--feature-gates={gate}={value}")])
        }),
        ("files_with_flags_beside_mean_the_same", |seed| {
            let mut dice = Dice::new(seed);
            let file = files::file(&mut dice);
            Case::new(Some(&file), flags::flags(&mut dice))
        }),
    ];
    let mut trials: Vec<Trial> = tests
        .into_iter()
        .map(|(name, case)| {
            let run = move || play(case).map_err(|error| Failed::from(format!("{error:?}")));
            Trial::test(name, run).with_ignored_flag(!has_bed)
        })
        .collect();
    let defaults = || {
        let compared = defaults_mean_the_same();
        compared.map_err(|error| Failed::from(format!("{error:?}")))
    };
    trials.push(Trial::test("defaults_mean_the_same", defaults).with_ignored_flag(!has_bed));
    trials.push(Trial::test("each_exception_is_documented", || {
        exceptions::are_documented().map_err(|error| Failed::from(format!("{error:?}")))
    }));
    trials.push(Trial::test("every_field_is_generated", || {
        every_field_is_generated().map_err(|error| Failed::from(format!("{error:?}")))
    }));
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn number(variable: &str, default: u64) -> Result<u64> {
    match std::env::var(variable) {
        Ok(text) => text.parse().context(variable.to_owned()),
        Err(_) => Ok(default),
    }
}

/// What is not given.
fn defaults_mean_the_same() -> Result<()> {
    const HEAD: &str =
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
    let world = World::new()?;
    for mode in ["", "iptables", "ipvs"] {
        let flag = format!("--proxy-mode={mode}");
        let flags = [flag].into_iter().filter(|_| !mode.is_empty()).collect();
        let file = format!("{HEAD}mode: {mode}\n");
        for case in [Case::new(None, flags), Case::new(Some(&file), Vec::new())] {
            let outcome = world.compare(&case)?;
            ensure!(
                matches!(outcome, Outcome::Same(true)),
                "{outcome:?}, for {case}"
            );
        }
    }
    Ok(())
}

fn play(make: Make) -> Result<()> {
    let world = World::new()?;
    let first = number("KPR_SEED", 1)?;
    let (mut taken, mut refused, mut excused) = (0, 0, 0);
    for seed in first..first + number("KPR_CASES", CASES as u64)? {
        let case = make(seed);
        match world.compare(&case)? {
            Outcome::Same(true) => taken += 1,
            Outcome::Same(false) => refused += 1,
            Outcome::Excused => excused += 1,
            Outcome::Differs(_) => {
                let small = world.shrunk(case)?;
                let Outcome::Differs(how) = world.compare(&small)? else {
                    bail!("seed {seed}: the case is not stable: {small}");
                };
                bail!("KPR_SEED={seed}: {how}, for {small}");
            }
        }
    }
    eprintln!("both took {taken}, both refused {refused}, {excused} known differences");
    Ok(())
}

#[derive(Debug)]
enum Outcome {
    /// Whether both took it.
    Same(bool),
    Excused,
    Differs(String),
}

struct World {
    kube_proxy: PathBuf,
    folder: tempfile::TempDir,
}

impl World {
    fn new() -> Result<Self> {
        Ok(Self {
            kube_proxy: Testbed::built("kube-proxy").map_err(anyhow::Error::msg)?,
            folder: tempfile::tempdir()?,
        })
    }

    fn compare(&self, case: &Case) -> Result<Outcome> {
        let mut arguments = Vec::new();
        if let Some(file) = &case.file {
            let input = self.folder.path().join("config.conf");
            fs::write(&input, file.concat())?;
            arguments.push(format!("--config={}", input.display()));
        }
        arguments.extend(case.flags.iter().cloned());
        let (theirs, ours) = (self.theirs(&arguments)?, ours(&arguments)?);
        if exceptions::excuse(case, &theirs, &ours).is_some() {
            return Ok(Outcome::Excused);
        }
        Ok(match (theirs, ours) {
            (Err(_), Err(_)) => Outcome::Same(false),
            (Ok(mut theirs), Ok(mut ours)) => {
                exceptions::normalize(&mut theirs);
                exceptions::normalize(&mut ours);
                match difference("", &theirs, &ours) {
                    Some(difference) => Outcome::Differs(difference),
                    None => Outcome::Same(true),
                }
            }
            (Ok(_), Err(error)) => Outcome::Differs(format!("only we refuse it: {error}")),
            (Err(error), Ok(_)) => Outcome::Differs(format!("only kube-proxy refuses it: {error}")),
        })
    }

    fn theirs(&self, arguments: &[String]) -> Result<Verdict> {
        let written = self.folder.path().join("written");
        let output = Command::new(&self.kube_proxy)
            .arg(format!("--write-config-to={}", written.display()))
            .args(arguments)
            .output()?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            // Behind the usage.
            let error = text.lines().rfind(|line| line.starts_with("Error: "));
            let error = error.map_or_else(|| text.clone(), str::to_owned);
            return Ok(Err(error));
        }
        let text = fs::read_to_string(&written)?;
        fs::remove_file(&written)?;
        Ok(Ok(parsed(&text)?))
    }

    /// The case without what the difference does not need.
    fn shrunk(&self, mut case: Case) -> Result<Case> {
        let differs = |case: &Case| -> Result<bool> {
            Ok(matches!(self.compare(case)?, Outcome::Differs(_)))
        };
        let mut index = 0;
        while index < case.flags.len() {
            let mut fewer = case.clone();
            fewer.flags.remove(index);
            if differs(&fewer)? {
                case = fewer;
            } else {
                index += 1;
            }
        }
        let mut index = 0;
        while index < case.file.as_ref().map_or(0, Vec::len) {
            let mut fewer = case.clone();
            if let Some(lines) = &mut fewer.file {
                lines.remove(index);
            }
            if differs(&fewer)? {
                case = fewer;
            } else {
                index += 1;
            }
        }
        Ok(case)
    }
}

fn ours(arguments: &[String]) -> Result<Verdict> {
    let words = ["kube-proxy-rs".to_owned(), "--write-config-to=x".to_owned()];
    let all = words.into_iter().chain(arguments.iter().cloned());
    Ok(match config::parse(all.map(OsString::from)) {
        Ok(config::Command::WriteConfig { settings, .. }) => {
            let text = file::encode(&settings.configuration)?;
            let value = parsed(&text)?;
            reads_back(&text, &value)?;
            Ok(value)
        }
        Ok(other) => bail!("{arguments:?}: {other:?}"),
        Err(error) => Err(ConfigError::report(&error)),
    })
}

/// What we write, we read without a remark.
fn reads_back(text: &str, value: &Value) -> Result<()> {
    let loaded = file::decode(Path::new("written"), text)?;
    ensure!(loaded.findings.is_empty(), "{:?}", loaded.findings);
    let again = parsed(&file::encode(&loaded.configuration)?)?;
    ensure!(again == *value, "{again} is not {value}");
    Ok(())
}

fn parsed(text: &str) -> Result<Value> {
    serde_saphyr::from_str(text).with_context(|| text.to_owned())
}

/// The first field that differs.
fn difference(path: &str, theirs: &Value, ours: &Value) -> Option<String> {
    if let (Value::Object(one), Value::Object(other)) = (theirs, ours) {
        let keys = one.keys().chain(other.keys());
        return keys.into_iter().find_map(|key| {
            let (one, other) = (one.get(key), other.get(key));
            let (one, other) = (one.unwrap_or(&Value::Null), other.unwrap_or(&Value::Null));
            difference(&format!("{path}.{key}"), one, other)
        });
    }
    (theirs != ours).then(|| format!("{path} is {theirs} for kube-proxy, and {ours} for us"))
}

fn every_field_is_generated() -> Result<()> {
    fn check(path: &str, value: &Value) -> Result<()> {
        if let Some(fields) = value.as_object() {
            return fields.iter().try_for_each(|(name, value)| {
                let path = format!("{path}.{name}");
                check(path.trim_start_matches('.'), value)
            });
        }
        let is_known = files::FIELDS.iter().any(|(known, _)| *known == path);
        ensure!(is_known || path == "apiVersion" || path == "kind", "{path}");
        Ok(())
    }
    let defaults = config::types::KubeProxyConfiguration::with_defaults();
    check("", &serde_json::to_value(defaults)?)
}
