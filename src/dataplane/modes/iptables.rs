// SPDX-License-Identifier: Apache-2.0
//! The kernel as iptables mode uses it: rules, the sets of clients that they match, and one
//! setting.

use crate::dataplane::kernel::{Kernel, ObserveError, RuleKernel};
use crate::dataplane::node::NodeKernel;
use kpr_core::model::IpFamily;
use kpr_core::plan::iptables::static_rules::ROUTE_LOCALNET;
use kpr_core::plan::iptables::{Plan, Planner, Settings, State, Step};
use kpr_core::plan::ruleset::Ruleset;
use kpr_core::plan::{Outcome, Report, prerequisites};

impl Kernel<Planner> for NodeKernel {
    fn observe(&mut self, family: IpFamily) -> Result<State, ObserveError> {
        Ok(State {
            settings: settings(self, family)?,
            rules: self.observe_rules(family)?,
            sets: self.observe_client_sets(family)?,
        })
    }

    fn apply(&mut self, plan: &Plan) -> Report {
        let run = |steps: &[&Step]| steps.iter().map(|step| make(self, step)).collect();
        prerequisites::apply(plan, |_, _| false, run)
    }

    fn rules(&mut self) -> Option<&mut dyn RuleKernel> {
        Some(self)
    }
}

impl RuleKernel for NodeKernel {
    fn observe_rules(&mut self, family: IpFamily) -> Result<Ruleset, ObserveError> {
        let rules = self.rules.observe(family);
        rules.map_err(|error| ObserveError::new("iptables rules", error))
    }

    fn observe_settings(&mut self, family: IpFamily) -> Result<Option<Settings>, ObserveError> {
        let is_due = self.rules.audit_is_due(family);
        (!is_due).then(|| settings(self, family)).transpose()
    }

    fn rules_have_changed(&mut self, family: IpFamily) -> bool {
        self.rules.have_changed(family)
    }
}

/// An unreadable setting is missing; writing it will report the error.
fn settings(node: &NodeKernel, family: IpFamily) -> Result<Settings, ObserveError> {
    let route_localnet = node.sysctls.read(ROUTE_LOCALNET);
    Ok(Settings {
        sysctls: route_localnet
            .map(|value| (ROUTE_LOCALNET, value))
            .into_iter()
            .collect(),
        has_nftables_table: NodeKernel::has_nftables_table(family)?,
    })
}

fn make(node: &mut NodeKernel, step: &Step) -> Outcome {
    match step {
        Step::SetSysctl { key, value } => node.set_sysctl(key, value),
        Step::EditRules(batch) => node.edit_rules(batch),
        Step::CreateSet { .. } | Step::RemakeSet(_) | Step::DestroySet { .. } => {
            let sets = node.client_sets.as_mut();
            sets.map_or(Outcome::NotTried, |sets| sets.make(step))
        }
        Step::DeleteNftablesTable { family } => NodeKernel::delete_nftables_table(*family),
    }
}
