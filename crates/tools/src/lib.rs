// SPDX-License-Identifier: Apache-2.0
//! What the tools share: a proxy as a child process, and how to measure one from outside.

use std::time::Duration;

pub mod process;
pub mod running;

/// Sleeps between two polls.
#[expect(
    clippy::disallowed_methods,
    reason = "between two polls of a condition, not in place of one"
)]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}
