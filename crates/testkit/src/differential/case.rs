// SPDX-License-Identifier: Apache-2.0
//! A case: what happens to the cluster, step by step. Every step says the whole of what it makes,
//! so that steps can be left out and those that remain still mean the same.

use std::collections::BTreeMap;
use std::fmt;

use super::dice::Dice;
use super::objects::{SERVICES, Service, name};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The Service with its slices is so from now on, whether it was there or not.
    Put(Service),
    Delete(u8),
    /// Both proxies catch up, and packets are sent.
    Probe,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Put(service) => {
                let slices = service
                    .slice_manifests()
                    .into_iter()
                    .map(|(_, slice)| slice);
                writeln!(f, "apply {}", service.manifest())?;
                writeln!(f, "  status {}", service.status()["status"])?;
                slices.into_iter().try_for_each(|slice| {
                    let (name, ports) = (&slice["metadata"]["name"], &slice["ports"]);
                    writeln!(f, "  slice {name} {ports} {}", slice["endpoints"])
                })
            }
            Self::Delete(n) => writeln!(f, "delete {}", name(*n)),
            Self::Probe => writeln!(f, "let both catch up"),
        }
    }
}

pub fn print(steps: &[Step]) -> String {
    steps.iter().map(ToString::to_string).collect()
}

/// How many steps a case has.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Times that packets are sent.
    pub probes: usize,
    /// Changes before each.
    pub changes: usize,
    pub services: u8,
}

impl Size {
    /// For kernels where a process takes a millisecond.
    pub const FAST: Self = Self {
        probes: 4,
        changes: 4,
        services: SERVICES,
    };
    /// For the guest kernel, where it takes a tenth of a second.
    pub const SLOW: Self = Self {
        probes: 1,
        changes: 3,
        services: 3,
    };
}

pub fn random(seed: u64, size: Size) -> Vec<Step> {
    let mut dice = Dice::new(seed);
    let mut there: BTreeMap<u8, Service> = BTreeMap::new();
    let mut steps = Vec::new();
    for round in 0..size.probes {
        let changes = if round == 0 {
            usize::from(size.services)
        } else {
            1 + dice.below(size.changes)
        };
        for index in 0..changes {
            let n = if round == 0 {
                u8::try_from(index).expect("few")
            } else {
                u8::try_from(dice.below(usize::from(size.services))).expect("few")
            };
            let step = match there.get(&n) {
                Some(_) if dice.chance(15) => Step::Delete(n),
                Some(service) if dice.chance(50) => {
                    let mut service = service.clone();
                    service.roll_slices(&mut dice);
                    Step::Put(service)
                }
                Some(service) if dice.chance(60) => Step::Put(changed(service, &mut dice)),
                _ => Step::Put(Service::random(n, &mut dice)),
            };
            match &step {
                Step::Put(service) => drop(there.insert(n, service.clone())),
                Step::Delete(n) => drop(there.remove(n)),
                Step::Probe => {}
            }
            steps.push(step);
        }
        steps.push(Step::Probe);
    }
    steps
}

/// The same with one other property.
fn changed(service: &Service, dice: &mut Dice) -> Service {
    let mut new = service.clone();
    let other = Service::random(service.n, dice);
    match dice.below(11) {
        0 => {
            new.kind = other.kind;
            new.has_vip = other.has_vip;
        }
        1 => {
            new.ports = other.ports;
            new.has_shared_ip = other.has_shared_ip;
        }
        2 => new.has_external_ip = !new.has_external_ip,
        3 => new.source_ranges = other.source_ranges,
        4 => new.is_internal_local = !new.is_internal_local,
        5 => new.is_external_local = !new.is_external_local,
        6 => new.has_affinity = !new.has_affinity,
        7 => new.publishes_not_ready = !new.publishes_not_ready,
        8 => new.distribution = other.distribution,
        9 => new.families = other.families,
        _ => new.has_vip = !new.has_vip,
    }
    new
}
