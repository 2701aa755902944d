// SPDX-License-Identifier: Apache-2.0
//! A proxy that is measured. It ends with its owner.

use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use kube_proxy_rs::clock::Clock;

use crate::pause;
use crate::process::Metrics;

/// Between two looks at the proxy's metrics. Its own timestamps tell when things happened.
const LOOK: Duration = Duration::from_millis(100);

/// A cold start that takes longer has failed.
const LIMIT: Duration = Duration::from_mins(30);

pub(crate) const LAST_ROUND: &str = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";

/// See the module.
pub(crate) struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Running {
    /// Starts a program with its arguments in the network namespace of this thread.
    #[expect(
        clippy::disallowed_methods,
        reason = "the program that is measured, not a tool of the proxy"
    )]
    pub(crate) fn start(
        command: &[String],
        environment: &[(&str, String)],
        log: &File,
    ) -> anyhow::Result<Self> {
        let (program, arguments) = command.split_first().context("no proxy named")?;
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

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn ensure_runs(&mut self) -> anyhow::Result<()> {
        match self.0.try_wait()? {
            Some(status) => anyhow::bail!("the proxy ended: {status}"),
            None => Ok(()),
        }
    }

    /// Waits until each IP family had its first successful round.
    pub(crate) fn wait_programmed(&mut self, clock: &Clock) -> anyhow::Result<Metrics> {
        let begin = clock.monotonic();
        loop {
            if let Some(metrics) = Metrics::read()
                && metrics
                    .series(LAST_ROUND)
                    .filter(|(_, at)| *at > 0.0)
                    .count()
                    >= 2
            {
                return Ok(metrics);
            }
            self.ensure_runs()?;
            anyhow::ensure!(
                clock.monotonic().saturating_sub(begin) < LIMIT,
                "not programmed after {LIMIT:?}"
            );
            pause(LOOK);
        }
    }
}
