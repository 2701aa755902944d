// SPDX-License-Identifier: Apache-2.0
//! A proxy under measurement, as a child process.

use std::fs::File;
use std::process::{Child, Command, Stdio};

use anyhow::Context as _;

use crate::process::Metrics;

/// Time of the last successful round, by IP family.
pub const LAST_ROUND: &str = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";

/// Killed when dropped.
#[derive(Debug)]
pub struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Running {
    /// Starts a command in the network namespace of this thread.
    #[expect(
        clippy::disallowed_methods,
        reason = "the program under measurement, not a tool of the proxy"
    )]
    pub fn start(
        command: &[String],
        environment: &[(&str, String)],
        log: &File,
    ) -> anyhow::Result<Self> {
        let (program, arguments) = command.split_first().context("empty command")?;
        let child = Command::new(program)
            .args(arguments)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log.try_clone()?)
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        Ok(Self(child))
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    pub fn ensure_runs(&mut self) -> anyhow::Result<()> {
        match self.0.try_wait()? {
            Some(status) => anyhow::bail!("the proxy exited: {status}"),
            None => Ok(()),
        }
    }
}

/// When the later of the two IP families finished its first successful round, in Unix seconds.
pub fn programmed(metrics: &Metrics) -> Option<f64> {
    let rounds = metrics.series(LAST_ROUND).filter(|(_, at)| *at > 0.0);
    let times: Vec<f64> = rounds.map(|(_, at)| at).collect();
    (times.len() >= 2).then(|| times.into_iter().fold(0.0, f64::max))
}
