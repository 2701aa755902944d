// SPDX-License-Identifier: Apache-2.0
//! Runs cases on both nodes, and makes small what fails.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::api::Cluster;
use super::case::{self, Size, Step};
use super::dice::Dice;
use super::exceptions::{self, Pair, Situation};
use super::objects::Service;
use super::probe::{Difference, Probe, compare};
use super::side::{Bridge, Side};
use crate::testbed::Testbed;
use crate::traffic::Patience;
use crate::wait;

/// Seeds that are always run.
const FIXED: [u64; 2] = [1, 2];
/// Probes each time.
const PROBES: usize = 48;
/// A case that fails is not tried again more often than that to make it small.
const MOST_ATTEMPTS: usize = 150;

/// Both nodes, one API server.
pub struct Arena {
    pair: Pair,
    cluster: Cluster,
    sides: [Side; 2],
    /// Times that both have caught up.
    quiet: u16,
    /// Probes that were sent.
    sent: usize,
    /// How often each exception was met.
    excused: BTreeMap<&'static str, usize>,
}

/// How many cases are run.
pub struct Plan {
    /// Our program.
    binary: PathBuf,
    seeds: Vec<u64>,
    /// More of them, as long as that.
    soak: Duration,
    size: Size,
}

impl Plan {
    /// From the environment: `KPR_SEED` repeats one case, `KPR_SOAK` goes on for so many minutes.
    pub fn new(binary: &Path, size: Size, count: usize) -> Result<Self> {
        let number = |name| -> Result<Option<u64>> {
            let Ok(text) = std::env::var(name) else {
                return Ok(None);
            };
            Ok(Some(
                text.parse().with_context(|| format!("{name}={text}"))?,
            ))
        };
        let seeds = match number("KPR_SEED")? {
            Some(seed) => vec![seed],
            None => FIXED
                .into_iter()
                .chain([random_seed()?])
                .take(count)
                .collect(),
        };
        let soak = Duration::from_mins(number("KPR_SOAK")?.unwrap_or(0));
        Ok(Self {
            // Another build of it: to see that the test finds what is wrong with that.
            binary: std::env::var_os("KPR_BINARY").map_or_else(|| binary.to_owned(), PathBuf::from),
            seeds,
            soak,
            size,
        })
    }
}

fn random_seed() -> Result<u64> {
    let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    // Short enough to be typed.
    Ok(u64::from_str_radix(&uuid[..8], 16)?)
}

/// All cases of a plan.
pub fn run(pair: Pair, directory: &Path, plan: Plan) -> Result<()> {
    let testbed = Testbed::open(directory).map_err(anyhow::Error::msg)?;
    let mut arena = Arena::new(pair, &plan.binary, &testbed)?;
    let start = wait::now();
    let (mut seeds, mut failures, mut cases) = (plan.seeds.into_iter(), Vec::new(), 0);
    loop {
        let seed = match seeds.next() {
            Some(seed) => seed,
            None if start.elapsed() < plan.soak => random_seed()?,
            None => break,
        };
        eprintln!("{}: KPR_SEED={seed}", pair.name());
        cases += 1;
        if let Some(failure) = arena.case(seed, plan.size)? {
            eprintln!("{failure}");
            failures.push(failure);
        }
    }
    eprintln!(
        "{}: {cases} cases, {} probes, {:?}, excused: {:?}",
        pair.name(),
        arena.sent,
        start.elapsed(),
        arena.excused
    );
    arena.cluster.clear()?;
    if failures.is_empty() {
        return Ok(());
    }
    bail!("{}", failures.join("\n"))
}

impl Arena {
    fn new(pair: Pair, binary: &Path, testbed: &Testbed) -> Result<Self> {
        let cluster = Cluster::new(testbed)?;
        let bridge = Bridge::new(testbed)?;
        let [left, right] = pair.contestants();
        let sides = [
            Side::new(left, binary, 0, &bridge, testbed)?,
            Side::new(right, binary, 1, &bridge, testbed)?,
        ];
        Ok(Self {
            pair,
            cluster,
            sides,
            quiet: 0,
            sent: 0,
            excused: BTreeMap::new(),
        })
    }

    /// Waits until both proxies have done all that was written. Rounds do not overlap: who has done
    /// the second mark has finished the round that did the first.
    fn catch_up(&mut self) -> Result<()> {
        self.quiet = self.quiet.wrapping_add(1);
        for _ in 0..2 {
            let mark = self.cluster.mark()?;
            self.sides.iter().try_for_each(|side| side.reaches(mark))?;
        }
        Ok(())
    }

    /// Runs a case. What it says when both differ: how it comes about, in as few steps as were
    /// found.
    fn case(&mut self, seed: u64, size: Size) -> Result<Option<String>> {
        let steps = case::random(seed, size);
        let Some((steps, differences)) = self.attempt(&steps, seed, None)? else {
            return Ok(None);
        };
        let mut text = format!("{}: KPR_SEED={seed} finds\n", self.pair.name());
        for difference in &differences {
            writeln!(text, "{difference}")?;
        }
        eprintln!("{text}making it small ...");
        let probe = differences[0].probe;
        let (small, attempts) = self.shrink(steps.clone(), probe)?;
        // What it looks like now; a difference that comes and goes has none.
        let last = self.attempt(&small, seed, Some(probe))?;
        let last = last.and_then(|(_, differences)| differences.into_iter().next());
        let shown = last.map_or_else(|| "not met again".to_owned(), |it| it.to_string());
        writeln!(
            text,
            "{} steps made {} in {attempts} attempts:\n{}{shown}",
            steps.len(),
            small.len(),
            case::print(&small)
        )?;
        for side in &self.sides {
            text.push_str(&side.log());
        }
        Ok(Some(text))
    }

    /// Does the steps until something differs: the steps up to there, and what. With a probe only
    /// this one is sent, in the end.
    fn attempt(
        &mut self,
        steps: &[Step],
        seed: u64,
        only: Option<Probe>,
    ) -> Result<Option<(Vec<Step>, Vec<Difference>)>> {
        self.cluster.clear()?;
        self.catch_up()?;
        let mut dice = Dice::new(!seed);
        let mut there: BTreeMap<u8, Service> = BTreeMap::new();
        // All that there ever was, also what is gone.
        let mut ever: Vec<Service> = Vec::new();
        let mut new: Vec<Service> = Vec::new();
        for (index, step) in steps.iter().enumerate() {
            self.cluster.take(step)?;
            match step {
                Step::Put(service) => {
                    if let Some(before) = there.insert(service.n, service.clone()) {
                        new.push(before);
                    }
                    new.push(service.clone());
                }
                Step::Delete(n) => new.extend(there.remove(n)),
                Step::Probe => {
                    self.catch_up()?;
                    let is_last = index + 1 == steps.len();
                    let probes = match only {
                        Some(probe) if is_last => vec![probe],
                        Some(_) => Vec::new(),
                        None => {
                            ever.append(&mut new.clone());
                            choose(&new, &ever, &mut dice)
                        }
                    };
                    new.clear();
                    // A slow machine must not be a difference, but need not be waited for again and
                    // again.
                    let patience = if only.is_none() {
                        Patience::Long
                    } else {
                        Patience::Short
                    };
                    let differences = self.differences(&probes, &there, patience)?;
                    if !differences.is_empty() {
                        return Ok(Some((steps[..=index].to_vec(), differences)));
                    }
                }
            }
        }
        Ok(None)
    }

    /// What differs, is no exception, and stays so.
    fn differences(
        &mut self,
        probes: &[Probe],
        services: &BTreeMap<u8, Service>,
        patience: Patience,
    ) -> Result<Vec<Difference>> {
        self.sent += probes.len();
        let first = self.quiet.wrapping_mul(17);
        let found = compare(&self.sides, probes, services, first, Patience::Short)?;
        let found = self.unexcused(found, services);
        if found.is_empty() {
            return Ok(found);
        }
        self.catch_up()?;
        let again: Vec<Probe> = found.iter().map(|difference| difference.probe).collect();
        let first = self.quiet.wrapping_mul(17);
        let found = compare(&self.sides, &again, services, first, patience)?;
        Ok(self.unexcused(found, services))
    }

    fn unexcused(
        &mut self,
        found: Vec<Difference>,
        services: &BTreeMap<u8, Service>,
    ) -> Vec<Difference> {
        let (pair, excused) = (self.pair, &mut self.excused);
        let is_unexcused = |difference: &Difference| {
            let situation = Situation {
                difference,
                services,
            };
            let exception = exceptions::excuse(pair, situation);
            if let Some(exception) = exception {
                *excused.entry(exception.case).or_default() += 1;
            }
            exception.is_none()
        };
        found.into_iter().filter(is_unexcused).collect()
    }

    /// Leaves out steps, then parts of Services, as long as the probe still differs.
    fn shrink(&mut self, mut steps: Vec<Step>, probe: Probe) -> Result<(Vec<Step>, usize)> {
        let mut attempts = 0;
        let mut still_differs = |arena: &mut Self, steps: &[Step]| -> Result<bool> {
            if attempts >= MOST_ATTEMPTS {
                return Ok(false);
            }
            attempts += 1;
            Ok(arena.attempt(steps, 0, Some(probe))?.is_some())
        };
        // The last step is the one that sends packets. Large parts first.
        let mut size = steps.len() / 2;
        while size > 0 {
            let mut at = 0;
            while at + size < steps.len() {
                let mut fewer = steps.clone();
                fewer.drain(at..at + size);
                if still_differs(self, &fewer)? {
                    steps = fewer;
                } else {
                    at += size;
                }
            }
            size /= 2;
        }
        for index in 0..steps.len() {
            while let Step::Put(service) = &steps[index] {
                let mut smaller = None;
                for simpler in service.simpler() {
                    let mut candidate = steps.clone();
                    candidate[index] = Step::Put(simpler);
                    if still_differs(self, &candidate)? {
                        smaller = Some(candidate);
                        break;
                    }
                }
                let Some(smaller) = smaller else { break };
                steps = smaller;
            }
        }
        Ok((steps, attempts))
    }
}

/// Probes, most of them to what is new.
fn choose(new: &[Service], ever: &[Service], dice: &mut Dice) -> Vec<Probe> {
    let (new, ever): (Vec<&Service>, Vec<&Service>) = (new.iter().collect(), ever.iter().collect());
    let mut probes: Vec<Probe> = (0..PROBES)
        .filter_map(|_| {
            let from = if dice.chance(75) && !new.is_empty() {
                &new
            } else {
                &ever
            };
            (!from.is_empty()).then(|| Probe::random(from, dice))
        })
        .collect();
    probes.sort_unstable();
    probes.dedup();
    probes
}
