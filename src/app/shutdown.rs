// SPDX-License-Identifier: Apache-2.0
//! Shutdown: a round in progress is finished first.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::dataplane::exec::Exec;
use crate::health::ProxyHealth;

/// How a proxy ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// By a signal, or because a part that it needs has ended.
    Stopped,
    /// The configuration file has changed in a way that needs a restart.
    Restart,
}

/// The sync loop.
#[derive(Debug)]
pub(super) struct Sync {
    pub(super) thread: std::thread::JoinHandle<anyhow::Result<()>>,
    /// Runs its programs.
    pub(super) exec: Arc<dyn Exec>,
    /// How long its last round may take: [`PATIENCE`].
    pub(super) patience: Duration,
}

/// How long the current round may take after the signal. The grace period of pods is 30 s by
/// default, and a program that is killed with us leaves the kernel as it was.
pub(super) const PATIENCE: Duration = Duration::from_secs(25);

/// How long the loop may take to notice that its programs were ended.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Fails health checks, so that load balancers drain this node, and waits for the current round,
/// but not too long; `serving` answers them meanwhile. Returns what the proxy ended with.
pub(super) async fn wind_down(
    outcome: anyhow::Result<Ended>,
    health: &ProxyHealth,
    stop: &watch::Sender<bool>,
    sync: Sync,
    serving: impl Future<Output = ()>,
) -> anyhow::Result<Ended> {
    health.set_shutting_down();
    stop.send_replace(true);
    if let Err(error) = &outcome {
        info!(%error, "finishing the current sync before exiting");
    }
    let Sync {
        thread,
        exec,
        patience,
    } = sync;
    let mut finishing = std::pin::pin!(async {
        let mut finished = std::pin::pin!(wait_for_loop(thread));
        tokio::select! {
            ended = &mut finished => ended,
            () = serving => finished.await,
        }
    });
    let finished = match tokio::time::timeout(patience, &mut finishing).await {
        Ok(finished) => finished,
        Err(_elapsed) => {
            let seconds = patience.as_secs();
            warn!(seconds, "the current sync has not finished, giving it up");
            exec.abandon();
            let given_up = tokio::time::timeout(LAST_WORDS, finishing).await;
            given_up.unwrap_or(Ok(()))
        }
    };
    let ended = outcome?;
    finished?;
    Ok(ended)
}

/// Waits for the current round; after it nothing touches the kernel.
async fn wait_for_loop(thread: std::thread::JoinHandle<anyhow::Result<()>>) -> anyhow::Result<()> {
    let joined = tokio::task::spawn_blocking(move || thread.join()).await?;
    joined.unwrap_or_else(|_panic| {
        error!("sync loop panicked");
        anyhow::bail!("sync loop panicked")
    })
}

/// The signals that end this program: SIGTERM and SIGINT.
#[derive(Debug)]
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From here on none is lost. Without a handler the kernel drops those for process 1 of a
    /// container, and one that waits for a slow program at its start would go on to serve.
    pub(super) fn catch() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for one.
    pub(super) async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Does work of the start; `None` if a signal comes first.
    pub(super) async fn unless_received<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.received() => {
                info!("received stop signal while starting, exiting");
                None
            }
            done = work => Some(done),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::clock::Clock;
    use crate::dataplane::exec::{ExecError, System};

    fn exec() -> Arc<dyn Exec> {
        Arc::new(System::new(Clock::system(), System::DEFAULT_DEADLINE))
    }

    #[tokio::test]
    async fn a_server_that_fails_waits_for_the_round_in_flight() {
        let health = ProxyHealth::new(Clock::system(), Duration::from_secs(1));
        health.set_node_eligible(true);
        health.started(kpr_core::model::IpFamily::V4);
        assert!(health.healthz().is_good());
        let (stop, stopped) = watch::channel(false);
        let (finish, round) = mpsc::channel::<()>();
        let sync = Sync {
            thread: std::thread::spawn(move || Ok(round.recv()?)),
            exec: exec(),
            patience: PATIENCE,
        };
        let failed = Err(anyhow::anyhow!("cannot listen"));
        let mut ending = std::pin::pin!(wind_down(failed, &health, &stop, sync, async {}));
        let early = futures::poll!(&mut ending);
        assert!(early.is_pending(), "{early:?}");
        assert!(!health.healthz().is_good() && *stopped.borrow());
        finish.send(()).unwrap();
        assert_eq!(ending.await.unwrap_err().to_string(), "cannot listen");
    }

    #[tokio::test]
    async fn a_round_that_takes_too_long_ends_with_its_program() {
        let health = ProxyHealth::new(Clock::system(), Duration::from_secs(1));
        let (stop, _stopped) = watch::channel(false);
        let (exec, (ended, how)) = (exec(), mpsc::channel());
        let programs = exec.clone();
        let thread = std::thread::spawn(move || {
            // Would run until the end of the tests.
            Ok(ended.send(programs.run("sleep", &["1000"], b""))?)
        });
        let sync = Sync {
            thread,
            exec,
            patience: Duration::from_millis(1),
        };
        let outcome = wind_down(Ok(Ended::Stopped), &health, &stop, sync, async {}).await;
        assert_eq!(outcome.unwrap(), Ended::Stopped);
        let program = how.recv().unwrap();
        assert!(
            matches!(program, Err(ExecError::Abandoned { .. })),
            "{program:?}"
        );
    }
}
