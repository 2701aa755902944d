// SPDX-License-Identifier: Apache-2.0
//! PURE: the sets of clients, and what becomes of Service ports whose sets the kernel refuses: they
//! are served in the next best way, and the sets are tried again in audits.

use std::collections::{BTreeMap, BTreeSet};

use super::{Isolation, Planner, is_transient};
use crate::model::ServicePortName;
use crate::plan::iptables::affinity::{AffinitySet, SetState, chain_of, name_of};
use crate::plan::iptables::port_rules::PortRules;
use crate::plan::iptables::step::Step;
use crate::plan::ipvs::set::SetName;
use crate::plan::report::{FailureKind, Outcome};
use crate::plan::ruleset::{ChainId, Table};

/// Sets that the kernel refused.
#[derive(Clone, Debug, Default)]
pub(super) struct RefusedSets {
    /// Those that could not be made. Rules of these Service ports name no sets.
    by_port: BTreeMap<ServicePortName, Vec<AffinitySet>>,
    /// Those that could not be destroyed: foreign rules name them.
    stuck: BTreeSet<SetName>,
    /// Those that could not be remade: they serve as they are.
    stale: BTreeSet<SetName>,
    /// One was refused by the last plan.
    is_news: bool,
}

impl RefusedSets {
    /// Whether the next plan can serve what the last one could not.
    pub(super) const fn is_news(&self) -> bool {
        self.is_news
    }

    pub(super) const fn clear_news(&mut self) {
        self.is_news = false;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_port.is_empty() && self.stale.is_empty()
    }

    /// Whether the kernel refused this step before.
    pub(super) fn contains(&self, step: &Step) -> bool {
        match step {
            Step::CreateSet { is_needed, .. } => !is_needed,
            Step::RemakeSet(set) => self.stale.contains(&set.set),
            Step::DestroySet { set } => self.stuck.contains(set),
            _ => false,
        }
    }
}

/// Steps about sets: those before rules are written, and those after.
#[derive(Debug, Default)]
pub(super) struct SetSteps {
    pub(super) before: Vec<Step>,
    pub(super) after: Vec<Step>,
}

impl Planner {
    /// The steps that go with the changes of chains. Costs what changed. `in_use`: chains that
    /// stay because foreign rules jump to them.
    pub(super) fn set_steps(&self, in_use: &BTreeSet<ChainId>) -> SetSteps {
        let mut steps = SetSteps::default();
        let mut wanted: BTreeMap<SetName, AffinitySet> = BTreeMap::new();
        let mut want = |rules: &PortRules| {
            let sets = rules.sets(&self.context).into_iter();
            wanted.extend(sets.map(|set| (set.set.clone(), set)));
        };
        let by_port = self.desired.by_port();
        if self.is_full {
            by_port.iter().for_each(|(_, rules)| want(rules));
        } else {
            let dirty = self.dirty.service_ports.iter();
            dirty
                .filter_map(|name| by_port.get(name))
                .for_each(&mut want);
        }
        let present = &self.believed.sets;
        let is_usable = |found: &&SetState| found.is_used && found.timeout.is_some();
        for set in wanted.values().cloned() {
            let is_needed = true;
            match present.get(&set.set).filter(is_usable) {
                Some(found) if set.is_met_by(found) => {}
                Some(_) => steps.before.push(Step::RemakeSet(set)),
                None => steps.before.push(Step::CreateSet { set, is_needed }),
            }
        }
        let mut unwanted: BTreeSet<SetName> = BTreeSet::new();
        if self.is_full {
            unwanted.extend(present.keys().cloned());
            for set in self.refused_sets.by_port.values().flatten().cloned() {
                unwanted.remove(&set.set);
                let is_needed = false;
                steps.before.push(Step::CreateSet { set, is_needed });
            }
        } else if !present.is_empty() {
            let old = self.dirty.old_chains.iter();
            let old = old.map(|chain| name_of(chain, self.context.family));
            let stuck = &self.refused_sets.stuck;
            unwanted.extend(old.filter(|set| present.contains_key(set) && !stuck.contains(set)));
        }
        let is_searching = self.isolation != Isolation::Off;
        unwanted.retain(|set| {
            let Some((_, chain)) = chain_of(set.as_str()) else {
                return false;
            };
            let chain = (Table::Nat, chain);
            let is_free = if is_searching {
                // Old chains are deleted one by one.
                !self.believed.contains(&chain)
            } else {
                !in_use.contains(&chain) && !self.undeletable.contains(&chain)
            };
            is_free && !wanted.contains_key(set)
        });
        let destroy = |set| Step::DestroySet { set };
        steps.after.extend(unwanted.into_iter().map(destroy));
        steps
    }

    /// Whether steps about sets are left that the kernel has not refused.
    pub(super) fn lacks_sets(&self, in_use: &BTreeSet<ChainId>) -> bool {
        let SetSteps { before, after } = self.set_steps(in_use);
        let mut steps = before.iter().chain(&after);
        steps.any(|step| !self.refused_sets.contains(step))
    }

    /// Takes in the outcome of a step about a set. Returns whether all went as it should; what is
    /// refused without harm does.
    pub(super) fn report_set(&mut self, step: &Step, outcome: &Outcome) -> bool {
        match (step, outcome) {
            (Step::CreateSet { set, is_needed }, Outcome::Done) => {
                let name = set.set.clone();
                self.believed.sets.insert(name, SetState::from(set));
                if !is_needed {
                    self.stop_trying(set);
                }
            }
            (Step::CreateSet { is_needed, .. }, Outcome::Failed(_)) => return !is_needed,
            (Step::RemakeSet(set), Outcome::Done) => {
                let name = set.set.clone();
                self.refused_sets.stale.remove(&name);
                self.believed.sets.insert(name, SetState::from(set));
            }
            (Step::RemakeSet(set), Outcome::Failed(failure)) => {
                // Sets cannot be swapped while anybody lists one of them.
                if failure.kind == FailureKind::Busy || is_transient(failure.kind) {
                    return false;
                }
                self.refused_sets.stale.insert(set.set.clone());
            }
            (Step::DestroySet { set }, Outcome::Done) => {
                self.believed.sets.remove(set);
                self.refused_sets.stuck.remove(set);
                self.refused_sets.stale.remove(set);
            }
            (Step::DestroySet { set }, Outcome::Failed(_)) => {
                self.refused_sets.stuck.insert(set.clone());
            }
            (Step::CreateSet { .. } | Step::RemakeSet(_), Outcome::NotTried) => return false,
            _ => {}
        }
        true
    }

    /// The Service ports of these sets do without any from now on.
    pub(super) fn refuse_sets(&mut self, refused: &BTreeSet<SetName>) {
        if refused.is_empty() {
            return;
        }
        let mut without = Vec::new();
        for (name, rules) in self.desired.by_port().iter() {
            if rules.service_port.client_ip_affinity.is_none() {
                continue;
            }
            let rules = rules.clone().remembering(&self.context, false);
            let mut sets = rules.sets(&self.context);
            sets.retain(|set| refused.contains(&set.set));
            if !sets.is_empty() {
                let rules = rules.remembering(&self.context, true);
                without.push((name.clone(), rules, sets));
            }
        }
        for (name, rules, sets) in without {
            let known = self.refused_sets.by_port.entry(name.clone()).or_default();
            known.extend(sets);
            self.refused_sets.is_news = true;
            self.exchange(name, Some(rules));
        }
    }

    /// A set that was refused could be made. With the last one its Service port has sets again.
    fn stop_trying(&mut self, set: &AffinitySet) {
        for sets in self.refused_sets.by_port.values_mut() {
            sets.retain(|other| other.set != set.set);
        }
    }

    /// Gives sets back to the Service ports that can have them all.
    pub(super) fn take_back(&mut self) {
        let by_port = &mut self.refused_sets.by_port;
        let able = by_port.extract_if(.., |_, sets| sets.is_empty());
        for name in able.map(|(name, _)| name).collect::<Vec<_>>() {
            if let Some(rules) = self.desired.by_port().get(&name).cloned() {
                let rules = rules.remembering(&self.context, false);
                self.exchange(name, Some(rules));
            }
        }
    }

    /// The rules of a Service port in the way that the kernel allows.
    pub(super) fn as_possible(&self, name: &ServicePortName, rules: PortRules) -> PortRules {
        let is_refused = self.refused_sets.by_port.contains_key(name);
        rules.remembering(&self.context, is_refused)
    }

    /// Forgets what was refused of a Service port that is gone.
    pub(super) fn forget_sets(&mut self, name: &ServicePortName) {
        self.refused_sets.by_port.remove(name);
    }
}
