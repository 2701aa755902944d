// SPDX-License-Identifier: Apache-2.0
//! PURE: how a plan is applied: in order, and without steps that would do harm after a failure.

use crate::plan::report::{Outcome, Report};
use crate::plan::step::{Plan, Step};

/// Maximum number of steps handed over at a time. More saves nothing and costs memory.
const LONGEST_RUN: usize = 2_048;

/// The failures of one plan so far. The kernel itself rejects most steps that lack something; steps
/// that would succeed and do harm are blocked here.
pub trait Prerequisites: Default {
    type Step: Step;

    /// Takes in a step that failed or was skipped.
    fn lack(&mut self, phase: <Self::Step as Step>::Phase, step: &Self::Step);

    /// Whether the step must be skipped.
    fn forbid(&self, step: &Self::Step) -> bool;
}

/// Applies a plan: the one place where the outcome of a step decides about other steps. `goes_with`
/// says whether a step can be handed over together with the first one of a run; `run` applies the
/// steps of a run and returns an outcome for each, in order.
pub fn apply<S: Step>(
    plan: &Plan<S>,
    goes_with: impl Fn(&S, &S) -> bool,
    mut run: impl FnMut(&[&S]) -> Vec<Outcome>,
) -> Report {
    let mut lacking = S::Prerequisites::default();
    let mut outcomes = Vec::with_capacity(plan.len());
    let mut rest = plan.phases();
    while let Some((_, first)) = rest.first() {
        let alike = |(_, step): &&(S::Phase, S)| goes_with(first, step);
        let length = rest.iter().take(LONGEST_RUN).take_while(alike).count();
        let (now, later) = rest.split_at(length.max(1));
        rest = later;
        let allowed: Vec<Option<&S>> = now
            .iter()
            .map(|(_, step)| (!lacking.forbid(step)).then_some(step))
            .collect();
        let steps: Vec<&S> = allowed.iter().copied().flatten().collect();
        let mut answers = if steps.is_empty() {
            Vec::new()
        } else {
            run(&steps)
        }
        .into_iter();
        for ((phase, step), allowed) in now.iter().zip(allowed) {
            let answer = allowed.and_then(|_| answers.next());
            let outcome = answer.unwrap_or(Outcome::NotTried);
            // Only now: within a run the kernel itself rejects steps that lack something.
            if outcome != Outcome::Done {
                lacking.lack(*phase, step);
            }
            outcomes.push(outcome);
        }
    }
    Report { outcomes }
}
