// SPDX-License-Identifier: Apache-2.0
//! What IPVS mode left in the kernel, while iptables mode serves: watched until it is gone.

use std::collections::BTreeMap;
use std::time::Duration;

use tracing::{info, warn};

use crate::dataplane::kernel::{Kernel, ObserveError, ObserveScope};
use crate::telemetry::ErrorChain;
use kpr_core::model::IpFamily;
use kpr_core::plan::Plan;
use kpr_core::plan::leftovers::cleanup::Facts;
use kpr_core::plan::leftovers::teardown;

/// Between two looks; the pause grows, because connections that are still open tend to stay so.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// See the module.
#[derive(Debug)]
pub(super) struct Former<K> {
    kernel: K,
    next: Duration,
    pause: Duration,
    waiting: Option<usize>,
}

impl<K: Kernel> Former<K> {
    pub(super) fn new(kernel: K) -> Self {
        Self {
            kernel,
            next: Duration::ZERO,
            pause: FIRST_PAUSE,
            waiting: None,
        }
    }

    /// When to look again.
    pub(super) const fn due(&self) -> Duration {
        self.next
    }

    /// Removes what is not in use any more. Says whether nothing is left.
    pub(super) fn look(&mut self, now: Duration, facts: &Facts) -> bool {
        self.next = now + self.pause;
        self.pause = self.pause.saturating_mul(2).min(LONGEST_PAUSE);
        match self.retire(facts) {
            Ok(true) => {
                info!("nothing of ipvs mode is left");
                true
            }
            Ok(false) => false,
            Err(error) => {
                warn!(error = %ErrorChain(&error), "what ipvs mode left is not looked at");
                false
            }
        }
    }

    fn retire(&mut self, facts: &Facts) -> Result<bool, ObserveError> {
        let mut waiting = 0;
        for family in IpFamily::ALL {
            let state = self.kernel.observe(family, ObserveScope::Everything)?;
            let candidates = teardown::candidates(&state, facts);
            let idle = self.kernel.idle(&candidates)?;
            waiting += candidates.len() - candidates.intersection(&idle).count();
            self.apply(&teardown::steps(&state, family, facts, &idle));
        }
        let states = self.observe()?;
        self.apply(&teardown::link(&states));
        if self.waiting != Some(waiting) {
            info!(
                waiting,
                "real servers of ipvs mode wait for their connections to end"
            );
            self.waiting = Some(waiting);
        }
        let states = self.observe()?;
        Ok(!states.values().any(|state| teardown::is_due(state, facts)))
    }

    fn observe(&mut self) -> Result<BTreeMap<IpFamily, kpr_core::plan::State>, ObserveError> {
        IpFamily::ALL
            .into_iter()
            .map(|family| Ok((family, self.kernel.observe(family, ObserveScope::Summary)?)))
            .collect()
    }

    fn apply(&mut self, plan: &Plan) {
        if plan.is_empty() {
            return;
        }
        let report = self.kernel.apply(plan);
        for (step, failure) in report.failures(plan).take(10) {
            warn!(%step, error = %failure, "not removed");
        }
        info!(
            steps = plan.len(),
            failed = report.failures(plan).count(),
            "ipvs mode retired"
        );
    }
}
