// SPDX-License-Identifier: Apache-2.0
//! The loop and its Node: what it waits for, and how it handles changes.

use std::sync::atomic::Ordering;

use super::*;
use crate::events::reason;
use kpr_core::model::NodeInfo;
use kpr_core::plan::IpvsRules;

fn one_service(fixture: &mut Fixture) {
    fixture.model(Event::ServicesReplaced(vec![service("ns/web").port(80)]));
    fixture.model(Event::SlicesReplaced(vec![]));
}

fn is_programmed(fixture: &Fixture) -> bool {
    let node = fixture.lock();
    node.kernel.state.virtual_servers.contains_key(&web())
}

fn reasons(fixture: &Fixture) -> Vec<&'static str> {
    let events = fixture.watcher.events.lock().unwrap();
    events.iter().map(|event| event.reason).collect()
}

#[test]
fn a_node_without_an_address_is_waited_for_like_none() {
    for info in [None, Some(NodeInfo::named("worker"))] {
        let mut fixture = Fixture::new();
        one_service(&mut fixture);
        fixture.node(info);
        fixture.wait(Duration::from_secs(29));
        assert!(!is_programmed(&fixture));
        fixture.known_node();
        fixture.work();
        assert!(is_programmed(&fixture));
        assert_eq!(reasons(&fixture), [""; 0]);
    }
}

#[test]
fn a_node_that_never_comes_is_reported_and_does_not_stop_serving() {
    for info in [None, Some(NodeInfo::named("worker"))] {
        let mut fixture = Fixture::new();
        one_service(&mut fixture);
        fixture.node(info);
        fixture.wait(Duration::from_secs(31));
        assert!(is_programmed(&fixture));
        fixture.wait(Duration::from_mins(5));
        assert_eq!(
            reasons(&fixture),
            [reason::NODE_INCOMPLETE],
            "it is said once"
        );
        let events = fixture.watcher.events.lock().unwrap();
        let note = &events[0].note;
        for part in ["there is no Node object", "--hostname-override"] {
            assert!(note.contains(part), "{note}");
        }
    }
}

#[test]
fn pod_cidrs_are_waited_for_if_they_are_needed() {
    let flags = ["--proxy-mode=ipvs", "--detect-local-mode=NodeCIDR"];
    let mut fixture = Fixture::with(&flags);
    one_service(&mut fixture);
    fixture.known_node();
    fixture.wait(Duration::from_secs(329));
    assert!(!is_programmed(&fixture));
    let mut here = here();
    here.pod_cidrs = vec!["10.1.0.0/24".parse().unwrap()];
    fixture.node(Some(here));
    fixture.work();
    assert!(is_programmed(&fixture));
    assert_eq!(reasons(&fixture), [""; 0]);
}

#[test]
fn missing_pod_cidrs_are_reported_and_do_not_stop_serving() {
    let flags = ["--proxy-mode=ipvs", "--detect-local-mode=NodeCIDR"];
    let mut fixture = Fixture::with(&flags);
    one_service(&mut fixture);
    fixture.known_node();
    fixture.work();
    fixture.wait(Duration::from_secs(330));
    assert!(is_programmed(&fixture));
    assert_eq!(reasons(&fixture), [reason::NODE_INCOMPLETE]);
}

#[test]
fn files_need_no_node() {
    let mut fixture = Fixture::with(&["--proxy-mode=ipvs", "--manifests=/m"]);
    one_service(&mut fixture);
    fixture.node(None);
    fixture.work();
    assert!(is_programmed(&fixture));
}

#[test]
fn a_node_that_is_deleted_changes_nothing_in_the_kernel() {
    let flags = ["--proxy-mode=ipvs", "--detect-local-mode=NodeCIDR"];
    let mut fixture = Fixture::with(&flags);
    one_service(&mut fixture);
    let mut here = here();
    here.pod_cidrs = vec!["10.1.0.0/24".parse().unwrap()];
    here.zone = Some("a".into());
    fixture.node(Some(here.clone()));
    fixture.work();
    fixture.applied();
    fixture.node(None);
    fixture.wait(Duration::from_secs(5));
    fixture.node(Some(here.clone()));
    fixture.wait(Duration::from_secs(5));
    assert_eq!(fixture.applied(), Vec::<String>::new());
    let reported = fixture.watcher.node.lock().unwrap();
    assert_eq!(*reported, [Some(here.clone()), None, Some(here)]);
}

#[test]
fn warnings_about_the_node_are_reported_once() {
    let flags = ["--proxy-mode=ipvs", "--cluster-cidr=fd00::/8"];
    let mut fixture = Fixture::with(&flags);
    one_service(&mut fixture);
    fixture.known_node();
    fixture.work();
    assert_eq!(reasons(&fixture), [reason::DOUBTFUL_CONFIGURATION]);
    let mut other = here();
    other.zone = Some("b".into());
    fixture.node(Some(other));
    fixture.wait(Duration::from_secs(5));
    assert_eq!(reasons(&fixture).len(), 1);
}

#[test]
fn rules_follow_ports_when_others_begin_to_publish_them() {
    let publish = |fixture: &mut Fixture, publishes| {
        fixture.lock().network.publishes_ports = publishes;
        fixture.reconciler.take_in(Input::NodeAddresses);
        let called = fixture.watcher.ports_published.load(Ordering::Relaxed);
        (called, reasons(fixture))
    };
    let mut fixture = Fixture::programmed();
    assert_eq!(publish(&mut fixture, false), (0, vec![]));
    assert_eq!(publish(&mut fixture, true), (1, vec![]));
    assert_eq!(publish(&mut fixture, true), (1, vec![]), "they were there");
    let mut moved = Fixture::programmed();
    moved.reconciler.facts.ipvs_rules = IpvsRules::Nftables;
    assert_eq!(publish(&mut moved, true), (0, vec![]));
    let mut fixed = Fixture::with(&["--proxy-mode=ipvs", "--ipvs-rules=iptables"]);
    fixed.known_node();
    one_service(&mut fixed);
    fixed.work();
    let warned = vec![reason::DOUBTFUL_CONFIGURATION];
    assert_eq!(publish(&mut fixed, true), (0, warned));
}

#[test]
fn new_node_address_answers_on_node_ports() {
    let mut fixture = Fixture::programmed();
    fixture.model(Event::ServiceApplied(
        service("ns/web").port(80).node_port(30080),
    ));
    fixture.work();
    fixture.lock().addresses.insert(ip("192.168.0.9"));
    fixture.reconciler.take_in(Input::NodeAddresses);
    fixture.work();
    let key = tcp("192.168.0.9:30080");
    assert!(
        fixture
            .lock()
            .kernel
            .state
            .virtual_servers
            .contains_key(&key)
    );
    fixture.lock().addresses.clear();
    fixture.reconciler.take_in(Input::NodeAddresses);
    fixture.work();
    fixture.wait(Duration::from_secs(1));
    assert!(
        !fixture
            .lock()
            .kernel
            .state
            .virtual_servers
            .contains_key(&key)
    );
}

#[test]
fn sync_daemons_follow_their_interface() {
    let mut fixture = Fixture::with(&[
        "--proxy-mode=ipvs",
        "--ipvs-sync-interface=eth1",
        "--ipvs-min-sync-period=0s",
    ]);
    one_service(&mut fixture);
    fixture.known_node();
    fixture.work();
    assert!(is_programmed(&fixture), "Services do not wait for it");
    assert_eq!(reasons(&fixture), [reason::DOUBTFUL_CONFIGURATION]);
    let daemons = |fixture: &mut Fixture, link| {
        fixture.lock().sync_link = link;
        fixture.applied();
        fixture.reconciler.take_in(Input::NodeAddresses);
        fixture.work();
        let about = fixture.applied().into_iter();
        about
            .map(|step| step.split(' ').take(4).collect::<Vec<_>>().join(" "))
            .collect::<Vec<_>>()
    };
    let start = ["start sync daemon master", "start sync daemon backup"];
    let stop = ["stop sync daemon master", "stop sync daemon backup"];
    assert_eq!(daemons(&mut fixture, Some(7)), start);
    assert_eq!(daemons(&mut fixture, Some(7)), [""; 0]);
    // Deleted and added again between two looks.
    assert_eq!(daemons(&mut fixture, Some(9)), [stop, start].concat());
    assert_eq!(daemons(&mut fixture, None), stop);
    assert_eq!(reasons(&fixture).len(), 2, "it is said again");
}
