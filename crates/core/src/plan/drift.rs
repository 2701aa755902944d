// SPDX-License-Identifier: Apache-2.0
//! PURE: what others changed, counted by kind, from the plan that makes it good.

use std::collections::BTreeMap;

use crate::plan::mode::ModePlanner;
use crate::plan::report::{Outcome, Report};
use crate::plan::ruleset::Edit;
use crate::plan::step::{Plan, RuleEdits, Step};

/// Number of objects by kind. The kind of an object is the step that makes it good, of rules what was the matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drift {
    pub found: BTreeMap<&'static str, usize>,
    pub repaired: BTreeMap<&'static str, usize>,
}

impl Drift {
    /// What a plan makes good, before its report is taken in by the planner.
    pub fn of(planner: &ModePlanner, plan: &Plan, report: &Report) -> Self {
        let mut drift = Self::default();
        for (step, outcome) in plan.steps().zip(&report.outcomes) {
            let mut count = |kind| {
                *drift.found.entry(kind).or_default() += 1;
                if *outcome == Outcome::Done {
                    *drift.repaired.entry(kind).or_default() += 1;
                }
            };
            match step {
                Step::EditRules(RuleEdits { edits, .. }) => {
                    edits.iter().map(|edit| kind(planner, edit)).for_each(count);
                }
                step => count(step.kind()),
            }
        }
        drift
    }
}

fn kind(planner: &ModePlanner, edit: &Edit) -> &'static str {
    match edit {
        Edit::Replace { table, chain, .. } if planner.has_chain(*table, chain) => "changed-chain",
        Edit::Replace { .. } => "missing-chain",
        Edit::Prepend { .. } | Edit::Append { .. } => "missing-rule",
        Edit::Delete { .. } => "extra-rule",
        Edit::DeleteChain { .. } => "extra-chain",
    }
}
