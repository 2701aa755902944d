// SPDX-License-Identifier: Apache-2.0
//! From iptables mode to IPVS mode: the old rules serve packets until everything new exists.

use super::*;
use crate::model::Tracker;
use crate::model::testing::service_name;
use crate::plan::iptables;
use crate::plan::ipvs::step::Phase;
use crate::plan::leftovers::modes::Modes;
use crate::plan::leftovers::stale_rules;
use crate::plan::mode::Planner as _;
use crate::plan::ruleset::{ChainName, Rule, Table};
use crate::plan::testing::fake::{Fault, in_iptables_mode};

fn objects() -> Tracker {
    let services = (1..60).map(|n| {
        let web = service(&format!("ns/web{n}"))
            .cluster_ips(&[&format!("10.96.0.{n}"), &format!("fd00:96::{n}")])
            .port(80)
            .node_port(30_000 + n);
        if n == 7 { web.affinity(10) } else { web }
    });
    let slices = (1..60).map(|n| {
        let endpoints = vec![endpoint(&format!("10.1.0.{n}")).local()];
        slice(&format!("ns/web{n}"), "a", endpoints).port(8080)
    });
    tracker(services.collect(), slices.collect())
}

/// What iptables mode, ours or kube-proxy's, leaves.
fn left_by_iptables_mode(family: IpFamily) -> State {
    let mut planner = iptables::Planner::new(context(family));
    planner.update_all(&objects());
    let mut state = State::default();
    let report = in_iptables_mode(&mut state, |kernel| kernel.apply(&planner.plan()));
    assert!(report.is_success());
    for (table, chain) in [
        (Table::Mangle, "KUBE-PROXY-CANARY"),
        (Table::Nat, "KUBE-SEP-7E5UZQT3HT6ASWD5"),
    ] {
        state
            .rules
            .set(table, ChainName::new(chain).unwrap(), Vec::new());
    }
    state
}

#[test]
fn old_rules_serve_until_all_virtual_servers_do() {
    for family in IpFamily::ALL {
        let before = left_by_iptables_mode(family);
        assert_eq!(
            before.client_sets.len(),
            usize::from(family == IpFamily::V4)
        );
        let mut proxy = Proxy::start(context(family), objects(), before);
        // The steps of the first Services come first and change nothing for the others.
        let first = proxy
            .planner
            .plan_first(&[service_name("ns/web1")])
            .unwrap();
        assert!(
            first
                .phases()
                .iter()
                .all(|(phase, _)| *phase != Phase::Switch)
        );
        let report = proxy.kernel.apply(&first);
        assert!(report.is_success());
        proxy.planner.report_part(&first, &report);
        assert!(stale_rules::serves(&proxy.kernel.state.rules));

        let wanted = proxy.planner.desired().virtual_servers().count();
        let plan = proxy.planner.plan();
        for (phase, step) in plan.phases() {
            if *phase == Phase::Switch {
                assert_eq!(proxy.kernel.state.virtual_servers.len(), wanted);
                assert_eq!(proxy.kernel.state.addresses.len(), 59);
            }
            let mut one = Plan::default();
            one.push(*phase, step.clone());
            assert!(proxy.kernel.apply(&one).is_success(), "{step}");
            assert_eq!(
                stale_rules::serves(&proxy.kernel.state.rules),
                *phase < Phase::Switch,
                "{step}"
            );
        }
        proxy.observe();
        assert!(proxy.planner.plan().is_empty(), "{}", proxy.planner.plan());
        assert!(proxy.kernel.state.client_sets.is_empty());

        // Nothing is left over: the same as on an empty kernel, except for kubelet's chain.
        let mut fresh = Proxy::start(context(family), objects(), State::default());
        fresh.sync();
        let ids = |state: &State| -> Vec<_> {
            let chains = state.rules.chains.iter();
            let of_ours = chains.filter(|(id, rules)| Modes::of(id).is_some() && !rules.is_empty());
            of_ours
                .map(|(id, rules)| (id.clone(), rules.clone()))
                .collect()
        };
        assert_eq!(ids(&proxy.kernel.state), ids(&fresh.kernel.state));
        for chain in ["INPUT", "FORWARD", "OUTPUT"] {
            let chain = ChainName::new(chain).unwrap();
            let jumps = |state: &State| -> BTreeSet<Rule> {
                let rules = state.rules.rules(Table::Filter, &chain).unwrap_or_default();
                let others = rules
                    .iter()
                    .filter(|rule| rule.target() != Some("KUBE-FIREWALL"));
                others.cloned().collect()
            };
            assert_eq!(
                jumps(&proxy.kernel.state),
                jumps(&fresh.kernel.state),
                "{chain}"
            );
        }
    }
}

#[test]
fn old_rules_stay_while_the_new_ones_fail() {
    let before = left_by_iptables_mode(IpFamily::V4);
    let mut proxy = Proxy::start(context(IpFamily::V4), objects(), before);
    let mut first = true;
    proxy.try_sync(|step| {
        let is_rules = matches!(step, Step::EditRules(_));
        (is_rules && std::mem::take(&mut first)).then_some(Fault::Refused)
    });
    assert!(stale_rules::serves(&proxy.kernel.state.rules));
    proxy.sync();
    assert!(!stale_rules::serves(&proxy.kernel.state.rules));
}

#[test]
fn the_table_of_nftables_mode_translates_until_ours_serves() {
    for family in IpFamily::ALL {
        let before = State {
            has_nftables_table: true,
            ..State::default()
        };
        let mut proxy = Proxy::start(context(family), objects(), before);
        let is_its_end = |step: &Step| matches!(step, Step::DeleteNftablesTable { .. });
        let first = proxy
            .planner
            .plan_first(&[service_name("ns/web1")])
            .unwrap();
        assert!(!first.steps().any(is_its_end));

        let wanted = proxy.planner.desired().virtual_servers().count();
        let plan = proxy.planner.plan();
        let is_server = |step: &Step| matches!(step, Step::AddVirtualServer { .. });
        let end = plan.steps().position(is_its_end).unwrap();
        let served = plan.steps().take(end).filter(|step| is_server(step));
        assert_eq!(served.count(), wanted);

        // It stays as long as a virtual server is missing.
        let mut fails = true;
        proxy.try_sync(|step| {
            let is_first = is_server(step) && std::mem::take(&mut fails);
            is_first.then_some(Fault::Refused)
        });
        assert!(proxy.kernel.state.has_nftables_table);
        proxy.sync();
        assert!(!proxy.kernel.state.has_nftables_table);
    }
}
