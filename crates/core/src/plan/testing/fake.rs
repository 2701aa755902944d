// SPDX-License-Identifier: Apache-2.0
//! A kernel of one family for tests: it has the semantics of [`State::apply`], and fails on request.
//! It answers as the real dataplane does: deleting what is gone succeeds, the link may exist.

use std::collections::{BTreeMap, BTreeSet};

use crate::plan::ipvs::object::VirtualServerKey;
use crate::plan::state::{Refusal, VirtualServerState};
use crate::plan::step::RuleEdits;
use crate::plan::{Failure, FailureKind, Outcome, Plan, Prerequisites, Report, State, Step};

/// How a step fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing happens, and the answer says so.
    Refused,
    /// Nothing happens, and nobody judged the step: a lock is held.
    Locked,
    /// It happens, but the answer is lost.
    AnswerLost,
    /// A batch of rules is made for its first table only. Of other steps nothing happens, which the
    /// answer does not tell.
    Partial,
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FakeKernel {
    pub state: State,
}

impl FakeKernel {
    pub fn new(state: State) -> Self {
        Self { state }
    }

    /// Makes all steps of a plan.
    pub fn apply(&mut self, plan: &Plan) -> Report {
        self.apply_with(plan, |_| None)
    }

    /// Makes the steps of a plan, of which some fail.
    pub fn apply_with(
        &mut self,
        plan: &Plan,
        mut fault: impl FnMut(&Step) -> Option<Fault>,
    ) -> Report {
        let mut failed = Prerequisites::default();
        let outcomes = plan.steps().map(|step| {
            let outcome = if failed.forbid(step) {
                Outcome::NotTried
            } else {
                self.make(step, fault(step))
            };
            if outcome != Outcome::Done {
                failed.lack(step);
            }
            outcome
        });
        Report {
            outcomes: outcomes.collect(),
        }
    }

    /// What the given virtual servers are; `None` for those that do not exist.
    pub fn virtual_servers(
        &self,
        keys: &BTreeSet<VirtualServerKey>,
    ) -> BTreeMap<VirtualServerKey, Option<VirtualServerState>> {
        keys.iter()
            .map(|key| (*key, self.state.virtual_servers.get(key).cloned()))
            .collect()
    }

    fn make(&mut self, step: &Step, fault: Option<Fault>) -> Outcome {
        let injected = || {
            Outcome::Failed(Failure {
                kind: match fault {
                    Some(Fault::Refused) => FailureKind::Busy,
                    Some(Fault::Locked | Fault::AnswerLost) => FailureKind::Transient,
                    _ => FailureKind::Other,
                },
                message: "injected".to_owned(),
            })
        };
        match fault {
            Some(Fault::Refused | Fault::Locked) => return injected(),
            Some(Fault::Partial) => {
                if let Step::EditRules(rules) = step {
                    let part = Step::EditRules(of_first_table(rules));
                    // A refusal leaves the state as it is, which is what a partial batch may do too.
                    let _refused = self.state.apply(&part).is_err();
                }
                return injected();
            }
            Some(Fault::AnswerLost) | None => {}
        }
        let result = self.state.apply(step);
        if fault.is_some() {
            return injected();
        }
        match (result, step) {
            (Ok(()), _)
            | (Err(Refusal::AlreadyExists), Step::CreateLink)
            | (
                Err(Refusal::NotFound),
                Step::DeleteLink
                | Step::DeleteVirtualServer { .. }
                | Step::DeleteRealServer { .. }
                | Step::DestroySet { .. },
            ) => Outcome::Done,
            (Err(refusal), _) => Outcome::Failed(Failure {
                kind: kind(refusal),
                message: refusal.to_string(),
            }),
        }
    }
}

fn of_first_table(rules: &RuleEdits) -> RuleEdits {
    let first = rules
        .edits
        .iter()
        .map(crate::plan::ruleset::Edit::table)
        .min();
    let of_first = rules.edits.iter();
    let of_first = of_first.filter(|edit| Some(edit.table()) == first);
    RuleEdits::new(rules.family, of_first.cloned().collect())
}

const fn kind(refusal: Refusal) -> FailureKind {
    match refusal {
        Refusal::NotFound => FailureKind::NotFound,
        Refusal::AlreadyExists => FailureKind::AlreadyExists,
        Refusal::Busy => FailureKind::Busy,
        Refusal::Full => FailureKind::Full,
        Refusal::Mismatch => FailureKind::Other,
    }
}
