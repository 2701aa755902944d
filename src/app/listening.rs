// SPDX-License-Identifier: Apache-2.0
//! Keeps open the sockets that the loop last wanted. They live on the main runtime, so that clients
//! never wait for a round.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::time::Duration;

use tokio::sync::watch;
use tracing::info;

use crate::events::Events;
use crate::reported_once::ReportedOnce;
use kpr_core::model::IpFamily;

/// Pause before a failed socket is retried.
pub(super) const RETRY: Duration = Duration::from_secs(5);

/// What each family last wanted.
pub(super) type Wanted<T> = BTreeMap<IpFamily, T>;

/// The sending side of what is wanted; never blocks.
#[derive(Debug)]
pub(super) struct Published<T>(watch::Sender<Wanted<T>>);

impl<T: Clone + PartialEq> Published<T> {
    pub(super) fn new() -> (Self, watch::Receiver<Wanted<T>>) {
        let (sender, receiver) = watch::channel(Wanted::new());
        (Self(sender), receiver)
    }

    pub(super) fn publish(&self, family: IpFamily, wants: &T) {
        self.0.send_if_modified(|wanted| {
            let is_news = wanted.get(&family) != Some(wants);
            if is_news {
                wanted.insert(family, wants.clone());
            }
            is_news
        });
    }
}

/// Sockets that are opened for Services.
pub(super) trait Sockets {
    type Wanted;
    type Failure: Display;

    /// Opens what is wanted and not open, closes what is not wanted.
    async fn open(&mut self, wanted: &Wanted<Self::Wanted>) -> Vec<Self::Failure>;

    /// Logs that something could not be opened and will be retried, and sends an Event.
    fn report(failure: &Self::Failure, events: &Events, node: &str);
}

/// Runs until the sending side is gone. A failure is reported once and retried.
pub(super) async fn keep_open<S>(
    mut sockets: S,
    mut wanted: watch::Receiver<Wanted<S::Wanted>>,
    events: Events,
    node: &str,
) where
    S: Sockets<Wanted: Clone>,
{
    let mut reported = ReportedOnce::default();
    loop {
        let now = wanted.borrow_and_update().clone();
        let failures = sockets.open(&now).await;
        report_new::<S>(&mut reported, &failures, &events, node);
        tokio::select! {
            changed = wanted.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = tokio::time::sleep(RETRY), if !failures.is_empty() => {}
        }
    }
}

/// Reports the failures that were not there before, and those that ended.
pub(super) fn report_new<S: Sockets>(
    reported: &mut ReportedOnce<String>,
    failures: &[S::Failure],
    events: &Events,
    node: &str,
) {
    let present: BTreeSet<String> = failures.iter().map(ToString::to_string).collect();
    let difference = reported.update(present);
    for failure in failures {
        if difference.new.contains(&failure.to_string()) {
            S::report(failure, events, node);
        }
    }
    for failure in difference.gone {
        info!(failure, "recovered");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_as_before_is_no_news() {
        let (published, mut receiver) = Published::new();
        published.publish(IpFamily::V4, &1);
        assert!(receiver.has_changed().unwrap());
        receiver.mark_unchanged();
        published.publish(IpFamily::V4, &1);
        assert!(!receiver.has_changed().unwrap());
        published.publish(IpFamily::V4, &2);
        assert!(receiver.has_changed().unwrap());
    }
}
