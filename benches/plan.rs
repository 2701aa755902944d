// SPDX-License-Identifier: Apache-2.0
//! What planning costs in each mode: everything at a start, and one change among 10,000 Services.
#![allow(clippy::unwrap_used, reason = "a benchmark may fail loudly")]

use divan::Bencher;

use kpr_core::model::testing::{endpoint, service, slice, tracker};
use kpr_core::model::{EndpointSlice, Event, IpFamily, ServiceView, Tracker};
use kpr_core::plan::testing::context;
use kpr_core::plan::{Context, Outcome, Planner, Report, iptables, ipvs};

/// Numbers of Services, each with one port and ten endpoints.
const CLUSTERS: [usize; 2] = [1_000, 10_000];
const ENDPOINTS: usize = 10;

/// The slice of a Service, whose first endpoint is there or not.
fn slice_of(index: usize, has_first: bool) -> EndpointSlice {
    let address = |nth| {
        let number = index * ENDPOINTS + nth;
        let (high, low) = (number / 250, number % 250 + 1);
        endpoint(&format!("10.{}.{}.{low}", high / 250, high % 250))
    };
    let first = usize::from(!has_first);
    let endpoints = (first..ENDPOINTS).map(address).collect();
    slice(&format!("ns/s{index}"), "a", endpoints).port(8080)
}

fn cluster(services: usize) -> Tracker {
    let of = |index: usize| {
        let address = format!("10.96.{}.{}", index / 250, index % 250 + 1);
        service(&format!("ns/s{index}"))
            .cluster_ips(&[&address])
            .port(80)
    };
    let slices = (0..services).map(|index| slice_of(index, true));
    let mut tracker = tracker((0..services).map(of).collect(), slices.collect());
    tracker.take();
    tracker
}

/// Plans until nothing is left to do, on a kernel that does everything; returns the steps.
fn settle<P: Planner>(planner: &mut P) -> usize {
    let mut steps = 0;
    while planner.is_pending() {
        let plan = planner.plan();
        let report = Report {
            outcomes: vec![Outcome::Done; plan.len()],
        };
        planner.report(&plan, &report);
        steps += plan.len();
    }
    steps
}

fn started<P: Planner>(mut planner: P, tracker: &Tracker) -> P
where
    P::State: Default,
{
    planner.observed(P::State::default());
    planner.update_all(tracker);
    assert_ne!(settle(&mut planner), 0);
    planner
}

fn change<P: Planner>(planner: &mut P, tracker: &mut Tracker, slice: EndpointSlice) -> usize {
    tracker.apply(Event::SliceApplied(slice));
    for name in tracker.take().services {
        let Context { family, budget, .. } = *planner.context();
        let view = ServiceView::within(tracker, &name, family, &budget);
        planner.update(&view, tracker);
    }
    settle(planner)
}

fn cold<P: Planner>(bencher: Bencher<'_, '_>, services: usize, new: impl Fn(Context) -> P + Sync)
where
    P::State: Default,
{
    let tracker = cluster(services);
    bencher
        .with_inputs(|| new(context(IpFamily::V4)))
        .bench_local_values(|planner| started(planner, &tracker));
}

fn one_change<P: Planner>(bencher: Bencher<'_, '_>, services: usize, planner: P)
where
    P::State: Default,
{
    let mut tracker = cluster(services);
    let mut planner = started(planner, &tracker);
    let mut has_first = true;
    bencher
        .with_inputs(|| {
            has_first = !has_first;
            slice_of(500, has_first)
        })
        .bench_local_values(|slice| assert_ne!(change(&mut planner, &mut tracker, slice), 0));
}

fn ipvs(context: Context) -> ipvs::Planner {
    ipvs::Planner::new(context).unwrap()
}

#[divan::bench(args = CLUSTERS, sample_count = 10)]
fn ipvs_cold_plan(bencher: Bencher<'_, '_>, services: usize) {
    cold(bencher, services, ipvs);
}

#[divan::bench(args = CLUSTERS)]
fn ipvs_one_endpoint_changed(bencher: Bencher<'_, '_>, services: usize) {
    one_change(bencher, services, ipvs(context(IpFamily::V4)));
}

#[divan::bench(args = CLUSTERS, sample_count = 10)]
fn iptables_cold_plan(bencher: Bencher<'_, '_>, services: usize) {
    cold(bencher, services, iptables::Planner::new);
}

#[divan::bench(args = CLUSTERS)]
fn iptables_one_endpoint_changed(bencher: Bencher<'_, '_>, services: usize) {
    let planner = iptables::Planner::new(context(IpFamily::V4));
    one_change(bencher, services, planner);
}

fn main() {
    divan::main();
}
