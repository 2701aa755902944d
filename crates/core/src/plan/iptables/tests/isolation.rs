// SPDX-License-Identifier: Apache-2.0
//! One Service whose rules the kernel rejects does not stop the others.

use crate::model::testing::{endpoint, service, slice, tracker};
use crate::model::{Event, IpFamily};
use crate::plan::iptables::Step;
use crate::plan::iptables::tests::proxy::{Proxy, name};
use crate::plan::mode::{Isolation as _, Planner as _};
use crate::plan::ruleset::{ChainId, Edit, Rule, Ruleset, Table};
use crate::plan::testing::context;
use crate::plan::testing::fake::Fault;

/// A kernel without `xt_recent`.
fn lacks_recent(step: &Step) -> Option<Fault> {
    let Step::EditRules(rules) = step else {
        return None;
    };
    let needs_it = |edit: &Edit| match edit {
        Edit::Replace { rules, .. } => rules.iter().any(|r| r.as_str().contains("-m recent")),
        _ => false,
    };
    rules.edits.iter().any(needs_it).then_some(Fault::Refused)
}

fn some(count: usize) -> Proxy {
    let services = (0..count).map(|n| {
        let address = format!("10.96.{}.{}", n / 250, n % 250 + 1);
        service(&format!("ns/web{n}"))
            .cluster_ips(&[&address])
            .port(80)
    });
    let slices = (0..count)
        .map(|n| slice(&format!("ns/web{n}"), "a", vec![endpoint("10.1.0.1")]).port(8080));
    let tracker = tracker(services.collect(), slices.collect());
    let mut context = context(IpFamily::V4);
    context.iptables.memory.has_sets = false;
    Proxy::start(context, tracker, Ruleset::new())
}

fn sync_until_quiet(proxy: &mut Proxy, fault: fn(&Step) -> Option<Fault>) -> usize {
    for round in 1..40 {
        proxy.try_sync(fault);
        if !proxy.planner.is_pending() {
            return round;
        }
    }
    panic!("never quiet: {:?}", proxy.planner.plan().to_string());
}

#[test]
fn others_are_served_at_a_cold_start() {
    let mut proxy = some(300);
    let sticky = service("ns/sticky")
        .cluster_ips(&["10.96.9.9"])
        .port(80)
        .affinity(10);
    let endpoints = slice("ns/sticky", "a", vec![endpoint("10.1.0.2")]).port(8080);
    proxy.take_in([
        Event::ServiceApplied(sticky),
        Event::SliceApplied(endpoints),
    ]);
    let rounds = sync_until_quiet(&mut proxy, lacks_recent);
    assert!(rounds <= 8, "{rounds}");
    let aside: Vec<String> = proxy
        .planner
        .quarantined()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(aside, ["ns/sticky"]);
    let mut without = some(300);
    without.sync();
    assert_eq!(proxy.kernel.state.rules, without.kernel.state.rules);
    // Later changes are not held up by it again.
    proxy.take_in([Event::ServiceApplied(
        service("ns/new").cluster_ips(&["10.96.8.8"]).port(80),
    )]);
    assert_eq!(sync_until_quiet(&mut proxy, lacks_recent), 1);
    // A new version of it is tried.
    proxy.take_in([Event::ServiceApplied(
        service("ns/sticky").cluster_ips(&["10.96.9.9"]).port(80),
    )]);
    assert_eq!(sync_until_quiet(&mut proxy, lacks_recent), 1);
    assert!(proxy.planner.quarantined().is_empty());
    assert!(!proxy.rules(Table::Nat, "KUBE-SERVICES").is_empty());
}

#[test]
fn refused_service_keeps_what_it_had() {
    let mut proxy = some(40);
    proxy.sync();
    let before = proxy.kernel.state.rules.clone();
    let sticky = service("ns/web7")
        .cluster_ips(&["10.96.0.8"])
        .port(80)
        .affinity(10);
    proxy.take_in([Event::ServiceApplied(sticky)]);
    sync_until_quiet(&mut proxy, lacks_recent);
    assert_eq!(proxy.planner.quarantined().len(), 1);
    assert_eq!(proxy.kernel.state.rules, before);
}

/// An audit finds the kernel as believed; then there are rounds until nothing is left to do.
/// Returns the number of plans that changed something.
fn audit(proxy: &mut Proxy, fault: fn(&Step) -> Option<Fault>) -> usize {
    proxy.planner.observed(proxy.kernel.state.clone());
    assert!(proxy.planner.plan().is_empty(), "this would be drift");
    let mut plans = 0;
    for _ in 0..40 {
        plans += usize::from(!proxy.try_sync(fault).is_empty());
        if !proxy.planner.is_pending() {
            return plans;
        }
    }
    panic!("never quiet: {}", proxy.planner.plan());
}

#[test]
fn refused_service_is_served_when_its_reason_has_passed() {
    let mut proxy = some(40);
    proxy.sync();
    let sticky = service("ns/web7")
        .cluster_ips(&["10.96.0.8"])
        .port(80)
        .affinity(10);
    proxy.take_in([Event::ServiceApplied(sticky.clone())]);
    sync_until_quiet(&mut proxy, lacks_recent);
    assert_eq!(proxy.planner.quarantined().len(), 1);
    assert!(audit(&mut proxy, |_| None) > 0);
    assert!(proxy.planner.quarantined().is_empty());
    let mut without_trouble = some(40);
    without_trouble.take_in([Event::ServiceApplied(sticky)]);
    without_trouble.sync();
    assert_eq!(proxy.kernel.state.rules, without_trouble.kernel.state.rules);
}

#[test]
fn deleted_service_is_no_longer_refused() {
    let mut proxy = some(4);
    proxy.sync();
    let before = proxy.kernel.state.rules.clone();
    let sticky = service("ns/sticky")
        .cluster_ips(&["10.96.9.9"])
        .port(80)
        .affinity(10);
    let endpoints = slice("ns/sticky", "a", vec![endpoint("10.1.0.2")]).port(8080);
    proxy.take_in([
        Event::ServiceApplied(sticky.clone()),
        Event::SliceApplied(endpoints),
    ]);
    sync_until_quiet(&mut proxy, lacks_recent);
    assert_eq!(proxy.planner.quarantined().len(), 1);
    proxy.take_in([Event::ServiceDeleted(sticky.name)]);
    proxy.sync();
    assert!(proxy.planner.quarantined().is_empty());
    assert_eq!(audit(&mut proxy, |_| None), 0);
    assert_eq!(proxy.kernel.state.rules, before);
}

#[test]
fn attempts_at_what_stays_refused_become_rare() {
    let mut proxy = some(40);
    proxy.sync();
    let sticky = service("ns/web7")
        .cluster_ips(&["10.96.0.8"])
        .port(80)
        .affinity(10);
    proxy.take_in([Event::ServiceApplied(sticky)]);
    sync_until_quiet(&mut proxy, lacks_recent);
    let before = proxy.kernel.state.rules.clone();
    let mut audits = (0..200).map(|_| audit(&mut proxy, lacks_recent));
    let attempts: Vec<usize> = audits.by_ref().filter(|plans| *plans > 0).collect();
    // After 1, 3, 7, 15 audits and from then on every 16, and one Service is found at once.
    assert_eq!(attempts.len(), 15);
    assert!(attempts.iter().all(|plans| *plans <= 3), "{attempts:?}");
    assert_eq!(proxy.planner.quarantined().len(), 1);
    assert_eq!(proxy.kernel.state.rules, before);
}

#[test]
fn chain_with_a_foreign_jump_is_left() {
    fn busy(step: &Step) -> Option<Fault> {
        let Step::EditRules(rules) = step else {
            return None;
        };
        let deletes = |edit: &Edit| matches!(edit, Edit::DeleteChain { chain, .. } if chain.as_str() == "KUBE-SVC-OLD");
        rules.edits.iter().any(deletes).then_some(Fault::Refused)
    }
    let mut proxy = some(40);
    let mut found = Ruleset::new();
    found.set(Table::Nat, name("KUBE-SVC-OLD"), vec![]);
    found.set(Table::Nat, name("KUBE-SVC-OLDER"), vec![]);
    found.set(
        Table::Nat,
        name("CUSTOM"),
        vec![Rule::new("-j KUBE-SVC-OLD")],
    );
    proxy.kernel.state.rules = found;
    proxy.planner.observed(proxy.kernel.state.clone());
    sync_until_quiet(&mut proxy, busy);
    assert!(
        proxy
            .kernel
            .state
            .rules
            .rules(Table::Nat, &name("KUBE-SVC-OLD"))
            .is_some()
    );
    assert!(
        proxy
            .kernel
            .state
            .rules
            .rules(Table::Nat, &name("KUBE-SVC-OLDER"))
            .is_none()
    );
    assert!(proxy.planner.quarantined().is_empty());
    // It is not retried again and again either.
    proxy.planner.observed(proxy.kernel.state.clone());
    assert!(proxy.planner.plan().is_empty());
}

#[test]
fn refused_base_blames_no_service() {
    fn no_nat(step: &Step) -> Option<Fault> {
        matches!(step, Step::EditRules(_)).then_some(Fault::Refused)
    }
    let mut proxy = some(5);
    for _ in 0..6 {
        proxy.try_sync(no_nat);
        assert!(proxy.planner.quarantined().is_empty());
        assert!(proxy.planner.is_pending());
    }
    sync_until_quiet(&mut proxy, |_| None);
    let mut without_trouble = some(5);
    without_trouble.sync();
    assert_eq!(proxy.kernel.state.rules, without_trouble.kernel.state.rules);
}

#[test]
fn held_lock_blames_no_service_and_starts_no_search() {
    fn locked(step: &Step) -> Option<Fault> {
        matches!(step, Step::EditRules(_)).then_some(Fault::Locked)
    }
    let mut proxy = some(40);
    let whole = proxy.planner.plan();
    for _ in 0..3 {
        let tried = proxy.try_sync(locked);
        assert_eq!(tried.steps().last(), whole.steps().last());
        assert!(!proxy.planner.is_isolating());
    }
    proxy.sync();
    assert!(proxy.planner.quarantined().is_empty());
}

#[test]
fn chain_that_others_jump_to_is_not_even_tried() {
    let mut proxy = some(40);
    let mut found = Ruleset::new();
    for (chain, rules) in [
        ("KUBE-SVC-USED", vec!["-j KUBE-SEP-USED"]),
        ("KUBE-SEP-USED", vec![]),
        ("KUBE-SVC-STALE", vec!["-j KUBE-SEP-STALE"]),
        ("KUBE-SEP-STALE", vec![]),
        ("CUSTOM", vec!["-j KUBE-SVC-USED"]),
    ] {
        let rules = rules.into_iter().map(Rule::new).collect();
        found.set(Table::Nat, name(chain), rules);
    }
    proxy.kernel.state.rules = found;
    proxy.planner.observed(proxy.kernel.state.clone());
    proxy.sync();
    let is_there = |chain| {
        let rules = &proxy.kernel.state.rules;
        rules.rules(Table::Nat, &name(chain)).is_some()
    };
    let used = ["KUBE-SVC-USED", "KUBE-SEP-USED", "CUSTOM"];
    assert!(used.into_iter().all(is_there));
    assert!(!is_there("KUBE-SVC-STALE") && !is_there("KUBE-SEP-STALE"));
    let undeletable: Vec<_> = proxy.planner.undeletable_chains().into_iter().collect();
    let of_nat = |chain| (Table::Nat, name(chain));
    assert_eq!(
        undeletable,
        [of_nat("KUBE-SEP-USED"), of_nat("KUBE-SVC-USED")]
    );
    proxy.planner.observed(proxy.kernel.state.clone());
    assert!(proxy.planner.plan().is_empty());
}

#[test]
fn chain_that_others_jumped_to_before_its_service_went_is_reported() {
    let mut proxy = some(2);
    proxy.sync();
    let chains = &proxy.kernel.state.rules.chains;
    let is_service = |id: &&ChainId| id.1.as_str().starts_with("KUBE-SVC-");
    let used = chains.keys().find(is_service).unwrap().clone();
    let jump = Rule::new(format!("-j {}", used.1));
    let rules = &mut proxy.kernel.state.rules;
    rules.set(Table::Nat, name("CUSTOM"), vec![jump]);
    proxy.planner.observed(proxy.kernel.state.clone());
    proxy.sync();
    assert!(proxy.planner.undeletable_chains().is_empty());
    proxy.take_in([Event::ServicesReplaced(Vec::new())]);
    assert!(!proxy.planner.is_full());
    proxy.sync();
    assert_eq!(proxy.planner.undeletable_chains(), [used].into());
}
