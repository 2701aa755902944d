// SPDX-License-Identifier: Apache-2.0
//! The iptables rules of all served families, as both modes use them.

mod unread;

use std::collections::BTreeMap;
use std::time::Duration;

use super::failure::{Failed, outcome};
use crate::clock::Clock;
use crate::dataplane::iptables::{Iptables, IptablesError, Watch};
use crate::dataplane::nftables::NftablesError;
use kpr_core::model::IpFamily;
use kpr_core::plan::ruleset::{RuleBatch, Ruleset, Table};
use kpr_core::plan::{FailureKind, Outcome};
use unread::Unread;

/// The tables that contain our rules.
const TABLES: [Table; 4] = [Table::Mangle, Table::Nat, Table::Filter, Table::Security];

/// Rules could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum RulesError {
    #[error(transparent)]
    Iptables(#[from] IptablesError),
    #[error("cannot look at rules that iptables cannot list")]
    Nftables(#[from] NftablesError),
}

impl Failed for RulesError {
    fn failure_kind(&self) -> FailureKind {
        match self {
            Self::Iptables(error) => error.failure_kind(),
            Self::Nftables(error) => error.failure_kind(),
        }
    }
}

/// Audits may read rules that nobody seems to have changed for one part in this many of the time...
const AUDIT_SHARE: u32 = 5_000;

/// ...and read them once in this time at least.
const LONGEST_TRUST: Duration = Duration::from_hours(1);

/// See the module.
#[derive(Debug)]
pub(super) struct Rules {
    iptables: BTreeMap<IpFamily, Iptables>,
    /// `None` if no family is served.
    watch: Option<Watch>,
    unread: BTreeMap<IpFamily, Unread>,
    /// When an audit reads the rules again.
    next_audit: BTreeMap<IpFamily, Duration>,
    clock: Clock,
}

impl Rules {
    pub(super) fn new(iptables: BTreeMap<IpFamily, Iptables>) -> Self {
        let backend = iptables.values().next().map(|of| of.programs().backend);
        let unread = |family: &IpFamily| (*family, Unread::new(*family));
        Self {
            watch: backend.map(|backend| Watch::open(backend, iptables.keys().copied())),
            unread: iptables.keys().map(unread).collect(),
            next_audit: BTreeMap::new(),
            clock: Clock::system(),
            iptables,
        }
    }

    /// Reads the rules of a family.
    pub(super) fn observe(&mut self, family: IpFamily) -> Result<Ruleset, RulesError> {
        let start = self.clock.monotonic();
        let rules = self.read(family);
        let end = self.clock.monotonic();
        let pause = (end.saturating_sub(start) * AUDIT_SHARE).min(LONGEST_TRUST);
        self.next_audit.insert(family, end + pause);
        rules
    }

    /// Whether an audit has to read the rules: nobody watches them, somebody changed them, or they
    /// were not read for long.
    pub(super) fn audit_is_due(&mut self, family: IpFamily) -> bool {
        let next = self.next_audit.get(&family);
        next.is_none_or(|next| self.clock.monotonic() >= *next)
            || self
                .watch
                .as_mut()
                .is_none_or(|watch| !watch.is_watching() || watch.has_changed(family))
    }

    fn read(&mut self, family: IpFamily) -> Result<Ruleset, RulesError> {
        let Some(iptables) = self.iptables.get(&family) else {
            return Ok(Ruleset::new());
        };
        let mut unread = self.unread.get_mut(&family);
        if let (Some(watch), Some(unread)) = (&mut self.watch, &mut unread) {
            unread.touch(watch.before_look(family));
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
        if let Some(unread) = unread {
            unread.observe(&mut rules)?;
        }
        Ok(rules)
    }

    pub(super) fn apply(&mut self, batch: &RuleBatch) -> Outcome {
        let family = batch.family;
        let (Some(iptables), Some(unread)) =
            (self.iptables.get(&family), self.unread.get_mut(&family))
        else {
            return Outcome::NotTried;
        };
        let mut write = || unread.write(&batch.edits, |edits| Ok(iptables.restore(edits)?));
        let result = match &mut self.watch {
            Some(watch) => watch.around_write(batch, write),
            None => write(),
        };
        if result.is_err() {
            unread.doubt(&batch.edits);
        }
        outcome(&result)
    }

    /// Whether another program may have changed our rules since they were read. Costs microseconds.
    pub(super) fn have_changed(&mut self, family: IpFamily) -> bool {
        self.watch
            .as_mut()
            .is_some_and(|watch| watch.has_changed(family))
    }
}
