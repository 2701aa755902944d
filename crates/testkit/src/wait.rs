// SPDX-License-Identifier: Apache-2.0
//! Waiting for a condition, with a limit. The one place that reads the clock or sleeps: no test
//! waits for a fixed time.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Long enough for anything that must happen, on a slow and busy machine.
pub const LIMIT: Duration = Duration::from_mins(3);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(25);

/// Repeats `look` until it succeeds; after [`LIMIT`] its last error is returned.
pub fn until<T>(what: &str, look: impl FnMut() -> Result<T>) -> Result<T> {
    until_within(LIMIT, what, look)
}

/// The same with another limit.
pub fn until_within<T>(
    limit: Duration,
    what: &str,
    mut look: impl FnMut() -> Result<T>,
) -> Result<T> {
    let start = now();
    loop {
        match look() {
            Ok(found) => return Ok(found),
            Err(error) if start.elapsed() > limit => {
                return Err(error).with_context(|| format!("waited {limit:?} until {what}"));
            }
            Err(_) => pause(),
        }
    }
}

/// The same for tests that panic: the last error is the failure.
pub fn must<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let found = until(what, || look().map_err(anyhow::Error::msg));
    found.unwrap_or_else(|error| panic!("{error:#}"))
}

/// Looks again and again for a time in which something must not change.
pub fn throughout(time: Duration, mut look: impl FnMut()) {
    let start = now();
    while start.elapsed() < time {
        look();
        pause();
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "tests against the real kernel need the real clock"
)]
pub fn now() -> Instant {
    Instant::now()
}

#[expect(
    clippy::disallowed_methods,
    reason = "the pause between two looks at a condition"
)]
pub fn pause() {
    std::thread::sleep(PAUSE);
}

/// Lets time pass where that is what a test is about: the kernel forgets something after it.
#[expect(
    clippy::disallowed_methods,
    reason = "the time of a time-out has to pass"
)]
pub fn let_pass(time: Duration) {
    std::thread::sleep(time);
}
