// SPDX-License-Identifier: Apache-2.0
//! iptables rules through `iptables-save` and `iptables-restore`, one process each per family and
//! round.
//!
//! [`Backends::detect`] finds the iptables backend that kubelet uses; [`Iptables`] reads all rules
//! of a family or writes one batch of [`Edit`]s. `plan` decides what to write.

mod backend;
pub mod extension;
mod restore;
mod watch;

use std::iter;
use std::sync::Arc;

use tracing::trace;

pub use backend::{Backend, Backends, Programs, Reason, Version};
pub use restore::{RestoreFailure, RestoreFailureKind};
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub use watch::fuzz;
pub use watch::{Touched, Watch, legacy_has_chain};

use super::exec::{Exec, ExecError};
use super::nftables;
use kpr_core::model::net::IpFamily;
use kpr_core::plan::ruleset::{Edit, ParseError, Parser, Rule, Ruleset, Table, render_edits};

/// Seconds that iptables waits for its lock, which kubelet and others take too. kube-proxy's value.
const LOCK_WAIT: &str = "5";

/// Rules could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum IptablesError {
    #[error("cannot run iptables")]
    Exec(#[source] ExecError),
    /// None of the programs exists, or not for this family.
    #[error("iptables is not installed (looked for {looked_for})")]
    NotInstalled { looked_for: String },
    #[error("{program} {version} is too old: {needed} or newer is needed")]
    TooOld {
        program: String,
        version: Version,
        needed: Version,
    },
    #[error("cannot read the version of {program} in {text:?}")]
    UnknownVersion { program: String, text: String },
    #[error("{program} failed: {stderr}")]
    Save {
        program: String,
        status: Option<i32>,
        stderr: String,
    },
    #[error("cannot read the output of {program}")]
    Parse {
        program: String,
        #[source]
        source: ParseError,
    },
    #[error("the kernel cannot translate {family} addresses with {program}")]
    NoNat { program: String, family: IpFamily },
    #[error("{program} failed")]
    Restore {
        program: String,
        #[source]
        source: Box<RestoreFailure>,
    },
}

/// The rules of one family of this network namespace.
#[derive(Clone, Debug)]
pub struct Iptables {
    exec: Arc<dyn Exec>,
    programs: Programs,
}

impl Iptables {
    pub fn new(exec: Arc<dyn Exec>, programs: Programs) -> Self {
        Self { exec, programs }
    }

    pub const fn family(&self) -> IpFamily {
        self.programs.family
    }

    pub const fn programs(&self) -> &Programs {
        &self.programs
    }

    /// All chains and rules of these tables, read by one process. A table that the kernel has not
    /// loaded has no chains, nor has one that iptables cannot list ([`Ruleset::unread`]).
    pub fn save(&self, tables: &[Table]) -> Result<Ruleset, IptablesError> {
        let program = self.programs.save.as_str();
        let args: &[&str] = match tables {
            [table] => &["-t", table.as_str()],
            _ => &[],
        };
        let mut parser = Parser::new(tables);
        let mut read = |piece: &[u8]| {
            // Comments may contain any bytes; what is not UTF-8 is not ours.
            let lines = String::from_utf8_lossy(piece);
            lines.lines().for_each(|line| parser.line(line));
        };
        let ended = self
            .exec
            .stream(program, args, &mut iter::empty(), &mut read)
            .map_err(IptablesError::Exec)?;
        if !ended.succeeded() {
            return Err(IptablesError::Save {
                program: program.to_owned(),
                status: ended.status,
                stderr: ended.stderr_text(),
            });
        }
        parser.finish().map_err(|source| IptablesError::Parse {
            program: program.to_owned(),
            source,
        })
    }

    /// Whether the kernel has a `nat` table for these programs.
    pub fn probe(&self) -> Result<(), IptablesError> {
        self.save(&[Table::Nat])?;
        let Programs {
            family, backend, ..
        } = self.programs;
        // legacy needs the table to list it. nft lists nothing where it could not make one. Without
        // privileges the first write will say so.
        if backend == Backend::Nft && matches!(nftables::translates(family), Ok(false)) {
            let program = self.programs.restore.clone();
            return Err(IptablesError::NoNat { program, family });
        }
        Ok(())
    }

    /// Whether program and kernel support a rule. Changes nothing. That another program holds the
    /// lock, or a signal killed this one, is no answer.
    pub fn knows(&self, table: Table, rule: &Rule) -> Result<bool, IptablesError> {
        let chain = "KUBE-PROBE";
        let batch = format!("*{table}\n:{chain} - [0:0]\n-A {chain} {rule}\nCOMMIT\n");
        let program = self.programs.restore.as_str();
        let args = ["-w", LOCK_WAIT, "--noflush", "--test"];
        let output = self
            .exec
            .run(program, &args, batch.as_bytes())
            .map_err(IptablesError::Exec)?;
        let stderr = output.ended.stderr_text();
        let failure = RestoreFailure::of(&[], output.ended.status, &stderr);
        if matches!(
            failure.kind,
            RestoreFailureKind::LockHeld | RestoreFailureKind::Signal
        ) {
            return Err(IptablesError::Restore {
                program: program.to_owned(),
                source: Box::new(failure),
            });
        }
        // What the kernel lacks is a warning and no failure, as `--test` sends the kernel nothing.
        Ok(output.ended.succeeded() && !stderr.contains("not supported"))
    }

    /// Whether program and kernel have rules that match and fill ipsets. The rule names a set that
    /// does not exist, which is found out when all else is there. Changes nothing.
    pub fn matches_sets(&self) -> Result<bool, IptablesError> {
        let set = "KUBE-PROBE";
        let rule = format!("-m set --match-set {set} src -j SET --add-set {set} src --exist");
        let batch = format!("*nat\n:{set} - [0:0]\n-A {set} {rule}\nCOMMIT\n");
        let args = ["-w", LOCK_WAIT, "--noflush", "--test"];
        let program = self.programs.restore.as_str();
        let output = self.exec.run(program, &args, batch.as_bytes());
        let stderr = output.map_err(IptablesError::Exec)?.ended.stderr_text();
        Ok(stderr.contains("doesn't exist") && !stderr.contains("not supported"))
    }

    /// Makes all edits with one process. Each table is atomic by itself; tables are written in the
    /// order of [`Table`], and those before the one that fails stay written.
    pub fn restore(&self, edits: &[Edit]) -> Result<(), IptablesError> {
        if edits.is_empty() {
            return Ok(());
        }
        let program = self.programs.restore.as_str();
        trace!(program, batch = render_edits(edits), "iptables batch");
        let args = ["-w", LOCK_WAIT, "--noflush"];
        let ended = self
            .exec
            .stream(program, &args, &mut restore::pieces(edits), &mut |_| {})
            .map_err(IptablesError::Exec)?;
        if ended.succeeded() {
            return Ok(());
        }
        Err(IptablesError::Restore {
            program: program.to_owned(),
            source: Box::new(RestoreFailure::of(
                edits,
                ended.status,
                &ended.stderr_text(),
            )),
        })
    }
}

#[cfg(test)]
mod tests;
