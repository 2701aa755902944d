// SPDX-License-Identifier: Apache-2.0
//! Shutdown: a round in progress is finished first.

use tokio::sync::watch;
use tracing::{error, info};

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

/// Fails health checks, so that load balancers drain this node, and waits for the current round;
/// `serving` answers them meanwhile. Returns what the proxy ended with.
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
    let finished = tokio::select! {
        ended = &mut finished => ended,
        () = serving => finished.await,
    };
    let ended = outcome?;
    finished?;
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

/// Waits for SIGTERM or SIGINT.
pub(super) async fn signalled() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
        }
        // Without a handler the signal ends the process, as it always did upstream.
        Err(error) => {
            error!(%error, "failed to install signal handlers");
            std::future::pending::<()>().await;
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
