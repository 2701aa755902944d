// SPDX-License-Identifier: Apache-2.0
//! How much of a plan was done.

use kpr_core::plan::{Failure, FailureKind, Outcome, Plan, Planner, Report, Step as _};

/// How much of a plan was done, from little to all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::reconcile) enum Done {
    /// Something that all Services need could not be read or written.
    Nothing,
    /// The kernel refused single objects or settings; all other Services are served.
    Most,
    /// Also if the rest is set aside: it is tried again in audits, no sooner.
    Everything,
}

impl Done {
    /// After the planner has taken in the report.
    pub(super) fn of<P: Planner>(planner: &P, plan: &Plan<P::Step>, report: &Report) -> Self {
        let is_bearable = |(step, failure): (&P::Step, &Failure)| {
            !step.is_essential() && failure.kind != FailureKind::Transient
        };
        let is_settled = |(step, outcome): (&P::Step, &Outcome)| match outcome {
            Outcome::Done => true,
            Outcome::Failed(failure) => {
                failure.kind.may_be_of_object() && planner.is_set_aside(step)
            }
            Outcome::NotTried => planner.is_set_aside(step),
        };
        if report.is_success() || plan.steps().zip(&report.outcomes).all(is_settled) {
            Self::Everything
        } else if report.failures(plan).all(is_bearable) {
            Self::Most
        } else {
            Self::Nothing
        }
    }
}
