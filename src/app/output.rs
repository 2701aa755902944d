// SPDX-License-Identifier: Apache-2.0
//! Output of commands on stdout and stderr.

use std::fmt::Display;
use std::io::{self, BufWriter, ErrorKind, Write};

use anyhow::Context as _;

use crate::config::ConfigError;
use crate::error_chain::ErrorChain;

/// Writes to stdout. A reader that has gone away (`kube-proxy-rs plan | head -1`) is no error: the
/// rest is dropped.
pub(super) fn print(answer: impl Display) -> anyhow::Result<()> {
    let mut stdout = BufWriter::new(io::stdout().lock());
    let written = write!(stdout, "{answer}").and_then(|()| stdout.flush());
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to stdout"),
    }
}

/// Writes a remark for people to stderr, which is no part of a command's answer.
pub(super) fn print_note(note: &str) {
    // Without stderr nobody reads it.
    drop(io::stderr().write_all(format!("{note}\n").as_bytes()));
}

/// Writes the error that ends a command to stderr, before or beside the log, as upstream does.
pub(super) fn print_error(error: &anyhow::Error) {
    let report = match error.downcast_ref::<ConfigError>() {
        Some(error) => error.report(),
        None => format!("Error: {}\n", ErrorChain(error.as_ref())),
    };
    // Without stderr there is nowhere else to report it.
    drop(io::stderr().write_all(report.as_bytes()));
}
