// SPDX-License-Identifier: Apache-2.0
//! `tests/cases` compares with packets; here is what they do not meet.

use super::*;
use crate::model::testing::{endpoint, ip, service, service_name, slice, tracker};
use crate::model::{Service, SliceEndpoint};
use crate::plan::testing;

const RULES: Settings = Settings {
    localhost_by_rules: true,
    localhost_by_forwarder: false,
    refuses_other_ports: false,
};

fn context() -> Context {
    Context {
        local_detector: LocalDetector::Cidr("10.1.0.0/16".parse().unwrap()),
        ..testing::context(IpFamily::V4)
    }
}

fn at(socket: &str) -> Place {
    let socket: SocketAddr = socket.parse().unwrap();
    Place {
        address: socket.ip(),
        port: socket.port(),
        protocol: Protocol::Tcp,
    }
}

fn web(endpoints: Vec<SliceEndpoint>) -> Tracker {
    let web = exposed("ns/web");
    let slice = slice("ns/web", "a", endpoints).port(8080);
    tracker(vec![web], vec![slice])
}

fn exposed(name: &str) -> Service {
    service(name)
        .port(80)
        .node_port(30080)
        .external_ip("198.51.100.1")
        .vip("203.0.113.1")
}

fn explain(tracker: &Tracker, socket: &str, client: Client) -> Explanation {
    place(tracker, &context(), RULES, at(socket), client)
}

#[test]
fn each_address_has_its_role() {
    let tracker = web(vec![endpoint("10.1.0.1")]);
    for (socket, role) in [
        ("10.96.0.1:80", Some(Right::ClusterIp)),
        ("198.51.100.1:80", Some(Right::ExternalIp)),
        ("203.0.113.1:80", Some(Right::LoadBalancer)),
        ("192.168.0.10:30080", Some(Right::NodePort)),
        ("127.0.0.1:30080", Some(Right::NodePort)),
        ("192.168.0.10:80", None),
        ("10.96.0.1:81", None),
        ("10.96.0.2:80", None),
    ] {
        let explained = explain(&tracker, socket, Client::Node);
        assert_eq!(explained.role, role, "{socket}");
        let is_served = explained.verdict == Verdict::Answered;
        assert_eq!(is_served, role.is_some(), "{explained:?}");
    }
}

#[test]
fn all_places_of_a_service_are_found() {
    let tracker = web(vec![]);
    let found = |port| {
        let places = places(&tracker, &context(), &service_name("ns/web"), port);
        let places = places.iter().map(ToString::to_string);
        places.collect::<Vec<_>>()
    };
    let all = [
        "TCP 10.96.0.1:80",
        "TCP 203.0.113.1:80",
        "TCP 198.51.100.1:80",
        "TCP 172.16.0.10:30080",
        "TCP 192.168.0.10:30080",
    ];
    assert_eq!(found(None), all);
    assert_eq!(found(Some(80)), all);
    assert_eq!(found(Some(30080)), all);
    assert_eq!(found(Some(81)), [""; 0]);
}

#[test]
fn an_address_that_others_hold_is_not_served() {
    let mut tracker = web(vec![endpoint("10.1.0.1")]);
    let verdict = |tracker: &Tracker| {
        let explained = explain(tracker, "198.51.100.1:80", Client::Node);
        (explained.verdict, explained.service)
    };
    assert_eq!(verdict(&tracker).0, Verdict::Answered);
    let mut holders = tracker.holders().clone();
    holders.pods.insert("198.51.100.0/24".parse().unwrap());
    tracker.set_holders(holders);
    assert_eq!(verdict(&tracker), (Verdict::NotServed, None));
}

#[test]
fn the_loser_of_a_place_is_named() {
    let first = exposed("ns/first").created(1);
    let second = exposed("ns/second").cluster_ips(&["10.96.0.2"]).created(2);
    let tracker = tracker(vec![second, first], vec![]);
    let explained = explain(&tracker, "198.51.100.1:80", Client::Outside(None));
    assert_eq!(explained.service.as_deref(), Some("ns/first TCP"));
    assert_eq!(explained.without, ["ns/second"]);
    assert_eq!(explained.verdict, Verdict::Refused);
}

#[test]
fn source_ranges_need_the_clients_address() {
    let web = exposed("ns/web").source_range("192.0.2.0/24");
    let slice = slice("ns/web", "a", vec![endpoint("10.1.0.1")]).port(8080);
    let tracker = tracker(vec![web], vec![slice]);
    for (client, verdict) in [
        (Client::Outside(None), Verdict::Depends),
        (Client::Outside(Some(ip("192.0.2.1"))), Verdict::Answered),
        (Client::Outside(Some(ip("192.0.3.1"))), Verdict::Dropped),
        (Client::Node, Verdict::Dropped),
    ] {
        let explained = explain(&tracker, "203.0.113.1:80", client);
        assert_eq!(explained.verdict, verdict, "{client:?}");
        let explained = explain(&tracker, "198.51.100.1:80", client);
        assert_eq!(explained.verdict, Verdict::Answered, "{client:?}");
    }
}

#[test]
fn each_endpoint_has_its_reason() {
    let tracker = web(vec![
        endpoint("10.1.0.1"),
        endpoint("10.1.0.2").unready(),
        endpoint("10.1.0.3").terminating(),
    ]);
    let explained = explain(&tracker, "10.96.0.1:80", Client::Pod(None));
    let reasons: Vec<_> = explained
        .endpoints
        .iter()
        .map(|e| (e.may_answer, e.why))
        .collect();
    assert_eq!(
        reasons,
        [
            (true, "ready"),
            (false, "not ready"),
            (false, "terminating, and others are ready"),
        ]
    );
}

#[test]
fn clients_are_known_by_their_address() {
    let tracker = web(vec![endpoint("10.2.0.1").local()]);
    let by_range = context();
    let by_link = Context {
        local_detector: LocalDetector::BridgeInterface("cni0".parse().unwrap()),
        ..context()
    };
    for (address, context, client) in [
        ("10.1.0.9", &by_range, Client::Pod(Some(ip("10.1.0.9")))),
        ("10.2.0.1", &by_range, Client::Outside(Some(ip("10.2.0.1")))),
        ("10.2.0.1", &by_link, Client::Pod(Some(ip("10.2.0.1")))),
        ("10.1.0.9", &by_link, Client::Outside(Some(ip("10.1.0.9")))),
        ("192.168.0.10", &by_link, Client::Node),
        ("127.0.0.1", &by_link, Client::Node),
    ] {
        assert_eq!(
            Client::at(ip(address), context, &tracker),
            client,
            "{address}"
        );
    }
}

#[test]
fn a_port_that_no_service_has_is_refused_in_ipvs_mode_only() {
    let tracker = web(vec![]);
    let refusing = Settings {
        refuses_other_ports: true,
        ..RULES
    };
    for (settings, verdict) in [(RULES, Verdict::NotServed), (refusing, Verdict::Refused)] {
        let explained = place(
            &tracker,
            &context(),
            settings,
            at("203.0.113.1:9"),
            Client::Node,
        );
        assert_eq!(explained.verdict, verdict);
    }
}
