// SPDX-License-Identifier: Apache-2.0
//! Rate limit of Events. Every node of a cluster sees the same mistake in a Service: an Event of
//! one node is an Event of five thousand.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Regarding;

/// Events about one thing at once, and the time in which it earns another.
const BURST_OF_ONE: u32 = 5;
const INTERVAL_OF_ONE: Duration = Duration::from_mins(5);
/// The same for all together.
const BURST_OF_ALL: u32 = 25;
const INTERVAL_OF_ALL: Duration = Duration::from_secs(10);

/// A token bucket, as the time at which it is full again.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    full_at: Duration,
}

impl Bucket {
    fn has_one(&self, now: Duration, burst: u32, interval: Duration) -> bool {
        self.full_at.saturating_sub(now) <= interval * (burst - 1)
    }

    fn take_one(&mut self, now: Duration, interval: Duration) {
        self.full_at = self.full_at.max(now) + interval;
    }
}

/// Lets through what is not too much.
#[derive(Debug, Default)]
pub(super) struct Limit {
    all: Bucket,
    /// Full buckets are left out.
    each: BTreeMap<Regarding, Bucket>,
}

impl Limit {
    /// Whether an event may be written at this time, which counts it.
    pub(super) fn allows(&mut self, regarding: &Regarding, now: Duration) -> bool {
        self.each.retain(|_, bucket| bucket.full_at > now);
        let mut one = self.each.get(regarding).copied().unwrap_or_default();
        let allowed = one.has_one(now, BURST_OF_ONE, INTERVAL_OF_ONE)
            && self.all.has_one(now, BURST_OF_ALL, INTERVAL_OF_ALL);
        if allowed {
            one.take_one(now, INTERVAL_OF_ONE);
            self.all.take_one(now, INTERVAL_OF_ALL);
            self.each.insert(regarding.clone(), one);
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kpr_core::model::ServiceName;

    fn web(number: u32) -> Regarding {
        Regarding::Service(ServiceName::new("default", format!("web-{number}")))
    }

    #[test]
    fn one_thing_has_a_burst_and_then_one_event_in_each_interval() {
        let mut limit = Limit::default();
        let mut now = Duration::ZERO;
        for _ in 0..BURST_OF_ONE {
            assert!(limit.allows(&Regarding::Node, now));
        }
        assert!(!limit.allows(&Regarding::Node, now));
        assert!(limit.allows(&web(1), now), "others have their own");
        now += INTERVAL_OF_ONE.saturating_sub(Duration::from_nanos(1));
        assert!(!limit.allows(&Regarding::Node, now));
        now += Duration::from_nanos(1);
        assert!(limit.allows(&Regarding::Node, now));
        assert!(!limit.allows(&Regarding::Node, now));
    }

    #[test]
    fn all_together_have_a_burst_too() {
        let mut limit = Limit::default();
        let allowed = (0..1_000)
            .filter(|number| limit.allows(&web(*number), Duration::ZERO))
            .count();
        assert_eq!(allowed, BURST_OF_ALL as usize);
        assert!(limit.allows(&web(1_000), INTERVAL_OF_ALL));
        assert!(!limit.allows(&web(1_001), INTERVAL_OF_ALL));
    }

    #[test]
    fn what_is_long_ago_is_forgotten() {
        let mut limit = Limit::default();
        for number in 0..20 {
            limit.allows(&web(number), Duration::ZERO);
        }
        limit.allows(&Regarding::Node, Duration::from_hours(1));
        assert_eq!(limit.each.len(), 1);
    }
}
