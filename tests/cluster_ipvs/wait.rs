// SPDX-License-Identifier: Apache-2.0
//! Waiting for a condition, with a limit. The one place here that reads the clock or sleeps.

use std::time::{Duration, Instant};

/// Nothing that is waited for takes this long on a machine that works.
pub(crate) const LIMIT: Duration = Duration::from_mins(1);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// Looks until there is a result; when the limit is over, the last reason why not is the failure.
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let start = now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(reason) if start.elapsed() > LIMIT => {
                panic!("waited {LIMIT:?} until {what}:\n{reason}")
            }
            Err(_) => pause(),
        }
    }
}

/// Looks again and again for a time in which something must not change.
pub(crate) fn throughout(time: Duration, mut look: impl FnMut()) {
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
fn now() -> Instant {
    Instant::now()
}

#[expect(
    clippy::disallowed_methods,
    reason = "the pause between two looks at a condition"
)]
pub(crate) fn pause() {
    std::thread::sleep(PAUSE);
}
