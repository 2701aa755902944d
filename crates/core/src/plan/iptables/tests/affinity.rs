// SPDX-License-Identifier: Apache-2.0
//! Sets of clients: made before rules name them, kept while they do, destroyed after.

use std::collections::BTreeSet;

use crate::model::testing::{endpoint, service, slice, tracker};
use crate::model::{Event, IpFamily, Protocol, Service};
use crate::plan::Context;
use crate::plan::iptables::affinity::{ClientMemory, chain_of, name_of};
use crate::plan::iptables::name::endpoint_chain;
use crate::plan::iptables::tests::planner::timeouts;
use crate::plan::iptables::tests::proxy::{Proxy, name};
use crate::plan::iptables::{Phase, Plan, Step};
use crate::plan::leftovers::cleanup;
use crate::plan::mode::{Planner as _, RuleBelief as _};
use crate::plan::ruleset::{Edit, Rule, Ruleset, Table};
use crate::plan::testing::context;
use crate::plan::testing::fake::{FakeKernel, Fault};
use crate::plan::unmet::Unmet;

const ADDRESSES: [&str; 3] = ["10.1.0.1", "10.1.0.2", "10.1.0.3"];

fn sticky() -> Service {
    service("ns/web").port(80).affinity(10)
}

fn endpoints(addresses: &[&str]) -> Event {
    let endpoints = addresses.iter().map(|address| endpoint(address)).collect();
    Event::SliceApplied(slice("ns/web", "a", endpoints).port(8080))
}

/// A Service with affinity and two endpoints; nothing is programmed.
fn start(context: Context) -> Proxy {
    let mut proxy = Proxy::start(context, tracker(vec![], vec![]), Ruleset::new());
    proxy.sync();
    let plain = service("ns/plain").cluster_ips(&["10.96.0.2"]).port(80);
    proxy.take_in([
        Event::ServiceApplied(plain),
        Event::ServiceApplied(sticky()),
        endpoints(&ADDRESSES[..2]),
    ]);
    proxy
}

/// The name of the set of an endpoint.
fn set(address: &str) -> String {
    let at = format!("{address}:8080").parse().unwrap();
    let chain = endpoint_chain("ns/web", Protocol::Tcp, at);
    name_of(&chain, IpFamily::V4).to_string()
}

fn of_sets(plan: &Plan) -> Vec<String> {
    let steps = plan.steps().filter(|step| step.is_about_set());
    steps.map(ToString::to_string).collect()
}

fn creates(step: &Step) -> bool {
    matches!(step, Step::CreateSet { .. })
}

fn unmet(proxy: &Proxy) -> Vec<Unmet> {
    let unmet = proxy.planner.unmet().into_iter();
    unmet.map(|(_, unmet)| unmet).collect()
}

/// Names of what rules match.
fn matches(proxy: &Proxy) -> BTreeSet<&'static str> {
    let rules = &proxy.kernel.state.rules;
    let rules: Vec<&Rule> = rules.chains.values().flatten().collect();
    let is_used = |name: &&str| rules.iter().any(|rule| rule.as_str().contains(name));
    ["-m set", "-m recent"]
        .into_iter()
        .filter(is_used)
        .collect()
}

#[test]
fn a_change_costs_the_sets_of_what_changed() {
    let mut proxy = start(context(IpFamily::V4));
    let made = |address| format!("create set {} timeout 10 hashsize 4096", set(address));
    let both: BTreeSet<String> = ADDRESSES[..2].iter().map(|it| made(it)).collect();
    let plan = proxy.sync();
    assert_eq!(of_sets(&plan).into_iter().collect::<BTreeSet<_>>(), both);
    let phases: Vec<Phase> = plan.phases().iter().map(|(phase, _)| *phase).collect();
    assert_eq!(phases, [Phase::Sets, Phase::Sets, Phase::Rules]);
    assert!(unmet(&proxy).is_empty());

    proxy.take_in([endpoints(&ADDRESSES)]);
    assert_eq!(of_sets(&proxy.sync()), [made(ADDRESSES[2])]);
    proxy.take_in([endpoints(&ADDRESSES[1..])]);
    let plan = proxy.sync();
    assert_eq!(
        of_sets(&plan),
        [format!("destroy set {}", set(ADDRESSES[0]))]
    );
    assert_eq!(plan.phases().last().unwrap().0, Phase::OldSets);
    // Others change nothing of it.
    let other = service("ns/plain").cluster_ips(&["10.96.0.9"]).port(80);
    proxy.take_in([Event::ServiceApplied(other)]);
    assert!(of_sets(&proxy.sync()).is_empty());

    proxy.take_in([Event::ServiceApplied(service("ns/web").port(80))]);
    assert_eq!(of_sets(&proxy.sync()).len(), 2);
    assert!(proxy.kernel.state.sets.is_empty());
    assert!(matches(&proxy).is_empty());
}

#[test]
fn another_timeout_keeps_clients() {
    let mut proxy = start(context(IpFamily::V4));
    proxy.sync();
    proxy.take_in([Event::ServiceApplied(
        service("ns/web").port(80).affinity(60),
    )]);
    let plan = proxy.sync();
    assert!(
        plan.steps().all(|step| matches!(step, Step::RemakeSet(_))),
        "{plan}"
    );
    let found = timeouts(&proxy.kernel.state);
    assert!(found.iter().all(|(_, timeout)| *timeout == Some(60)));
    assert_eq!(found.len(), 2);
}

/// Sets cannot be swapped while somebody lists one of them.
#[test]
fn a_set_that_somebody_lists_gets_its_timeout_later() {
    let mut proxy = start(context(IpFamily::V4));
    proxy.sync();
    proxy.take_in([Event::ServiceApplied(
        service("ns/web").port(80).affinity(60),
    )]);
    let mut is_first = true;
    proxy.try_sync(|_| std::mem::take(&mut is_first).then_some(Fault::Refused));
    assert!(proxy.planner.is_pending());
    proxy.sync();
    let found = timeouts(&proxy.kernel.state);
    assert!(found.iter().all(|(_, timeout)| *timeout == Some(60)));
}

#[test]
fn a_timeout_that_the_kernel_refuses_is_tried_again_in_audits() {
    let mut proxy = start(context(IpFamily::V4));
    proxy.sync();
    proxy.take_in([Event::ServiceApplied(
        service("ns/web").port(80).affinity(60),
    )]);
    let first = set(ADDRESSES[0]);
    let refused = |step: &Step| {
        let is_it = matches!(step, Step::RemakeSet(set) if set.set.as_str() == first);
        is_it.then_some(Fault::Unsupported)
    };
    proxy.try_sync(refused);
    assert!(!proxy.planner.is_pending(), "the old time-out serves");
    let settings = proxy.kernel.state.settings.clone();
    proxy.planner.observed_settings(settings);
    let plan = proxy.planner.plan();
    assert_eq!(plan.len(), 1, "{plan}");
    assert!(plan.steps().all(|step| proxy.planner.is_set_aside(step)));
    proxy.sync();
    let found = timeouts(&proxy.kernel.state);
    assert!(found.iter().all(|(_, timeout)| *timeout == Some(60)));
}

/// The search for what was rejected ends although sets stay refused.
#[test]
fn refused_sets_beside_rejected_rules_hold_up_nothing() {
    let mut proxy = start(context(IpFamily::V4));
    let faults = |step: &Step| match step {
        Step::CreateSet { .. } => Some(Fault::Unsupported),
        Step::EditRules(rules) => {
            let names_it = |edit: &Edit| match edit {
                Edit::Replace { rules, .. } => rules
                    .iter()
                    .any(|rule| rule.to_string().contains("10.1.0.66")),
                _ => false,
            };
            rules
                .edits
                .iter()
                .any(names_it)
                .then_some(Fault::Unsupported)
        }
        _ => None,
    };
    let bad = service("ns/bad").cluster_ips(&["10.96.0.66"]).port(80);
    let pods = slice("ns/bad", "b", vec![endpoint("10.1.0.66")]).port(8080);
    proxy.take_in([Event::ServiceApplied(bad), Event::SliceApplied(pods)]);
    for _ in 0..40 {
        proxy.try_sync(faults);
    }
    assert!(!proxy.planner.is_pending());
    assert_eq!(matches(&proxy), ["-m recent"].into());
    assert_eq!(proxy.planner.set_aside().len(), 1);
}

#[test]
fn sets_of_rules_are_adopted_and_others_are_out_of_date() {
    let mut before = start(context(IpFamily::V4));
    before.sync();
    let restarted = |used: bool| {
        let mut state = before.kernel.state.clone();
        state.sets.values_mut().for_each(|set| set.is_used = used);
        let objects = tracker(
            before.tracker.services().cloned().collect(),
            before.tracker.slices().cloned().collect(),
        );
        Proxy::over(context(IpFamily::V4), objects, state)
    };
    let adopted = restarted(true).planner.plan();
    assert!(adopted.is_empty(), "{adopted}");
    // What another proxy left that does not use them.
    assert_eq!(of_sets(&restarted(false).planner.plan()).len(), 2);
    // Whoever flushes rules takes no client away.
    let mut proxy = restarted(true);
    proxy.kernel.state.rules = Ruleset::new();
    let sets = proxy.kernel.state.sets.values_mut();
    sets.for_each(|set| set.is_used = false);
    proxy.planner.observed(proxy.kernel.state.clone());
    let plan = proxy.planner.plan();
    assert!(!plan.is_empty() && of_sets(&plan).is_empty(), "{plan}");
}

#[test]
fn rules_and_sets_that_others_destroyed_come_back() {
    let mut proxy = start(context(IpFamily::V4));
    proxy.sync();
    let before = proxy.kernel.state.clone();
    proxy.kernel.state.rules = Ruleset::new();
    proxy.kernel.state.sets.clear();
    // Rules alone are looked at.
    proxy.planner.observed_rules(Ruleset::new());
    for _ in 0..5 {
        proxy.try_sync(|_| None);
    }
    assert!(!proxy.planner.is_pending());
    assert_eq!(proxy.kernel.state, before);
}

#[test]
fn a_service_whose_set_is_refused_is_served_without() {
    let mut proxy = start(context(IpFamily::V4));
    let second = set(ADDRESSES[1]);
    let refuses = |step: &Step| {
        let is_it = matches!(step, Step::CreateSet { set, .. } if set.set.as_str() == second);
        is_it.then_some(Fault::Unsupported)
    };
    proxy.try_sync(refuses);
    assert!(proxy.planner.goes_on(), "nothing could be written");
    proxy.try_sync(refuses);
    assert!(!proxy.planner.is_pending() && !proxy.planner.goes_on());
    assert_eq!(matches(&proxy), ["-m recent"].into());
    assert_eq!(unmet(&proxy), [Unmet::FewClients { clients: 100 }]);
    assert!(
        proxy.kernel.state.sets.is_empty(),
        "the other one is of no use"
    );
    // An audit tries again, which nobody takes for the work of others.
    let audit = |proxy: &mut Proxy| {
        let settings = proxy.kernel.state.settings.clone();
        proxy.planner.observed_settings(settings);
        let plan = proxy.planner.plan();
        assert_eq!(plan.len(), 1, "{plan}");
        assert!(plan.steps().all(|step| proxy.planner.is_set_aside(step)));
    };
    audit(&mut proxy);
    proxy.try_sync(refuses);
    assert!(!proxy.planner.is_pending());
    assert_eq!(matches(&proxy), ["-m recent"].into());
    // A change of it is served meanwhile.
    proxy.take_in([endpoints(&ADDRESSES)]);
    proxy.try_sync(refuses);
    assert!(!proxy.planner.is_pending());
    assert_eq!(matches(&proxy), ["-m recent"].into());
    audit(&mut proxy);
    proxy.try_sync(|_| None);
    assert!(proxy.planner.is_pending());
    proxy.sync();
    assert_eq!(matches(&proxy), ["-m set"].into());
    assert_eq!(proxy.kernel.state.sets.len(), 3);
    assert!(unmet(&proxy).is_empty());
}

#[test]
fn a_failure_that_passes_changes_nothing() {
    let mut proxy = start(context(IpFamily::V4));
    proxy.try_sync(|step| creates(step).then_some(Fault::Locked));
    assert!(matches(&proxy).is_empty());
    proxy.sync();
    assert_eq!(matches(&proxy), ["-m set"].into());
}

#[test]
fn a_set_that_foreign_rules_name_stays_and_holds_up_nothing() {
    let mut proxy = start(context(IpFamily::V4));
    proxy.sync();
    let foreign = Rule::new(format!(
        "-m set --match-set {} src -j DROP",
        set(ADDRESSES[0])
    ));
    let rules = &mut proxy.kernel.state.rules;
    rules.set(Table::Filter, name("CUSTOM"), vec![foreign]);
    proxy.take_in([Event::SlicesReplaced(vec![])]);
    proxy.try_sync(|_| None);
    assert!(!proxy.planner.is_pending());
    assert_eq!(proxy.kernel.state.sets.len(), 1);
    proxy
        .kernel
        .state
        .rules
        .set(Table::Filter, name("CUSTOM"), vec![]);
    proxy.planner.observed(proxy.kernel.state.clone());
    proxy.sync();
    assert!(proxy.kernel.state.sets.is_empty());
}

#[test]
fn what_remembers_clients_is_what_the_kernel_has() {
    let with = |has_sets, recent| {
        let mut context = context(IpFamily::V4);
        context.iptables.memory = ClientMemory { has_sets, recent };
        let mut proxy = start(context);
        proxy.sync();
        proxy
    };
    let few = with(false, Some(1_000));
    assert_eq!(matches(&few), ["-m recent"].into());
    assert_eq!(unmet(&few), [Unmet::FewClients { clients: 1_000 }]);
    let text = unmet(&few)[0].to_string();
    assert!(text.contains("remembers its last 1000 clients"), "{text}");
    let mut none = with(false, None);
    assert!(matches(&none).is_empty());
    assert_eq!(unmet(&none), [Unmet::NoAffinity]);
    assert!(!none.rules(Table::Nat, "KUBE-SERVICES").is_empty());
    // Only Services that ask for it are told.
    none.take_in([Event::ServiceApplied(service("ns/web").port(80))]);
    none.sync();
    assert!(unmet(&none).is_empty());
}

#[test]
fn families_have_sets_of_their_own() {
    let proxy = |family| {
        let sticky = service("ns/web")
            .cluster_ips(&["10.96.0.1", "fd00:96::1"])
            .port(80)
            .affinity(10);
        let pods = match family {
            IpFamily::V4 => "10.1.0.1",
            IpFamily::V6 => "fd00:1::1",
        };
        let pods = slice("ns/web", "a", vec![endpoint(pods)]).port(8080);
        let objects = tracker(vec![sticky], vec![pods]);
        let mut proxy = Proxy::start(context(family), objects, Ruleset::new());
        proxy.sync();
        let sets = proxy.kernel.state.sets.into_keys();
        sets.map(|set| set.to_string()).collect::<Vec<_>>()
    };
    for family in IpFamily::ALL {
        let sets = proxy(family);
        assert_eq!(sets.len(), 1, "{sets:?}");
        assert_eq!(chain_of(&sets[0]).unwrap().0, family);
    }
}

#[test]
fn cleanup_takes_sets_after_the_rules() {
    let mut proxy = start(context(IpFamily::V4));
    proxy.sync();
    let state = proxy.kernel.state.clone();
    let mut kernel = FakeKernel::new(state.clone());
    let (rules, obstacles) = cleanup::rules(&state, IpFamily::V4);
    assert!(obstacles.is_empty());
    assert!(kernel.apply(&rules).is_success());
    assert!(
        kernel
            .apply(&cleanup::client_sets(&state.sets))
            .is_success()
    );
    assert!(kernel.state.sets.is_empty());
    let left = kernel.state.rules.chains.values().flatten().count();
    assert_eq!(left, 0);
}

/// The rules that name a set are rejected: its Service stands alone.
#[test]
fn rules_with_sets_that_are_rejected_leave_no_set() {
    let mut proxy = start(context(IpFamily::V4));
    let rejects = |step: &Step| {
        let Step::EditRules(rules) = step else {
            return None;
        };
        let names_it = |edit: &Edit| match edit {
            Edit::Replace { rules, .. } => rules.iter().any(|rule| rule.sets().next().is_some()),
            _ => false,
        };
        rules.edits.iter().any(names_it).then_some(Fault::Refused)
    };
    for _ in 0..20 {
        proxy.try_sync(rejects);
    }
    assert!(!proxy.planner.is_pending());
    assert_eq!(proxy.planner.set_aside().len(), 1);
    assert!(proxy.kernel.state.sets.is_empty());
}
