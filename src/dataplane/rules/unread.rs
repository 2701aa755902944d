// SPDX-License-Identifier: Apache-2.0
//! Our rules in tables that iptables cannot list: `iptables-nft-save` prints nothing of a table as
//! soon as another program has one rule of nft's own in it. Writing works all the same.
//!
//! Netlink lists what such a table has: chains, and the number of each rule. Which rules ours are
//! is then a matter of belief. A chain whose rules have the same numbers as when they were last
//! listed is as it was; one that we have written since is too, unless a notification names it. All
//! others are written anew.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hasher as _};
use std::mem;

use tracing::{info, warn};

use super::RulesError;
use crate::dataplane::iptables::Touched;
use crate::dataplane::nftables::{self, ListedChain};
use kpr_core::model::IpFamily;
use kpr_core::plan::ruleset::{ChainId, ChainName, Edit, Rule, Ruleset, Table};

/// What is known of a family's rules in such tables.
#[derive(Debug)]
pub(super) struct Unread {
    family: IpFamily,
    /// Tables that could not be listed when they were last read.
    tables: BTreeSet<Table>,
    /// What the rules of chains were known by when they were listed; a chain that we wrote since is
    /// not in it.
    listed: BTreeMap<ChainId, u64>,
    /// Chains that a write of ours may have changed in part.
    doubtful: BTreeSet<ChainId>,
    /// What other programs changed since then.
    touched: Touched,
}

impl Unread {
    pub(super) const fn new(family: IpFamily) -> Self {
        Self {
            family,
            tables: BTreeSet::new(),
            listed: BTreeMap::new(),
            doubtful: BTreeSet::new(),
            touched: Touched {
                any: false,
                is_remade: false,
                chains: BTreeSet::new(),
            },
        }
    }

    /// Other programs changed chains.
    pub(super) fn touch(&mut self, touched: Touched) {
        self.touched.any |= touched.any;
        self.touched.is_remade |= touched.is_remade;
        self.touched.chains.extend(touched.chains);
    }

    /// Adds what can be known of the tables that could not be read.
    pub(super) fn observe(&mut self, rules: &mut Ruleset) -> Result<(), RulesError> {
        let tables: BTreeSet<Table> = rules.unread.keys().copied().collect();
        self.report(&tables);
        let mut found = Vec::new();
        for table in tables {
            let chains = nftables::chains(self.family, table.as_str())?;
            found.extend(chains.into_iter().map(|chain| (table, chain)));
        }
        let mut before = mem::take(&mut self.listed);
        let doubtful = mem::take(&mut self.doubtful);
        let touched = mem::take(&mut self.touched);
        if touched.is_remade {
            before.clear();
        }
        for (table, (name, chain)) in found {
            let Ok(chain_name) = ChainName::new(name.as_str()) else {
                continue;
            };
            let is_built_in = table.has_built_in(&chain_name);
            if !is_built_in && !name.starts_with("KUBE-") {
                continue;
            }
            let id = (table, chain_name.clone());
            let is_touched =
                || touched.any || touched.chains.contains(&(table.to_string(), name.clone()));
            // Foreign rules of a built-in chain come and go.
            let known_by = if is_built_in {
                jumps_of(&chain)
            } else {
                chain.handles
            };
            let is_as_before = match before.get(&id) {
                Some(handles) => *handles == known_by,
                None => !is_touched(),
            };
            if is_as_before && !doubtful.contains(&id) {
                let untouched = rules.unread.entry(table).or_default();
                untouched.insert(chain_name);
            }
            let jumps = chain.jumps.iter();
            let jumps = jumps.map(|(handle, to)| Rule::unread_jump(*handle, to));
            let known = if is_built_in {
                jumps.collect()
            } else {
                vec![Rule::unread()]
            };
            rules.chains.insert(id.clone(), known);
            self.listed.insert(id, known_by);
        }
        Ok(())
    }

    /// Says once what cannot be read.
    fn report(&mut self, tables: &BTreeSet<Table>) {
        let family = self.family;
        for table in tables.difference(&self.tables) {
            warn!(
                %family,
                %table,
                "table has nft rules that iptables cannot list: our chains are written without \
                 reading them, foreign rules that jump to them are not seen, and changes by others \
                 are noticed by notification only"
            );
        }
        for table in self.tables.difference(tables) {
            info!(%family, %table, "iptables can list this table again");
        }
        self.tables.clone_from(tables);
    }

    /// Makes edits; those of rules that only have a number are not for iptables.
    pub(super) fn write(
        &mut self,
        edits: &[Edit],
        restore: impl FnOnce(&[Edit]) -> Result<(), RulesError>,
    ) -> Result<(), RulesError> {
        if !self.tables.is_empty() || !self.listed.is_empty() {
            for edit in edits {
                self.listed.remove(&id_of(edit));
            }
        }
        let numbered = |edit: &&Edit| edit.unread_handle().is_some();
        if !edits.iter().any(|edit| edit.unread_handle().is_some()) {
            return restore(edits);
        }
        let (rules, rest): (Vec<&Edit>, Vec<&Edit>) = edits.iter().partition(numbered);
        let rest: Vec<Edit> = rest.into_iter().cloned().collect();
        // A chain can be deleted once nothing jumps to it. Another jump comes before the old one
        // goes.
        let deleted: BTreeSet<ChainId> = rest
            .iter()
            .filter(|edit| matches!(edit, Edit::DeleteChain { .. }))
            .map(id_of)
            .collect();
        let is_to_deleted = |edit: &&&Edit| target_of(edit).is_some_and(|to| deleted.contains(&to));
        for edit in rules.iter().filter(is_to_deleted) {
            self.delete(edit)?;
        }
        if !rest.is_empty() {
            restore(&rest)?;
        }
        for edit in rules.iter().filter(|edit| !is_to_deleted(edit)) {
            self.delete(edit)?;
        }
        Ok(())
    }

    fn delete(&self, edit: &Edit) -> Result<(), RulesError> {
        if let Some(handle) = edit.unread_handle() {
            let (table, chain) = (edit.table().as_str(), edit.chain().as_str());
            nftables::delete_rule(self.family, table, chain, handle)?;
        }
        Ok(())
    }

    /// These edits may have been made or not.
    pub(super) fn doubt(&mut self, edits: &[Edit]) {
        self.doubtful.extend(edits.iter().map(id_of));
    }
}

/// A digest of the jumps to chains that may be ours.
fn jumps_of(chain: &ListedChain) -> u64 {
    let mut digest = DefaultHasher::new();
    for (handle, to) in &chain.jumps {
        if to.starts_with("KUBE-") {
            digest.write_u64(*handle);
        }
    }
    digest.finish()
}

fn id_of(edit: &Edit) -> ChainId {
    (edit.table(), edit.chain().clone())
}

/// The chain that the deleted rule jumps to.
fn target_of(edit: &Edit) -> Option<ChainId> {
    match edit {
        Edit::Delete { table, rule, .. } => Some((*table, ChainName::new(rule.target()?).ok()?)),
        _ => None,
    }
}
