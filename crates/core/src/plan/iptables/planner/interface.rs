// SPDX-License-Identifier: Apache-2.0
//! PURE: the planner of iptables mode as the sync loop sees it.

use std::collections::{BTreeMap, BTreeSet};

use super::{ChainChanges, Isolation as Search, Planner, RefusedSets, Retry, is_transient};
use crate::model::{ServiceName, ServicePortName, ServiceView, Tracker};
use crate::plan::context::Context;
use crate::plan::cuts::Cuts;
use crate::plan::iptables::affinity::SetState;
use crate::plan::iptables::believed::Believed;
use crate::plan::iptables::desired::{Desired, Dirty};
use crate::plan::iptables::port_rules::PortRules;
use crate::plan::iptables::state::{Settings, State};
use crate::plan::iptables::static_rules;
use crate::plan::iptables::step::{Phase, Step};
use crate::plan::iptables::turns::Turns;
use crate::plan::mode::{Conflict, Isolation, RuleBelief};
use crate::plan::report::{Outcome, Report};
use crate::plan::ruleset::{ChainId, ChainName, InvalidChainName, Ruleset, Table};
use crate::plan::shown::{ObjectState, PortState, ServiceState, port_name};
use crate::plan::step::Plan;
use crate::plan::unmet::Unmet;

impl crate::plan::Planner for Planner {
    type Step = Step;
    type State = State;

    fn context(&self) -> &Context {
        &self.context
    }

    fn set_context(&mut self, context: Context, tracker: &Tracker) -> Result<(), InvalidChainName> {
        if context == self.context {
            return Ok(());
        }
        self.context = context;
        self.desired = Desired::of_node(&self.context);
        self.dirty = Dirty::default();
        self.turns = Turns::default();
        self.previous.clear();
        self.quarantined.clear();
        self.rejected.clear();
        self.retry = Retry::default();
        self.undeletable.clear();
        self.refused_sets = RefusedSets::default();
        self.is_full = true;
        self.update_all(tracker);
        Ok(())
    }

    fn update(&mut self, changed: &ServiceView<'_>, _tracker: &Tracker) {
        self.cuts.update(changed);
        let rules = changed.ports.iter().map(|port| {
            let endpoints = changed.endpoints_of(port);
            let rules = PortRules::new(port.clone(), endpoints, &self.context);
            let rules = self.as_possible(&port.name, rules);
            (port.name.clone(), rules)
        });
        let by_port: BTreeMap<ServicePortName, PortRules> = rules.collect();
        self.turns.forget(changed.name);
        self.forget_rejected(changed.name);
        for port in self.desired.gone(changed.name, &by_port) {
            self.replace(port, None);
        }
        for (port, rules) in by_port {
            self.replace(port, Some(rules));
        }
    }

    fn observed(&mut self, state: State) {
        if !self.needs_observation {
            self.audited();
        }
        self.believed.settings = state.settings;
        let before = std::mem::replace(&mut self.believed.sets, state.sets);
        for (set, found) in &mut self.believed.sets {
            // Its rules were deleted just now: its clients count.
            found.is_used |= before.get(set).is_some_and(|before| before.is_used);
        }
        self.observed_rules(state.rules);
    }

    fn is_full(&self) -> bool {
        self.is_full
    }

    fn is_pending(&self) -> bool {
        self.is_full
            || self.believed.settings.has_nftables_table
            || !self.dirty.is_empty()
            || !self.turns.is_empty()
    }

    fn goes_on(&self) -> bool {
        (self.turns.goes_on() || self.refused_sets.is_news()) && self.is_pending()
    }

    fn needs_observation(&self) -> bool {
        self.needs_observation
    }

    fn plan(&self) -> Plan<Step> {
        let mut plan = Plan::default();
        for (key, value) in static_rules::sysctls(&self.context) {
            if self.believed.settings.sysctls.get(key).map(String::as_str) != Some(value) {
                plan.push(Phase::Node, Step::SetSysctl { key, value });
            }
        }
        let ChainChanges { edits, in_use, .. } = self.changes();
        let sets = self.set_steps(&in_use);
        for step in sets.before {
            plan.push(Phase::Sets, step);
        }
        for step in sets.after {
            plan.push(Phase::OldSets, step);
        }
        match self.isolation {
            Search::Off => {
                self.push_all(&mut plan, Phase::Rules, edits);
                if self.believed.settings.has_nftables_table {
                    let family = self.context.family;
                    plan.push(Phase::Switch, Step::DeleteNftablesTable { family });
                }
            }
            Search::Searching(size) => self.push_parts(&mut plan, edits, size),
        }
        plan.ordered()
    }

    fn settings(&self) -> Plan<Step> {
        let mut plan = Plan::default();
        for (key, value) in static_rules::sysctls(&self.context) {
            plan.push(Phase::Node, Step::SetSysctl { key, value });
        }
        plan
    }

    fn report(&mut self, plan: &Plan<Step>, report: &Report) {
        let mut outcomes = report.outcomes.iter();
        let mut refused = Vec::new();
        let mut refused_sets = BTreeSet::new();
        let mut succeeded = true;
        self.refused_sets.clear_news();
        for step in plan.steps() {
            let outcome = outcomes.next().unwrap_or(&Outcome::NotTried);
            if step.is_about_set() {
                succeeded &= self.report_set(step, outcome);
                if let (Step::CreateSet { set, is_needed }, Outcome::Failed(failure)) =
                    (step, outcome)
                    && *is_needed
                    && !is_transient(failure.kind)
                {
                    refused_sets.insert(set.set.clone());
                }
                continue;
            }
            succeeded &= *outcome == Outcome::Done;
            match (step, outcome) {
                (Step::SetSysctl { key, value }, Outcome::Done) => {
                    self.believed
                        .settings
                        .sysctls
                        .insert(key, (*value).to_owned());
                }
                (Step::EditRules(rules), Outcome::Done) => self.believed.follow(&rules.edits),
                (Step::DeleteNftablesTable { .. }, Outcome::Done) => {
                    self.believed.settings.has_nftables_table = false;
                }
                (Step::EditRules(rules), Outcome::Failed(failure)) => {
                    // A batch is applied table by table.
                    self.needs_observation = true;
                    if !is_transient(failure.kind) {
                        refused.push(&rules.edits);
                    }
                }
                _ => {}
            }
        }
        if !succeeded {
            self.is_full = true;
            self.refuse_sets(&refused_sets);
            self.isolate(&refused);
            return;
        }
        self.is_large = self.is_large_now();
        let is_over = match self.isolation {
            Search::Off => true,
            // Chains of Service ports were written, but not the dispatch to them.
            Search::Searching(_) => {
                let ChainChanges { edits, in_use, .. } = self.changes();
                edits.is_empty() && !self.lacks_sets(&in_use)
            }
        };
        if is_over {
            if self.is_full {
                self.in_use = self.left_in_use();
            } else if self.believed.is_used_by_others() {
                // The jump existed before its Service was deleted, so an earlier observation has
                // it.
                let ChainChanges { wanted, in_use, .. } = self.changes();
                self.in_use.retain(|id| !wanted.contains(id));
                self.in_use.extend(in_use);
            }
            self.isolation = Search::Off;
            self.is_full = false;
            self.dirty = Dirty::default();
            self.previous.clear();
            let rejected = &self.rejected;
            self.quarantined.retain(|name| rejected.contains_key(name));
            self.take_back();
            self.try_again();
            self.take_turns();
        }
    }

    /// This mode makes no such plans.
    fn report_part(&mut self, plan: &Plan<Step>, report: &Report) {
        self.report(plan, report);
    }

    /// A step holds the chains of many Services.
    fn owner(&self, _step: &Step) -> Option<&ServicePortName> {
        None
    }

    fn unread_tables(&self) -> BTreeSet<Table> {
        self.believed.unread.clone()
    }

    fn set_aside(&self) -> &BTreeSet<ServicePortName> {
        &self.quarantined
    }

    fn is_set_aside(&self, step: &Step) -> bool {
        self.refused_sets.contains(step)
    }

    fn revision(&self) -> u64 {
        self.desired.revision() + self.cuts.revision()
    }

    fn conflicts(&self) -> BTreeSet<Conflict> {
        let lost = self.desired.lost();
        lost.map(|(frontend, loser, winner)| Conflict {
            loser: loser.clone(),
            winner: winner.clone(),
            by: self.desired.reason(frontend, loser),
            place: frontend.to_string(),
        })
        .collect()
    }

    /// Rules support everything that a Service may request, but not everything is its own.
    fn unmet(&self) -> BTreeSet<(ServicePortName, Unmet)> {
        self.desired.unmet()
    }

    fn cuts(&self) -> Option<&Cuts> {
        Some(&self.cuts)
    }

    fn no_local_endpoints(&self) -> (usize, usize) {
        self.desired.no_local_endpoints()
    }

    fn state_of(&self, service: &ServiceName) -> ServiceState {
        let mut view = ServiceState::default();
        let (desired, believed) = (&self.desired, &self.believed);
        let mut by_port: BTreeMap<_, _> = desired.by_port().of(service).collect();
        for (name, waiting) in self.turns.of(service) {
            match waiting {
                Some(rules) => by_port.insert(name, rules),
                None => by_port.remove(name),
            };
        }
        for (name, port_rules) in by_port {
            let frontends = port_rules.frontends(&self.context);
            let mut port = PortState {
                frontends: frontends.keys().map(ToString::to_string).collect(),
                ..PortState::default()
            };
            for (chain, rules) in self.chains(port_rules) {
                let id = (Table::Nat, chain);
                let shown = format!("{} {}", id.0, id.1);
                if let Some(count) = believed.rules_of(&id) {
                    port.believed
                        .insert(shown.clone(), ObjectState::Rules(count));
                }
                if !believed.has(&id, &rules) {
                    view.pending.push(shown.clone());
                }
                port.desired.insert(shown, ObjectState::Rules(rules.len()));
            }
            for set in port_rules.sets(&self.context) {
                let shown = format!("ipset {}", set.set);
                let found = believed.sets.get(&set.set);
                if let Some(found) = found {
                    port.believed.insert(shown.clone(), found.shown());
                }
                if !found.is_some_and(|found| set.is_met_by(found)) {
                    view.pending.push(shown.clone());
                }
                port.desired.insert(shown, SetState::from(&set).shown());
            }
            view.ports.insert(port_name(name), port);
        }
        view
    }

    fn rules(&mut self) -> Option<&mut dyn RuleBelief> {
        Some(self)
    }

    fn isolation(&self) -> Option<&dyn Isolation> {
        Some(self)
    }
}

impl RuleBelief for Planner {
    fn observed_rules(&mut self, rules: Ruleset) {
        self.believed = Believed::observed(&rules, &self.believed);
        self.is_full = true;
        self.needs_observation = false;
    }

    fn observed_settings(&mut self, settings: Settings) {
        self.believed.settings = settings;
        self.audited();
        // Sets that were refused are tried again at each audit.
        self.is_full |= !self.refused_sets.is_empty();
    }

    fn has_chain(&self, table: Table, chain: &ChainName) -> bool {
        self.believed.contains(&(table, chain.clone()))
    }

    fn rule_count(&self, table: Table) -> Option<usize> {
        Some(self.believed.rule_count(table))
    }
}

impl Isolation for Planner {
    fn quarantined(&self) -> &BTreeSet<ServicePortName> {
        &self.quarantined
    }

    fn undeletable_chains(&self) -> BTreeSet<ChainId> {
        self.undeletable.union(&self.in_use).cloned().collect()
    }

    fn is_isolating(&self) -> bool {
        self.isolation != Search::Off
    }
}
