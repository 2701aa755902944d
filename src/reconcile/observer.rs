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

/// Maximum number of steps and edits of a plan kept for display: a cold start has a hundred
/// thousand, which would take more memory than all else.
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

/// The first steps, with so many edits together. A vector collected from another one keeps that
/// one's memory, which for a cold start is a megabyte.
fn beginning<T, S: Step>(
    steps: impl Iterator<Item = T>,
    step_of: impl Fn(&mut T) -> &mut S,
) -> Vec<T> {
    let mut left = SHOWN_STEPS;
    let shortened = steps.map_while(|mut shown| {
        let step = step_of(&mut shown);
        step.shorten(left);
        let is_room = left > 0;
        left = left.saturating_sub(step.edits().len().max(1));
        is_room.then_some(shown)
    });
    let mut kept: Vec<T> = shortened.collect();
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
        let failures = report.failures(&plan);
        let failures = failures.map(|(step, failure)| (step.clone(), failure.clone()));
        let kept = Kept {
            count: plan.len(),
            failures: beginning(failures, |(step, _)| step),
            steps: beginning(plan.into_steps(), |step| step),
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
    use kpr_core::plan::iptables;
    use kpr_core::plan::ruleset::{ChainName, Edit, RuleBatch, Table};

    use super::*;

    /// Steps of so many edits each, with memory for as many more.
    fn steps(count: usize, edits: usize) -> Vec<(u64, iptables::Step)> {
        let chain = ChainName::new("KUBE-SEP-ABCDEFGHIJ234567").unwrap();
        let table = Table::Nat;
        let edit = Edit::DeleteChain { table, chain };
        let step = || {
            let mut batch = RuleBatch::new(IpFamily::V4, vec![edit.clone(); edits]);
            batch.edits.reserve(edits);
            (0, iptables::Step::EditRules(batch))
        };
        std::iter::repeat_with(step).take(count).collect()
    }

    #[test]
    fn of_a_large_plan_only_the_beginning_is_kept() {
        for (count, edits, expected) in [
            (100_000, 0, vec![0; SHOWN_STEPS]),
            (100_000, 1, vec![1; SHOWN_STEPS]),
            (10, 400, vec![400, 400, 200]),
            (2, 5_000, vec![SHOWN_STEPS]),
            (2, 3, vec![3, 3]),
        ] {
            let all = steps(count, edits).into_iter().map(|(_, step)| step);
            let kept = beginning(all, |step| step);
            let lengths: Vec<usize> = kept.iter().map(|step| step.edits().len()).collect();
            assert_eq!(lengths, expected, "{count} of {edits}");
            assert_eq!(kept.capacity(), kept.len());
            for step in &kept {
                let edits = &step.batch().unwrap().edits;
                assert_eq!(edits.capacity(), edits.len());
            }
        }
    }
}
