// SPDX-License-Identifier: Apache-2.0
//! PURE: the effect of an edit of rules on the kernel.

use std::collections::BTreeSet;

use crate::plan::report::Refusal;
use crate::plan::ruleset::{Edit, Ruleset, Table};

impl Ruleset {
    /// Applies an edit as the kernel does.
    pub fn apply(&mut self, edit: &Edit) -> Result<(), Refusal> {
        let key = (edit.table(), edit.chain().clone());
        match edit {
            Edit::Replace { rules, .. } => {
                self.chains.insert(key, rules.clone());
            }
            Edit::Prepend { table, rule, .. } | Edit::Append { table, rule, .. } => {
                if table.has_built_in(edit.chain()) {
                    self.chains.entry(key.clone()).or_default();
                }
                let chain = self.chains.get_mut(&key).ok_or(Refusal::NotFound)?;
                let at = match edit {
                    Edit::Prepend { .. } => 0,
                    _ => chain.len(),
                };
                chain.insert(at, rule.clone());
            }
            Edit::Delete { rule, .. } => {
                let chain = self.chains.get_mut(&key).ok_or(Refusal::NotFound)?;
                let at = chain.iter().position(|other| other == rule);
                chain.remove(at.ok_or(Refusal::NotFound)?);
            }
            Edit::DeleteChain { .. } => {
                self.chains.remove(&key).ok_or(Refusal::NotFound)?;
            }
        }
        Ok(())
    }

    /// Rules may jump only to chains that exist.
    pub fn check_targets(&self) -> Result<(), Refusal> {
        // Another proxy may have left a hundred thousand rules.
        let chains = self.chains.keys();
        let chains: BTreeSet<(Table, &str)> = chains.map(|(t, c)| (*t, c.as_str())).collect();
        for ((table, _), rules) in &self.chains {
            let mut targets = rules.iter().filter_map(|rule| rule.target());
            if targets.any(|to| to.starts_with("KUBE-") && !chains.contains(&(*table, to))) {
                return Err(Refusal::NotFound);
            }
        }
        Ok(())
    }
}
