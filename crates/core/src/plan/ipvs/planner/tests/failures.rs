// SPDX-License-Identifier: Apache-2.0
//! Failed steps stay pending, whether they took effect or not.

use super::*;
use crate::plan::Report;
use crate::plan::Step as _;
use crate::plan::mode::{Drains as _, Planner as _, SlicedAudit as _};
use crate::plan::testing::fake::Fault;

/// Fails the first step of a kind.
fn once(kind: &'static str, fault: Fault) -> impl FnMut(&Step) -> Option<Fault> {
    let mut faults = vec![fault];
    move |step| (step.kind() == kind).then(|| faults.pop()).flatten()
}

/// A proxy with a Service that uses every feature, nothing of it programmed.
fn unsynced() -> Proxy {
    let all = service("ns/web")
        .port(80)
        .node_port(30080)
        .external_ip("203.0.113.1")
        .vip("198.51.100.1")
        .source_range("10.0.0.0/8")
        .affinity(60);
    let tracker = tracker(vec![all], vec![web(vec![endpoint("10.0.1.1").local()])]);
    Proxy::start(context(IpFamily::V4), tracker, State::default())
}

const FAULTS: [Fault; 3] = [Fault::Refused, Fault::AnswerLost, Fault::Partial];

#[test]
fn any_step_of_a_cold_start_may_fail_once() {
    let mut wanted = unsynced();
    let plan = wanted.sync();
    for index in 0..plan.len() {
        for fault in FAULTS {
            let mut proxy = unsynced();
            let mut at = 0;
            proxy.try_sync(|_| {
                at += 1;
                (at == index + 1).then_some(fault)
            });
            assert!(proxy.planner.is_pending(), "step {index} {fault:?}");
            // A step that was skipped is made now, and then nothing is left.
            proxy.sync();
            assert_eq!(
                proxy.kernel.state, wanted.kernel.state,
                "step {index} {fault:?}"
            );
        }
    }
}

#[test]
fn any_step_of_a_removal_may_fail_once() {
    let mut wanted = unsynced();
    wanted.sync();
    let synced = wanted.kernel.state.clone();
    wanted.take_in([Event::ServicesReplaced(vec![])]);
    let plan = wanted.sync();
    for index in 0..plan.len() {
        for fault in FAULTS {
            let mut proxy = unsynced();
            proxy.sync();
            assert_eq!(proxy.kernel.state, synced);
            proxy.take_in([Event::ServicesReplaced(vec![])]);
            let mut at = 0;
            proxy.try_sync(|_| {
                at += 1;
                (at == index + 1).then_some(fault)
            });
            assert!(proxy.planner.is_pending(), "step {index} {fault:?}");
            proxy.sync();
            assert_eq!(
                proxy.kernel.state, wanted.kernel.state,
                "step {index} {fault:?}"
            );
            assert_eq!(proxy.planner.draining(), wanted.planner.draining());
        }
    }
}

#[test]
fn any_step_of_a_drain_may_fail_once() {
    let drained = || {
        let mut proxy = unsynced();
        proxy.sync();
        proxy.take_in([Event::ServicesReplaced(vec![])]);
        proxy.sync();
        proxy
    };
    let mut wanted = drained();
    let plan = wanted.drain_all();
    assert_eq!(wanted.kernel.state.virtual_servers, BTreeMap::new());
    for index in 0..plan.len() {
        for fault in FAULTS {
            let mut proxy = drained();
            let plan = proxy.planner.plan_drained(proxy.planner.draining());
            let mut at = 0;
            let report = proxy.kernel.apply_with(&plan, |_| {
                at += 1;
                (at == index + 1).then_some(fault)
            });
            proxy.planner.report_part(&plan, &report);
            let doubtful = proxy.planner.take_doubtful();
            proxy.look_again(&doubtful);
            proxy.sync();
            proxy.drain_all();
            assert_eq!(
                proxy.kernel.state, wanted.kernel.state,
                "step {index} {fault:?}"
            );
            assert!(!proxy.planner.is_pending());
        }
    }
}

#[test]
fn a_failure_does_not_make_the_next_plan_a_full_one() {
    let mut proxy = synced(
        vec![
            service("ns/web").port(80),
            service("ns/b").cluster_ips(&["10.96.0.2"]).port(80),
        ],
        vec![web(vec![])],
    );
    proxy.take_in([Event::SliceApplied(web(vec![endpoint("10.0.1.1")]))]);
    proxy.try_sync(once("add-real-server", Fault::Refused));
    assert!(!proxy.planner.is_full);
    assert_eq!(
        proxy.planner.dirty.virtual_servers,
        [tcp("10.96.0.1:80")].into()
    );
    assert_eq!(lines(&proxy.sync()).len(), 1);
}

#[test]
fn a_setting_that_cannot_be_written_costs_no_full_plan() {
    let mut proxy = unsynced();
    let read_only = |step: &Step| matches!(step, Step::SetSysctl { .. }).then_some(Fault::Refused);
    proxy.try_sync(read_only);
    assert!(proxy.planner.is_pending() && !proxy.planner.is_full);
    assert!(!proxy.planner.needs_observation());
    let plan = proxy.try_sync(read_only);
    assert!(plan.steps().all(|step| step.kind() == "set-sysctl"));
    proxy.sync();
}

#[test]
fn weight_0_that_may_have_been_set_is_waited_for() {
    for fault in FAULTS {
        let mut proxy = serving_one();
        proxy.take_in([Event::SliceApplied(web(vec![]))]);
        proxy.try_sync(once("set-real-server", fault));
        proxy.sync();
        let waiting = (tcp("10.96.0.1:80"), rs("10.0.1.1:8080"));
        assert_eq!(*proxy.planner.draining(), [waiting].into(), "{fault:?}");
    }
}

#[test]
fn a_drained_server_that_is_gone_is_forgotten() {
    let mut proxy = serving_one();
    proxy.take_in([Event::SliceApplied(web(vec![]))]);
    proxy.sync();
    let plan = proxy.planner.plan_drained(proxy.planner.draining());
    let report = proxy.kernel.apply_with(&plan, |_| Some(Fault::AnswerLost));
    proxy.planner.report_part(&plan, &report);
    let doubtful = proxy.planner.take_doubtful();
    assert_eq!(doubtful, [tcp("10.96.0.1:80")].into());
    let states = proxy.kernel.virtual_servers(&doubtful);
    proxy.planner.observed_virtual_servers(states);
    assert!(proxy.planner.draining().is_empty());
    assert!(proxy.sync().is_empty());
}

#[test]
fn a_report_that_breaks_off_leaves_the_rest_pending() {
    let mut proxy = unsynced();
    let plan = proxy.planner.plan();
    proxy.planner.report(&plan, &Report::default());
    assert_eq!(proxy.planner.plan(), plan);
}

#[test]
fn a_set_that_vanished_is_found_out() {
    let mut proxy = serving_one();
    proxy
        .kernel
        .state
        .sets
        .remove(&SetId::ClusterIp.name(IpFamily::V4));
    proxy.take_in([Event::ServiceApplied(
        service("ns/b").cluster_ips(&["10.96.0.2"]).port(80),
    )]);
    let plan = proxy.planner.plan();
    let report = proxy.kernel.apply(&plan);
    proxy.planner.report(&plan, &report);
    assert!(proxy.planner.needs_observation());
    proxy.observe();
    proxy.sync();
    assert!(proxy.restarted().sync().is_empty());
}

#[test]
fn a_link_that_vanished_is_found_out() {
    let mut proxy = serving_one();
    proxy.kernel.state.node.link_exists = false;
    proxy.kernel.state.addresses.clear();
    proxy.take_in([Event::ServiceApplied(
        service("ns/b").cluster_ips(&["10.96.0.2"]).port(80),
    )]);
    let plan = proxy.planner.plan();
    let report = proxy.kernel.apply(&plan);
    proxy.planner.report(&plan, &report);
    assert!(proxy.planner.needs_observation());
    proxy.observe();
    let lines = lines(&proxy.sync());
    assert_eq!(
        lines,
        [
            "create link kube-ipvs0",
            "add address 10.96.0.1 to kube-ipvs0",
            "add address 10.96.0.2 to kube-ipvs0",
        ]
    );
}

#[test]
fn a_virtual_server_that_others_deleted_is_made_again() {
    let mut proxy = serving_one();
    proxy.kernel.state.virtual_servers.clear();
    proxy.take_in([Event::SliceApplied(web(vec![endpoint("10.0.1.2")]))]);
    let plan = proxy.planner.plan();
    let report = proxy.kernel.apply(&plan);
    proxy.planner.report(&plan, &report);
    let doubtful = proxy.planner.take_doubtful();
    assert_eq!(doubtful, [tcp("10.96.0.1:80")].into());
    let states = proxy.kernel.virtual_servers(&doubtful);
    proxy.planner.observed_virtual_servers(states);
    assert_eq!(
        lines(&proxy.sync()),
        [
            "add virtual server TCP 10.96.0.1:80 scheduler rr",
            "add real server TCP 10.96.0.1:80 -> 10.0.1.2:8080 weight 1 masquerade",
        ]
    );
    assert!(proxy.planner.draining().is_empty());
}
