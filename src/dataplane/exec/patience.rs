// SPDX-License-Identifier: Apache-2.0
//! PURE: when a program has had enough time. A busy machine slows all programs, so that what counts
//! is the processor time that this one used, in relation to what it read and wrote.

use std::time::Duration;

use super::PIECE;

/// Additional processor time for each [`PIECE`] read or written: many hundred rules, of which
/// iptables needs milliseconds.
const FOR_A_PIECE: Duration = Duration::from_secs(1);

/// How many times longer than its processor time a program may take altogether.
const WALL: u32 = 10;

/// How many times the limit a program may take, whatever it reads and writes: it may do so for
/// ever.
const AT_MOST: u32 = 60;

/// The longest time between two looks at a program.
const LOOK: Duration = Duration::from_millis(250);

/// The patience with one program. Times are counted from any fixed start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// The processor time of a program that reads and writes little, and how long a program may
    /// stand still.
    limit: Duration,
    start: Duration,
    next_look: Duration,
    /// When it was last seen to have done anything.
    progressed: Duration,
    /// What it had done by then: bytes read and written, and processor time.
    moved: usize,
    used: Duration,
}

impl Patience {
    pub(super) const fn new(limit: Duration, now: Duration) -> Self {
        Self {
            limit,
            start: now,
            next_look: now,
            progressed: now,
            moved: 0,
            used: Duration::ZERO,
        }
    }

    /// Time until the next look.
    pub(super) const fn pause(&self, now: Duration) -> Duration {
        self.next_look.saturating_sub(now)
    }

    /// Whether to give the program up. `moved`: bytes that it read and wrote so far. `used` is only
    /// called where a look is due.
    pub(super) fn is_over(
        &mut self,
        now: Duration,
        moved: usize,
        used: impl FnOnce() -> Option<Duration>,
    ) -> bool {
        if now < self.next_look {
            return false;
        }
        self.next_look = now + LOOK.min(self.limit / 4);
        let used = used().unwrap_or(self.used);
        if used > self.used || moved > self.moved {
            self.progressed = now;
            (self.used, self.moved) = (used, moved);
        }
        let pieces = u32::try_from(moved.div_ceil(PIECE)).unwrap_or(u32::MAX);
        let allowed = FOR_A_PIECE
            .saturating_mul(pieces)
            .saturating_add(self.limit);
        now.saturating_sub(self.progressed) >= self.limit
            || used >= allowed
            || now.saturating_sub(self.start)
                >= allowed
                    .saturating_mul(WALL)
                    .min(self.limit.saturating_mul(AT_MOST))
    }
}

/// The processor time of a process, from its `/proc/PID/stat`.
pub(super) fn processor_time(stat: &str) -> Option<Duration> {
    /// What `/proc` counts in, on every architecture (`USER_HZ`).
    const TICK: Duration = Duration::from_millis(10);
    // The name may contain anything; what follows it is numbers. utime and stime are fields 14 and
    // 15 (proc(5)).
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u32>().ok();
    Some(TICK.saturating_mul(ticks()?.saturating_add(ticks()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    /// When a program is given up, looked at once a second; `None` if not within an hour.
    fn ends(
        mut moved: impl FnMut(u64) -> usize,
        mut used: impl FnMut(u64) -> Duration,
    ) -> Option<u64> {
        let mut patience = Patience::new(MINUTE, Duration::ZERO);
        (1..3_600).find(|second| {
            let now = Duration::from_secs(*second);
            patience.is_over(now, moved(*second), || Some(used(*second)))
        })
    }

    #[test]
    fn a_program_that_stands_still_is_given_up() {
        assert_eq!(ends(|_| 0, |_| Duration::ZERO), Some(60));
        // From its last progress on.
        let used =
            |second: u64| Duration::from_millis(10) * u32::try_from(second.min(100)).unwrap();
        assert_eq!(ends(|_| 0, used), Some(160));
    }

    #[test]
    fn a_busy_program_has_time_by_the_size_of_its_work() {
        assert_eq!(ends(|_| 0, Duration::from_secs), Some(60));
        assert_eq!(ends(|_| 100 * PIECE, Duration::from_secs), Some(160));
    }

    #[test]
    fn a_program_that_gets_little_of_the_processor_has_longer() {
        let used = |second: u64| Duration::from_secs(second) / 5;
        assert_eq!(ends(|_| 0, used), Some(300));
        let hardly = |second: u64| Duration::from_millis(second);
        assert_eq!(ends(|_| 0, hardly), Some(600));
    }

    #[test]
    fn a_program_does_not_read_for_ever() {
        let moved = |second: u64| PIECE * usize::try_from(second).unwrap() * 1_000;
        let ended = (1..10_000).find({
            let mut patience = Patience::new(MINUTE, Duration::ZERO);
            move |second| {
                let now = Duration::from_secs(*second);
                patience.is_over(now, moved(*second), || Some(now / 2))
            }
        });
        assert_eq!(ended, Some(3_600));
    }

    #[test]
    fn time_is_read_behind_the_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 11 0 0 0 150 25 0 0 20 0 1 0 5 1 1";
        assert_eq!(processor_time(stat), Some(Duration::from_millis(1_750)));
        for broken in [
            "",
            "7 (a) S 1",
            "7 (a) S 1 7 7 0 -1 4194560 11 0 0 0 x 25 0",
        ] {
            assert_eq!(processor_time(broken), None, "{broken}");
        }
    }
}
