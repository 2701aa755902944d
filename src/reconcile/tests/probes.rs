// SPDX-License-Identifier: Apache-2.0
//! A kubelet's probes, played for ten minutes: what a restart cannot help does not fail them, and a
//! loop that hangs does.

use super::*;

/// As in `deploy/kustomize/base/daemonset.yaml`.
const INITIAL_DELAY: u32 = 10;
const PERIOD: u32 = 10;
const MINUTES: u32 = 10;

/// Lets ten minutes pass. `happens` hears each second what happens before the loop turns. Returns
/// the seconds in which `/livez` failed.
fn failed_probes<P: Planner>(
    fixture: &mut Fixture<P>,
    mut happens: impl FnMut(&mut Fixture<P>, u32),
) -> Vec<u32>
where
    Shared: Kernel<P>,
{
    let mut failed = Vec::new();
    for second in 1..=MINUTES * 60 {
        happens(fixture, second);
        fixture.wait(Duration::from_secs(1));
        let is_probed = second >= INITIAL_DELAY && second.is_multiple_of(PERIOD);
        if is_probed && !fixture.watcher.health().livez().is_good() {
            failed.push(second);
        }
    }
    failed
}

/// Other endpoints of `ns/web` in each second.
fn scale(fixture: &mut Fixture, second: u32) {
    fixture.scale(&[&format!("10.1.0.{}", 5 + second % 200)]);
}

#[test]
fn a_kind_that_the_api_server_refuses_does_not_restart_the_proxy() {
    let mut fixture = Fixture::new();
    fixture.known_node();
    fixture.model(Event::SlicesReplaced(vec![]));
    assert_eq!(failed_probes(&mut fixture, scale), [0; 0]);
    fixture.model(Event::ServicesReplaced(vec![service("ns/web").port(80)]));
    fixture.work();
    assert_eq!(fixture.real_servers().len(), 1);
}

#[test]
fn a_node_without_pod_cidrs_is_waited_for_without_a_restart() {
    let flags = ["--proxy-mode=ipvs", "--detect-local-mode=NodeCIDR"];
    let mut fixture = Fixture::with(&flags);
    fixture.known_node();
    fixture.model(Event::ServicesReplaced(vec![service("ns/web").port(80)]));
    fixture.model(Event::SlicesReplaced(vec![]));
    let mut served_from = None;
    let failed = failed_probes(&mut fixture, |fixture, second| {
        if served_from.is_none() && !fixture.real_servers().is_empty() {
            served_from = Some(second);
        }
        scale(fixture, second);
    });
    assert_eq!(failed, [0; 0]);
    assert!(
        served_from.is_some_and(|second| second > 320),
        "{served_from:?}"
    );
}

#[test]
fn an_api_server_that_says_nothing_does_not_restart_the_proxy() {
    let mut fixture = Fixture::programmed();
    assert_eq!(failed_probes(&mut fixture, |_, _| {}), [0; 0]);
}

#[test]
fn an_object_that_the_kernel_refuses_does_not_restart_the_proxy() {
    let mut fixture = Fixture::programmed();
    let refused = vec![("add-address", Fault::Refused); 100_000];
    fixture.lock().troubles = refused.into();
    fixture.model(Event::ServiceApplied(
        service("ns/other").cluster_ips(&["10.96.9.9"]).port(80),
    ));
    assert_eq!(failed_probes(&mut fixture, scale), [0; 0]);
    assert!(fixture.watcher.health().is_serving());
    assert_eq!(
        fixture.real_servers().len(),
        1,
        "the other Service is served"
    );
}

#[test]
fn health_checks_of_other_services_follow_while_the_kernel_refuses_an_object() {
    let mut fixture = Fixture::new();
    fixture.known_node();
    let refused = vec![("add-address", Fault::Refused); 100];
    fixture.lock().troubles = refused.into();
    fixture.model(Event::ServicesReplaced(vec![service("ns/web").port(80)]));
    fixture.model(Event::SlicesReplaced(vec![]));
    fixture.work();
    fixture.wait(Duration::from_secs(1));
    assert!(!fixture.watcher.health_checks.lock().unwrap().is_empty());
}

#[test]
fn rules_that_cannot_be_written_fail_the_probes_after_twice_the_sync_period() {
    let mut fixture = Fixture::new();
    fixture.known_node();
    fixture.lock().refused_rules = Some("KUBE-");
    fixture.model(Event::ServicesReplaced(vec![service("ns/web").port(80)]));
    fixture.model(Event::SlicesReplaced(vec![]));
    let failed = failed_probes(&mut fixture, |_, _| {});
    assert_eq!(failed.first(), Some(&70));
}

#[test]
fn a_loop_that_hangs_fails_the_probes_after_twice_the_sync_period() {
    let mut fixture = Fixture::programmed();
    fixture.wait(Duration::from_secs(1));
    let health = fixture.watcher.health().clone();
    fixture.time.advance(Duration::from_secs(59));
    assert!(health.livez().is_good());
    fixture.time.advance(Duration::from_secs(1));
    assert!(!health.livez().is_good() && !health.healthz().is_good());
}

#[test]
fn a_loop_that_waits_for_the_first_list_turns_nevertheless() {
    let mut fixture = Fixture::new();
    fixture.wait(Duration::from_secs(1));
    fixture.time.advance(Duration::from_mins(1));
    assert!(!fixture.watcher.health().livez().is_good(), "it hangs");
    fixture.work();
    assert!(fixture.watcher.health().livez().is_good());
}
