// SPDX-License-Identifier: Apache-2.0
//! A fake kernel of one family for tests: it behaves like the state that a mode observes, and fails
//! on request. It answers as the real dataplane does: deleting a missing object succeeds, and the
//! link may already exist.

use std::collections::{BTreeMap, BTreeSet};

use crate::plan::iptables::affinity::chain_of;
use crate::plan::ipvs::object::VirtualServerKey;
use crate::plan::ipvs::set::SetName;
use crate::plan::ipvs::state::VirtualServerState;
use crate::plan::report::Refusal;
use crate::plan::ruleset::{Rule, RuleBatch, Ruleset};
use crate::plan::{
    Failure, FailureKind, Outcome, Plan, Report, Step, iptables, ipvs, prerequisites,
};

/// The state of a fake kernel, and the effect of steps on it.
pub trait Model {
    type Step: Step;

    /// Applies a step as the kernel does.
    fn make(&mut self, step: &Self::Step) -> Result<(), Refusal>;

    /// Whether the real dataplane treats this error as success.
    fn forgives(_step: &Self::Step, _refusal: Refusal) -> bool {
        false
    }

    /// A step that writes a batch of rules.
    fn write(batch: RuleBatch) -> Self::Step;
}

impl Model for ipvs::State {
    type Step = ipvs::Step;

    fn make(&mut self, step: &ipvs::Step) -> Result<(), Refusal> {
        self.apply(step)
    }

    fn forgives(step: &ipvs::Step, refusal: Refusal) -> bool {
        use ipvs::Step::{
            CreateLink, DeleteLink, DeleteRealServer, DeleteVirtualServer, DestroyOtherSet,
            DestroySet, StopSyncDaemon,
        };
        match refusal {
            Refusal::AlreadyExists => matches!(step, CreateLink),
            Refusal::NotFound => matches!(
                step,
                DeleteLink
                    | DeleteVirtualServer { .. }
                    | DeleteRealServer { .. }
                    | DestroySet { .. }
                    | DestroyOtherSet { .. }
                    | StopSyncDaemon { .. }
            ),
            _ => false,
        }
    }

    fn write(batch: RuleBatch) -> ipvs::Step {
        ipvs::Step::EditRules(batch)
    }
}

/// Rules may name only existing sets. Those of IPVS mode are not looked at.
fn check_sets(rules: &Ruleset, sets: &iptables::Sets) -> Result<(), Refusal> {
    let mut named = rules.chains.values().flatten().flat_map(Rule::sets);
    let is_known =
        |name: &str| chain_of(name).is_none() || sets.keys().any(|set| set.as_str() == name);
    if named.all(is_known) {
        Ok(())
    } else {
        Err(Refusal::NotFound)
    }
}

fn refers(rules: &Ruleset, set: &SetName) -> bool {
    let mut named = rules.chains.values().flatten().flat_map(Rule::sets);
    named.any(|name| name == set.as_str())
}

impl Model for iptables::State {
    type Step = iptables::Step;

    fn make(&mut self, step: &iptables::Step) -> Result<(), Refusal> {
        match step {
            iptables::Step::SetSysctl { key, value } => {
                self.settings.sysctls.insert(key, (*value).to_owned());
            }
            iptables::Step::EditRules(batch) => {
                // A batch is atomic.
                let mut edited = self.rules.clone();
                batch.edits.iter().try_for_each(|edit| edited.apply(edit))?;
                edited.check_targets()?;
                check_sets(&edited, &self.sets)?;
                self.rules = edited;
            }
            iptables::Step::CreateSet { set, .. } => {
                if refers(&self.rules, &set.set) {
                    return Err(Refusal::Busy);
                }
                self.sets.insert(set.set.clone(), set.into());
            }
            iptables::Step::RemakeSet(set) => {
                let found = self.sets.get_mut(&set.set).ok_or(Refusal::NotFound)?;
                *found = set.into();
            }
            iptables::Step::DestroySet { set } => {
                if refers(&self.rules, set) {
                    return Err(Refusal::Busy);
                }
                self.sets.remove(set).ok_or(Refusal::NotFound)?;
            }
            iptables::Step::DeleteNftablesTable { .. } => {
                self.settings.has_nftables_table = false;
            }
        }
        Ok(())
    }

    fn write(batch: RuleBatch) -> iptables::Step {
        iptables::Step::EditRules(batch)
    }
}

impl From<&ipvs::State> for iptables::State {
    fn from(state: &ipvs::State) -> Self {
        Self {
            settings: iptables::Settings {
                sysctls: state.node.sysctls.clone(),
                has_nftables_table: state.has_nftables_table,
            },
            rules: state.rules.clone(),
            sets: state.client_sets.clone(),
        }
    }
}

/// The same kernel seen by iptables mode: changes made here apply there.
pub fn in_iptables_mode<T>(
    state: &mut ipvs::State,
    run: impl FnOnce(&mut FakeKernel<iptables::State>) -> T,
) -> T {
    let mut kernel = FakeKernel::new(iptables::State::from(&*state));
    let result = run(&mut kernel);
    let iptables::State {
        settings,
        rules,
        sets,
    } = kernel.state;
    state.client_sets = sets;
    state.node.sysctls = settings.sysctls;
    state.rules = rules;
    state.has_nftables_table = settings.has_nftables_table;
    result
}

/// How a step fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing happens, and an error is returned.
    Refused,
    /// Nothing happens, and nothing ever will: the kernel lacks a feature.
    Unsupported,
    /// Nothing happens, and the step is not decided: a lock is held.
    Locked,
    /// Nothing happens, after a long time.
    TimedOut,
    /// It happens, but the answer is lost.
    AnswerLost,
    /// Only the first table of a batch of rules is written. Other steps have no effect, which the
    /// answer does not show.
    Partial,
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FakeKernel<S> {
    pub state: S,
}

impl<S: Model> FakeKernel<S> {
    pub fn new(state: S) -> Self {
        Self { state }
    }

    /// Applies all steps of a plan.
    pub fn apply(&mut self, plan: &Plan<S::Step>) -> Report {
        self.apply_with(plan, |_| None)
    }

    /// Applies the steps of a plan, some of which fail.
    pub fn apply_with(
        &mut self,
        plan: &Plan<S::Step>,
        mut fault: impl FnMut(&S::Step) -> Option<Fault>,
    ) -> Report {
        prerequisites::apply(
            plan,
            |_, _| false,
            |steps| {
                steps
                    .iter()
                    .map(|step| self.make(step, fault(step)))
                    .collect()
            },
        )
    }

    fn make(&mut self, step: &S::Step, fault: Option<Fault>) -> Outcome {
        let injected = || {
            Outcome::Failed(Failure {
                kind: match fault {
                    Some(Fault::Refused) => FailureKind::Busy,
                    Some(Fault::Unsupported) => FailureKind::Unsupported,
                    Some(Fault::Locked | Fault::AnswerLost) => FailureKind::Transient,
                    Some(Fault::TimedOut) => FailureKind::TimedOut,
                    _ => FailureKind::Other,
                },
                message: "injected".to_owned(),
            })
        };
        match fault {
            Some(Fault::Refused | Fault::Unsupported | Fault::Locked | Fault::TimedOut) => {
                return injected();
            }
            Some(Fault::Partial) => {
                if let Some(batch) = step.batch() {
                    let part = S::write(of_first_table(batch));
                    // A rejected step leaves the state unchanged, which is also a valid outcome of
                    // a partial batch.
                    let _refused = self.state.make(&part).is_err();
                }
                return injected();
            }
            Some(Fault::AnswerLost) | None => {}
        }
        let result = self.state.make(step);
        if fault.is_some() {
            return injected();
        }
        match result {
            Err(refusal) if !S::forgives(step, refusal) => Outcome::Failed(Failure {
                kind: kind(refusal),
                message: refusal.to_string(),
            }),
            _ => Outcome::Done,
        }
    }
}

impl FakeKernel<ipvs::State> {
    /// The state of the given virtual servers; `None` for those that do not exist.
    pub fn virtual_servers(
        &self,
        keys: &BTreeSet<VirtualServerKey>,
    ) -> BTreeMap<VirtualServerKey, Option<VirtualServerState>> {
        keys.iter()
            .map(|key| (*key, self.state.virtual_servers.get(key).cloned()))
            .collect()
    }
}

fn of_first_table(rules: &RuleBatch) -> RuleBatch {
    let first = rules
        .edits
        .iter()
        .map(crate::plan::ruleset::Edit::table)
        .min();
    let of_first = rules.edits.iter();
    let of_first = of_first.filter(|edit| Some(edit.table()) == first);
    RuleBatch::new(rules.family, of_first.cloned().collect())
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
