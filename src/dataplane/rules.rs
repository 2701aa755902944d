// SPDX-License-Identifier: Apache-2.0
//! The iptables rules of all served families, as both modes use them.

use std::collections::BTreeMap;

use super::failure::outcome;
use crate::dataplane::iptables::{Iptables, IptablesError, Watch};
use kpr_core::model::IpFamily;
use kpr_core::plan::Outcome;
use kpr_core::plan::ruleset::{RuleBatch, Ruleset, Table};

/// The tables that contain our rules.
const TABLES: [Table; 3] = [Table::Mangle, Table::Nat, Table::Filter];

/// See the module.
#[derive(Debug)]
pub(super) struct Rules {
    iptables: BTreeMap<IpFamily, Iptables>,
    /// `None` if no family is served.
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
        // Foreign rules do not matter, and there may be a hundred thousand of them; but a chain or
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

    /// Whether another program may have changed our rules since they were read. Costs microseconds.
    pub(super) fn have_changed(&mut self, family: IpFamily) -> bool {
        self.watch
            .as_mut()
            .is_some_and(|watch| watch.has_changed(family))
    }
}
