// SPDX-License-Identifier: Apache-2.0
//! PURE: one family's desired and believed rules in iptables mode, kept up to date by changes and
//! reports.
//!
//! A plan is one batch of edits of the chains that changed, or where large batches cost too much,
//! several ([`parts`], [`Turns`]). If the kernel rejects a batch or takes too long for it, the next
//! plans find out why (`Isolation`): the chains of the Services are written in parts, smaller and
//! smaller, until the Service whose rules are rejected stands alone. It is quarantined and keeps
//! its old rules; all others are served.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{ServiceName, ServicePortName};
use crate::plan::context::Context;
use crate::plan::cuts::Cuts;
use crate::plan::iptables::Plan;
use crate::plan::iptables::believed::Believed;
use crate::plan::iptables::desired::{Desired, Dirty};
use crate::plan::iptables::parts::{self, ChainEdit, Part, Place};
use crate::plan::iptables::port_rules::{Chains, PortRules};
use crate::plan::iptables::static_rules;
use crate::plan::iptables::step::{Phase, Step};
use crate::plan::iptables::tree::{Prefix, TreeId};
use crate::plan::iptables::turns::Turns;
use crate::plan::leftovers::modes::is_of_a_service;
use crate::plan::report::FailureKind;
use crate::plan::ruleset::RuleBatch;
use crate::plan::ruleset::{ChainId, ChainName, Edit, Rule, Table};

/// From this many endpoints on, their rules have no comments (kube-proxy's large-cluster mode).
const LARGE_CLUSTER: usize = 1_000;

/// Number of parts that one plan divides suspects into.
const PARTS: usize = 16;

/// Progress of the search for the rules that the kernel rejects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Isolation {
    /// Everything in one batch.
    Off,
    /// This many Service ports in a batch.
    Searching(usize),
}

/// The most audits between two attempts at what was rejected.
const LONGEST_PAUSE: u32 = 16;

/// When what was rejected is tried again: after one audit, after two more, after four more, because
/// each attempt costs some batches and may read all rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Retry {
    /// Audits since the last attempt.
    audits: u32,
    /// Audits from the last attempt to the next, less one.
    pause: u32,
    is_due: bool,
}

impl Retry {
    fn audited(&mut self) {
        self.audits += 1;
        if self.audits > self.pause {
            let pause = (self.pause * 2 + 1).min(LONGEST_PAUSE - 1);
            (self.audits, self.pause, self.is_due) = (0, pause, true);
        }
    }

    const fn take_due(&mut self) -> bool {
        std::mem::replace(&mut self.is_due, false)
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Planner {
    context: Context,
    desired: Desired,
    cuts: Cuts,
    believed: Believed,
    /// Changed since the last successful plan.
    dirty: Dirty,
    /// Changes that are not part of `desired` yet.
    turns: Turns,
    /// The previous rules of the Service ports that changed since then.
    previous: BTreeMap<ServicePortName, Option<PortRules>>,
    /// Service ports whose rules the kernel rejected.
    quarantined: BTreeSet<ServicePortName>,
    /// Their rules, unless they are being tried again. `desired` has the previous ones.
    rejected: BTreeMap<ServicePortName, Option<PortRules>>,
    retry: Retry,
    /// Unreferenced chains that the kernel did not let us delete: a foreign rule jumps to them.
    undeletable: BTreeSet<ChainId>,
    /// The same, as observed; their deletion is never tried.
    in_use: BTreeSet<ChainId>,
    /// The sets that the kernel refused to make or destroy.
    refused_sets: RefusedSets,
    isolation: Isolation,
    /// The next plan compares everything.
    is_full: bool,
    /// Comments are left out.
    is_large: bool,
    needs_observation: bool,
}

/// The result of [`Planner::changes`].
struct ChainChanges {
    edits: Vec<ChainEdit>,
    /// Wanted chains, among those that were compared.
    wanted: BTreeSet<ChainId>,
    /// Unwanted chains that foreign rules jump to.
    in_use: BTreeSet<ChainId>,
}

impl Planner {
    pub fn new(context: Context) -> Self {
        Self {
            desired: Desired::of_node(&context),
            context,
            cuts: Cuts::default(),
            believed: Believed::default(),
            dirty: Dirty::default(),
            turns: Turns::default(),
            previous: BTreeMap::new(),
            quarantined: BTreeSet::new(),
            rejected: BTreeMap::new(),
            retry: Retry::default(),
            undeletable: BTreeSet::new(),
            in_use: BTreeSet::new(),
            refused_sets: RefusedSets::default(),
            isolation: Isolation::Off,
            is_full: true,
            is_large: false,
            needs_observation: false,
        }
    }

    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    pub fn believed(&self) -> &Believed {
        &self.believed
    }

    fn replace(&mut self, name: ServicePortName, port_rules: Option<PortRules>) {
        if port_rules.is_none() {
            self.forget_sets(&name);
        }
        if self.desired.wanted(&name) == port_rules.as_ref() {
            return;
        }
        if let Some(limit) = self.context.iptables.batch_limit.filter(|_| !self.is_full)
            && !self.turns.takes(
                self.desired.size_of_change(&name, port_rules.as_ref()),
                limit,
            )
        {
            self.turns.wait(name, port_rules);
            return;
        }
        self.exchange(name, port_rules);
    }

    /// What was rejected of a Service has changed, or the Service is gone.
    fn forget_rejected(&mut self, service: &ServiceName) {
        self.quarantined.retain(|name| name.service != *service);
        self.rejected.retain(|name, _| name.service != *service);
    }

    /// Nothing is known to differ from belief. What was rejected may have been so for a reason that
    /// has passed: a module was missing, memory was short, a program broke.
    fn audited(&mut self) {
        if !self.quarantined.is_empty() || !self.undeletable.is_empty() {
            self.retry.audited();
        }
    }

    /// Makes what was rejected part of the next plan.
    fn try_again(&mut self) {
        if !self.retry.take_due() {
            return;
        }
        self.is_full = !std::mem::take(&mut self.undeletable).is_empty();
        for (name, rules) in std::mem::take(&mut self.rejected) {
            let rules = rules.map(|rules| self.as_possible(&name, rules));
            self.exchange(name, rules);
        }
    }

    /// Begins with changes that have waited.
    fn take_turns(&mut self) {
        let Some(limit) = self.context.iptables.batch_limit else {
            return;
        };
        let desired = &self.desired;
        let size = |name: &_, rules: Option<&_>| desired.size_of_change(name, rules);
        for (name, rules) in self.turns.next(size, limit) {
            self.exchange(name, rules);
        }
    }

    fn exchange(&mut self, name: ServicePortName, port_rules: Option<PortRules>) {
        // A full plan compares everything.
        let dirty = (!self.is_full).then_some(&mut self.dirty);
        let previous = self
            .desired
            .replace(&name, port_rules, &self.context, dirty);
        self.previous.entry(name).or_insert(previous);
    }

    fn push(&self, plan: &mut Plan, phase: Phase, edits: Vec<Edit>) {
        let needs_earlier = false;
        self.push_part(
            plan,
            phase,
            Part {
                edits,
                needs_earlier,
            },
        );
    }

    fn push_part(&self, plan: &mut Plan, phase: Phase, part: Part) {
        if !part.edits.is_empty() {
            let before = |id: &ChainId| self.believed.rules_of(id);
            let batch = RuleBatch::growing(self.context.family, part.edits, before);
            let batch = RuleBatch {
                needs_earlier: part.needs_earlier,
                ..batch
            };
            plan.push(phase, Step::EditRules(batch));
        }
    }

    /// Adds changes in one batch, or in parts if they are many.
    fn push_all(&self, plan: &mut Plan, phase: Phase, edits: Vec<ChainEdit>) {
        let limit = self.context.iptables.batch_limit.unwrap_or(usize::MAX);
        let size = |all: usize, change: &ChainEdit| all.saturating_add(change.rules + 1);
        if edits.iter().fold(0, size) <= limit {
            self.push(
                plan,
                phase,
                edits.into_iter().map(|edit| edit.edit).collect(),
            );
            return;
        }
        for part in parts::parts(edits, limit) {
            self.push_part(plan, phase, part);
        }
    }

    /// Edits that no Service port can be blamed for come first, then chains of Service ports in
    /// parts of `size`; dispatch and deletions only when all of those succeeded.
    fn push_parts(&self, plan: &mut Plan, edits: Vec<ChainEdit>, size: usize) {
        let mut of_services: BTreeMap<ServicePortName, Vec<Edit>> = BTreeMap::new();
        let (mut base, mut dispatch, mut deletions) = (Vec::new(), Vec::new(), Vec::new());
        for change in edits {
            match (change.owner.clone(), &change.edit) {
                (Some(owner), _) => of_services.entry(owner).or_default().push(change.edit),
                (None, Edit::DeleteChain { .. }) => deletions.push(change.edit),
                (None, Edit::Replace { chain, .. }) if is_base(chain) => {}
                (None, _) => dispatch.push(change),
            }
        }
        // Written whether needed or not: if the kernel rejects even these, no Service is to blame.
        for (table, chain, rules) in static_rules::chains(&self.context) {
            if is_base(&chain) {
                base.push(Edit::Replace {
                    table,
                    chain,
                    rules,
                });
            }
        }
        self.push(plan, Phase::Base, base);
        if of_services.is_empty() {
            self.push_all(plan, Phase::Base, dispatch);
            for deletion in deletions.into_iter().take(PARTS * PARTS) {
                self.push(plan, Phase::OldRules, vec![deletion]);
            }
            return;
        }
        let mut rest = of_services.into_values();
        for _ in 0..PARTS {
            let part: Vec<Edit> = rest.by_ref().take(size.max(1)).flatten().collect();
            self.push(plan, Phase::Rules, part);
        }
    }

    /// The edits that write the chains of a Service port.
    pub fn chains(&self, port_rules: &PortRules) -> Chains {
        port_rules.chains(&self.context, !self.is_large_now())
    }

    /// The same, in the order in which they may be written one by one.
    fn chains_in_order(&self, port_rules: &PortRules) -> Vec<(ChainName, Vec<Rule>)> {
        let mut chains: Vec<_> = self.chains(port_rules).into_iter().collect();
        chains.sort_by_key(|(chain, _)| parts::level(chain));
        chains
    }

    fn is_large_now(&self) -> bool {
        self.desired.endpoint_count() > LARGE_CLUSTER
    }

    /// The changes of chains that turn Believed into Desired.
    fn changes(&self) -> ChainChanges {
        let is_full = self.is_full || self.is_large != self.is_large_now();
        let mut edits = Vec::new();
        // Wanted chains, among those that are compared.
        let mut wanted: BTreeSet<ChainId> = BTreeSet::new();
        let mut want =
            |place: Place, owner: Option<&ServicePortName>, id: ChainId, rules: Vec<Rule>| {
                // Two endpoints may hash to one chain; it is written once.
                if !wanted.contains(&id) && !self.believed.has(&id, &rules) {
                    let (table, chain) = id.clone();
                    edits.push(ChainEdit {
                        place,
                        owner: owner.cloned(),
                        rules: rules.len() + self.believed.rules_of(&id).unwrap_or(0),
                        edit: Edit::Replace {
                            table,
                            chain,
                            rules,
                        },
                    });
                }
                wanted.insert(id);
            };
        for (table, chain, rules) in static_rules::chains(&self.context) {
            let place = if is_base(&chain) {
                Place::Base
            } else {
                Place::Entrance
            };
            want(place, None, (table, chain), rules);
        }
        let chains_of = |port_rules: &PortRules| self.chains_in_order(port_rules);
        let mut old: BTreeSet<ChainId> = BTreeSet::new();
        if is_full {
            for (name, port_rules) in self.desired.by_port().iter() {
                for (chain, rules) in chains_of(port_rules) {
                    want(Place::ServicePort, Some(name), (Table::Nat, chain), rules);
                }
            }
            let present = self.believed.chains();
            old.extend(present.filter(|id| is_of_a_service(id)).cloned());
        } else {
            for name in &self.dirty.service_ports {
                let port_rules = self.desired.by_port().get(name);
                for (chain, rules) in port_rules.map(chains_of).unwrap_or_default() {
                    want(Place::ServicePort, Some(name), (Table::Nat, chain), rules);
                }
            }
            let chains = self.dirty.old_chains.iter();
            old.extend(chains.map(|chain| (Table::Nat, chain.clone())));
        }
        let everywhere = self.context.iptables.node_ports_everywhere;
        for tree in TreeId::ALL {
            if everywhere && tree.is_of_node_addresses() {
                continue;
            }
            let nodes = if is_full {
                self.desired.nodes(tree)
            } else {
                self.dirty.nodes.get(&tree).cloned().unwrap_or_default()
            };
            for prefix in nodes {
                let id = (tree.table(), tree.chain(prefix, self.context.family));
                match self.desired.node(tree, prefix, &self.context) {
                    Some(mut rules) => {
                        if prefix == Prefix::ROOT {
                            rules.extend(static_rules::behind(tree, &self.context));
                        }
                        want(Place::of_node(tree, prefix), None, id, rules);
                    }
                    None => {
                        old.insert(id);
                    }
                }
            }
        }
        let unwanted = self.unwanted(old.difference(&wanted));
        let in_use = self.believed.in_use(&unwanted);
        let deleted = unwanted.difference(&in_use);
        let deleted = deleted.filter(|id| !self.undeletable.contains(*id));
        edits.extend(deleted.map(|id| ChainEdit {
            place: Place::Old,
            owner: None,
            rules: self.believed.rules_of(id).unwrap_or(0),
            edit: Edit::DeleteChain {
                table: id.0,
                chain: id.1.clone(),
            },
        }));
        let shared = self.believed.lacking(&static_rules::shared(&self.context));
        edits.extend(shared.into_iter().map(|edit| ChainEdit {
            place: Place::Entrance,
            owner: None,
            rules: 1,
            edit,
        }));
        ChainChanges {
            edits,
            wanted,
            in_use,
        }
    }

    /// Those that exist.
    fn unwanted<'a>(&self, ids: impl Iterator<Item = &'a ChainId>) -> BTreeSet<ChainId> {
        ids.filter(|id| self.believed.contains(id))
            .cloned()
            .collect()
    }

    /// Unreferenced chains that foreign rules jump to. Costs nothing where there are no such jumps.
    fn left_in_use(&self) -> BTreeSet<ChainId> {
        if !self.believed.is_used_by_others() {
            return BTreeSet::new();
        }
        let mut unwanted: BTreeSet<ChainId> = self.believed.chains().cloned().collect();
        unwanted.retain(is_of_a_service);
        for chain in self.owners().into_keys() {
            unwanted.remove(&chain);
        }
        for tree in TreeId::ALL {
            for prefix in self.desired.nodes(tree) {
                unwanted.remove(&(tree.table(), tree.chain(prefix, self.context.family)));
            }
        }
        self.believed.in_use(&unwanted)
    }

    /// Continues the search for the rules that the kernel rejects.
    fn isolate(&mut self, refused: &[&Vec<Edit>]) {
        if refused.is_empty() {
            return;
        }
        let Isolation::Searching(size) = self.isolation else {
            let ChainChanges { edits, .. } = self.changes();
            let changed: BTreeSet<_> = edits.iter().filter_map(|it| it.owner.as_ref()).collect();
            self.isolation = Isolation::Searching(changed.len().div_ceil(PARTS).max(1));
            return;
        };
        let is_deletion = |edit: &Edit| matches!(edit, Edit::DeleteChain { .. });
        let owners = self.owners();
        let owner_of = |edit: &Edit| owners.get(&(edit.table(), edit.chain().clone()));
        let blamable = |edits: &&Vec<Edit>| {
            edits
                .iter()
                .any(|edit| is_deletion(edit) || owner_of(edit).is_some())
        };
        if !refused.iter().all(blamable) {
            // The next round tries everything again.
            self.isolation = Isolation::Off;
            return;
        }
        for edit in refused.iter().copied().flatten() {
            match owner_of(edit).cloned() {
                None => {
                    self.undeletable
                        .insert((edit.table(), edit.chain().clone()));
                }
                Some(name) if size == 1 && !self.rejected.contains_key(&name) => {
                    let previous = self.previous.get(&name).cloned().flatten();
                    let rejected = self.desired.replace(&name, previous, &self.context, None);
                    self.rejected.insert(name.clone(), rejected);
                    if self.quarantined.insert(name) {
                        self.retry = Retry::default();
                    }
                }
                Some(_) => {}
            }
        }
        self.isolation = Isolation::Searching((size / PARTS).max(1));
    }

    /// The Service ports that own these chains.
    fn owners(&self) -> BTreeMap<ChainId, ServicePortName> {
        let mut owners = BTreeMap::new();
        for (name, port_rules) in self.desired.by_port().iter() {
            for chain in port_rules.chains(&self.context, false).into_keys() {
                owners.insert((Table::Nat, chain), name.clone());
            }
        }
        owners
    }
}

/// Whether chains of Service ports jump to it.
fn is_base(chain: &ChainName) -> bool {
    matches!(chain.as_str(), "KUBE-MARK-MASQ" | "KUBE-FORWARD")
}

/// Whether the same batch may succeed later.
const fn is_transient(kind: FailureKind) -> bool {
    matches!(kind, FailureKind::Transient | FailureKind::Permission)
}

mod interface;
mod sets;

use sets::RefusedSets;
