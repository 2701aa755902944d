// SPDX-License-Identifier: Apache-2.0
//! The kernel as iptables mode uses it: rules and one setting.

use crate::dataplane::kernel::{Kernel, ObserveError, RuleKernel};
use crate::dataplane::node::NodeKernel;
use kpr_core::model::IpFamily;
use kpr_core::plan::iptables::static_rules::ROUTE_LOCALNET;
use kpr_core::plan::iptables::{Plan, Planner, State, Step};
use kpr_core::plan::{Outcome, Report, prerequisites};

/// It needs nothing beyond what every mode uses.
impl Kernel<Planner> for NodeKernel {
    fn observe(&mut self, family: IpFamily) -> Result<State, ObserveError> {
        // An unreadable setting is missing from the state; writing it will report the error.
        let route_localnet = self.sysctls.read(ROUTE_LOCALNET);
        Ok(State {
            sysctls: route_localnet
                .map(|value| (ROUTE_LOCALNET, value))
                .into_iter()
                .collect(),
            rules: self.observe_rules(family)?,
            has_nftables_table: Self::has_nftables_table(family)?,
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

fn make(node: &mut NodeKernel, step: &Step) -> Outcome {
    match step {
        Step::SetSysctl { key, value } => node.set_sysctl(key, value),
        Step::EditRules(batch) => node.edit_rules(batch),
        Step::DeleteNftablesTable { family } => NodeKernel::delete_nftables_table(*family),
    }
}
