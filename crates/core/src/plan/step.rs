// SPDX-License-Identifier: Apache-2.0
//! PURE: a plan is data: ordered steps that each change one thing in the kernel. Each mode has its
//! own steps.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::plan::prerequisites::Prerequisites;
use crate::plan::ruleset::{Edit, RuleBatch};

/// One change of the kernel in one mode. Displays as one line.
pub trait Step:
    Clone + fmt::Debug + fmt::Display + PartialEq + Serialize + Send + Sync + 'static
{
    /// When in a plan a step happens: make before break.
    type Phase: Copy + Ord + fmt::Debug + Send + Sync;
    /// Tracks which steps must be skipped after others have failed.
    type Prerequisites: Prerequisites<Step = Self>;

    /// The step's name in metrics and JSON.
    fn kind(&self) -> &'static str;

    /// The batch of rules that this step writes, if any.
    fn batch(&self) -> Option<&RuleBatch> {
        None
    }

    /// Whether Services in general need it. If the kernel refuses another one (an address, a
    /// virtual server, a setting), all other Services are served nevertheless.
    fn is_essential(&self) -> bool {
        true
    }

    /// The edits of a step that edits rules.
    fn edits(&self) -> &[Edit] {
        self.batch().map_or(&[], |batch| &batch.edits)
    }

    /// Truncates the edits to this many, for the copy of the last plan that is kept for display.
    fn shorten(&mut self, _edits: usize) {}
}

/// Ordered steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan<S: Step> {
    steps: Vec<(S::Phase, S)>,
}

impl<S: Step> Default for Plan<S> {
    fn default() -> Self {
        Self { steps: Vec::new() }
    }
}

impl<S: Step> Plan<S> {
    /// Adds a step; steps of one phase keep the order in which they were added.
    pub fn push(&mut self, phase: S::Phase, step: S) {
        self.steps.push((phase, step));
    }

    /// Sorts the steps by phase.
    #[must_use]
    pub fn ordered(mut self) -> Self {
        self.steps.sort_by_key(|(phase, _)| *phase);
        self
    }

    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Number of objects that the plan changes: a batch of rules counts its chains.
    pub fn size(&self) -> usize {
        let size = |step: &S| step.batch().map_or(1, |batch| batch.edits.len());
        self.steps().map(size).sum()
    }

    pub fn steps(&self) -> impl ExactSizeIterator<Item = &S> {
        self.steps.iter().map(|(_, step)| step)
    }

    pub fn into_steps(self) -> impl ExactSizeIterator<Item = S> {
        self.steps.into_iter().map(|(_, step)| step)
    }

    /// The steps with their phases.
    pub fn phases(&self) -> &[(S::Phase, S)] {
        &self.steps
    }
}

impl<S: Step> Serialize for Plan<S> {
    fn serialize<T: Serializer>(&self, serializer: T) -> Result<T::Ok, T::Error> {
        serializer.collect_seq(self.steps())
    }
}

/// One line for each step, and one for each edit of a step.
impl<S: Step> fmt::Display for Plan<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.steps().try_for_each(|step| {
            writeln!(f, "{step}")?;
            let edits = step.edits();
            let listed = if edits.len() > 1 { edits } else { &[] };
            listed.iter().try_for_each(|edit| writeln!(f, "  {edit}"))
        })
    }
}
