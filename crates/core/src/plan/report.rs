// SPDX-License-Identifier: Apache-2.0
//! PURE: the outcomes of the steps of a plan.

use crate::plan::step::{Plan, Step};

/// The outcome of one step.
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
    /// The message of the kernel or program.
    pub message: String,
}

/// The kinds of failure that affect what is done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FailureKind {
    NotFound,
    AlreadyExists,
    /// Something else uses the object.
    Busy,
    /// The step was not decided: a lock was held, or a program could not be run. The same step may
    /// succeed later.
    Transient,
    /// The step was not done in a time that fits its size. A smaller one may be.
    TimedOut,
    Full,
    /// More privileges are needed; retrying is pointless until they are granted.
    Permission,
    /// The kernel lacks a feature.
    Unsupported,
    Other,
}

impl FailureKind {
    /// Whether the reason may lie in the one object that the step is about. Without privileges
    /// nothing works.
    pub const fn may_be_of_object(self) -> bool {
        self.is_final() && !matches!(self, Self::Permission)
    }

    /// Whether the kernel itself rejected the step, and will again. What differs from belief is
    /// observed and retried instead.
    pub const fn is_final(self) -> bool {
        match self {
            Self::Full | Self::Permission | Self::Unsupported | Self::Other => true,
            Self::NotFound
            | Self::AlreadyExists
            | Self::Busy
            | Self::Transient
            | Self::TimedOut => false,
        }
    }
}

/// The report of a plan: one outcome for each step, in order.
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

/// Why a kernel rejects a step.
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
