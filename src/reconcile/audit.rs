// SPDX-License-Identifier: Apache-2.0
//! The part of an audit that looks at real servers. `/proc/net/ip_vs` comes first; the kernel is
//! asked only about virtual servers that are not listed there as believed, and its answers alone
//! count.

use std::collections::BTreeSet;

use tracing::{debug, info};

use crate::dataplane::kernel::{ObserveError, ProcListing, ServerKernel};
use crate::telemetry::ErrorChain;
use kpr_core::model::IpFamily;
use kpr_core::plan::ipvs::object::VirtualServerKey;
use kpr_core::plan::mode::SlicedAudit;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Audit {
    /// The virtual servers of which nothing was seen yet, or something else than is believed.
    left: BTreeSet<VirtualServerKey>,
    /// The rest of the listing.
    listing: Option<ProcListing>,
    /// It was logged that there is no listing.
    is_reported: bool,
}

impl Audit {
    /// The real servers of these virtual servers are to be looked at.
    pub(super) fn begin(
        &mut self,
        kernel: &mut dyn ServerKernel,
        family: IpFamily,
        virtual_servers: BTreeSet<VirtualServerKey>,
    ) {
        self.left = virtual_servers;
        self.listing = None;
        if self.is_running() {
            match kernel.proc_listing(family) {
                Ok(listing) => self.listing = Some(listing),
                Err(error) => self.report(family, &error),
            }
        }
    }

    pub(super) fn is_running(&self) -> bool {
        !self.left.is_empty()
    }

    pub(super) fn stop(&mut self) {
        self.left.clear();
        self.listing = None;
    }

    /// Looks at a few virtual servers. Says whether their real servers were not as believed.
    pub(super) fn look(
        &mut self,
        kernel: &mut dyn ServerKernel,
        family: IpFamily,
        planner: &mut dyn SlicedAudit,
        virtual_servers: usize,
    ) -> Result<bool, ObserveError> {
        if let Some(listing) = &mut self.listing {
            for _ in 0..virtual_servers {
                match listing.next() {
                    // Belief may have changed since it was read: then it is as if it had not been
                    // shown.
                    Some(Ok((key, real_servers))) => {
                        if planner.believes(&key, &real_servers) {
                            self.left.remove(&key);
                        }
                    }
                    Some(Err(error)) => {
                        self.listing = None;
                        self.report(family, &error);
                        break;
                    }
                    None => {
                        self.listing = None;
                        break;
                    }
                }
            }
            if self.left.is_empty() {
                self.listing = None;
            }
            return Ok(false);
        }
        let next = std::iter::from_fn(|| self.left.pop_first());
        let keys: Vec<VirtualServerKey> = next.take(virtual_servers).collect();
        let found = kernel.observe_real_servers(&keys);
        found.map(|found| planner.observed_real_servers(found))
    }

    /// The result is the same without the listing, but audits cost more.
    fn report(&mut self, family: IpFamily, error: &ObserveError) {
        let error = ErrorChain(error);
        if std::mem::replace(&mut self.is_reported, true) {
            debug!(%family, %error, "cannot use /proc/net/ip_vs");
        } else {
            info!(%family, %error, "cannot use /proc/net/ip_vs, auditing over netlink instead");
        }
    }
}
