// SPDX-License-Identifier: Apache-2.0
//! Which of the schedulers that Services request, or that their affinity needs, this kernel has.
//! Each is probed when it is first requested; missing ones are probed again by every audit, because
//! a module can be loaded later. To probe one loads its module: for what a Service requests that is
//! done only if the operator allows it, or if it is loaded anyway.

use std::collections::BTreeSet;

use tracing::warn;

use super::Reconciler;
use super::observer::Observer;
use crate::dataplane::kernel::{Kernel, ServerKernel};
use crate::telemetry::ErrorChain;
use kpr_core::model::ipvs_options::{ForwardingMethod, Scheduler};
use kpr_core::model::{Changes, Service, Tracker};
use kpr_core::plan::Planner;
use kpr_core::plan::ipvs::port_objects::CLIENT_HASHES;

/// Whether it may get a virtual server with session affinity and a firewall mark.
fn hashes_clients(service: &Service) -> bool {
    let options = service.ipvs.as_deref();
    let forwards = options.is_some_and(|it| it.forwarding != ForwardingMethod::Masquerade);
    service.client_ip_affinity.is_some() && (service.external_policy_local || forwards)
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Schedulers {
    present: BTreeSet<Scheduler>,
    missing: BTreeSet<Scheduler>,
    /// Not probed, because that would load a module.
    refused: BTreeSet<Scheduler>,
}

impl Schedulers {
    /// Takes in what the changed Services request. Costs what changed.
    pub(super) fn follow(
        &mut self,
        kernel: &mut dyn ServerKernel,
        observer: &dyn Observer,
        tracker: &Tracker,
        changes: &Changes,
        allowed: &BTreeSet<Scheduler>,
    ) {
        let services = changes.services.iter();
        let options = services.filter_map(|name| tracker.service(name)?.ipvs.as_deref());
        let wanted: BTreeSet<Scheduler> = options.filter_map(|options| options.scheduler).collect();
        for scheduler in wanted {
            self.try_if_allowed(kernel, observer, scheduler, allowed);
        }
        let mut services = changes.services.iter();
        if services.any(|name| tracker.service(name).is_some_and(hashes_clients)) {
            for scheduler in CLIENT_HASHES {
                self.try_unless_missing(kernel, observer, scheduler);
                if !self.missing.contains(&scheduler) {
                    break;
                }
            }
        }
    }

    fn try_if_allowed(
        &mut self,
        kernel: &mut dyn ServerKernel,
        observer: &dyn Observer,
        scheduler: Scheduler,
        allowed: &BTreeSet<Scheduler>,
    ) {
        if self.present.contains(&scheduler) || self.refused.contains(&scheduler) {
            return;
        }
        if allowed.contains(&scheduler) || kernel.is_scheduler_loaded(scheduler) {
            self.try_unless_missing(kernel, observer, scheduler);
        } else {
            self.refused.insert(scheduler);
        }
    }

    fn try_unless_missing(
        &mut self,
        kernel: &mut dyn ServerKernel,
        observer: &dyn Observer,
        scheduler: Scheduler,
    ) {
        if !self.missing.contains(&scheduler) {
            self.try_one(kernel, observer, scheduler);
        }
    }

    /// Probes the missing ones again, and those that were not loaded.
    pub(super) fn try_again(
        &mut self,
        kernel: &mut dyn ServerKernel,
        observer: &dyn Observer,
        allowed: &BTreeSet<Scheduler>,
    ) {
        for scheduler in std::mem::take(&mut self.refused) {
            self.try_if_allowed(kernel, observer, scheduler, allowed);
        }
        for scheduler in std::mem::take(&mut self.missing) {
            self.try_one(kernel, observer, scheduler);
        }
    }

    pub(super) const fn refused(&self) -> &BTreeSet<Scheduler> {
        &self.refused
    }

    pub(super) const fn missing(&self) -> &BTreeSet<Scheduler> {
        &self.missing
    }

    fn try_one(
        &mut self,
        kernel: &mut dyn ServerKernel,
        observer: &dyn Observer,
        scheduler: Scheduler,
    ) {
        if self.present.contains(&scheduler) {
            return;
        }
        match kernel.has_scheduler(scheduler) {
            Ok(is_there) => {
                observer.kernel_capability(&format!("ip_vs_{scheduler}"), is_there);
                let found = if is_there {
                    &mut self.present
                } else {
                    &mut self.missing
                };
                found.insert(scheduler);
            }
            // The step that needs it will report more.
            Err(error) => {
                warn!(%scheduler, error = %ErrorChain(&error), "failed to probe for an IPVS scheduler");
            }
        }
    }
}

impl<P: Planner, K: Kernel<P>> Reconciler<P, K> {
    /// If a Service requests a scheduler that the kernel lacks, it gets the default one.
    pub(super) fn look_for_schedulers(&mut self, changes: &Changes, is_audit: bool) {
        let Some(kernel) = self.kernel.servers() else {
            return;
        };
        let allowed = &self.settings.ipvs.service_schedulers;
        if is_audit {
            self.schedulers.try_again(kernel, &*self.observer, allowed);
        }
        self.schedulers
            .follow(kernel, &*self.observer, &self.tracker, changes, allowed);
        let (missing, refused) = (self.schedulers.missing(), self.schedulers.refused());
        if self.facts.missing_schedulers != *missing || self.facts.refused_schedulers != *refused {
            self.facts.missing_schedulers = missing.clone();
            self.facts.refused_schedulers = refused.clone();
            self.facts_changed = true;
        }
    }
}
