// SPDX-License-Identifier: Apache-2.0
//! Steps about sets and entries as one transaction, which the kernel makes as a whole or not at
//! all. What it refuses is left out and the rest made, so that each step has an outcome of its own.

use std::collections::BTreeSet;

use kpr_core::model::IpFamily;
use kpr_core::plan::Outcome;
use kpr_core::plan::ipvs::set::{SetEntry, SetName};
use kpr_core::plan::ipvs::step::Step;
use nft_netlink as nft;
use nft_netlink::{Element, InvalidName, KernelErrorKind, Operation, SetKey};

use super::encode;
use crate::dataplane::failure::failed;

/// How often a transaction is made again without what was refused. Then each step goes by itself.
const ATTEMPTS: u32 = 4;

/// See the module.
pub(super) struct Transaction<'a> {
    steps: &'a [&'a Step],
    outcomes: Vec<Outcome>,
}

/// What makes one request, and the steps that it is for: one for each element, or one alone.
struct Part {
    operation: Operation,
    steps: Vec<usize>,
}

impl<'a> Transaction<'a> {
    pub(super) fn new(steps: &'a [&'a Step]) -> Self {
        Self {
            steps,
            outcomes: vec![Outcome::NotTried; steps.len()],
        }
    }

    /// Makes the steps by `transact`; returns an outcome for each.
    pub(super) fn run(
        mut self,
        mut transact: impl FnMut(&[Operation]) -> Result<(), nft::Error>,
    ) -> Vec<Outcome> {
        let steps = self.steps.iter().enumerate();
        let mut left: Vec<usize> = steps
            .filter(|(_, step)| can_be_made(step))
            .map(|(index, _)| index)
            .collect();
        for _ in 0..ATTEMPTS {
            if left.is_empty() {
                return self.outcomes;
            }
            if !self.attempt(&mut left, &mut transact) {
                break;
            }
        }
        for index in left {
            self.attempt(&mut vec![index], &mut transact);
        }
        self.outcomes
    }

    /// Makes those steps that are left. Takes out of them what is decided; returns whether anything
    /// was.
    fn attempt(
        &mut self,
        left: &mut Vec<usize>,
        transact: &mut impl FnMut(&[Operation]) -> Result<(), nft::Error>,
    ) -> bool {
        let mut parts: Vec<Part> = Vec::new();
        let mut invalid = Vec::new();
        for index in left.iter().copied() {
            if let Some(step) = self.steps.get(index)
                && let Err(error) = add(&mut parts, index, step)
            {
                invalid.push((index, failed(&error)));
            }
        }
        if !invalid.is_empty() {
            self.settle(left, invalid);
            return true;
        }
        let (operations, owners): (Vec<Operation>, Vec<Vec<usize>>) = parts
            .into_iter()
            .map(|part| (part.operation, part.steps))
            .unzip();
        let error = match transact(&operations) {
            Ok(()) => {
                let done = left.iter().map(|index| (*index, Outcome::Done)).collect();
                self.settle(left, done);
                return true;
            }
            Err(error) => error,
        };
        let mut refused = Vec::new();
        for refusal in error.refusals() {
            let steps = refusal
                .operation
                .and_then(|operation| owners.get(operation));
            let step = match (steps.map(Vec::as_slice), refusal.element) {
                (Some([only]), _) => *only,
                (Some(all), Some(element)) => match all.get(element) {
                    Some(step) => *step,
                    None => continue,
                },
                _ => continue,
            };
            let outcome = match refusal.source.kind {
                // Deleting what is not there succeeds.
                KernelErrorKind::NotFound if self.is_deletion(step) => Outcome::Done,
                _ => failed(refusal),
            };
            refused.push((step, outcome));
        }
        if !refused.is_empty() {
            self.settle(left, refused);
            return true;
        }
        if error.refusals().next().is_some() && left.len() > 1 {
            return false;
        }
        // It was not decided on its merits, or there is one step.
        let all = left.iter().map(|index| (*index, failed(&error))).collect();
        self.settle(left, all);
        true
    }

    fn is_deletion(&self, step: usize) -> bool {
        let step = self.steps.get(step);
        matches!(
            step,
            Some(Step::DeleteEntry { .. } | Step::DestroySet { .. })
        )
    }

    fn settle(&mut self, left: &mut Vec<usize>, decided: Vec<(usize, Outcome)>) {
        let indexes: BTreeSet<usize> = decided.iter().map(|(index, _)| *index).collect();
        left.retain(|index| !indexes.contains(index));
        for (index, outcome) in decided {
            if let Some(slot) = self.outcomes.get_mut(index) {
                *slot = outcome;
            }
        }
    }
}

/// Sets of nftables have no size, so that none is ever replaced by a larger one.
const fn can_be_made(step: &Step) -> bool {
    matches!(
        step,
        Step::CreateSet(_)
            | Step::DestroySet { .. }
            | Step::AddEntry { .. }
            | Step::DeleteEntry { .. }
            | Step::ReplaceEntries { .. }
    )
}

/// The family of a set of ours.
fn family_of(set: &SetName) -> IpFamily {
    if set.as_str().starts_with("KUBE-6-") {
        IpFamily::V6
    } else {
        IpFamily::V4
    }
}

fn key(set: &SetName) -> Result<SetKey, InvalidName> {
    encode::set_key(family_of(set), set)
}

fn add(parts: &mut Vec<Part>, index: usize, step: &Step) -> Result<(), InvalidName> {
    let mut push = |operation| {
        let steps = vec![index];
        parts.push(Part { operation, steps });
    };
    match step {
        Step::CreateSet(spec) => {
            let set = encode::set(spec.family, &spec.name, spec.set_type)?;
            push(Operation::AddTable(nft::Table::new(set.key.table.clone())));
            push(Operation::AddSet(set));
        }
        Step::DestroySet { set } => push(Operation::DeleteSet(key(set)?)),
        Step::AddEntry { set, entry } => add_element(parts, index, key(set)?, entry, true),
        Step::DeleteEntry { set, entry } => add_element(parts, index, key(set)?, entry, false),
        Step::ReplaceEntries { set, old, new } => {
            let key = key(set)?;
            for entry in old {
                add_element(parts, index, key.clone(), entry, false);
            }
            add_element(parts, index, key, new, true);
        }
        _ => {}
    }
    Ok(())
}

/// Adds an element to the last operation, or to a new one if that is about something else.
fn add_element(parts: &mut Vec<Part>, index: usize, set: SetKey, entry: &SetEntry, is_new: bool) {
    let element: Element = encode::element(entry);
    if let Some(Part { operation, steps }) = parts.last_mut() {
        match operation {
            Operation::AddElements(of, elements) if is_new && *of == set => {
                elements.push(element);
                steps.push(index);
                return;
            }
            Operation::DeleteElements(of, elements) if !is_new && *of == set => {
                elements.push(element);
                steps.push(index);
                return;
            }
            _ => {}
        }
    }
    let elements = vec![element];
    let operation = if is_new {
        Operation::AddElements(set, elements)
    } else {
        Operation::DeleteElements(set, elements)
    };
    let steps = vec![index];
    parts.push(Part { operation, steps });
}

#[cfg(test)]
mod tests;
