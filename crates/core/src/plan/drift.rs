// SPDX-License-Identifier: Apache-2.0
//! PURE: drift, the changes by other programs, counted by kind from the plan that repairs it.

use std::collections::BTreeMap;

use crate::plan::mode::{Planner, RuleBelief};
use crate::plan::order;
use crate::plan::report::{Outcome, Report};
use crate::plan::ruleset::Edit;
use crate::plan::step::{Plan, Step};

/// Number of objects by kind. The kind of an object is that of the step that repairs it; for rules
/// it is the defect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drift {
    pub found: BTreeMap<&'static str, usize>,
    pub repaired: BTreeMap<&'static str, usize>,
}

impl Drift {
    /// Counts what a plan repairs. The planner must not have taken in its report yet.
    pub fn of<P: Planner + ?Sized>(planner: &mut P, plan: &Plan<P::Step>, report: &Report) -> Self {
        let mut drift = Self::default();
        // What the kernel refuses was not changed by anybody.
        let steps = plan.steps().zip(&report.outcomes);
        let steps: Vec<_> = steps
            .filter(|(step, _)| !planner.is_set_aside(step))
            .collect();
        let rules = planner.rules();
        for (step, outcome) in steps {
            let mut count = |kind| {
                *drift.found.entry(kind).or_default() += 1;
                if *outcome == Outcome::Done {
                    *drift.repaired.entry(kind).or_default() += 1;
                }
            };
            match (&rules, step.batch()) {
                (Some(rules), Some(batch)) => {
                    let edits = batch.edits.iter();
                    edits
                        .filter_map(|edit| kind(&**rules, edit, &batch.edits))
                        .for_each(count);
                }
                _ => count(step.kind()),
            }
        }
        drift
    }
}

/// `None`: it is the second half of a move.
fn kind(rules: &dyn RuleBelief, edit: &Edit, all: &[Edit]) -> Option<&'static str> {
    let is_small = matches!(edit, Edit::Delete { .. } | Edit::Prepend { .. });
    if is_small && order::moves(all, edit) {
        return matches!(edit, Edit::Delete { .. }).then_some("moved-rule");
    }
    Some(match edit {
        Edit::Replace { table, chain, .. } if rules.has_chain(*table, chain) => "changed-chain",
        Edit::Replace { .. } => "missing-chain",
        Edit::Prepend { .. } | Edit::Append { .. } => "missing-rule",
        Edit::Delete { .. } => "extra-rule",
        Edit::DeleteChain { .. } => "extra-chain",
    })
}
