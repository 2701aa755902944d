// SPDX-License-Identifier: Apache-2.0
//! A batch as `iptables-restore` reads it, and why it failed: classified from the exit status and
//! the text of standard error, which is all there is, and located in the batch.

use std::io::Write as _;
use std::{fmt, iter};

use crate::dataplane::exec::PIECE;
use kpr_core::plan::ruleset::{Edit, Location, batch, locate};

/// The text of a batch. Lines are short compared to a piece.
pub(super) fn pieces(edits: &[Edit]) -> impl Iterator<Item = Vec<u8>> {
    let mut lines = batch(edits);
    iter::from_fn(move || {
        let mut piece = Vec::with_capacity(PIECE + PIECE / 16);
        while piece.len() < PIECE
            && let Some(line) = lines.next()
        {
            // Writing to memory does not fail.
            writeln!(piece, "{line}").ok()?;
        }
        (!piece.is_empty()).then_some(piece)
    })
}

/// A batch that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreFailure {
    pub kind: RestoreFailureKind,
    /// The line of the batch that iptables blames. legacy blames `COMMIT` for what the kernel
    /// rejects.
    pub location: Option<Location>,
    pub status: Option<i32>,
    /// Standard error, unchanged.
    pub stderr: String,
}

/// The causes that callers distinguish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RestoreFailureKind {
    /// Another process held `/run/xtables.lock` for too long.
    LockHeld,
    /// No `CAP_NET_ADMIN`, or the lock file is not writable.
    Permission,
    /// iptables or the kernel does not have this match. In the kernel usually a module is missing.
    UnknownMatch(String),
    /// The same for a target, or there is no chain of this name.
    UnknownTarget(String),
    /// A rule refers to a set that does not exist.
    MissingSet(String),
    /// The rule to be deleted, or the chain, does not exist.
    NotFound,
    /// A rule jumps to the chain to be deleted.
    Busy,
    /// A signal killed it, for example when memory ran out.
    Signal,
    /// Anything else.
    Other,
}

impl RestoreFailure {
    /// Of the batch of these edits.
    pub(super) fn of(edits: &[Edit], status: Option<i32>, stderr: &str) -> Self {
        Self {
            kind: status.map_or(RestoreFailureKind::Signal, |_| kind(stderr)),
            location: blamed_line(stderr).and_then(|line| locate(edits, line)),
            status,
            stderr: stderr.to_owned(),
        }
    }
}

impl std::error::Error for RestoreFailure {}

impl fmt::Display for RestoreFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            RestoreFailureKind::LockHeld => {
                f.write_str("another program holds the xtables lock")?;
            }
            RestoreFailureKind::Permission => f.write_str("no permission")?,
            RestoreFailureKind::UnknownMatch(name) => {
                write!(f, "unknown match {name} (kernel module xt_{name}?)")?;
            }
            RestoreFailureKind::UnknownTarget(name) => {
                write!(f, "{name} is neither a chain nor a known target")?;
            }
            RestoreFailureKind::MissingSet(name) => write!(f, "set {name} does not exist")?,
            RestoreFailureKind::NotFound => f.write_str("chain or rule does not exist")?,
            RestoreFailureKind::Busy => f.write_str("chain is in use")?,
            RestoreFailureKind::Signal => f.write_str("killed by a signal")?,
            RestoreFailureKind::Other => {
                write!(
                    f,
                    "{}",
                    self.stderr.lines().next().unwrap_or("no reason given")
                )?;
            }
        }
        match &self.location {
            Some(Location {
                table,
                chain: Some(_),
                text,
            }) => write!(f, " at {text:?} of table {table}"),
            Some(Location {
                table, chain: None, ..
            }) => write!(f, " at the commit of table {table}"),
            None => Ok(()),
        }
    }
}

fn kind(stderr: &str) -> RestoreFailureKind {
    let has = |text: &str| stderr.contains(text);
    if has("xtables lock") || has("xtables.lock: Resource temporarily unavailable") {
        RestoreFailureKind::LockHeld
    } else if has("ermission denied") || has("you must be root") || has("Operation not permitted") {
        RestoreFailureKind::Permission
    } else if let Some(name) = after(stderr, "Couldn't load match `") {
        RestoreFailureKind::UnknownMatch(name)
    } else if let Some(name) =
        after(stderr, "Couldn't load target `").or_else(|| after(stderr, "Chain '"))
    {
        RestoreFailureKind::UnknownTarget(name)
    } else if let Some(name) = after(stderr, "Set ") {
        RestoreFailureKind::MissingSet(name)
    } else if let Some(name) = after(stderr, "Extension ") {
        RestoreFailureKind::UnknownMatch(name)
    } else if has("No chain/target/match by that name") || has("does a matching rule exist") {
        RestoreFailureKind::NotFound
    } else if has("Device or resource busy") || has("Directory not empty") || has("Too many links")
    {
        RestoreFailureKind::Busy
    } else {
        RestoreFailureKind::Other
    }
}

/// The word behind `prefix`, without quotes.
fn after(text: &str, prefix: &str) -> Option<String> {
    let (_, rest) = text.split_once(prefix)?;
    let word = rest.split(['\'', ' ', ':', '\n']).next()?;
    (!word.is_empty()).then(|| word.to_owned())
}

/// The number in `line N failed`, `line N: RULE_APPEND failed` or `Error occurred at line: N`.
fn blamed_line(stderr: &str) -> Option<usize> {
    stderr.match_indices("line").find_map(|(at, word)| {
        let rest = stderr
            .get(at + word.len()..)?
            .trim_start_matches([' ', ':']);
        let digits = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        rest.get(..digits)?.parse().ok()
    })
}
