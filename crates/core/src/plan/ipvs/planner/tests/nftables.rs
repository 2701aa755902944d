// SPDX-License-Identifier: Apache-2.0
//! Fixed rules and sets in our nftables table, and the ways from and to iptables and ipsets.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::model::Tracker;
use crate::plan::context::{Context, IpvsRules};
use crate::plan::ipvs::nft_rules::Chain;
use crate::plan::ipvs::step::Phase;
use crate::plan::leftovers::{cleanup, teardown};
use crate::plan::ruleset::{ChainName, Edit};

fn context_of(family: IpFamily, ipvs_rules: IpvsRules) -> Context {
    Context {
        ipvs_rules,
        ..context(family)
    }
}

fn objects() -> Tracker {
    let web = service("ns/web")
        .port(80)
        .node_port(30_080)
        .vip("192.0.2.1")
        .source_range("10.0.0.0/8")
        .external_local()
        .health_check(31_000);
    let endpoints = vec![endpoint("10.1.0.1").local(), endpoint("10.1.0.2")];
    tracker(vec![web], vec![super::web(endpoints)])
}

fn start(ipvs_rules: IpvsRules, state: State) -> Proxy {
    Proxy::start(context_of(IpFamily::V4, ipvs_rules), objects(), state)
}

/// The same kernel as a process sees it that holds its rules in another way.
fn seen_by(way: IpvsRules, mut state: State) -> State {
    std::mem::swap(&mut state.sets, &mut state.other_sets);
    match way {
        IpvsRules::Iptables => {
            state.has_own_table = true;
            let chains = &mut state.rules.chains;
            chains.retain(|(table, _), _| *table != Table::Own);
        }
        IpvsRules::Nftables => {}
    }
    state
}

fn own_chains(state: &State) -> Vec<&str> {
    let chains = state.rules.table(Table::Own);
    chains.map(|(chain, _)| chain.as_str()).collect()
}

#[test]
fn a_cold_start_writes_nothing_of_iptables() {
    let mut proxy = start(IpvsRules::Nftables, State::default());
    let plan = proxy.sync();
    for step in plan.steps() {
        for edit in step.edits() {
            assert_eq!(edit.table(), Table::Own, "{edit}");
        }
    }
    let mut chains: Vec<&str> = Chain::ALL.map(Chain::name).into();
    chains.sort_unstable();
    assert_eq!(own_chains(&proxy.kernel.state), chains);
    assert!(proxy.restarted().sync().is_empty());
}

#[test]
fn what_others_change_of_the_table_is_repaired_and_nothing_else() {
    let mut proxy = start(IpvsRules::Nftables, State::default());
    proxy.sync();
    let chain = |name: &str| ChainName::new(name).unwrap();
    let rules = &mut proxy.kernel.state.rules;
    rules.set(Table::Own, chain("services"), Vec::new());
    rules.set(Table::Own, chain("theirs"), Vec::new());
    rules.chains.remove(&(Table::Own, chain("postrouting")));
    let seen = proxy.kernel.state.rules.clone();
    proxy.planner.rules().unwrap().observed_rules(seen);
    let plan = proxy.sync();
    let edits: Vec<String> = plan
        .steps()
        .flat_map(Step::edits)
        .map(|edit| format!("{} {}", edit.chain(), matches!(edit, Edit::Replace { .. })))
        .collect();
    assert_eq!(edits, ["postrouting true", "services true", "theirs false"]);
    assert_eq!(plan.len(), 1, "{plan}");
}

#[test]
fn entries_that_others_changed_are_repaired() {
    let mut proxy = start(IpvsRules::Nftables, State::default());
    proxy.sync();
    let set = SetId::ClusterIp.name(IpFamily::V4);
    let entry = |port| SetEntry::IpPort("10.96.0.1".parse().unwrap(), Protocol::Tcp, port);
    let entries = &mut proxy.kernel.state.sets.get_mut(&set).unwrap().entries;
    assert!(entries.remove(&entry(80)));
    entries.insert(entry(81));
    let seen = proxy.kernel.state.sets.clone();
    proxy.planner.rules().unwrap().observed_sets(seen);
    assert_eq!(
        lines(&proxy.sync()),
        [
            "add entry KUBE-CLUSTER-IP 10.96.0.1,tcp:80",
            "delete entry KUBE-CLUSTER-IP 10.96.0.1,tcp:81",
        ]
    );
}

#[test]
fn from_iptables_to_nftables_the_old_rules_go_last() {
    let mut before = start(IpvsRules::Iptables, State::default());
    before.sync();
    let state = seen_by(IpvsRules::Nftables, before.kernel.state);
    let mut proxy = start(IpvsRules::Nftables, state);
    let plan = proxy.sync();
    // Nothing that serves is touched: neither servers nor addresses.
    for (phase, step) in plan.phases() {
        let is_of_rules = matches!(
            step,
            Step::CreateSet(_)
                | Step::AddEntry { .. }
                | Step::EditRules(_)
                | Step::DestroyOtherSet { .. }
        );
        assert!(is_of_rules, "{step}");
        let removes = step.edits().iter().any(|edit| edit.table() != Table::Own)
            || matches!(step, Step::DestroyOtherSet { .. });
        assert_eq!(removes, *phase >= Phase::Switch, "{step}");
    }
    let left = &proxy.kernel.state;
    let is_old =
        |(table, chain): &(Table, ChainName)| *table != Table::Own && !table.has_built_in(chain);
    assert!(!left.rules.chains.keys().any(is_old));
    assert_eq!(left.other_sets.len(), 0);
    assert!(proxy.restarted().sync().is_empty());
}

#[test]
fn from_nftables_to_iptables_the_table_goes_last() {
    let mut before = start(IpvsRules::Nftables, State::default());
    before.sync();
    let state = seen_by(IpvsRules::Iptables, before.kernel.state);
    let mut proxy = start(IpvsRules::Iptables, state);
    let plan = proxy.sync();
    let last = plan.steps().last().unwrap();
    assert!(matches!(last, Step::DeleteOwnTable { .. }), "{plan}");
    assert!(!plan.steps().any(|step| matches!(
        step,
        Step::AddVirtualServer { .. } | Step::DeleteVirtualServer { .. } | Step::AddAddress { .. }
    )));
    assert!(!proxy.kernel.state.has_own_table);
    assert_eq!(proxy.kernel.state.other_sets.len(), 0);
    assert!(proxy.restarted().sync().is_empty());
}

#[test]
fn node_ports_and_marks_of_the_other_way_are_known_as_ours() {
    let mut before = start(IpvsRules::Iptables, State::default());
    before.sync();
    let servers: Vec<_> = before
        .kernel
        .state
        .virtual_servers
        .keys()
        .copied()
        .collect();
    assert!(servers.len() > 3);
    let state = seen_by(IpvsRules::Nftables, before.kernel.state);
    // No Service is left.
    let context = context_of(IpFamily::V4, IpvsRules::Nftables);
    let mut proxy = Proxy::start(context, tracker(vec![], vec![]), state);
    proxy.sync();
    // Ports of the host stay out of reach while connections go on, and a next process knows.
    let set = SetId::IpvsIps.name(IpFamily::V4);
    let bound = proxy.kernel.state.addresses.iter();
    let bound: BTreeSet<SetEntry> = bound.map(|address| SetEntry::Ip(*address)).collect();
    assert_eq!(bound.len(), 2);
    assert_eq!(proxy.kernel.state.sets[&set].entries, bound);
    let mut proxy = proxy.restarted();
    assert!(proxy.sync().is_empty());
    proxy.drain_all();
    assert_eq!(proxy.kernel.state.virtual_servers.len(), 0);
    assert_eq!(proxy.kernel.state.addresses.len(), 0);
}

#[test]
fn the_failed_table_keeps_the_old_rules() {
    let mut before = start(IpvsRules::Iptables, State::default());
    before.sync();
    let state = seen_by(IpvsRules::Nftables, before.kernel.state);
    let rules = state.rules.clone();
    let mut proxy = start(IpvsRules::Nftables, state);
    proxy.try_sync(|step| {
        let is_own = step.edits().iter().any(|edit| edit.table() == Table::Own);
        is_own.then_some(crate::plan::testing::fake::Fault::Refused)
    });
    let present = &proxy.kernel.state.rules;
    for (id, old) in &rules.chains {
        assert_eq!(present.chains.get(id), Some(old), "{id:?}");
    }
    assert_ne!(proxy.kernel.state.other_sets.len(), 0);
}

#[test]
fn networks_of_a_service_never_overlap() {
    let ranges = |ranges: &[&str]| {
        let web = service("ns/web").port(80).vip("192.0.2.1");
        ranges
            .iter()
            .fold(web, |web, range| web.source_range(range))
    };
    let mut proxy = start(IpvsRules::Nftables, State::default());
    proxy.sync();
    for (wanted, plan) in [
        (
            &["10.1.0.0/16", "10.1.2.0/24", "10.2.0.0/16"][..],
            &[
                "replace entry KUBE-LOAD-BALANCER-SOURCE-CIDR 192.0.2.1,tcp:80,10.1.0.0/16 instead of 192.0.2.1,tcp:80,10.0.0.0/8",
                "add entry KUBE-LOAD-BALANCER-SOURCE-CIDR 192.0.2.1,tcp:80,10.2.0.0/16",
            ][..],
        ),
        (
            &["10.1.2.0/24", "10.2.0.0/16"],
            &[
                "replace entry KUBE-LOAD-BALANCER-SOURCE-CIDR 192.0.2.1,tcp:80,10.1.2.0/24 instead of 192.0.2.1,tcp:80,10.1.0.0/16",
            ],
        ),
        (
            &["10.1.2.0/24", "10.2.0.0/16", "10.0.0.0/8"],
            &[
                "replace entry KUBE-LOAD-BALANCER-SOURCE-CIDR 192.0.2.1,tcp:80,10.0.0.0/8 instead of 192.0.2.1,tcp:80,10.1.2.0/24 192.0.2.1,tcp:80,10.2.0.0/16",
            ],
        ),
    ] {
        let service = ranges(wanted);
        proxy.take_in([Event::ServiceApplied(service)]);
        let lines = lines(&proxy.sync());
        let of_ranges: Vec<&String> = lines.iter().filter(|line| line.contains("CIDR")).collect();
        assert_eq!(of_ranges, plan, "{wanted:?}");
    }
}

#[test]
fn iptables_mode_leaves_only_the_guard_of_the_table_while_connections_go_on() {
    let mut before = start(IpvsRules::Nftables, State::default());
    before.sync();
    let mut kernel = before.kernel;
    kernel.state.has_own_table = true;
    let facts = cleanup::Facts {
        node_addresses: context(IpFamily::V4).node_addresses,
        ..cleanup::Facts::default()
    };
    let mut look = |idle: bool| {
        let state = kernel.state.clone();
        let mut servers = teardown::candidates(&state, &facts);
        servers.retain(|_| idle);
        let plan = teardown::steps(&state, IpFamily::V4, &facts, &servers);
        assert!(kernel.apply(&plan).is_success(), "{plan}");
        kernel.state.clone()
    };
    let draining = look(false);
    assert_eq!(own_chains(&draining), ["input-filter"]);
    assert!(draining.has_own_table);
    let unchanged = look(false);
    assert_eq!(unchanged, draining);
    look(true);
    let gone = look(true);
    assert_eq!(own_chains(&gone), [] as [&str; 0]);
    assert!(!gone.has_own_table);
    assert_eq!(gone.sets.len(), 0);
    assert_eq!(gone.virtual_servers.len(), 0);
}

#[test]
fn cleanup_deletes_the_table_and_ipsets_that_were_left() {
    let mut before = start(IpvsRules::Iptables, State::default());
    before.sync();
    let state = seen_by(IpvsRules::Nftables, before.kernel.state);
    let mut proxy = start(IpvsRules::Nftables, state.clone());
    proxy.sync();
    let mut kernel = proxy.kernel;
    kernel.state.has_own_table = true;
    kernel.state.other_sets = state.other_sets;
    let plan = cleanup::sets(&kernel.state, IpFamily::V4, &[]);
    assert!(kernel.apply(&plan).is_success(), "{plan}");
    assert_eq!(own_chains(&kernel.state), [] as [&str; 0]);
    assert_eq!(kernel.state.sets.len(), 0);
    assert_eq!(kernel.state.other_sets.len(), 0);
}

proptest! {
    /// Changes lead where a fresh start leads; no set ever holds what excludes something else of
    /// it, which `check` looks at after each step.
    #[test]
    fn changes_lead_where_a_fresh_start_leads(
        (family, events) in properties::world::any_family().prop_flat_map(|family| {
            (Just(family), vec(vec(properties::world::event(family), 1..4), 1..8))
        }),
    ) {
        let context = context_of(family, IpvsRules::Nftables);
        let mut proxy = Proxy::start(context, tracker(vec![], vec![]), State::default());
        for events in events {
            proxy.take_in(events);
            proxy.sync();
            prop_assert!(proxy.restarted().planner.plan().is_empty());
        }
        proxy.drain_all();
        let mut fresh = proxy.restarted();
        fresh.kernel.state = State::default();
        fresh.observe();
        fresh.sync();
        prop_assert_eq!(&proxy.kernel.state.sets, &fresh.kernel.state.sets);
        prop_assert_eq!(&proxy.kernel.state.rules, &fresh.kernel.state.rules);
    }
}
