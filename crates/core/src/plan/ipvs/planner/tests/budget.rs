// SPDX-License-Identifier: Apache-2.0
//! One Service cannot ask for more than its budget, in any order of changes.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::model::ipvs_options::Scheduler;
use crate::model::testing::{endpoint, service, service_name, slice, tracker};
use crate::model::{Budget, Event, IpFamily, Protocol, Service};
use crate::plan::mode::Planner as _;
use crate::plan::testing::{Proxy, context};
use crate::plan::unmet::Unmet;

fn greedy(ports: u16, externals: u16) -> Service {
    let asked = (1..=ports).fold(service("evil/all"), |service, port| {
        service.named_port(&format!("p{port}"), Protocol::Tcp, port)
    });
    (0..externals).fold(asked.cluster_ips(&["10.96.0.9"]), |service, n| {
        let [high, low] = n.to_be_bytes();
        service.external_ip(&format!("198.18.{high}.{low}"))
    })
}

#[test]
fn a_million_frontends_are_not_planned() {
    let web = service("ns/web").port(80);
    let slice = slice("ns/web", "a", vec![endpoint("10.0.1.1")]).port(8080);
    let tracker = tracker(vec![greedy(1_000, 1_000), web], vec![slice]);
    let mut proxy = Proxy::start(context(IpFamily::V4), tracker, State::default());
    let plan = proxy.sync();
    // A virtual server and an entry for each frontend, and what there is without any Service.
    assert!(
        plan.len() < 2 * Budget::default().frontends + 100,
        "{}",
        plan.len()
    );
    let cuts: Vec<_> = proxy.planner.cuts().unwrap().iter().collect();
    let [(name, _)] = cuts[..] else {
        panic!("{cuts:?}")
    };
    assert_eq!(*name, service_name("evil/all"));
    proxy.take_in([Event::ServiceApplied(greedy(1_000, 2))]);
    assert_eq!(proxy.planner.cuts().unwrap().iter().len(), 0);
}

#[test]
fn a_scheduler_with_tables_is_for_services_with_few_frontends() {
    for (ports, scheduler, used) in [
        (100, Scheduler::Mh, "mh"),
        (101, Scheduler::Mh, "rr"),
        (101, Scheduler::Lblc, "rr"),
        (101, Scheduler::Sh, "sh"),
    ] {
        let tracker = tracker(vec![greedy(ports, 0).scheduler(scheduler)], vec![]);
        let proxy = Proxy::start(context(IpFamily::V4), tracker, State::default());
        let servers = proxy.planner.desired().virtual_servers();
        let schedulers: BTreeSet<_> = servers.map(|(_, it)| it.server.scheduler.clone()).collect();
        assert_eq!(schedulers, [used.into()].into(), "{ports} {scheduler}");
        let is_costly = |unmet: &Unmet| matches!(unmet, Unmet::SchedulerTooCostly { .. });
        let unmet = proxy.planner.unmet();
        assert_eq!(
            unmet.iter().any(|(_, unmet)| is_costly(unmet)),
            *used != *scheduler.as_str()
        );
    }
}

#[test]
fn a_scheduler_that_would_have_to_be_loaded_is_not_asked_for() {
    let tracker = tracker(vec![greedy(1, 0).scheduler(Scheduler::Twos)], vec![]);
    let mut context = context(IpFamily::V4);
    context.refused_schedulers.insert(Scheduler::Twos);
    let proxy = Proxy::start(context, tracker, State::default());
    let mut servers = proxy.planner.desired().virtual_servers();
    assert!(servers.all(|(_, wanted)| *wanted.server.scheduler == *"rr"));
    let unmet = proxy.planner.unmet();
    let is_refused = |unmet: &Unmet| matches!(unmet, Unmet::SchedulerNotAllowed { .. });
    assert!(
        unmet.iter().any(|(_, unmet)| is_refused(unmet)),
        "{unmet:?}"
    );
}

proptest! {
    #[test]
    fn changes_beyond_the_budget_lead_where_a_restart_leads(
        changes in proptest::collection::vec((0..3_u8, 1..6_u16, 0..6_u16, 0..9_u8), 1..8),
    ) {
        let mut context = context(IpFamily::V4);
        context.budget = Budget { frontends: 8, endpoints: 4, objects: 20 };
        let mut proxy = Proxy::start(context, tracker(vec![], vec![]), State::default());
        for (which, ports, externals, endpoints) in changes {
            let mut asked = greedy(ports, externals);
            asked.name = service_name(&format!("ns/s{which}"));
            asked.cluster_ips = vec![[10, 96, 0, which + 1].into()];
            let endpoints = (0..endpoints).map(|n| endpoint(&format!("10.0.{which}.{n}")));
            let slice = slice(&format!("ns/s{which}"), "a", endpoints.collect());
            let slice = (1..=ports).fold(slice, |slice, port| {
                slice.named_port(&format!("p{port}"), Protocol::Tcp, 8080)
            });
            proxy.take_in([Event::ServiceApplied(asked), Event::SliceApplied(slice)]);
            proxy.sync();
        }
        let mut anew = proxy.restarted();
        prop_assert_eq!(anew.planner.desired(), proxy.planner.desired());
        prop_assert_eq!(anew.planner.cuts().unwrap(), proxy.planner.cuts().unwrap());
        prop_assert!(anew.sync().is_empty());
    }
}
