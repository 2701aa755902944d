// SPDX-License-Identifier: Apache-2.0
//! Whatever the order of events, the tracker ends up with what a relist would give, and reports
//! which Services changed.

use std::net::IpAddr;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::model::endpoint::Conditions;
use crate::model::{NodeHint, PortSpec, Protocol, SliceEndpoint, SlicePort};

fn service_name(name: &str) -> ServiceName {
    ServiceName::new("ns", name)
}

fn slice_name(name: &str) -> SliceName {
    SliceName {
        namespace: "ns".into(),
        name: name.into(),
    }
}

fn service(name: &str, port: u16) -> Service {
    Service {
        name: service_name(name),
        uid: "".into(),
        created: 0,
        cluster_ips: vec![IpAddr::from([10, 96, 0, 1])],
        ports: vec![PortSpec {
            name: "".into(),
            protocol: Protocol::Tcp,
            port,
            node_port: None,
        }],
        client_ip_affinity: None,
        external_ips: Vec::new(),
        load_balancer_vips: Vec::new(),
        load_balancer_source_ranges: Vec::new(),
        external_policy_local: false,
        internal_policy_local: false,
        health_check_node_port: None,
        ipvs: None,
    }
}

fn slice(name: &str, of: &str, last: u8) -> EndpointSlice {
    EndpointSlice {
        name: slice_name(name),
        service: service_name(of),
        family: IpFamily::V4,
        ports: vec![SlicePort {
            name: "".into(),
            protocol: Protocol::Tcp,
            port: 80,
        }],
        endpoints: vec![SliceEndpoint {
            address: IpAddr::from([10, 0, 0, last]),
            local: false,
            conditions: Conditions::from_api(None, None, None),
            node_hint: NodeHint::Absent,
            zones: Arc::default(),
            weight: None,
        }],
        last_change_trigger: None,
    }
}

fn changed(tracker: &mut Tracker) -> Vec<String> {
    let changes = tracker.take();
    changes.services.iter().map(ToString::to_string).collect()
}

#[test]
fn nothing_is_complete_before_both_kinds_are_listed() {
    let mut tracker = Tracker::default();
    assert!(!tracker.is_complete());
    assert!(!tracker.apply(Event::ServicesReplaced(Vec::new())));
    assert!(!tracker.is_complete());
    // An empty list changes nothing, but a first sync may be waiting for it.
    assert!(tracker.apply(Event::SlicesReplaced(Vec::new())));
    assert!(tracker.is_complete());
}

#[test]
fn an_equal_object_is_no_change() {
    let mut tracker = Tracker::default();
    assert!(tracker.apply(Event::ServiceApplied(service("a", 80))));
    assert!(tracker.apply(Event::SliceApplied(slice("a-1", "a", 1))));
    tracker.take();
    assert!(!tracker.apply(Event::ServiceApplied(service("a", 80))));
    assert!(!tracker.apply(Event::SliceApplied(slice("a-1", "a", 1))));
    assert!(!tracker.apply(Event::ServiceDeleted(service_name("other"))));
    assert!(!tracker.apply(Event::SliceDeleted(slice_name("other"))));
    assert!(tracker.take().is_empty());
}

#[test]
fn a_relist_changes_only_what_differs() {
    let mut tracker = Tracker::default();
    tracker.apply(Event::ServicesReplaced(vec![
        service("a", 80),
        service("b", 80),
    ]));
    tracker.apply(Event::SlicesReplaced(vec![
        slice("a-1", "a", 1),
        slice("c-1", "c", 1),
    ]));
    tracker.take();
    tracker.apply(Event::ServicesReplaced(vec![
        service("a", 80),
        service("d", 80),
    ]));
    tracker.apply(Event::SlicesReplaced(vec![
        slice("a-1", "a", 1),
        slice("c-1", "c", 2),
    ]));
    assert_eq!(changed(&mut tracker), ["ns/b", "ns/c", "ns/d"]);
    assert!(tracker.service(&service_name("b")).is_none());
}

#[test]
fn slices_wait_for_their_service() {
    let mut tracker = Tracker::default();
    tracker.apply(Event::SliceApplied(slice("a-1", "a", 1)));
    tracker.take();
    tracker.apply(Event::ServiceApplied(service("a", 80)));
    assert_eq!(changed(&mut tracker), ["ns/a"]);
    let endpoints = tracker.endpoints(&service_name("a"), IpFamily::V4);
    assert_eq!(endpoints.values().map(Vec::len).sum::<usize>(), 1);
}

#[test]
fn a_slice_that_moves_changes_both_services() {
    let mut tracker = Tracker::default();
    tracker.apply(Event::SliceApplied(slice("s", "a", 1)));
    tracker.take();
    tracker.apply(Event::SliceApplied(slice("s", "b", 1)));
    assert_eq!(changed(&mut tracker), ["ns/a", "ns/b"]);
    assert!(
        tracker
            .endpoints(&service_name("a"), IpFamily::V4)
            .is_empty()
    );
    tracker.apply(Event::SliceDeleted(slice_name("s")));
    assert_eq!(changed(&mut tracker), ["ns/b"]);
    assert!(
        tracker
            .endpoints(&service_name("b"), IpFamily::V4)
            .is_empty()
    );
}

#[test]
fn changes_are_counted_by_kind() {
    let mut tracker = Tracker::default();
    tracker.apply(Event::ServiceApplied(service("a", 80)));
    tracker.apply(Event::ServiceApplied(service("a", 81)));
    tracker.apply(Event::SliceApplied(slice("a-1", "a", 1)));
    let changes = tracker.take();
    assert_eq!((changes.service_changes, changes.endpoint_changes), (2, 1));
    assert_eq!(tracker.take(), Changes::default());
}

#[test]
fn a_slice_that_goes_takes_the_triggers_of_its_service_with_it() {
    let triggered = |name: &str, of: &str, trigger| EndpointSlice {
        last_change_trigger: Some(trigger),
        ..slice(name, of, 1)
    };
    let mut tracker = Tracker::default();
    tracker.apply(Event::SliceApplied(triggered("a-1", "a", 1)));
    tracker.apply(Event::SliceApplied(triggered("a-2", "a", 2)));
    tracker.apply(Event::SliceApplied(triggered("b-1", "b", 3)));
    tracker.apply(Event::SliceDeleted(slice_name("a-2")));
    tracker.apply(Event::SliceApplied(triggered("a-1", "a", 4)));
    assert_eq!(
        tracker.take().triggers,
        [(IpFamily::V4, 4), (IpFamily::V4, 3)]
    );
}

/// A change of the cluster; names and values are few, so that changes collide.
#[derive(Clone, Debug)]
enum Change {
    ApplyService(Service),
    DeleteService(ServiceName),
    ApplySlice(EndpointSlice),
    DeleteSlice(SliceName),
    /// The watch was lost: lists follow.
    Relist,
    /// A sync takes in the changes.
    Take,
}

fn any_change() -> impl Strategy<Value = Change> {
    let name = || prop_oneof![Just("a"), Just("b"), Just("c")];
    prop_oneof![
        4 => (name(), 80..82_u16).prop_map(|(name, port)| Change::ApplyService(service(name, port))),
        2 => name().prop_map(|name| Change::DeleteService(service_name(name))),
        6 => (name(), name(), 1..4_u8)
            .prop_map(|(name, of, last)| Change::ApplySlice(slice(name, of, last))),
        3 => name().prop_map(|name| Change::DeleteSlice(slice_name(name))),
        1 => Just(Change::Relist),
        2 => Just(Change::Take),
    ]
}

/// What a sync sees of a Service.
type View = (Option<Service>, EndpointsByPort);

fn view(tracker: &Tracker, name: &ServiceName) -> View {
    (
        tracker.service(name).cloned(),
        tracker.endpoints(name, IpFamily::V4),
    )
}

proptest! {
    #[test]
    fn any_order_of_events_is_a_relist_and_no_change_is_missed(
        changes in prop::collection::vec(any_change(), 0..60)
    ) {
        let names = ["a", "b", "c"].map(service_name);
        let mut services: BTreeMap<ServiceName, Service> = BTreeMap::new();
        let mut slices: BTreeMap<SliceName, EndpointSlice> = BTreeMap::new();
        let relist = |services: &BTreeMap<_, Service>, slices: &BTreeMap<_, EndpointSlice>| {
            [
                Event::ServicesReplaced(services.values().cloned().collect()),
                Event::SlicesReplaced(slices.values().cloned().collect()),
            ]
        };
        let mut tracker = Tracker::default();
        // The knowledge of a reader that reads only Services reported as changed.
        let mut known: BTreeMap<ServiceName, View> = BTreeMap::new();
        for change in changes.into_iter().chain([Change::Take]) {
            match change {
                Change::ApplyService(service) => {
                    services.insert(service.name.clone(), service.clone());
                    tracker.apply(Event::ServiceApplied(service));
                }
                Change::DeleteService(name) => {
                    services.remove(&name);
                    tracker.apply(Event::ServiceDeleted(name));
                }
                Change::ApplySlice(slice) => {
                    slices.insert(slice.name.clone(), slice.clone());
                    tracker.apply(Event::SliceApplied(slice));
                }
                Change::DeleteSlice(name) => {
                    slices.remove(&name);
                    tracker.apply(Event::SliceDeleted(name));
                }
                Change::Relist => {
                    for event in relist(&services, &slices) {
                        tracker.apply(event);
                    }
                }
                Change::Take => {
                    for name in tracker.take().services {
                        let view = view(&tracker, &name);
                        known.insert(name, view);
                    }
                }
            }
        }
        let mut fresh = Tracker::default();
        for event in relist(&services, &slices) {
            fresh.apply(event);
        }
        let listed: Vec<_> = tracker.services().cloned().collect();
        prop_assert_eq!(listed, fresh.services().cloned().collect::<Vec<_>>());
        for name in &names {
            let now = view(&tracker, name);
            prop_assert_eq!(&now, &view(&fresh, name));
            let known = known.get(name).cloned().unwrap_or_default();
            prop_assert_eq!(now, known);
        }
    }
}
