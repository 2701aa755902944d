// SPDX-License-Identifier: Apache-2.0
//! PURE: the iptables rules that a kube-proxy (ours or not) of one mode leaves behind, and the
//! edits that remove them.
//!
//! In shared chains only rules that jump to a deleted chain are removed, so rules of an
//! administrator or of kubelet stay.

use std::collections::BTreeSet;

use crate::plan::leftovers::modes::Modes;
use crate::plan::ruleset::{ChainId, ChainName, Edit, Rule, Ruleset, Table};
use crate::plan::{iptables, ipvs};

/// All packets to Services pass this chain, in both modes.
pub const DISPATCH: (Table, &str) = (Table::Nat, "KUBE-SERVICES");

/// Whether the edit decides which mode serves.
pub fn is_dispatch(edit: &Edit) -> bool {
    let (table, chain) = DISPATCH;
    edit.table() == table && edit.chain().as_str() == chain
}

/// Whether rules of iptables mode translate packets to Services.
pub fn serves(present: &Ruleset) -> bool {
    let (table, chain) = DISPATCH;
    let mut chains = present.table(table);
    let rules = chains.find(|(name, _)| name.as_str() == chain);
    let leads_to_a_service = |rule: &Rule| {
        let target = rule.target().and_then(|name| ChainName::new(name).ok());
        target.is_some_and(|chain| Modes::of(&(table, chain)) == Some(Modes::Iptables))
    };
    rules.is_some_and(|(_, rules)| rules.iter().any(leads_to_a_service))
}

/// A chain that cannot be deleted, because a foreign rule jumps to it. It is flushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    pub chain: ChainId,
    /// The chain that holds the foreign rule.
    pub user: ChainId,
}

/// See [`removal`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removal {
    /// One batch.
    pub edits: Vec<Edit>,
    pub kept: Vec<Kept>,
}

/// The edits that remove chains of ours and the rules in built-in chains that jump to them. `goes`
/// selects among our chains; `rewritten` are chains whose present rules the same batch replaces.
pub fn removal(
    present: &Ruleset,
    goes: impl Fn(Modes) -> bool,
    rewritten: &BTreeSet<ChainId>,
) -> Removal {
    let doomed: BTreeSet<&ChainId> = present
        .chains
        .keys()
        .filter(|id| Modes::of(id).is_some_and(&goes))
        .collect();
    let mut removal = Removal::default();
    let mut kept = BTreeSet::new();
    for (id, rules) in &present.chains {
        if doomed.contains(id) || rewritten.contains(id) {
            continue;
        }
        let (table, chain) = id;
        for rule in rules {
            let Some(target) = target_among(*table, rule, &doomed) else {
                continue;
            };
            if table.has_built_in(chain) {
                removal.edits.push(Edit::Delete {
                    table: *table,
                    chain: chain.clone(),
                    rule: rule.clone(),
                });
            } else if kept.insert(target) {
                removal.kept.push(Kept {
                    chain: target.clone(),
                    user: id.clone(),
                });
            }
        }
    }
    for id in doomed {
        let (table, chain) = id.clone();
        if !kept.contains(id) {
            removal.edits.push(Edit::DeleteChain { table, chain });
        } else if present
            .chains
            .get(id)
            .is_some_and(|rules| !rules.is_empty())
        {
            let rules = Vec::new();
            removal.edits.push(Edit::Replace {
                table,
                chain,
                rules,
            });
        }
    }
    removal
}

/// The one of these chains that a rule jumps to.
fn target_among<'a>(
    table: Table,
    rule: &Rule,
    chains: &BTreeSet<&'a ChainId>,
) -> Option<&'a ChainId> {
    let chain = ChainName::new(rule.target()?).ok()?;
    chains.get(&(table, chain)).copied()
}

/// The edits that delete rules of built-in chains which jump to chains of both modes the way
/// one mode does, unless the other mode has the same rule.
pub fn foreign_jumps(present: &Ruleset, mode: Modes) -> Vec<Edit> {
    let (mine, theirs) = match mode {
        Modes::Iptables => (ipvs::static_rules::jumps(), iptables::static_rules::jumps()),
        Modes::Ipvs => (iptables::static_rules::jumps(), ipvs::static_rules::jumps()),
        Modes::Both => return Vec::new(),
    };
    theirs
        .into_iter()
        .filter(|jump| !mine.contains(jump))
        .filter(|(table, _, rule)| {
            let target = rule.target().and_then(|name| ChainName::new(name).ok());
            // Other rules are deleted together with their chain.
            target.is_some_and(|chain| Modes::of(&(*table, chain)) == Some(Modes::Both))
        })
        .filter(|(table, chain, rule)| {
            let rules = present.rules(*table, chain);
            rules.is_some_and(|rules| rules.contains(rule))
        })
        .map(|(table, chain, rule)| Edit::Delete { table, chain, rule })
        .collect()
}

#[cfg(test)]
mod tests;
