// SPDX-License-Identifier: Apache-2.0
//! The iptables rules of all families that are served, as both modes use them.

use std::collections::BTreeMap;

use super::failure::outcome;
use crate::dataplane::iptables::{Iptables, IptablesError, Watch};
use kpr_core::model::IpFamily;
use kpr_core::plan::Outcome;
use kpr_core::plan::ruleset::{RuleBatch, Ruleset, Table};

/// The tables that have rules of ours.
const TABLES: [Table; 3] = [Table::Mangle, Table::Nat, Table::Filter];

/// See the module.
#[derive(Debug)]
pub(super) struct Rules {
    iptables: BTreeMap<IpFamily, Iptables>,
    /// There is none where no family is served.
    watch: Option<Watch>,
}

impl Rules {
    pub(super) fn new(iptables: BTreeMap<IpFamily, Iptables>) -> Self {
        let backend = iptables.values().next().map(|of| of.programs().backend);
        Self {
            watch: backend.map(|backend| Watch::open(backend, iptables.keys().copied())),
            iptables,
        }
    }

    /// Reads the rules of a family.
    pub(super) fn observe(&mut self, family: IpFamily) -> Result<Ruleset, IptablesError> {
        let Some(iptables) = self.iptables.get(&family) else {
            return Ok(Ruleset::new());
        };
        if let Some(watch) = &mut self.watch {
            watch.before_look(family);
        }
        let mut rules = iptables.save(&TABLES)?;
        // What others have is of no interest, and may be a hundred thousand rules; but a chain or a
        // set of ours that they use cannot be deleted.
        rules.chains.retain(|(table, chain), rules| {
            if table.has_built_in(chain) || chain.as_str().starts_with("KUBE-") {
                return true;
            }
            rules.retain(|rule| rule.as_str().contains(" KUBE-"));
            !rules.is_empty()
        });
        Ok(rules)
    }

    pub(super) fn apply(&mut self, edits: &RuleBatch) -> Outcome {
        let Some(iptables) = self.iptables.get(&edits.family) else {
            return Outcome::NotTried;
        };
        let write = || iptables.restore(&edits.edits);
        let result = match &mut self.watch {
            Some(watch) => watch.around_write(edits, write),
            None => write(),
        };
        outcome(&result)
    }

    /// Whether somebody else may have changed rules of ours since they were read. Costs
    /// microseconds.
    pub(super) fn have_changed(&mut self, family: IpFamily) -> bool {
        self.watch
            .as_mut()
            .is_some_and(|watch| watch.has_changed(family))
    }
}
