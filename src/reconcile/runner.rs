// SPDX-License-Identifier: Apache-2.0
//! Decides when the next round is due. Pure: the time is passed in, counted from any fixed start.
//!
//! The first change after a quiet time is due at once. After a round the next one waits, counted
//! from the round's end, so that a slow kernel is not kept busy all the time. Failures are retried
//! with growing pauses.

use std::time::Duration;

/// The pause after the first failure; it doubles up to the sync period.
const FIRST_RETRY: Duration = Duration::from_millis(500);

/// Rounds form a burst if the gap between them is less than this many times their length: they
/// would take more than a ninth of a CPU.
const BURST: u32 = 8;

/// This many waiting changes justify a pause of one round. If more arrive during a round, all that
/// follow within the minimum period are combined.
const WORTH_A_ROUND: u32 = 8;

/// How long the pause after a round is. The minimum period is its upper limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pace {
    /// The minimum period.
    #[default]
    Period,
    /// As long as the round was, which leaves half of the time to others: where a round costs what
    /// changed.
    Cost,
    /// The same at first. In a burst it doubles with each round, and grows with the number of
    /// waiting changes: where a round costs more than what changed, a thousand changes would cause
    /// as many rounds as fit in.
    GrowingCost,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Runner {
    min_period: Duration,
    max_retry: Duration,
    pace: Pace,
    /// Number of rounds in the present burst.
    in_row: u32,
    begin: Duration,
    cost: Duration,
    last_end: Option<Duration>,
    /// Number of changes that wait for the next round.
    waiting: u32,
    failures: u32,
    /// The next round makes what was too much for the last one.
    goes_on: bool,
}

impl Runner {
    pub fn new(min_period: Duration, max_retry: Duration) -> Self {
        Self {
            min_period,
            max_retry,
            pace: Pace::Period,
            in_row: 0,
            begin: Duration::ZERO,
            cost: Duration::ZERO,
            last_end: None,
            waiting: 0,
            failures: 0,
            goes_on: false,
        }
    }

    /// The same with other pauses.
    #[must_use]
    pub fn at(self, pace: Pace) -> Self {
        Self { pace, ..self }
    }

    /// Changes the distance between rounds from now on.
    pub fn set_periods(&mut self, min_period: Duration, max_retry: Duration) {
        self.min_period = min_period;
        self.max_retry = max_retry;
    }

    fn pause(&self) -> Duration {
        let rounds = match self.pace {
            Pace::Period => return self.min_period,
            Pace::Cost => 1,
            Pace::GrowingCost => (1 << self.in_row.min(16)).max(self.waiting / WORTH_A_ROUND),
        };
        self.min_period.min(self.cost.saturating_mul(rounds))
    }

    /// Something changed.
    pub fn request(&mut self) {
        self.waiting = self.waiting.saturating_add(1);
    }

    /// The next round goes on with the work of the last one: it is due at once, and no part of a
    /// burst.
    pub fn go_on(&mut self) {
        self.goes_on = true;
    }

    /// When the next round is due, if any.
    pub fn due(&self) -> Option<Duration> {
        if self.goes_on {
            return Some(self.last_end.unwrap_or_default());
        }
        let after = |pause| self.last_end.map_or(Duration::ZERO, |end| end + pause);
        let requested = (self.waiting > 0).then(|| after(self.pause()));
        let retry = (self.failures > 0).then(|| after(self.retry_pause().max(self.pause())));
        requested.into_iter().chain(retry).min()
    }

    /// A round begins: later requests are for the next one.
    pub fn begin(&mut self, now: Duration) {
        let quiet = self.last_end.map(|end| now.saturating_sub(end));
        // Twice the pause, because the loop may be late.
        let burst = (self.pause().saturating_mul(2)).max(self.cost.saturating_mul(BURST));
        self.in_row = match quiet {
            _ if std::mem::take(&mut self.goes_on) => self.in_row,
            Some(quiet) if quiet <= burst => self.in_row.saturating_add(1),
            _ => 0,
        };
        self.begin = now;
        self.waiting = 0;
    }

    /// A round ended.
    pub fn end(&mut self, now: Duration, succeeded: bool) {
        self.cost = now.saturating_sub(self.begin);
        if succeeded {
            self.last_end = Some(now);
            self.failures = 0;
        } else {
            self.failed(now);
        }
    }

    /// Work between rounds failed.
    pub fn failed(&mut self, now: Duration) {
        self.last_end = Some(now);
        self.failures = self.failures.saturating_add(1);
    }

    /// Number of consecutive failed rounds.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    fn retry_pause(&self) -> Duration {
        let doublings = self.failures.saturating_sub(1).min(16);
        FIRST_RETRY
            .saturating_mul(1 << doublings)
            .min(self.max_retry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn runner() -> Runner {
        Runner::new(ms(1_000), ms(30_000))
    }

    #[test]
    fn nothing_is_due_without_a_request() {
        assert_eq!(runner().due(), None);
    }

    #[test]
    fn first_request_is_due_at_once() {
        let mut runner = runner();
        runner.request();
        assert_eq!(runner.due(), Some(ms(0)));
    }

    #[test]
    fn next_round_waits_from_the_end_of_the_last() {
        let mut runner = runner();
        runner.request();
        runner.begin(ms(0));
        runner.request();
        runner.end(ms(5_000), true);
        assert_eq!(runner.due(), Some(ms(6_000)));
    }

    #[test]
    fn pause_follows_the_cost_up_to_the_minimum_period() {
        let mut runner = runner().at(Pace::GrowingCost);
        for (end, due) in [(200, 400), (5_000, 6_000)] {
            runner.request();
            runner.begin(ms(0));
            runner.request();
            runner.end(ms(end), true);
            assert_eq!(runner.due(), Some(ms(due)));
        }
    }

    #[test]
    fn rounds_that_cost_what_changed_pause_no_longer_in_a_burst() {
        let mut runner = runner().at(Pace::Cost);
        for begin in (0..1_000).step_by(10) {
            for _ in 0..1_000 {
                runner.request();
            }
            runner.begin(ms(begin));
            runner.request();
            runner.end(ms(begin + 5), true);
            assert_eq!(runner.due(), Some(ms(begin + 10)));
        }
    }

    #[test]
    fn request_after_quiet_time_is_due_at_once() {
        let mut runner = runner();
        runner.request();
        runner.begin(ms(0));
        runner.end(ms(100), true);
        assert_eq!(runner.due(), None);
        runner.request();
        assert!(runner.due().is_some_and(|due| due <= ms(50_000)));
    }

    #[test]
    fn failures_are_retried_with_growing_pauses_up_to_the_limit() {
        let mut runner = Runner::new(ms(0), ms(30_000));
        let mut pauses = Vec::new();
        for _ in 0..9 {
            runner.begin(ms(0));
            runner.end(ms(0), false);
            pauses.push(runner.due().map(|due| due.as_millis()));
        }
        let expected = [
            500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000,
        ]
        .map(Some);
        assert_eq!(pauses, expected);
        runner.begin(ms(0));
        runner.end(ms(0), true);
        assert_eq!(runner.due(), None);
    }

    #[test]
    fn pause_after_a_quiet_time_is_that_of_the_last_round_whatever_failed_since() {
        let mut runner = runner().at(Pace::GrowingCost);
        runner.begin(ms(0));
        runner.end(ms(200), true);
        runner.failed(ms(50_000));
        assert_eq!(runner.due(), Some(ms(50_500)));
        runner.request();
        assert_eq!(runner.due(), Some(ms(50_200)));
    }

    #[test]
    fn burst_is_one_round_and_what_comes_during_it_the_next() {
        let mut runner = runner().at(Pace::GrowingCost);
        for _ in 0..100 {
            runner.request();
        }
        assert_eq!(runner.due(), Some(ms(0)));
        runner.begin(ms(10));
        for _ in 0..10 {
            runner.request();
        }
        runner.end(ms(310), true);
        assert_eq!(runner.due(), Some(ms(610)));
        runner.begin(ms(610));
        runner.end(ms(700), true);
        assert_eq!(runner.due(), None);
    }

    #[test]
    fn pause_doubles_in_a_burst_and_is_short_again_after_it() {
        let mut runner = runner().at(Pace::GrowingCost);
        let mut now = 0;
        let mut pauses = Vec::new();
        for _ in 0..7 {
            runner.begin(ms(now));
            runner.request();
            runner.end(ms(now + 50), true);
            let due = runner.due().unwrap();
            pauses.push(due.as_millis() - u128::from(now + 50));
            // The loop is usually a little late.
            now = u64::try_from(due.as_millis()).unwrap() + 1;
        }
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1_000, 1_000]);
        // Changes that are far apart, relative to their cost, do not wait for each other.
        now += 2_000;
        for _ in 0..3 {
            runner.begin(ms(now));
            runner.request();
            runner.end(ms(now + 50), true);
            assert_eq!(runner.due(), Some(ms(now + 100)));
            now += 500;
        }
    }

    #[test]
    fn pause_grows_with_the_changes_that_wait() {
        let mut runner = runner().at(Pace::GrowingCost);
        runner.begin(ms(0));
        runner.end(ms(20), true);
        let mut dues = Vec::new();
        for _ in 0..500 {
            runner.request();
            dues.extend(runner.due().map(|due| due.as_millis()));
        }
        let at = |waiting: usize| dues.get(waiting - 1).copied();
        assert_eq!(
            [1, 15, 16, 80, 400, 500].map(at),
            [40, 40, 60, 220, 1_020, 1_020].map(Some)
        );
        // The next change by itself waits as before.
        runner.begin(ms(1_020));
        runner.end(ms(1_040), true);
        assert_eq!(runner.due(), None);
        runner.begin(ms(5_000));
        runner.end(ms(5_020), true);
        runner.request();
        assert_eq!(runner.due(), Some(ms(5_040)));
    }

    #[test]
    fn failed_round_is_not_retried_before_the_pause() {
        let mut runner = Runner::new(ms(10_000), ms(30_000)).at(Pace::GrowingCost);
        runner.begin(ms(0));
        runner.end(ms(4_000), false);
        assert_eq!(runner.due(), Some(ms(8_000)));
    }

    #[test]
    fn round_that_goes_on_is_due_at_once_and_lengthens_no_burst() {
        let mut runner = runner().at(Pace::GrowingCost);
        for begin in [0, 200, 400, 600] {
            runner.begin(ms(begin));
            runner.request();
            runner.end(ms(begin + 200), true);
            runner.go_on();
            assert_eq!(runner.due(), Some(ms(begin + 200)));
        }
        runner.begin(ms(800));
        runner.request();
        runner.end(ms(1_000), true);
        assert_eq!(runner.due(), Some(ms(1_200)));
        // A failed round has its pause.
        runner.go_on();
        runner.begin(ms(1_200));
        runner.end(ms(1_400), false);
        assert_eq!(runner.due(), Some(ms(1_900)));
    }

    #[test]
    fn change_does_not_wait_for_the_retry() {
        let mut runner = Runner::new(ms(0), ms(30_000));
        runner.begin(ms(0));
        runner.end(ms(100), false);
        runner.request();
        assert_eq!(runner.due(), Some(ms(100)));
    }
}
