// SPDX-License-Identifier: Apache-2.0
//! PURE: what became of the steps of a plan.

use crate::plan::step::{Plan, Step};

/// What became of one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Failed(Failure),
    /// A step that it depends on failed.
    NotTried,
}

/// Why a step failed, classified where the kernel answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub kind: FailureKind,
    /// The kernel's or program's own words.
    pub message: String,
}

/// The kinds of failure that change what is done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FailureKind {
    NotFound,
    AlreadyExists,
    /// Something else uses it.
    Busy,
    /// Nobody judged the step: a lock was held, a program could not be run or did not end. The same
    /// may work later.
    Transient,
    Full,
    /// More privileges are needed; trying again is in vain until somebody grants them.
    Permission,
    /// The kernel lacks something.
    Unsupported,
    Other,
}

/// What became of a plan: one outcome for each step, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub outcomes: Vec<Outcome>,
}

impl Report {
    pub fn is_success(&self) -> bool {
        self.outcomes
            .iter()
            .all(|outcome| *outcome == Outcome::Done)
    }

    /// The failed steps of the plan, with their reasons.
    pub fn failures<'a, S: Step>(
        &'a self,
        plan: &'a Plan<S>,
    ) -> impl Iterator<Item = (&'a S, &'a Failure)> {
        plan.steps()
            .zip(&self.outcomes)
            .filter_map(|(step, outcome)| match outcome {
                Outcome::Failed(failure) => Some((step, failure)),
                Outcome::Done | Outcome::NotTried => None,
            })
    }
}

/// Why a kernel refuses a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("no such object")]
    NotFound,
    #[error("object exists")]
    AlreadyExists,
    #[error("object is in use")]
    Busy,
    #[error("object is full")]
    Full,
    #[error("objects do not fit")]
    Mismatch,
}
