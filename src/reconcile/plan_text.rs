// SPDX-License-Identifier: Apache-2.0
//! A plan of any mode, for people and for programs.

use std::collections::{BTreeMap, BTreeSet};

use kpr_core::model::IpFamily;
use kpr_core::plan::{Plan, Step};

/// Chains that a summary names.
const CHAINS: usize = 8;

/// The plan of one family.
#[derive(Clone, Debug)]
pub struct PlanText {
    pub family: IpFamily,
    /// One line for each verb: `add 3 virtual servers, 6 real servers`.
    pub summary: Vec<String>,
    /// One line for each step, and for each of its edits.
    pub text: String,
    pub steps: Vec<serde_json::Value>,
}

impl PlanText {
    pub(super) fn of<S: Step>(family: IpFamily, plan: &Plan<S>) -> Self {
        Self {
            family,
            summary: summary(plan),
            text: plan.to_string(),
            steps: plan.steps().map(|step| serde_json::json!(step)).collect(),
        }
    }
}

/// Steps of a kind are called `add-virtual-server`: a verb, and what it is done to.
fn summary<S: Step>(plan: &Plan<S>) -> Vec<String> {
    let mut verbs: Vec<&str> = Vec::new();
    let mut counts: BTreeMap<&str, BTreeMap<&str, usize>> = BTreeMap::new();
    let (mut edits, mut chains) = (0, BTreeSet::new());
    for step in plan.steps() {
        if step.batch().is_some() {
            edits += step.edits().len();
            let of_step = step.edits().iter().map(|edit| edit.chain().as_str());
            chains.extend(of_step.map(|chain| (chain.len(), chain)));
            continue;
        }
        let (verb, object) = step.kind().split_once('-').unwrap_or((step.kind(), "step"));
        if !verbs.contains(&verb) {
            verbs.push(verb);
        }
        *counts.entry(verb).or_default().entry(object).or_default() += 1;
    }
    let mut lines: Vec<String> = verbs
        .into_iter()
        .map(|verb| {
            let objects = counts.get(verb).into_iter().flatten();
            let objects = objects.map(|(object, count)| counted(*count, object));
            format!("{verb} {}", objects.collect::<Vec<_>>().join(", "))
        })
        .collect();
    if edits > 0 {
        // Chains of single Services have the longest names.
        let ours = chains.into_iter().map(|(_, chain)| chain);
        let ours: Vec<&str> = ours.filter(|chain| chain.starts_with("KUBE-")).collect();
        let (named, more) = ours.split_at(CHAINS.min(ours.len()));
        let mut line = format!("edit {} of iptables", counted(edits, "chain-or-rule"));
        if !named.is_empty() {
            line.push_str(": ");
            line.push_str(&named.join(", "));
        }
        if !more.is_empty() {
            line.push_str(" and ");
            line.push_str(&counted(more.len(), "chain"));
            line.push_str(" more");
        }
        lines.push(line);
    }
    lines
}

/// `3 virtual servers`
fn counted(count: usize, object: &str) -> String {
    let name = object.replace('-', " ");
    match (count, name.as_str()) {
        (1, name) => format!("1 {name}"),
        (count, "chain or rule") => format!("{count} chains and rules"),
        (count, "entry") => format!("{count} entries"),
        (count, "address") => format!("{count} addresses"),
        (count, name) if name.ends_with('s') => format!("{count} {name}"),
        (count, name) => format!("{count} {name}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kpr_core::plan::ipvs::Step as IpvsStep;
    use kpr_core::plan::ipvs::step::Phase;
    use kpr_core::plan::testing::tcp;

    #[test]
    fn a_plan_is_summed_up_by_what_it_does() {
        let mut plan = Plan::default();
        for (key, value) in [("net/ipv4/ip_forward", "1"), ("net/ipv4/vs/conntrack", "1")] {
            let value = value.into();
            plan.push(Phase::Node, IpvsStep::SetSysctl { key, value });
        }
        let address = "10.96.0.1".parse().unwrap();
        plan.push(Phase::Addresses, IpvsStep::AddAddress { address });
        for server in ["10.96.0.1:80", "10.96.0.1:81"] {
            let key = tcp(server);
            plan.push(Phase::OldServers, IpvsStep::DeleteVirtualServer { key });
        }
        let text = PlanText::of(IpFamily::V4, &plan);
        assert_eq!(
            text.summary,
            ["set 2 sysctls", "add 1 address", "delete 2 virtual servers"]
        );
        assert_eq!((text.steps.len(), text.text.lines().count()), (5, 5));
        assert!(
            PlanText::of(IpFamily::V4, &Plan::<IpvsStep>::default())
                .summary
                .is_empty()
        );
    }

    #[test]
    fn numbers_and_names_agree() {
        for (count, object, text) in [
            (1, "entry", "1 entry"),
            (2, "entry", "2 entries"),
            (2, "address", "2 addresses"),
            (3, "real-server", "3 real servers"),
            (1, "timeouts", "1 timeouts"),
            (2, "timeouts", "2 timeouts"),
            (2, "chain-or-rule", "2 chains and rules"),
        ] {
            assert_eq!(counted(count, object), text);
        }
    }
}
