// SPDX-License-Identifier: Apache-2.0
//! What the kernel says of addresses and routes that are gone.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::family::Family;
use super::{Reconciler, Served};
use crate::dataplane::kernel::Kernel;
use kpr_core::plan::Planner;

/// See [`super::Input::AddressesGone`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gone {
    pub addresses: BTreeSet<IpAddr>,
    /// Our link was deleted, or notifications were lost.
    pub may_be_all: bool,
}

impl<P: Planner, K: Kernel<P>> Reconciler<P, K> {
    pub(super) fn watch_link(&mut self, gone: &Gone) {
        for Served { family, .. } in &mut self.served {
            family.watch_link(gone);
        }
    }

    /// Looks at our link if another program may have changed it.
    pub(super) fn look_at_link(&mut self) {
        let now = self.clock.monotonic();
        let is_due = |family: &Family<P>| family.link_look_due().is_some_and(|due| due <= now);
        if !self.families().any(is_due) {
            return;
        }
        let succeeded =
            self.with_families(|family, around| !is_due(family) || family.look_at_link(around));
        if !succeeded {
            self.runner.failed(self.clock.monotonic());
        }
    }
}
