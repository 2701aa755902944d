// SPDX-License-Identifier: Apache-2.0
//! The clock, which tests can control.
//!
//! `app` makes it and passes it on; nothing else reads the system's time. Intervals come from
//! [`Clock::monotonic`], which never jumps; times for people or other machines from [`Clock::now`].

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

/// A source of time. Clones share it.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System { start: Instant },
    Manual(Arc<Mutex<Reading>>),
}

#[derive(Clone, Copy, Debug)]
struct Reading {
    monotonic: Duration,
    now: Timestamp,
}

/// Moves a manual [`Clock`].
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<Mutex<Reading>>);

impl Clock {
    /// The machine's clocks; [`Self::monotonic`] counts from here.
    pub fn system() -> Self {
        #[expect(clippy::disallowed_methods, reason = "this is the clock")]
        let start = Instant::now();
        Self(Source::System { start })
    }

    /// A clock that stands at `now` until its [`ManualClock`] moves it.
    pub fn manual(now: Timestamp) -> (Self, ManualClock) {
        let reading = Arc::new(Mutex::new(Reading {
            monotonic: Duration::ZERO,
            now,
        }));
        (
            Self(Source::Manual(Arc::clone(&reading))),
            ManualClock(reading),
        )
    }

    /// Time since the clock was made.
    pub fn monotonic(&self) -> Duration {
        match &self.0 {
            Source::System { start } => start.elapsed(),
            Source::Manual(reading) => read(reading).monotonic,
        }
    }

    /// The time of day.
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Source::System { .. } => Timestamp::now(),
            Source::Manual(reading) => read(reading).now,
        }
    }
}

impl ManualClock {
    /// Lets time pass.
    pub fn advance(&self, by: Duration) {
        let mut reading = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reading.monotonic = reading.monotonic.saturating_add(by);
        let signed = SignedDuration::try_from(by).unwrap_or(SignedDuration::MAX);
        reading.now = reading.now.saturating_add(signed).unwrap_or(Timestamp::MAX);
    }

    /// Sets the time of day, as an administrator does: no time passes.
    pub fn set_now(&self, now: Timestamp) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).now = now;
    }
}

fn read(reading: &Mutex<Reading>) -> Reading {
    *reading.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_only_when_told() {
        let start: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        let (clock, hand) = Clock::manual(start);
        assert_eq!(clock.monotonic(), Duration::ZERO);
        assert_eq!(clock.now(), start);
        hand.advance(Duration::from_millis(1500));
        assert_eq!(clock.clone().monotonic(), Duration::from_millis(1500));
        assert_eq!(clock.now().to_string(), "2026-01-02T03:04:06.5Z");
    }

    #[test]
    fn setting_the_time_of_day_lets_no_time_pass() {
        let (clock, hand) = Clock::manual(Timestamp::UNIX_EPOCH);
        hand.set_now("2030-01-01T00:00:00Z".parse().unwrap());
        assert_eq!(clock.monotonic(), Duration::ZERO);
        assert_eq!(clock.now().to_string(), "2030-01-01T00:00:00Z");
    }

    #[test]
    fn the_system_clock_never_runs_backwards() {
        let clock = Clock::system();
        let first = clock.monotonic();
        assert!(clock.monotonic() >= first);
    }
}
