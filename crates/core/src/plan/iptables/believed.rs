// SPDX-License-Identifier: Apache-2.0
//! PURE: the rules that we believe the kernel holds. Our chains are kept as digests: sixty thousand
//! rules are compared, never read.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest as _, Sha256};

use crate::plan::iptables::state::{Sets, Settings};
use crate::plan::iptables::static_rules::{self, SHARED_CHAIN};
use crate::plan::leftovers::modes::{Modes, is_of_a_service};
use crate::plan::order;
use crate::plan::ruleset::{ChainId, ChainName, Edit, Rule, Ruleset, Table, unread_jumps};

/// Identifies the rules of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    pub fn of(rules: &[Rule]) -> Self {
        let mut digest = Sha256::new();
        for rule in rules {
            digest.update(rule.as_str().as_bytes());
            digest.update(b"\n");
        }
        Self(digest.finalize().into())
    }
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Believed {
    /// With the number of rules.
    chains: BTreeMap<ChainId, (Fingerprint, usize)>,
    /// The sum of these numbers, by table.
    rule_counts: BTreeMap<Table, usize>,
    /// Built-in chains and the one shared with kubelet: our rules stand beside foreign ones.
    shared: BTreeMap<ChainId, Vec<Rule>>,
    /// Chains of Services that foreign rules jump to, with the chains that these jumped to when
    /// observed.
    used: BTreeMap<ChainId, BTreeSet<ChainId>>,
    /// Tables whose rules could not be read when they were last observed.
    pub unread: BTreeSet<Table>,
    pub settings: Settings,
    pub sets: Sets,
}

impl Believed {
    /// What was observed; where it could not be read and nobody touched it, what was believed.
    pub fn observed(ruleset: &Ruleset, before: &Self) -> Self {
        let mut believed = Self {
            settings: before.settings.clone(),
            sets: before.sets.clone(),
            unread: ruleset.unread.keys().copied().collect(),
            ..Self::default()
        };
        for (id, rules) in &ruleset.chains {
            if is_shared(id) {
                believed.shared.insert(id.clone(), rules.clone());
            } else if id.1.as_str().starts_with("KUBE-") {
                believed.set_chain(id.clone(), Some(rules));
            }
        }
        for (table, chains) in &ruleset.unread {
            for chain in chains {
                believed.recall((*table, chain.clone()), before);
            }
        }
        for (id, rules) in &ruleset.chains {
            if Modes::of(id).is_none() {
                for target in targets(id.0, rules) {
                    let reached = reached(&target, &ruleset.chains);
                    believed.used.insert(target, reached);
                }
            }
        }
        believed
    }

    fn recall(&mut self, id: ChainId, before: &Self) {
        if let Some(rules) = before.shared.get(&id) {
            self.shared.insert(id, rules.clone());
        } else if let Some((fingerprint, rules)) = before.chains.get(&id) {
            let count = self.rule_counts.entry(id.0).or_default();
            *count += rules;
            let found = self.chains.insert(id, (*fingerprint, *rules));
            *count -= found.map_or(0, |(_, rules)| rules);
        }
    }

    /// Whether foreign rules jump to chains of Services.
    pub fn is_used_by_others(&self) -> bool {
        !self.used.is_empty()
    }

    /// Those of the unwanted chains that the kernel does not let us delete, because foreign rules
    /// jump to them.
    pub fn in_use(&self, unwanted: &BTreeSet<ChainId>) -> BTreeSet<ChainId> {
        let used = self.used.iter();
        used.filter(|(id, _)| unwanted.contains(*id))
            .flat_map(|(id, reached)| reached.iter().chain([id]))
            .filter(|id| unwanted.contains(*id))
            .cloned()
            .collect()
    }

    /// Whether the chain has exactly these rules.
    pub fn has(&self, id: &ChainId, rules: &[Rule]) -> bool {
        self.chains
            .get(id)
            .is_some_and(|(of, count)| *count == rules.len() && *of == Fingerprint::of(rules))
    }

    pub fn contains(&self, id: &ChainId) -> bool {
        self.chains.contains_key(id)
    }

    /// Number of rules of a chain.
    pub fn rules_of(&self, id: &ChainId) -> Option<usize> {
        self.chains.get(id).map(|(_, count)| *count)
    }

    /// All chains except shared ones.
    pub fn chains(&self) -> impl Iterator<Item = &ChainId> {
        self.chains.keys()
    }

    /// Number of rules in our chains of a table.
    pub fn rule_count(&self, table: Table) -> usize {
        self.rule_counts.get(&table).copied().unwrap_or_default()
    }

    fn set_chain(&mut self, id: ChainId, rules: Option<&[Rule]>) {
        let count = self.rule_counts.entry(id.0).or_default();
        let before = match rules {
            Some(rules) => {
                *count += rules.len();
                self.chains
                    .insert(id, (Fingerprint::of(rules), rules.len()))
            }
            None => self.chains.remove(&id),
        };
        *count -= before.map_or(0, |(_, rules)| rules);
    }

    /// The missing rules of shared chains. A rule that exists anywhere in its chain is left in
    /// place, as an administrator may have put rules before it; except jumps to chains that only
    /// refuse packets, if a rule of others accepts them before.
    pub fn lacking(&self, wanted: &[Edit]) -> Vec<Edit> {
        let mut missing = Vec::new();
        for edit in wanted {
            let (Edit::Prepend { table, chain, rule } | Edit::Append { table, chain, rule }) = edit
            else {
                continue;
            };
            let id = (*table, chain.clone());
            let is_unknown = match self.shared.get(&id) {
                // kubelet's rule in it is the same.
                Some(rules) => rules.contains(&Rule::unread()),
                None => !table.has_built_in(chain),
            };
            match self.shared.get(&id) {
                Some(rules) if rules.contains(rule) => {
                    if static_rules::only_refuses(*table, rule) {
                        let jump = (*table, chain, rule);
                        missing.extend(order::to_the_top(jump, rules, order::may_take));
                    }
                }
                _ if is_unknown => missing.push(Edit::Replace {
                    table: *table,
                    chain: chain.clone(),
                    rules: vec![rule.clone()],
                }),
                _ => missing.push(edit.clone()),
            }
            let found = self.shared.get(&id).map(Vec::as_slice);
            missing.extend(unread_jumps(found, edit));
        }
        missing
    }

    /// Applies edits that were made.
    pub fn follow(&mut self, edits: &[Edit]) {
        for edit in edits {
            let id = (edit.table(), edit.chain().clone());
            match edit {
                Edit::Replace { rules, .. } if is_shared(&id) => {
                    self.shared.insert(id, rules.clone());
                }
                Edit::Replace { rules, .. } => self.set_chain(id, Some(rules)),
                Edit::Prepend { rule, .. } => {
                    self.shared.entry(id).or_default().insert(0, rule.clone());
                }
                Edit::Append { rule, .. } => {
                    self.shared.entry(id).or_default().push(rule.clone());
                }
                Edit::Delete { rule, .. } => {
                    if let Some(rules) = self.shared.get_mut(&id)
                        && let Some(at) = rules.iter().position(|other| other == rule)
                    {
                        rules.remove(at);
                    }
                }
                Edit::DeleteChain { .. } => self.set_chain(id, None),
            }
        }
    }
}

/// The chains of Services that rules jump to.
fn targets(table: Table, rules: &[Rule]) -> BTreeSet<ChainId> {
    let names = rules.iter().filter_map(Rule::target);
    names
        .filter_map(|name| Some((table, ChainName::new(name).ok()?)))
        .filter(is_of_a_service)
        .collect()
}

/// All chains reachable from a chain.
fn reached(from: &ChainId, chains: &BTreeMap<ChainId, Vec<Rule>>) -> BTreeSet<ChainId> {
    let mut reached = BTreeSet::new();
    let mut todo = vec![from.clone()];
    while let Some(id) = todo.pop() {
        let rules = chains.get(&id).map_or(&[][..], Vec::as_slice);
        for target in targets(id.0, rules) {
            if reached.insert(target.clone()) {
                todo.push(target);
            }
        }
    }
    reached
}

fn is_shared((table, chain): &ChainId) -> bool {
    table.has_built_in(chain) || (*table == Table::Filter && chain.as_str() == SHARED_CHAIN)
}
