// SPDX-License-Identifier: Apache-2.0
//! Our link and its addresses, which other programs flush, delete, or leave without a route.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use super::{Done, Family, LOOK_SHARE, ObserveScope, Surroundings};
use crate::dataplane::kernel::Kernel;
use crate::reconcile::Gone;
use kpr_core::model::IpFamily;
use kpr_core::plan::Planner;
use kpr_core::plan::ipvs::state::LinkState;

/// How long an IPv6 address may lack its route before it is bound anew.
const ROUTE_PATIENCE: Duration = Duration::from_millis(500);

/// Whether another program may have changed our link.
#[derive(Debug, Default)]
pub(in crate::reconcile) struct LinkWatch {
    pub(super) is_suspect: bool,
    /// Earliest time to look because of that.
    next_look: Duration,
    /// Addresses that may get their route later.
    undelivered: BTreeSet<IpAddr>,
}

impl LinkWatch {
    /// The addresses that serve. The kernel adds the route of an IPv6 address some time after the
    /// address, so a missing one must be missing in the next look, too.
    pub(in crate::reconcile) fn served(
        &mut self,
        found: &LinkState,
        family: IpFamily,
    ) -> BTreeSet<IpAddr> {
        let known = std::mem::take(&mut self.undelivered);
        let mut addresses = found.addresses.clone();
        for address in &found.undelivered {
            if family == IpFamily::V4 || known.contains(address) {
                addresses.remove(address);
            } else {
                self.undelivered.insert(*address);
            }
        }
        self.is_suspect = !self.undelivered.is_empty();
        addresses
    }
}

impl<P: Planner> Family<P> {
    /// Takes in that addresses are gone from the node. Those that we deleted are believed so.
    pub(in crate::reconcile) fn watch_link(&mut self, gone: &Gone) {
        let belief = self.planner.link();
        self.link.is_suspect |=
            belief.is_some_and(|belief| gone.may_be_all || belief.has_any(&gone.addresses));
    }

    /// When to look at our link because another program may have changed it.
    pub(in crate::reconcile) fn link_look_due(&self) -> Option<Duration> {
        (self.link.is_suspect && !self.is_unknown).then_some(self.link.next_look)
    }

    /// Looks at our link and its addresses, and repairs them. Returns whether the kernel is as
    /// desired afterwards.
    pub(in crate::reconcile) fn look_at_link<K: Kernel<P>>(
        &mut self,
        around: &mut Surroundings<'_, K>,
    ) -> bool {
        let start = around.clock.monotonic();
        let done = self.observe_and_apply(around, true, Some(ObserveScope::Link));
        let end = around.clock.monotonic();
        let pause = end.saturating_sub(start) * LOOK_SHARE;
        self.link.next_look = end
            + if self.link.is_suspect {
                pause.max(ROUTE_PATIENCE)
            } else {
                pause
            };
        done == Done::Everything
    }
}
