// SPDX-License-Identifier: Apache-2.0
//! When stale UDP flows are searched for: after the rounds that may have left some, but not so
//! often that endpoints which come and go keep a CPU busy.

use std::time::Duration;

use tracing::{info, warn};

use super::{Family, Surroundings};
use crate::dataplane::kernel::Kernel;
use crate::reconcile::Reconciler;
use kpr_core::plan::Planner;

/// Searching for stale UDP flows, for which the kernel may walk its whole table, may use one part
/// in this many of the time.
const CLEANUP_SHARE: u32 = 10;

impl<P: Planner> Family<P> {
    /// When to search for the stale flows that a round left for later, if any.
    pub(in crate::reconcile) const fn cleanup_due(&self) -> Option<Duration> {
        self.cleanup_left
    }

    /// Deletes the stale flows of the changes, unless the last search was so long that it is not
    /// yet time for another. If not all changes were made, some flows may come back: then it is
    /// repeated after the next round.
    pub(in crate::reconcile) fn clean_flows<K: Kernel<P>>(
        &mut self,
        around: &mut Surroundings<'_, K>,
        is_final: bool,
    ) -> bool {
        let family = self.family();
        let start = around.clock.monotonic();
        let is_early = start < self.next_cleanup && self.flows.is_due();
        self.cleanup_left = is_early.then_some(self.next_cleanup);
        if is_early {
            return true;
        }
        let Some(cleanup) = self.flows.due() else {
            return true;
        };
        let result = around.kernel.delete_flows(&cleanup);
        let end = around.clock.monotonic();
        let duration = end.saturating_sub(start);
        self.next_cleanup = end + duration * CLEANUP_SHARE;
        match result {
            Ok(deleted) => {
                around.observer.flows_cleaned(family, duration, deleted);
                if deleted > 0 {
                    info!(deleted, "stale UDP flows deleted");
                }
                if is_final {
                    self.flows.done();
                }
                true
            }
            Err(error) => {
                warn!(%error, "failed to delete stale UDP flows");
                false
            }
        }
    }
}

impl<P: Planner, K: Kernel<P>> Reconciler<P, K> {
    /// Searches for stale flows that a round left for later.
    pub(in crate::reconcile) fn clean_flows(&mut self) {
        let now = self.clock.monotonic();
        let is_due = |family: &Family<P>| family.cleanup_due().is_some_and(|due| due <= now);
        let is_final = self.is_serving();
        if self.families().any(is_due) {
            let succeeded = self.with_families(|family, around| {
                !is_due(family) || family.clean_flows(around, is_final)
            });
            if !succeeded {
                self.runner.failed(self.clock.monotonic());
            }
        }
    }
}
