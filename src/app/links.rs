// SPDX-License-Identifier: Apache-2.0
//! The thread that tells the loop of changed node addresses.

use std::time::Duration;

use tokio::sync::mpsc;
use tracing::error;

use crate::dataplane::links::{LinkError, Links, Monitor};
use crate::reconcile::{Gone, Input};
use crate::telemetry::ErrorChain;
use kpr_core::plan::ipvs::step::LINK;

/// How long the address watcher blocks before it checks whether the loop has ended.
const LINKS_PATIENCE: Duration = Duration::from_mins(1);

/// Pause before the address watcher tries again.
const LINKS_RETRY: Duration = Duration::from_secs(1);

/// Subscribes to changes. Only a link of our own needs routes.
pub(super) fn monitor(has_own_link: bool) -> Result<Monitor, LinkError> {
    let mut monitor = Monitor::open()?;
    if has_own_link {
        monitor.watch_routes()?;
    }
    Ok(monitor)
}

/// Notifies the loop of changed node addresses. The thread ends after the loop.
pub(super) fn watch_links(
    opened: Monitor,
    has_own_link: bool,
    inputs: mpsc::Sender<Input>,
) -> anyhow::Result<()> {
    let watch = move || {
        let mut opened: Result<Monitor, LinkError> = Ok(opened);
        while !inputs.is_closed() {
            let watching = || opened.and_then(|monitor| notify_of_links(monitor, &inputs));
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(watching));
            match ended {
                Ok(Ok(())) => return,
                Ok(Err(error)) => {
                    error!(error = %ErrorChain(&error), "failed to watch node addresses, retrying");
                }
                Err(_panic) => error!("failed to watch node addresses by a bug, retrying"),
            }
            #[expect(clippy::disallowed_methods, reason = "the pause before a retry")]
            std::thread::sleep(LINKS_RETRY);
            opened = monitor(has_own_link);
            // What changed meanwhile was not seen.
            let unseen = Gone {
                may_be_all: true,
                ..Gone::default()
            };
            let news = [Input::NodeAddresses, Input::AddressesGone(unseen)];
            if news
                .into_iter()
                .any(|input| inputs.blocking_send(input).is_err())
            {
                return;
            }
        }
    };
    std::thread::Builder::new()
        .name("links".to_owned())
        .spawn(watch)?;
    Ok(())
}

fn notify_of_links(mut monitor: Monitor, inputs: &mpsc::Sender<Input>) -> Result<(), LinkError> {
    let mut links = Links::open()?;
    // Our own additions to our link are notified too, and ignored.
    let mut ours = None;
    while !inputs.is_closed() {
        let Some(change) = monitor.wait(LINKS_PATIENCE)? else {
            continue;
        };
        let may_be_all = change.lost || ours.is_some_and(|ours| change.deleted.contains(&ours));
        if may_be_all || ours.is_none_or(|ours| change.concerns_others_than(ours)) {
            ours = links.find(LINK)?.map(|link| link.index);
        }
        let is_news = ours.is_none_or(|ours| change.concerns_others_than(ours));
        if is_news && inputs.blocking_send(Input::NodeAddresses).is_err() {
            break;
        }
        if may_be_all || !change.gone.is_empty() {
            let addresses = change.gone;
            let gone = Gone {
                addresses,
                may_be_all,
            };
            if inputs.blocking_send(Input::AddressesGone(gone)).is_err() {
                break;
            }
        }
    }
    Ok(())
}
