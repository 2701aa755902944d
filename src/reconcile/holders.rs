// SPDX-License-Identifier: Apache-2.0
//! Follows who has addresses that Services may claim: links, routes, DNS servers and listening
//! processes of this node, and the objects of all Nodes.
//!
//! Links notify. Everything else is read at each audit; listening processes also when a Service
//! changes that claims an address of the node, and only while there is one.

use tracing::warn;

use super::Reconciler;
use super::context::api_service;
use crate::dataplane::kernel::Kernel;
use crate::telemetry::ErrorChain;
use kpr_core::model::Service;
use kpr_core::plan::Planner;

impl<P: Planner, K: Kernel<P>> Reconciler<P, K> {
    /// Tells the tracker who has which address, if that may have changed: a Service loses an
    /// address that is somebody's before it is planned.
    pub(super) fn renew_holders(&mut self, is_audit: bool) {
        let changed = &self.tracker.pending().services;
        let is_due = std::mem::take(&mut self.holders_due)
            || self.facts_changed
            || changed.contains(&api_service());
        let mut new = is_due.then(|| self.facts.holders(&self.settings, &self.tracker));
        let holders = new.as_ref().unwrap_or_else(|| self.tracker.holders());
        let matters = |service: &Service| holders.listening_matters(service);
        let listens = if is_audit || is_due {
            self.tracker.services().any(matters)
        } else {
            let mut changed = changed.iter().filter_map(|name| self.tracker.service(name));
            changed.any(matters)
        };
        if listens {
            match self.kernel.listening() {
                Ok(listening) if listening != self.facts.listening => {
                    self.facts.listening = listening;
                    new = Some(self.facts.holders(&self.settings, &self.tracker));
                }
                Ok(_) => {}
                Err(error) => {
                    warn!(error = %ErrorChain(&error), "failed to read listening sockets");
                }
            }
        }
        if let Some(new) = new {
            self.tracker.set_holders(new);
        }
    }
}
