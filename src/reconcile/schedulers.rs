// SPDX-License-Identifier: Apache-2.0
//! Which of the schedulers that Services ask for this kernel has. Each is tried when it is asked for first; those that
//! are missing are tried again by every audit, because a module can be added.

use std::collections::BTreeSet;

use tracing::warn;

use super::observer::Observer;
use crate::dataplane::kernel::Kernel;
use crate::model::ipvs_options::Scheduler;
use crate::model::{Changes, Tracker};
use crate::telemetry::ErrorChain;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Schedulers {
    present: BTreeSet<Scheduler>,
    missing: BTreeSet<Scheduler>,
}

impl Schedulers {
    /// Looks at what the changed Services ask for. Costs what changed.
    pub(super) fn follow(
        &mut self,
        kernel: &mut impl Kernel,
        observer: &dyn Observer,
        tracker: &Tracker,
        changes: &Changes,
    ) {
        let services = changes.services.iter();
        let options = services.filter_map(|name| tracker.service(name)?.ipvs.as_deref());
        let wanted: BTreeSet<Scheduler> = options.filter_map(|options| options.scheduler).collect();
        for scheduler in wanted {
            if !self.missing.contains(&scheduler) {
                self.try_one(kernel, observer, scheduler);
            }
        }
    }

    /// Tries again those that were missing.
    pub(super) fn try_again(&mut self, kernel: &mut impl Kernel, observer: &dyn Observer) {
        for scheduler in std::mem::take(&mut self.missing) {
            self.try_one(kernel, observer, scheduler);
        }
    }

    pub(super) const fn missing(&self) -> &BTreeSet<Scheduler> {
        &self.missing
    }

    fn try_one(&mut self, kernel: &mut impl Kernel, observer: &dyn Observer, scheduler: Scheduler) {
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
            // The step that needs it will say more.
            Err(error) => warn!(%scheduler, error = %ErrorChain(&error), "scheduler not tried"),
        }
    }
}
