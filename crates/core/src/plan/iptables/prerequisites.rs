// SPDX-License-Identifier: Apache-2.0
//! PURE: which steps of iptables mode must be skipped after others have failed.

use crate::plan::iptables::static_rules::{ROUTE_LOCALNET, SHARED_CHAIN};
use crate::plan::iptables::step::{Phase, Step};
use crate::plan::leftovers::stale_rules::is_dispatch;
use crate::plan::prerequisites;
use crate::plan::ruleset::{Edit, RuleBatch};

/// The failures of one plan so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Prerequisites {
    /// Chains or sets are missing that any rules may name: they would be rejected, and all others
    /// with them.
    has_no_base: bool,
    has_no_rules: bool,
    /// Packets to 127.0.0.0/8 are still routed.
    routes_localnet: bool,
}

impl prerequisites::Prerequisites for Prerequisites {
    type Step = Step;

    fn lack(&mut self, phase: Phase, step: &Step) {
        match step {
            Step::SetSysctl {
                key: ROUTE_LOCALNET,
                value: "0",
            } => self.routes_localnet = true,
            Step::EditRules(_) => {
                self.has_no_rules = true;
                self.has_no_base |= phase == Phase::Base;
            }
            Step::CreateSet { is_needed, .. } => self.has_no_base |= *is_needed,
            Step::SetSysctl { .. }
            | Step::DeleteNftablesTable { .. }
            | Step::RemakeSet(_)
            | Step::DestroySet { .. } => {}
        }
    }

    fn forbid(&self, step: &Step) -> bool {
        match step {
            Step::EditRules(rules) => {
                self.has_no_base
                    || (self.routes_localnet && opens_localnet(rules))
                    || (self.has_no_rules
                        && (rules.needs_earlier || rules.edits.iter().any(is_dispatch)))
            }
            // Until our rules serve, the old table does, and old rules name the set.
            Step::DeleteNftablesTable { .. } | Step::DestroySet { .. } => self.has_no_rules,
            Step::SetSysctl { .. } | Step::CreateSet { .. } | Step::RemakeSet(_) => false,
        }
    }
}

/// Whether the step deletes the rule that keeps other hosts from 127.0.0.0/8.
fn opens_localnet(rules: &RuleBatch) -> bool {
    let is_removal = |edit: &Edit| matches!(edit, Edit::Delete { .. } | Edit::DeleteChain { .. });
    let mut removals = rules.edits.iter().filter(|edit| is_removal(edit));
    removals.any(|edit| edit.chain().as_str() == SHARED_CHAIN)
}
