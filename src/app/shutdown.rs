// SPDX-License-Identifier: Apache-2.0
//! The end of a proxy, whatever it ends with: nothing is left half done.

use tokio::sync::watch;
use tracing::{error, info};

use crate::health::ProxyHealth;

/// Why a proxy that could work does not any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// It was asked to, or nobody is left that wants anything.
    Stopped,
    /// The configuration file has changed in a way that only another start can take in.
    Restart,
}

/// The thread of the sync loop.
pub(super) type Sync = std::thread::JoinHandle<anyhow::Result<()>>;

/// Fails health, so that load balancers go elsewhere, and waits until the round in flight has ended; only then it says what
/// the proxy ended with. `serving` tells them meanwhile, if it still can.
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
        info!(%error, "the round in flight is finished before the proxy ends");
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

/// A round in flight is finished; then nothing touches the kernel any more.
async fn wait_for_loop(sync: Sync) -> anyhow::Result<()> {
    let joined = tokio::task::spawn_blocking(move || sync.join()).await?;
    joined.unwrap_or_else(|_panic| {
        error!("the sync loop died");
        anyhow::bail!("the sync loop died")
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
            error!(%error, "SIGTERM is not handled");
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
