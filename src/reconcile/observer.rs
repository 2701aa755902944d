// SPDX-License-Identifier: Apache-2.0
//! What the loop reports to metrics, health and Events. The loop never waits for them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::health_checks::HealthChecks;
use super::loopback_ports::Wanted;
use crate::dataplane::kernel::Cost;
use crate::events::Event;
use kpr_core::model::{Changes, IpFamily, NodeInfo};
use kpr_core::plan::ipvs::object::SyncRole;
use kpr_core::plan::{Drift, Failure, Outcome, Plan, Report, Step};
use serde_json::{Value, json};

/// A finished round of one family.
#[derive(Debug)]
pub struct Round<'a> {
    pub family: IpFamily,
    pub duration: Duration,
    /// The whole state was compared, not only what changed.
    pub is_full: bool,
    /// All was written that all Services need. Single objects that the kernel refused are named
    /// elsewhere: neither a restart nor another node helps them.
    pub succeeded: bool,
    /// The changes taken in.
    pub changes: &'a Changes,
    /// Service ports with a Local policy and no endpoint on this node: internal, external.
    pub no_local_endpoints: (usize, usize),
    /// Service ports of which the kernel rejected something.
    pub set_aside: usize,
    /// For tables `nat` and `filter`, if the mode counts rules: our rules, and those that the round
    /// wrote.
    pub rules: Option<((usize, usize), (usize, usize))>,
}

/// Maximum number of steps of a plan kept for display, and of edits of a step: a cold start has a
/// hundred thousand.
const SHOWN_STEPS: usize = 1_000;

/// An applied plan, of any mode.
#[derive(Clone, Debug)]
pub struct Applied {
    /// Steps by kind and success.
    pub counts: BTreeMap<(&'static str, bool), usize>,
    /// Objects that the plan changed.
    pub size: usize,
    /// Number of failed rule batches.
    pub failed_batches: usize,
    /// The plan itself.
    pub plan: Arc<dyn ShownPlan>,
}

/// A plan that can be shown to people. It is rendered only on request.
pub trait ShownPlan: fmt::Debug + Send + Sync {
    /// Steps, their number, and failures, in the format of `/state`.
    fn to_json(&self) -> Value;
}

/// The beginning of a plan, and its failures.
#[derive(Debug)]
struct Kept<S> {
    count: usize,
    steps: Vec<S>,
    failures: Vec<(S, Failure)>,
}

impl<S: Step> ShownPlan for Kept<S> {
    fn to_json(&self) -> Value {
        let failures: Vec<Value> = self
            .failures
            .iter()
            .map(|(step, failure)| json!({ "step": step, "error": failure.message }))
            .collect();
        json!({ "stepCount": self.count, "steps": self.steps, "failures": failures })
    }
}

/// The first steps of a plan. A vector collected from another one keeps that one's memory, which
/// for a cold start is a megabyte.
fn beginning<S>(steps: impl Iterator<Item = S>) -> Vec<S> {
    let mut kept: Vec<S> = steps.take(SHOWN_STEPS).collect();
    kept.shrink_to_fit();
    kept
}

impl Applied {
    pub fn new<S: Step>(plan: Plan<S>, report: &Report) -> Self {
        let mut counts = BTreeMap::new();
        for (step, outcome) in plan.steps().zip(&report.outcomes) {
            let key = (step.kind(), *outcome == Outcome::Done);
            *counts.entry(key).or_default() += 1;
        }
        let failed = report.failures(&plan);
        let failed_batches = failed.filter(|(step, _)| step.batch().is_some()).count();
        let size = plan.size();
        let short = |mut step: S| {
            step.shorten(SHOWN_STEPS);
            step
        };
        let failed = report.failures(&plan).take(SHOWN_STEPS);
        let kept = Kept {
            count: plan.len(),
            failures: failed
                .map(|(step, failure)| (short(step.clone()), failure.clone()))
                .collect(),
            steps: beginning(plan.into_steps().map(short)),
        };
        Self {
            counts,
            size,
            failed_batches,
            plan: Arc::new(kept),
        }
    }
}

/// Callbacks of the loop. All except the first two are called from the loop's thread and must not
/// block.
pub trait Observer: Send + Sync {
    /// Which iptables was chosen at start, and the reason.
    fn iptables_backend(&self, _backend: &'static str, _reason: &'static str) {}

    /// How ipvs mode holds its rules, and the reason.
    fn ipvs_rules(&self, _rules: &'static str, _reason: &'static str) {}

    /// The CNI plugin portmap has begun to publish ports by nftables, where the rules of ipvs mode
    /// must be too.
    fn ports_published(&self) {}

    /// Whether the kernel has a probed capability.
    fn kernel_capability(&self, _name: &str, _available: bool) {}

    /// A kernel setting that an operator asked for could, or could not, be written.
    fn sysctl_written(&self, _name: &'static str, _ok: bool) {}

    /// The loop turns, or gets on with a long round.
    fn alive(&self) {}
    /// An input of the source was taken in.
    fn input_taken(&self) {}
    /// A round was requested.
    fn queued(&self, _family: IpFamily) {}
    /// Everything was listed, and the first round begins. Before that no change is late.
    fn ready(&self) {}

    /// Changes wait for a round.
    fn pending(&self, _changes: &Changes) {}

    /// A round took in the tracker's changes.
    fn changes_taken(&self, _changes: &Changes) {}

    /// Number of Services and of EndpointSlices, after a round took changes in.
    fn known(&self, _services: usize, _endpoint_slices: usize) {}

    fn round_started(&self, _family: IpFamily) {}

    fn applied(&self, _family: IpFamily, _applied: Applied) {}

    /// The kernel differed from belief.
    fn drift(&self, _family: IpFamily, _drift: &Drift) {}

    /// Stale flows were searched for, and this many deleted.
    fn flows_cleaned(&self, _family: IpFamily, _duration: Duration, _deleted: usize) {}

    fn round(&self, _round: &Round<'_>) {}

    /// Number of Service addresses that are not bound because another interface or endpoint owns
    /// them.
    fn unbound_addresses(&self, _family: IpFamily, _addresses: usize) {}

    /// Whether the sync daemon of a role runs, where there should be any.
    fn sync_daemon(&self, _role: SyncRole, _runs: bool) {}

    /// Number of Services of which something is left out because it is too much.
    fn over_budget(&self, _family: IpFamily, _services: usize) {}

    /// Number of draining real servers.
    fn draining(&self, _servers: usize) {}

    /// What talking to the kernel has cost since the start.
    fn cost(&self, _cost: &Cost) {}

    fn node(&self, _node: Option<&NodeInfo>) {}

    /// The health checks of one family, after a successful round.
    fn health_checks(&self, _checks: &HealthChecks) {}

    /// The node ports that one family wants on its loopback address, after a successful round that
    /// changed them.
    fn loopback_ports(&self, _wanted: &Wanted) {}

    /// Something that concerns operators; the caller has logged it.
    fn event(&self, _event: Event) {}
}

/// An observer that ignores everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unobserved;

impl Observer for Unobserved {}

impl fmt::Debug for dyn Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observer")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_of_a_plan_does_not_keep_the_memory_of_all_of_it() {
        let plan: Vec<(u64, u64)> = (0..100_000).map(|number| (number, number)).collect();
        let kept = beginning(plan.into_iter().map(|(_, step)| step));
        assert_eq!((kept.len(), kept.capacity()), (SHOWN_STEPS, SHOWN_STEPS));
    }
}
