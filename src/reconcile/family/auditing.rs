// SPDX-License-Identifier: Apache-2.0
//! The part of an audit that checks real servers, a short time at once.

use std::time::Duration;

use tracing::warn;

use super::{CHECKED_AT_ONCE, Done, Family, SLICE, Surroundings};
use crate::dataplane::kernel::Kernel;
use crate::telemetry::ErrorChain;
use kpr_core::plan::Planner;

impl<P: Planner> Family<P> {
    /// Whether drift was found since then.
    pub(in crate::reconcile) fn has_drifted_since(&self, time: Duration) -> bool {
        self.drifted.is_some_and(|when| when >= time)
    }

    /// Whether an audit is in progress.
    pub(in crate::reconcile) fn is_auditing(&self) -> bool {
        self.audit.is_running()
    }

    /// Continues an audit for a short time, so that changes need not wait for its end. Returns
    /// whether the kernel is as desired, as far as it was checked.
    pub(in crate::reconcile) fn audit_slice<K: Kernel<P>>(
        &mut self,
        around: &mut Surroundings<'_, K>,
    ) -> bool {
        let (family, start) = (self.family(), around.clock.monotonic());
        let mut differs = false;
        while self.is_auditing() && around.clock.monotonic().saturating_sub(start) < SLICE {
            let belief = self.planner.sliced_audit();
            let (Some(belief), Some(kernel)) = (belief, around.kernel.servers()) else {
                self.audit.stop();
                break;
            };
            match self.audit.look(kernel, family, belief, CHECKED_AT_ONCE) {
                Ok(finds) => differs |= finds,
                Err(error) => {
                    warn!(error = %ErrorChain(&error), "audit stopped early");
                    self.audit.stop();
                }
            }
        }
        !differs || self.plan_and_apply(around, true) == Done::Everything
    }
}
