// SPDX-License-Identifier: Apache-2.0
//! Shutdown: a round in progress is finished first.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::health::ProxyHealth;

/// How a proxy ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// By a signal, or because a part that it needs has ended.
    Stopped,
    /// The configuration file has changed in a way that needs a restart.
    Restart,
}

/// The thread of the sync loop.
pub(super) type Sync = std::thread::JoinHandle<anyhow::Result<()>>;

/// How long the current round may take after the signal. The grace period of pods is 30 s by
/// default, and a program that is killed with us leaves the kernel as it was.
const PATIENCE: Duration = Duration::from_secs(25);

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
    let mut finished = std::pin::pin!(wait_for_loop(sync));
    let finished = async {
        tokio::select! {
            ended = &mut finished => ended,
            () = serving => finished.await,
        }
    };
    let finished = tokio::time::timeout(PATIENCE, finished).await;
    let ended = outcome?;
    match finished {
        Ok(finished) => finished?,
        Err(_elapsed) => warn!(
            seconds = PATIENCE.as_secs(),
            "the current sync has not finished, exiting without it"
        ),
    }
    Ok(ended)
}

/// Waits for the current round; after it nothing touches the kernel.
async fn wait_for_loop(sync: Sync) -> anyhow::Result<()> {
    let joined = tokio::task::spawn_blocking(move || sync.join()).await?;
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

    #[tokio::test]
    async fn a_server_that_fails_waits_for_the_round_in_flight() {
        let health = ProxyHealth::new(Clock::system(), Duration::from_secs(1));
        health.set_node_eligible(true);
        health.started(kpr_core::model::IpFamily::V4);
        assert!(health.healthz().is_good());
        let (stop, stopped) = watch::channel(false);
        let (finish, round) = mpsc::channel::<()>();
        let sync = std::thread::spawn(move || {
            round.recv()?;
            Ok(())
        });
        let failed = Err(anyhow::anyhow!("cannot listen"));
        let mut ending = std::pin::pin!(wind_down(failed, &health, &stop, sync, async {}));
        let early = futures::poll!(&mut ending);
        assert!(early.is_pending(), "{early:?}");
        assert!(!health.healthz().is_good() && *stopped.borrow());
        finish.send(()).unwrap();
        assert_eq!(ending.await.unwrap_err().to_string(), "cannot listen");
    }
}
