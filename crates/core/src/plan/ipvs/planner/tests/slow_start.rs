// SPDX-License-Identifier: Apache-2.0
//! Slow start: who ramps, and when it takes its steps.

use std::time::Duration;

use super::*;
use crate::model::ipvs_options::{Scheduler, Weight};
use crate::plan::mode::Planner as _;

const LENGTH: Duration = Duration::from_secs(90);
/// Between two steps.
const PACE: Duration = Duration::from_secs(10);

fn slow() -> Service {
    let service = service("ns/web").port(80).scheduler(Scheduler::Wrr);
    service.options(|options| options.slow_start = Some(LENGTH))
}

fn endpoints(addresses: &[&str]) -> Event {
    Event::SliceApplied(web(addresses.iter().map(|it| endpoint(it)).collect()))
}

/// A proxy that serves with these endpoints.
fn serving(addresses: &[&str]) -> Proxy {
    let slice = web(addresses.iter().map(|it| endpoint(it)).collect());
    synced(vec![slow()], vec![slice])
}

fn weights(proxy: &Proxy) -> Vec<u32> {
    let vs = &proxy.kernel.state.virtual_servers[&tcp("10.96.0.1:80")];
    vs.real_servers
        .values()
        .map(|server| server.weight)
        .collect()
}

/// All steps until nothing is due.
fn finish(proxy: &mut Proxy) -> Vec<Vec<u32>> {
    let mut all = Vec::new();
    while let Some(due) = proxy.planner.time_due() {
        proxy.pass(due.saturating_sub(proxy.now));
        proxy.sync();
        all.push(weights(proxy));
    }
    all
}

#[test]
fn an_endpoint_that_joins_others_gets_its_weight_in_steps() {
    let mut proxy = serving(&["10.0.1.1"]);
    assert_eq!(weights(&proxy), [10]);
    assert_eq!(proxy.planner.time_due(), None);
    proxy.take_in([endpoints(&["10.0.1.1", "10.0.1.2"])]);
    let add = "add real server TCP 10.96.0.1:80 -> 10.0.1.2:8080 weight 1 masquerade";
    assert_eq!(lines(&proxy.sync()), [add]);
    assert_eq!(proxy.planner.time_due(), Some(PACE));
    // Nothing before it is time, whatever else is planned.
    proxy.pass(PACE.saturating_sub(Duration::from_millis(1)));
    assert!(proxy.sync().is_empty());
    proxy.observe();
    assert!(proxy.sync().is_empty());
    let steps = finish(&mut proxy);
    let expected: Vec<_> = (2..=10).map(|weight| vec![10, weight]).collect();
    assert_eq!(steps, expected);
    assert_eq!(proxy.now, LENGTH);
}

#[test]
fn the_first_endpoints_of_a_service_start_at_once() {
    let mut proxy = serving(&[]);
    proxy.take_in([endpoints(&["10.0.1.1", "10.0.1.2"])]);
    proxy.sync();
    assert_eq!(weights(&proxy), [10, 10]);
    // So do those that replace all others at one time.
    proxy.take_in([endpoints(&["10.0.1.3"])]);
    proxy.sync();
    assert_eq!(weights(&proxy), [0, 0, 10]);
    assert_eq!(proxy.planner.time_due(), None);
}

#[test]
fn one_that_comes_back_while_it_drains_starts_again() {
    let mut proxy = serving(&["10.0.1.1", "10.0.1.2"]);
    proxy.take_in([endpoints(&["10.0.1.1"])]);
    proxy.sync();
    assert_eq!(weights(&proxy), [10, 0]);
    proxy.take_in([endpoints(&["10.0.1.1", "10.0.1.2"])]);
    proxy.sync();
    assert_eq!(weights(&proxy), [10, 1]);
}

#[test]
fn a_new_process_continues_and_starts_nothing_again() {
    let mut proxy = serving(&["10.0.1.1"]);
    proxy.take_in([endpoints(&["10.0.1.1", "10.0.1.2"])]);
    proxy.sync();
    proxy.pass(4 * PACE);
    proxy.sync();
    assert_eq!(weights(&proxy), [10, 5]);
    let mut next = proxy.restarted();
    assert!(next.sync().is_empty());
    assert_eq!(finish(&mut next).last(), Some(&vec![10, 10]));
    // What became ready while no proxy ran joins what the kernel has.
    let mut later = next.restarted();
    later.take_in([endpoints(&["10.0.1.1", "10.0.1.2", "10.0.1.3"])]);
    later.sync();
    assert_eq!(weights(&later), [10, 10, 1]);
}

#[test]
fn weights_set_by_others_are_put_right_at_once() {
    let mut proxy = serving(&["10.0.1.1", "10.0.1.2"]);
    let set = |proxy: &mut Proxy, weight| {
        let vs = proxy
            .kernel
            .state
            .virtual_servers
            .get_mut(&tcp("10.96.0.1:80"));
        let servers = vs.unwrap().real_servers_mut();
        servers.get_mut(&rs("10.0.1.2:8080")).unwrap().weight = weight;
        proxy.observe();
        proxy.sync();
    };
    set(&mut proxy, 5);
    assert_eq!(weights(&proxy), [10, 10]);
    // Also that of one in a ramp.
    proxy.take_in([endpoints(&["10.0.1.1", "10.0.1.2", "10.0.1.3"])]);
    proxy.sync();
    let vs = proxy
        .kernel
        .state
        .virtual_servers
        .get_mut(&tcp("10.96.0.1:80"));
    let servers = vs.unwrap().real_servers_mut();
    servers.get_mut(&rs("10.0.1.3:8080")).unwrap().weight = 10;
    proxy.observe();
    proxy.sync();
    assert_eq!(weights(&proxy), [10, 10, 1]);
}

#[test]
fn another_time_counts_at_once() {
    let mut proxy = serving(&["10.0.1.1"]);
    proxy.take_in([endpoints(&["10.0.1.1", "10.0.1.2"])]);
    proxy.sync();
    let faster = slow().options(|options| options.slow_start = Some(LENGTH / 5));
    proxy.take_in([Event::ServiceApplied(faster)]);
    assert!(proxy.sync().is_empty());
    assert_eq!(proxy.planner.time_due(), Some(PACE / 5));
}

#[test]
fn a_changed_weight_counts_from_the_same_step_on() {
    let mut proxy = serving(&["10.0.1.1"]);
    proxy.take_in([endpoints(&["10.0.1.1", "10.0.1.2"])]);
    proxy.sync();
    proxy.pass(PACE);
    proxy.sync();
    let heavier = slow().options(|options| options.weight = Weight::new(3));
    proxy.take_in([Event::ServiceApplied(heavier)]);
    proxy.sync();
    assert_eq!(weights(&proxy), [30, 6]);
    // Without the setting, weights are what they are without it.
    let plain = service("ns/web").port(80).scheduler(Scheduler::Wrr);
    proxy.take_in([Event::ServiceApplied(plain)]);
    proxy.sync();
    assert_eq!(weights(&proxy), [1, 1]);
    assert_eq!(proxy.planner.time_due(), None);
    // And with it again, nobody starts anew.
    proxy.take_in([Event::ServiceApplied(slow())]);
    proxy.sync();
    assert_eq!(weights(&proxy), [10, 10]);
}
