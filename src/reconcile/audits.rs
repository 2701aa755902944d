// SPDX-License-Identifier: Apache-2.0
//! When audits are due, and how much each of them reads. Pure: the time is passed in.

use std::time::Duration;

use crate::dataplane::kernel::AuditDepth;

/// Audits may use one part in this many of the time.
const SHARE: u32 = 100;

/// The same of audits that read addresses and real servers, too. The others read the outline, and
/// an audit that finds anything is followed by one that reads everything.
const DEEP_SHARE: u32 = 500;

/// An audit, and one that reads everything, is due after this time at the latest, unless the last
/// one took more than a tenth of it: a program that hung once says little about the next audit.
const LONGEST: Duration = Duration::from_mins(10);

/// See the module.
#[derive(Debug)]
pub(super) struct Audits {
    next: Duration,
    next_deep: Duration,
    /// Of the last audit: how much it reads, and how long it has taken so far.
    depth: AuditDepth,
    cost: Duration,
    /// Another program has changed something.
    is_suspect: bool,
}

impl Audits {
    pub(super) fn new(first: Duration) -> Self {
        Self {
            next: first,
            next_deep: Duration::ZERO,
            depth: AuditDepth::Everything,
            cost: Duration::ZERO,
            is_suspect: false,
        }
    }

    pub(super) fn due(&self) -> Duration {
        self.next
    }

    /// The next one is due by then.
    pub(super) fn by(&mut self, time: Duration) {
        self.next = self.next.min(time);
    }

    /// An audit begins. `has_outline`: it need not read everything.
    pub(super) fn begin(
        &mut self,
        now: Duration,
        has_outline: bool,
        period: Duration,
    ) -> AuditDepth {
        let is_suspect = std::mem::take(&mut self.is_suspect);
        self.depth = if has_outline && !is_suspect && now < self.next_deep {
            AuditDepth::Outline
        } else {
            AuditDepth::Everything
        };
        self.cost = Duration::ZERO;
        self.next = now + period;
        self.depth
    }

    /// It has found something.
    pub(super) fn suspect(&mut self) {
        self.is_suspect = true;
    }

    /// A part of it was done.
    pub(super) fn took(&mut self, time: Duration, now: Duration) {
        self.cost += time;
        let pause = (self.cost * SHARE).min(LONGEST.max(self.cost * 10));
        self.next = self.next.max(now + pause);
        if self.depth == AuditDepth::Everything {
            self.next_deep = now + (self.cost * DEEP_SHARE).min(LONGEST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_secs(30);

    /// The depths of audits for ten minutes, if each outline takes 10 ms and the rest `rest`.
    fn depths(rest: Duration) -> Vec<AuditDepth> {
        let mut audits = Audits::new(PERIOD);
        let mut depths = Vec::new();
        while audits.due() <= Duration::from_mins(10) {
            let mut now = audits.due();
            let depth = audits.begin(now, true, PERIOD);
            let parts = [
                (true, Duration::from_millis(10)),
                (depth == AuditDepth::Everything, rest),
            ];
            for (_, time) in parts.into_iter().filter(|(is_done, _)| *is_done) {
                now += time;
                audits.took(time, now);
            }
            depths.push(depth);
        }
        depths
    }

    fn deep_ones(rest: Duration) -> Vec<usize> {
        let depths = depths(rest).into_iter().enumerate();
        let deep = depths.filter(|(_, depth)| *depth == AuditDepth::Everything);
        deep.map(|(index, _)| index).collect()
    }

    #[test]
    fn what_is_read_fast_is_read_each_time() {
        assert_eq!(deep_ones(Duration::from_millis(4)).len(), 20);
    }

    #[test]
    fn what_takes_long_is_read_for_its_share_of_the_time() {
        assert_eq!(depths(Duration::from_millis(290)).len(), 19);
        // 300 ms, 500 times.
        assert_eq!(deep_ones(Duration::from_millis(290)), [0, 5, 10, 15]);
        let mut audits = Audits::new(PERIOD);
        audits.begin(PERIOD, true, PERIOD);
        audits.took(Duration::from_mins(1), PERIOD);
        let later = PERIOD + LONGEST;
        assert_eq!(audits.begin(later, true, PERIOD), AuditDepth::Everything);
    }

    #[test]
    fn modes_without_an_outline_read_everything() {
        let mut audits = Audits::new(PERIOD);
        for audit in 1..4 {
            let now = PERIOD * audit;
            assert_eq!(audits.begin(now, false, PERIOD), AuditDepth::Everything);
            audits.took(Duration::from_millis(100), now);
        }
    }
}
