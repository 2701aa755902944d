// SPDX-License-Identifier: Apache-2.0
//! A limit of log lines and Events about each object: whoever changes one object without end must
//! not fill the disks of all nodes.

use std::collections::BTreeMap;
use std::time::Duration;

use tracing::warn;

/// Lines about one object at once, and the time in which it earns another.
const BURST: u32 = 10;
const INTERVAL: Duration = Duration::from_mins(1);

/// Number of remembered objects at which those are dropped that have no limit any more.
const MIN_PRUNE: usize = 1_000;

/// See the module.
#[derive(Debug)]
pub struct LineLimit {
    /// When an object may have the full burst again.
    full_at: BTreeMap<String, Duration>,
    prune_at: usize,
}

impl Default for LineLimit {
    fn default() -> Self {
        Self {
            full_at: BTreeMap::new(),
            prune_at: MIN_PRUNE,
        }
    }
}

impl LineLimit {
    /// Whether something about an object may be reported at this time, which counts it. Logs once
    /// that the rest is not.
    pub fn allows(&mut self, object: &str, now: Duration) -> bool {
        if self.full_at.len() >= self.prune_at {
            self.full_at.retain(|_, full_at| *full_at > now);
            self.prune_at = (self.full_at.len() * 2).max(MIN_PRUNE);
        }
        let known = self.full_at.get_mut(object);
        let full_at = known.as_deref().copied().unwrap_or_default().max(now);
        let debt = full_at.saturating_sub(now);
        if debt > INTERVAL * (BURST - 1) {
            return false;
        }
        let next = full_at + INTERVAL;
        if next.saturating_sub(now) > INTERVAL * (BURST - 1) {
            warn!(%object, "more problems of this object follow, one is logged each minute");
        }
        match known {
            Some(known) => *known = next,
            None => _ = self.full_at.insert(object.to_owned(), next),
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_has_a_burst_and_then_one_line_in_each_interval() {
        let mut limit = LineLimit::default();
        let mut now = Duration::ZERO;
        let allowed = |limit: &mut LineLimit, object, now| {
            (0..1_000).filter(|_| limit.allows(object, now)).count()
        };
        assert_eq!(allowed(&mut limit, "Service a/b", now), BURST as usize);
        assert_eq!(allowed(&mut limit, "Service a/c", now), BURST as usize);
        now += INTERVAL;
        assert_eq!(allowed(&mut limit, "Service a/b", now), 1);
        now += INTERVAL * 100;
        assert_eq!(allowed(&mut limit, "Service a/b", now), BURST as usize);
    }

    #[test]
    fn objects_of_long_ago_are_forgotten() {
        let mut limit = LineLimit::default();
        for number in 0..10 * MIN_PRUNE {
            limit.allows(
                &number.to_string(),
                INTERVAL * 2 * u32::try_from(number).unwrap(),
            );
        }
        assert!(limit.full_at.len() <= MIN_PRUNE);
    }
}
