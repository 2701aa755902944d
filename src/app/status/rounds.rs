// SPDX-License-Identifier: Apache-2.0
//! The last rounds of each family, for people to look at.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::reconcile::observer::Round;
use kpr_core::model::IpFamily;

/// Rounds kept of each family.
const KEPT: usize = 60;

/// A round that has ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::app) struct FinishedRound {
    /// When it ended, RFC 3339.
    pub(in crate::app) time: String,
    pub(in crate::app) seconds: f64,
    /// The whole state was compared, not only what changed.
    pub(in crate::app) is_full: bool,
    pub(in crate::app) succeeded: bool,
    /// Changes of Services and EndpointSlices that it took in.
    pub(in crate::app) changes: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(in crate::app) struct RecentRounds(Mutex<BTreeMap<IpFamily, VecDeque<FinishedRound>>>);

impl RecentRounds {
    /// Rounds in which nothing changed and that succeeded are looks at the kernel, and not kept.
    pub(in crate::app) fn add(&self, time: jiff::Timestamp, round: &Round<'_>) {
        let changes = round.changes.service_changes + round.changes.endpoint_changes;
        if changes == 0 && round.succeeded && !round.is_full {
            return;
        }
        let mut families = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let rounds = families.entry(round.family).or_default();
        if rounds.len() >= KEPT {
            rounds.pop_front();
        }
        rounds.push_back(FinishedRound {
            time: time.to_string(),
            seconds: round.duration.as_secs_f64(),
            is_full: round.is_full,
            succeeded: round.succeeded,
            changes: changes as u64,
        });
    }

    /// The rounds of a family by its name, oldest first.
    pub(super) fn of(&self, family: &str) -> Vec<FinishedRound> {
        let families = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut named = families.iter();
        let rounds = named.find(|(name, _)| name.as_str() == family);
        rounds
            .map(|(_, rounds)| rounds.iter().cloned().collect())
            .unwrap_or_default()
    }
}
