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

/// What becomes of a message about an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Said,
    /// Not said, and the first one since the last that was. The log says so; whoever sends Events
    /// should say so there as well.
    Silenced,
    /// Not said, as others before it.
    Silent,
}

/// What Events say of messages that are not sent.
pub const SILENCED: &str = "more problems of this Service than there are Events about it; on a node, \
    kube-proxy-rs explain and /state show those that last, its log at --v=4 shows all";

#[derive(Clone, Copy, Debug, Default)]
struct Spent {
    /// When the object may have the full burst again.
    full_at: Duration,
    is_silenced: bool,
}

/// See the module.
#[derive(Debug)]
pub struct LineLimit {
    objects: BTreeMap<String, Spent>,
    prune_at: usize,
}

impl Default for LineLimit {
    fn default() -> Self {
        Self {
            objects: BTreeMap::new(),
            prune_at: MIN_PRUNE,
        }
    }
}

impl LineLimit {
    /// Whether something about an object may be reported at this time, which counts it. Logs once
    /// that the rest is not, so that nobody takes what is logged for all.
    pub fn verdict(&mut self, object: &str, now: Duration) -> Verdict {
        if self.objects.len() >= self.prune_at {
            self.objects.retain(|_, spent| spent.full_at > now);
            self.prune_at = (self.objects.len() * 2).max(MIN_PRUNE);
        }
        let known = self.objects.get_mut(object);
        let full_at = known.as_deref().copied().unwrap_or_default().full_at;
        let full_at = full_at.max(now);
        if full_at.saturating_sub(now) > INTERVAL * (BURST - 1) {
            let is_first =
                known.is_some_and(|known| !std::mem::replace(&mut known.is_silenced, true));
            if is_first {
                warn!(
                    %object,
                    "more problems of this object: one is logged each minute, all at --v=4"
                );
                return Verdict::Silenced;
            }
            return Verdict::Silent;
        }
        let next = Spent {
            full_at: full_at + INTERVAL,
            is_silenced: false,
        };
        match known {
            Some(known) => *known = next,
            None => _ = self.objects.insert(object.to_owned(), next),
        }
        Verdict::Said
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
            let verdicts: Vec<Verdict> = (0..1_000).map(|_| limit.verdict(object, now)).collect();
            let count = |verdict| verdicts.iter().filter(|it| **it == verdict).count();
            // That the rest is not said is said once.
            assert_eq!(count(Verdict::Silenced), 1);
            assert_eq!(verdicts.last(), Some(&Verdict::Silent));
            count(Verdict::Said)
        };
        assert_eq!(allowed(&mut limit, "Service a/b", now), BURST as usize);
        assert_eq!(allowed(&mut limit, "Service a/c", now), BURST as usize);
        now += INTERVAL;
        assert_eq!(allowed(&mut limit, "Service a/b", now), 1);
        now += INTERVAL * 100;
        assert_eq!(allowed(&mut limit, "Service a/b", now), BURST as usize);
    }

    #[test]
    fn nothing_is_said_of_silence_where_there_is_none() {
        let mut limit = LineLimit::default();
        let verdicts = (0..BURST).map(|_| limit.verdict("Service a/b", Duration::ZERO));
        assert!(verdicts.into_iter().all(|verdict| verdict == Verdict::Said));
        assert!(!limit.objects["Service a/b"].is_silenced);
    }

    #[test]
    fn objects_of_long_ago_are_forgotten() {
        let mut limit = LineLimit::default();
        for number in 0..10 * MIN_PRUNE {
            limit.verdict(
                &number.to_string(),
                INTERVAL * 2 * u32::try_from(number).unwrap(),
            );
        }
        assert!(limit.objects.len() <= MIN_PRUNE);
    }
}
