// SPDX-License-Identifier: Apache-2.0
//! Restart in place, for configuration changes that cannot be applied live.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

/// Replaces this process by a new run of the program with the same arguments, which finds the lock
/// as its standard input. Returns only if that fails; then the supervisor restarts us.
pub(super) fn reexec(arguments: &[OsString], lock: Option<OwnedFd>) -> anyhow::Error {
    #[expect(
        clippy::disallowed_methods,
        reason = "no program is started beside this one"
    )]
    let mut program = Command::new("/proc/self/exe");
    program.args(arguments.iter().skip(1));
    if let Some(name) = arguments.first() {
        program.arg0(name);
    }
    if let Some(lock) = lock {
        program.stdin(Stdio::from(lock));
    }
    anyhow::Error::new(program.exec()).context("cannot restart")
}
