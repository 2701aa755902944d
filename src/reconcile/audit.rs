// SPDX-License-Identifier: Apache-2.0
//! The part of an audit that looks at real servers. First the kernel shows all of them in passing; it is asked only about
//! virtual servers that were not shown to be as believed, and its answers alone count.

use std::collections::BTreeSet;

use tracing::{debug, info};

use crate::dataplane::kernel::{Kernel, ObserveError, ProcListing};
use crate::telemetry::ErrorChain;
use kpr_core::model::IpFamily;
use kpr_core::plan::ipvs::object::VirtualServerKey;
use kpr_core::plan::mode::ModePlanner;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Audit {
    /// The virtual servers of which nothing was seen yet, or something else than is believed.
    left: BTreeSet<VirtualServerKey>,
    /// What the kernel has yet to show in passing.
    glimpses: Option<ProcListing>,
    /// It was said that the kernel does not show it.
    is_told: bool,
}

impl Audit {
    /// The real servers of these virtual servers are to be looked at.
    pub(super) fn begin(
        &mut self,
        kernel: &mut impl Kernel,
        family: IpFamily,
        virtual_servers: BTreeSet<VirtualServerKey>,
    ) {
        self.left = virtual_servers;
        self.glimpses = None;
        if self.is_running() {
            match kernel.proc_listing(family) {
                Ok(glimpses) => self.glimpses = Some(glimpses),
                Err(error) => self.tell(family, &error),
            }
        }
    }

    pub(super) fn is_running(&self) -> bool {
        !self.left.is_empty()
    }

    pub(super) fn stop(&mut self) {
        self.left.clear();
        self.glimpses = None;
    }

    /// Looks at a few virtual servers. Says whether their real servers were not as believed.
    pub(super) fn look(
        &mut self,
        kernel: &mut impl Kernel,
        planner: &mut ModePlanner,
        virtual_servers: usize,
    ) -> Result<bool, ObserveError> {
        if let Some(glimpses) = &mut self.glimpses {
            for _ in 0..virtual_servers {
                match glimpses.next() {
                    // Belief may have changed since it was read: then it is as if it had not been shown.
                    Some(Ok((key, real_servers))) => {
                        if planner.believes(&key, &real_servers) {
                            self.left.remove(&key);
                        }
                    }
                    Some(Err(error)) => {
                        self.glimpses = None;
                        self.tell(planner.family(), &error);
                        break;
                    }
                    None => {
                        self.glimpses = None;
                        break;
                    }
                }
            }
            if self.left.is_empty() {
                self.glimpses = None;
            }
            return Ok(false);
        }
        let next = std::iter::from_fn(|| self.left.pop_first());
        let keys: Vec<VirtualServerKey> = next.take(virtual_servers).collect();
        let found = kernel.observe_real_servers(&keys);
        found.map(|found| planner.observed_real_servers(found))
    }

    /// Nothing is wrong then, but audits cost more.
    fn tell(&mut self, family: IpFamily, error: &ObserveError) {
        let error = ErrorChain(error);
        if std::mem::replace(&mut self.is_told, true) {
            debug!(%family, %error, "audit asks about each virtual server");
        } else {
            info!(%family, %error, "audits ask about each virtual server");
        }
    }
}
