// SPDX-License-Identifier: Apache-2.0
//! Removes what IPVS mode left in the kernel while iptables mode serves, as its connections end.

use std::collections::BTreeMap;
use std::time::Duration;

use tracing::{info, warn};

use crate::dataplane::kernel::{AuditDepth, IpvsKernel, ObserveError};
use crate::telemetry::ErrorChain;
use kpr_core::model::IpFamily;
use kpr_core::plan::ipvs;
use kpr_core::plan::leftovers::cleanup::Facts;
use kpr_core::plan::leftovers::teardown;

/// Pause between two attempts; it grows, because connections that are still open tend to stay so.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// See the module.
#[derive(Debug)]
pub(super) struct PreviousMode {
    kernel: Box<dyn IpvsKernel>,
    next: Duration,
    pause: Duration,
    waiting: Option<usize>,
}

impl PreviousMode {
    pub(super) fn new(kernel: Box<dyn IpvsKernel>) -> Self {
        Self {
            kernel,
            next: Duration::ZERO,
            pause: FIRST_PAUSE,
            waiting: None,
        }
    }

    /// When to try again.
    pub(super) const fn due(&self) -> Duration {
        self.next
    }

    /// Removes what is no longer in use. Returns whether nothing is left.
    pub(super) fn look(&mut self, now: Duration, facts: &Facts) -> bool {
        self.next = now + self.pause;
        self.pause = self.pause.saturating_mul(2).min(LONGEST_PAUSE);
        match self.tear_down(facts) {
            Ok(true) => {
                info!("leftover IPVS state removed");
                true
            }
            Ok(false) => false,
            Err(error) => {
                warn!(error = %ErrorChain(&error), "failed to read leftover IPVS state");
                false
            }
        }
    }

    fn tear_down(&mut self, facts: &Facts) -> Result<bool, ObserveError> {
        let mut waiting = 0;
        for family in IpFamily::ALL {
            let state = self.kernel.observe(family)?;
            let candidates = teardown::candidates(&state, facts);
            let idle = self.kernel.idle(&candidates)?;
            waiting += candidates.len() - candidates.intersection(&idle).count();
            self.apply(&teardown::steps(&state, family, facts, &idle));
        }
        let states = self.observe()?;
        self.apply(&teardown::link(&states));
        if self.waiting != Some(waiting) {
            info!(
                draining = waiting,
                "waiting for connections to leftover IPVS real servers to end"
            );
            self.waiting = Some(waiting);
        }
        let states = self.observe()?;
        Ok(!states.values().any(|state| teardown::is_due(state, facts)))
    }

    fn observe(&mut self) -> Result<BTreeMap<IpFamily, ipvs::State>, ObserveError> {
        let all = IpFamily::ALL.into_iter();
        all.map(|family| {
            Ok((
                family,
                self.kernel
                    .observe_summary(family, AuditDepth::Everything)?,
            ))
        })
        .collect()
    }

    fn apply(&mut self, plan: &ipvs::Plan) {
        if plan.is_empty() {
            return;
        }
        let report = self.kernel.apply(plan);
        for (step, failure) in report.failures(plan).take(10) {
            warn!(%step, error = %failure, "failed to remove leftover IPVS object");
        }
        info!(
            steps = plan.len(),
            failed = report.failures(plan).count(),
            "leftover IPVS objects removed"
        );
    }
}
