// SPDX-License-Identifier: Apache-2.0
//! The effect of annotations.

use super::*;
use crate::model::ipvs_options::{PlaceWeights, Scheduler, Thresholds, Weight};

fn web() -> Service {
    service("ns/web").port(80)
}

fn server_of(service: &Service, context: &Context) -> VirtualServer {
    let port_objects = of(service, vec![], context);
    wanted_at(&port_objects, tcp("10.96.0.1:80")).server.clone()
}

fn unmet(port_objects: &PortObjects) -> Vec<String> {
    let extras = port_objects.extras.iter();
    let unmet = extras.flat_map(|extras| &extras.unmet);
    unmet.map(ToString::to_string).collect()
}

fn weights(port_objects: &PortObjects) -> Vec<(String, u32)> {
    let servers = &wanted_at(port_objects, tcp("10.96.0.1:80")).real_servers;
    let weight = |(key, server): (&RealServerKey, &RealServer)| (key.to_string(), server.weight);
    servers.iter().map(weight).collect()
}

#[test]
fn a_service_without_settings_has_no_extras() {
    let port_objects = of(&web(), vec![], &context(IpFamily::V4));
    assert_eq!(port_objects.extras, None);
}

#[test]
fn a_service_chooses_its_scheduler() {
    let server = server_of(&web().scheduler(Scheduler::Wlc), &context(IpFamily::V4));
    assert_eq!((&*server.scheduler, server.flags), ("wlc", 0));
}

#[test]
fn flags_follow_the_scheduler_that_is_used() {
    let flags = |scheduler, hashes_port| {
        let service = web()
            .scheduler(scheduler)
            .options(|options| options.hashes_port = hashes_port);
        server_of(&service, &context(IpFamily::V4)).flags
    };
    let (fallback, port) = (flags::SCHED_FALLBACK, flags::SCHED_PORT);
    assert_eq!(flags(Scheduler::Mh, None), fallback | port);
    assert_eq!(flags(Scheduler::Mh, Some(false)), fallback);
    assert_eq!(flags(Scheduler::Sh, None), fallback);
    assert_eq!(flags(Scheduler::Sh, Some(true)), fallback | port);
    assert_eq!(flags(Scheduler::Rr, Some(true)), 0);
}

#[test]
fn flags_of_a_scheduler_that_has_none_are_a_finding() {
    let service = web().options(|options| options.hashes_port = Some(true));
    let port_objects = of(&service, vec![], &context(IpFamily::V4));
    assert_eq!(
        unmet(&port_objects),
        ["scheduler rr has no flags (only sh and mh do); they are ignored"]
    );
}

#[test]
fn a_scheduler_that_the_kernel_lacks_is_a_finding_and_the_usual_one_is_used() {
    let context = Context {
        missing_schedulers: [Scheduler::Twos].into(),
        ..context(IpFamily::V4)
    };
    let service = web().scheduler(Scheduler::Twos);
    assert_eq!(&*server_of(&service, &context).scheduler, "rr");
    let port_objects = of(&service, vec![], &context);
    assert_eq!(
        unmet(&port_objects),
        ["this node's kernel has no scheduler twos (module ip_vs_twos); rr is used"]
    );
}

#[test]
fn the_netmask_counts_with_affinity_only() {
    let service = web().options(|options| options.persistence_ipv4 = Some(24));
    let netmask = |service: &Service| server_of(service, &context(IpFamily::V4)).netmask;
    assert_eq!(netmask(&service), 32);
    assert_eq!(netmask(&service.affinity(5)), 24);
    assert_eq!(netmask(&web().affinity(5)), 32);
}

#[test]
fn an_endpoints_own_weight_comes_before_those_of_its_service() {
    let weight = |n| Weight::new(n).unwrap();
    let service = web().options(|options| {
        options.weights = [("10.0.1.0/24".parse().unwrap(), weight(3))]
            .into_iter()
            .collect();
        options.weight = Some(weight(2));
    });
    let endpoints = vec![
        endpoint("10.0.1.1"),
        endpoint("10.0.1.2").weight(7),
        endpoint("10.0.2.1"),
    ];
    let context = context(IpFamily::V4);
    let expected = [
        ("10.0.1.1:8080", 3),
        ("10.0.1.2:8080", 7),
        ("10.0.2.1:8080", 2),
    ];
    let expected = expected.map(|(key, weight)| (key.to_owned(), weight));
    assert_eq!(
        weights(&of(&service, endpoints.clone(), &context)),
        expected
    );
    let bare = weights(&of(&web(), endpoints, &context));
    assert_eq!(
        bare.iter().map(|(_, weight)| *weight).sum::<u32>(),
        1 + 7 + 1
    );
}

#[test]
fn every_endpoint_has_the_limits_of_its_service() {
    let thresholds = Thresholds { upper: 9, lower: 4 };
    let service = web().options(|options| options.thresholds = thresholds);
    let of = |service: &Service| {
        let endpoints = vec![endpoint("10.0.1.1"), endpoint("10.0.1.2").weight(0)];
        let port_objects = of(service, endpoints, &context(IpFamily::V4));
        let servers = &wanted_at(&port_objects, tcp("10.96.0.1:80")).real_servers;
        servers
            .values()
            .map(|server| server.thresholds)
            .collect::<Vec<_>>()
    };
    assert_eq!(of(&service), [thresholds; 2]);
    assert_eq!(of(&web()), [Thresholds::default(); 2]);
}

#[test]
fn near_endpoints_may_weigh_more() {
    let weight = |n| Weight::new(n).unwrap();
    let service = web().scheduler(Scheduler::Wrr).options(|options| {
        options.place_weights = Some(PlaceWeights {
            same_node: weight(9),
            same_zone: weight(5),
            other: weight(2),
        });
        options.weights = [("10.0.1.7/32".parse().unwrap(), weight(77))]
            .into_iter()
            .collect();
        // The weight of all others: there are none.
        options.weight = Some(weight(33));
    });
    let endpoints = vec![
        endpoint("10.0.1.1").local().in_zone("there"),
        endpoint("10.0.1.2").in_zone("here"),
        endpoint("10.0.1.3").in_zone("there"),
        endpoint("10.0.1.4"),
        endpoint("10.0.1.5").in_zone("here").weight(88),
        endpoint("10.0.1.7").in_zone("here"),
    ];
    let with = |service: &Service, context: &Context| {
        let port_objects = of(service, endpoints.clone(), context);
        let weights = weights(&port_objects).into_iter().map(|(_, weight)| weight);
        (weights.collect::<Vec<_>>(), unmet(&port_objects))
    };
    let context = context(IpFamily::V4);
    assert_eq!(with(&service, &context), (vec![9, 5, 2, 2, 88, 77], vec![]));
    let nowhere = Context {
        zone: None,
        ..context.clone()
    };
    let (weights, unmet) = with(&service, &nowhere);
    assert_eq!(weights, [9, 2, 2, 2, 88, 77]);
    assert!(
        unmet[0].contains("topology.kubernetes.io/zone"),
        "{unmet:?}"
    );
    for (scheduler, count) in [(Scheduler::Mh, 0), (Scheduler::Rr, 1), (Scheduler::Sh, 1)] {
        let (_, unmet) = with(&service.clone().scheduler(scheduler), &context);
        assert_eq!(unmet.len(), count, "{unmet:?}");
    }
}

#[test]
fn weights_of_a_slow_start_can_be_divided_where_they_count() {
    let length = Some(Duration::from_secs(30));
    let service = web().options(|options| {
        options.slow_start = length;
        options.weight = Weight::new(3);
    });
    let endpoints = vec![endpoint("10.0.1.1"), endpoint("10.0.1.2").weight(0)];
    let with = |scheduler| {
        let service = service.clone().scheduler(scheduler);
        let port_objects = of(&service, endpoints.clone(), &context(IpFamily::V4));
        let weights = weights(&port_objects).into_iter().map(|(_, weight)| weight);
        let extras = port_objects.extras.as_ref();
        let slow_start = extras.and_then(|extras| extras.slow_start);
        (
            weights.collect::<Vec<_>>(),
            slow_start,
            unmet(&port_objects),
        )
    };
    for scheduler in Scheduler::ALL {
        let name = scheduler.as_str();
        let (weights, slow_start, unmet) = with(scheduler);
        if ["wrr", "wlc", "sed", "nq", "twos"].contains(&name) {
            assert_eq!((weights, slow_start, unmet), (vec![30, 0], length, vec![]));
        } else {
            assert_eq!((weights[0], slow_start), (3, None));
            let said = format!("scheduler {name} does not let endpoints start slowly");
            assert!(
                unmet.iter().any(|unmet| unmet.starts_with(&said)),
                "{unmet:?}"
            );
        }
    }
}

/// With affinity, clients behind a mark are hashed, and `sh` fills its table by weight.
#[test]
fn weights_behind_a_mark_are_those_of_its_scheduler() {
    let service = web()
        .scheduler(Scheduler::Wrr)
        .affinity(60)
        .vip("198.51.100.1")
        .external_local()
        .options(|options| options.slow_start = Some(Duration::from_secs(30)));
    let context = context(IpFamily::V4);
    let slice = slice("ns/web", "a", vec![endpoint("10.0.1.1").local()]).port(8080);
    let port_objects = with_mark(&service, &slice, &context, Some(9));
    let weight = |key| {
        let servers = &wanted_at(&port_objects, key).real_servers;
        servers.values().next().unwrap().weight
    };
    assert_eq!(weight(tcp("198.51.100.1:80")), 10);
    let family = IpFamily::V4;
    assert_eq!(weight(VirtualServerKey::Mark { mark: 9, family }), 1);
}

/// It would reject the connections that it hashes to such a server.
#[test]
fn dh_has_no_servers_of_weight_0() {
    let endpoints = vec![endpoint("10.0.1.1").weight(0), endpoint("10.0.1.2")];
    let context = context(IpFamily::V4);
    let port_objects = of(&web(), endpoints.clone(), &context);
    assert_eq!(weights(&port_objects).len(), 2);
    let port_objects = of(&web().scheduler(Scheduler::Dh), endpoints, &context);
    assert_eq!(weights(&port_objects), [("10.0.1.2:8080".to_owned(), 1)]);
}

#[test]
fn udp_flows_stay_with_endpoints_that_shut_down() {
    let service = service("ns/web").named_port("dns", Protocol::Udp, 53);
    let endpoints = vec![
        endpoint("10.0.1.1").terminating(),
        endpoint("10.0.1.2").unready(),
        endpoint("10.0.1.3"),
    ];
    let weights = |endpoints| {
        let port_objects = of(&service, endpoints, &context(IpFamily::V4));
        let servers = &wanted_at(&port_objects, udp("10.96.0.1:53")).real_servers;
        let weight =
            |(key, server): (&RealServerKey, &RealServer)| (key.to_string(), server.weight);
        servers.iter().map(weight).collect::<Vec<_>>()
    };
    let leaving = ("10.0.1.1:8080".to_owned(), 0);
    assert_eq!(
        weights(endpoints),
        [leaving, ("10.0.1.3:8080".to_owned(), 1)]
    );
    // The last resort when nothing is ready gets new flows too.
    let last = ("10.0.1.1:8080".to_owned(), 1);
    assert_eq!(weights(vec![endpoint("10.0.1.1").terminating()]), [last]);
}
