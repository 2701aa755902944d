// SPDX-License-Identifier: Apache-2.0
//! Changes that are too many for one plan.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::model::testing::{endpoint, service, service_name, slice, tracker};
use crate::model::{EndpointSlice, Event, IpFamily, Protocol, Service};
use crate::plan::mode::Planner as _;
use crate::plan::testing::check::check;
use crate::plan::testing::{Proxy, context, lines};

fn some(which: u8, ports: u16, vips: u8, is_local: bool) -> Service {
    let some = service(&format!("ns/s{which}")).cluster_ips(&[&format!("10.96.0.{which}")]);
    let some = (0..ports).fold(some, |some, n| {
        some.named_port(&format!("p{n}"), Protocol::Tcp, 80 + n)
    });
    let some = (0..vips).fold(some, |some, n| some.vip(&format!("203.0.{which}.{n}")));
    if is_local {
        some.external_local()
    } else {
        some
    }
}

fn served(which: u8, ports: u16, endpoints: u8) -> EndpointSlice {
    served_at(&format!("10.0.{which}"), which, ports, endpoints)
}

fn served_at(net: &str, which: u8, ports: u16, endpoints: u8) -> EndpointSlice {
    let endpoints = (0..endpoints).map(|n| endpoint(&format!("{net}.{n}")));
    let slice = slice(&format!("ns/s{which}"), "a", endpoints.collect());
    (0..ports).fold(slice, |slice, n| {
        slice.named_port(&format!("p{n}"), Protocol::Tcp, 8080)
    })
}

fn proxy(turn: usize) -> Proxy {
    let nothing = tracker(vec![], vec![]);
    let mut proxy = Proxy::start(context(IpFamily::V4), nothing, State::default());
    proxy.planner.pace = Pace::of(turn);
    proxy.sync();
    proxy
}

/// Plans until nothing is left; each leaves what the next finds.
fn finish(proxy: &mut Proxy) -> Vec<Plan> {
    let mut plans = Vec::new();
    while proxy.planner.is_pending() {
        let plan = proxy.planner.plan();
        assert_eq!(check(&plan, proxy.planner.believed()), Ok(()), "{plan}");
        proxy.finish(&plan);
        plans.push(plan);
        assert!(plans.len() < 1_000, "no end");
    }
    plans
}

#[test]
fn small_changes_do_not_wait_for_large_ones() {
    let mut proxy = proxy(20);
    proxy.take_in([
        Event::SliceApplied(served(1, 30, 9)),
        Event::ServiceApplied(some(1, 30, 0, false)),
        Event::SliceApplied(served(2, 1, 1)),
        Event::ServiceApplied(some(2, 1, 0, false)),
    ]);
    let first = proxy.planner.plan();
    assert!(
        lines(&first).iter().any(|line| line.contains("10.96.0.2")),
        "{first}"
    );
    proxy.finish(&first);
    // Another one that changes meanwhile does not wait either.
    proxy.take_in([Event::SliceApplied(served(2, 1, 2))]);
    let second = proxy.planner.plan();
    assert!(
        lines(&second).iter().any(|line| line.contains("10.0.2.1")),
        "{second}"
    );
    proxy.finish(&second);
    let plans = finish(&mut proxy);
    assert!(plans.len() > 10, "{}", plans.len());
    assert!(plans.iter().all(|plan| lines(plan).len() < 60));
}

/// The lines of a plan with this in them.
fn count(plan: &Plan, what: &str) -> usize {
    lines(plan).iter().filter(|it| it.contains(what)).count()
}

#[test]
fn one_virtual_server_may_take_many_turns() {
    let mut proxy = proxy(20);
    proxy.take_in([
        Event::ServiceApplied(some(1, 1, 0, false)),
        Event::SliceApplied(served(1, 1, 200)),
        Event::ServiceApplied(some(2, 1, 0, false)),
        Event::SliceApplied(served(2, 1, 1)),
    ]);
    finish(&mut proxy);
    proxy.take_in([Event::SliceApplied(served_at("10.0.9", 1, 1, 200))]);
    let mut plans = Vec::new();
    while proxy.planner.is_pending() {
        // Another one that changes has every other plan for itself.
        if plans.len() % 2 == 0 {
            let endpoints = 1 + u8::try_from(plans.len() / 2 % 2).unwrap();
            proxy.take_in([Event::SliceApplied(served(2, 1, endpoints))]);
        }
        let plan = proxy.planner.plan();
        proxy.finish(&plan);
        plans.push(plan);
        assert!(plans.len() < 100, "no end");
    }
    assert!(plans.iter().all(|plan| count(plan, "10.96.0.1:") <= 20));
    let with = |what: &str| {
        let plans = plans.iter().enumerate();
        let with = plans.filter(|(_, plan)| count(plan, what) > 0);
        with.map(|(n, _)| n).collect::<Vec<_>>()
    };
    let (added, drained) = (with("10.0.9."), with("10.0.1."));
    assert!(
        added.len() >= 10 && drained.len() >= 10,
        "{added:?} {drained:?}"
    );
    assert!(added.last() <= drained.first(), "what it gets comes first");
    let alone = plans.iter().filter(|plan| count(plan, "10.96.0.1:") == 0);
    assert!(alone.count() >= 10);
}

#[test]
fn one_that_changes_all_the_time_starves_nobody() {
    let mut proxy = proxy(10);
    proxy.take_in([
        Event::ServiceApplied(some(2, 1, 0, false)),
        Event::SliceApplied(served(2, 1, 60)),
    ]);
    for round in 0..60 {
        let slice = served_at(&format!("10.1.{round}"), 1, 1, 50);
        proxy.take_in([
            Event::ServiceApplied(some(1, 1, 0, false)),
            Event::SliceApplied(slice),
        ]);
        let plan = proxy.planner.plan();
        proxy.finish(&plan);
        proxy.drain_all();
    }
    let believed = proxy.planner.believed().virtual_servers.values();
    let mut counts: Vec<usize> = believed.map(|it| it.real_servers.len()).collect();
    counts.sort_unstable();
    assert_eq!(counts.first(), Some(&60), "{counts:?}");
    assert!(
        counts.iter().all(|count| *count <= 110),
        "it does not grow without end: {counts:?}"
    );
    finish(&mut proxy);
}

#[test]
fn many_small_changes_do_not_starve_a_large_one() {
    let mut proxy = proxy(10);
    proxy.take_in([
        Event::ServiceApplied(some(1, 1, 0, false)),
        Event::SliceApplied(served(1, 1, 60)),
    ]);
    for round in 0..200 {
        for which in 2..6 {
            proxy.take_in([
                Event::ServiceApplied(some(which, 1, 0, false)),
                Event::SliceApplied(served(which, 1, 1 + 5 * (round % 2))),
            ]);
        }
        let plan = proxy.planner.plan();
        proxy.finish(&plan);
        proxy.drain_all();
    }
    let mut believed = proxy.planner.believed().virtual_servers.values();
    assert!(believed.any(|it| it.real_servers.len() == 60));
    finish(&mut proxy);
}

/// The tenant's Service changes all of its endpoints.
fn changed(proxy: &mut Proxy) {
    proxy.take_in([
        Event::ServiceApplied(some(1, 30, 0, false)),
        Event::SliceApplied(served(1, 30, 9)),
    ]);
}

#[test]
fn an_audit_does_not_make_a_large_change_one_plan() {
    let mut proxy = proxy(20);
    changed(&mut proxy);
    let first = proxy.planner.plan();
    proxy.finish(&first);
    proxy.observe();
    let plans = finish(&mut proxy);
    assert!(plans.len() > 10, "{}", plans.len());
    assert!(plans.iter().all(|plan| lines(plan).len() < 60));
    assert!(proxy.restarted().sync().is_empty());
}

#[test]
fn slow_changes_make_plans_short_until_they_are_fast() {
    let mut proxy = proxy(5_000);
    let ms = Duration::from_millis;
    let mut after = |steps, time| {
        proxy.planner.added = steps;
        proxy.planner.took(steps, time);
        proxy.planner.pace.additions
    };
    assert_eq!(after(5_000, ms(10)), 5_000, "there is a limit");
    assert_eq!(after(5_000, ms(1_000)), 500, "0.2 ms each");
    assert_eq!(after(10, ms(5_000)), 500, "these tell nothing");
    assert_eq!(after(500, ms(60_000)), 20, "nobody is starved");
    // What belongs together does not always fill a turn.
    assert_eq!(after(18, ms(1)), 40);
    assert_eq!(after(40, ms(1)), 80);
    for _ in 0..10 {
        after(200, ms(1));
    }
    assert_eq!(after(200, ms(1)), 5_000);
}

#[test]
fn deletions_do_not_say_how_fast_additions_are() {
    let mut proxy = proxy(40);
    let mut after = |added, deleted| {
        (proxy.planner.added, proxy.planner.deleted) = (added, deleted);
        proxy.planner.took(40, Duration::from_millis(1));
        proxy.planner.pace.additions
    };
    assert_eq!(after(0, 40), 40);
    assert_eq!(after(40, 0), 80);
    assert_eq!(after(80, 0), 160);
    assert_eq!(after(0, 900), 160);
    assert_eq!(after(0, 1_100), 100, "what was fast may be slow now");
    assert_eq!(after(40, 1_100), 200, "it is not");
    assert_eq!(after(0, 0), 200);
}

#[test]
fn what_is_slow_to_add_is_not_slow_to_remove() {
    let mut proxy = proxy(5_000);
    let ms = Duration::from_millis;
    changed(&mut proxy);
    finish(&mut proxy);
    (proxy.planner.added, proxy.planner.deleted) = (1_000, 0);
    proxy.planner.took(1_000, ms(10_000));
    (proxy.planner.added, proxy.planner.deleted) = (0, 3_000);
    proxy.planner.took(1_000, ms(20));
    assert_eq!(proxy.planner.pace.additions, 20, "there is a limit");
    assert_eq!(proxy.planner.pace.others, 5_000);
    proxy.take_in([Event::SliceApplied(served(1, 30, 0))]);
    assert_eq!(lines(&proxy.planner.plan()).len(), 30 * 9);
    finish(&mut proxy);
    // Of both a part that takes as long as they do.
    (proxy.planner.added, proxy.planner.deleted) = (20, 0);
    proxy.planner.took(1_020, ms(200));
    assert_eq!(proxy.planner.pace.additions, 20);
    assert_eq!(proxy.planner.pace.others, 3_000);
}

#[test]
fn a_start_is_one_plan() {
    let nothing = tracker(vec![], vec![]);
    let mut proxy = Proxy::start(context(IpFamily::V4), nothing, State::default());
    proxy.take_in([Event::ServiceApplied(some(1, 60, 0, false))]);
    proxy.take_in([Event::SliceApplied(served(1, 60, 200))]);
    let plan = proxy.sync();
    assert!(plan.len() > 12_000, "{}", plan.len());
    proxy.take_in([Event::SliceApplied(served(1, 60, 1))]);
    assert!(proxy.planner.plan().len() < 6_000);
}

proptest! {
    #[test]
    fn turns_lead_where_one_plan_leads(
        changes in proptest::collection::vec(
            (1..4_u8, 0..4_u16, 0..3_u8, any::<bool>(), 0..9_u8, any::<bool>(), any::<bool>()),
            1..8,
        ),
        turn in 1..12_usize,
    ) {
        let (mut in_turns, mut at_once) = (proxy(turn), proxy(usize::MAX));
        for (which, ports, vips, is_local, endpoints, waits, audits) in changes {
            let event = if ports == 0 {
                Event::ServiceDeleted(service_name(&format!("ns/s{which}")))
            } else {
                Event::ServiceApplied(some(which, ports, vips, is_local))
            };
            let events = [event, Event::SliceApplied(served(which, 3, endpoints))];
            for proxy in [&mut in_turns, &mut at_once] {
                proxy.take_in(events.clone());
            }
            finish(&mut at_once);
            if audits {
                in_turns.observe();
            }
            if waits {
                finish(&mut in_turns);
            } else {
                let plan = in_turns.planner.plan();
                in_turns.finish(&plan);
            }
        }
        finish(&mut in_turns);
        in_turns.drain_all();
        at_once.drain_all();
        finish(&mut in_turns);
        finish(&mut at_once);
        prop_assert_eq!(in_turns.planner.believed(), at_once.planner.believed());
    }
}
