// SPDX-License-Identifier: Apache-2.0
//! A program as a container without privileges runs it.

use std::process::Command;

use anyhow::{Result, ensure};

/// Kernel settings can be read only, and of the capabilities these are left.
const SCRIPT: &str = "set -e
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
exec setpriv --no-new-privs --bounding-set=-all,+net_admin,+net_raw -- \"$@\"";

/// The same command with few rights.
pub fn command(of: &Command) -> Command {
    let mut command = crate::namespace::command("unshare");
    command
        .args(["--mount", "--propagation=private", "sh", "-c", SCRIPT, "sh"])
        .arg(of.get_program())
        .args(of.get_args());
    command
}

/// The log has no warning but those that are documented.
pub fn has_no_complaints(log: &str) -> Result<()> {
    let complaints = log
        .lines()
        .filter(|line| line.contains("WARN") || line.contains("ERROR"));
    // Of these only the last one is about rights.
    let known = ["configuration notice", "oomScoreAdj"];
    let complaints: Vec<&str> = complaints
        .filter(|line| !known.iter().any(|word| line.contains(word)))
        .collect();
    ensure!(complaints.is_empty(), "{complaints:#?}");
    Ok(())
}
