// SPDX-License-Identifier: Apache-2.0
//! The part of an audit that checks real servers. `/proc/net/ip_vs` is read first; only virtual
//! servers that it does not list as believed are requested over netlink, and only those answers
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
    /// The virtual servers that the listing has not yet shown as believed.
    left: BTreeSet<VirtualServerKey>,
    /// The rest of the listing.
    listing: Option<ProcListing>,
    /// The missing listing was logged.
    is_reported: bool,
}

impl Audit {
    /// Starts to check the real servers of these virtual servers.
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

    /// Checks a few virtual servers. Returns whether any real server differed from belief.
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
                    // Belief may have changed since it was read: then the virtual server counts as
                    // not shown.
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

    /// Without the listing the result is the same, but audits cost more.
    fn report(&mut self, family: IpFamily, error: &ObserveError) {
        let error = ErrorChain(error);
        if std::mem::replace(&mut self.is_reported, true) {
            debug!(%family, %error, "cannot use /proc/net/ip_vs");
        } else {
            info!(%family, %error, "cannot use /proc/net/ip_vs, auditing over netlink instead");
        }
    }
}
