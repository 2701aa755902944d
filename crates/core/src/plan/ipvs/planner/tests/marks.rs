// SPDX-License-Identifier: Apache-2.0
//! Services whose external policy is Local have a second virtual server, selected by a mark.

use std::sync::Arc;

use super::*;
use crate::plan::ipvs::mark::is_pass;
use crate::plan::ipvs::object::{Forwarding, RealServer, VirtualServer};
use crate::plan::ipvs::state::VirtualServerState;

fn local(name: &str) -> Service {
    service(name)
        .port(80)
        .external_ip("203.0.113.1")
        .external_local()
}

fn both() -> EndpointSlice {
    web(vec![endpoint("10.0.1.1").local(), endpoint("10.0.2.1")])
}

fn marked(state: &State) -> Vec<VirtualServerKey> {
    let keys = state.virtual_servers.keys().copied();
    keys.filter(|key| matches!(key, VirtualServerKey::Mark { mark, .. } if !is_pass(*mark)))
        .collect()
}

/// Answers to clients of the node.
#[test]
fn what_leaves_answers_alone_is_there_with_the_first_port_of_the_node() {
    let pass = |state: &State| {
        let keys = state.virtual_servers.keys().copied();
        keys.filter(|key| matches!(key, VirtualServerKey::Mark { mark, .. } if is_pass(*mark)))
            .count()
    };
    let other = service("ns/other").port(80);
    let mut proxy = synced(vec![other], vec![]);
    assert_eq!(pass(&proxy.kernel.state), 0);
    let web = service("ns/web").port(80).node_port(30080);
    proxy.take_in([Event::ServiceApplied(web.clone())]);
    let plan = lines(&proxy.sync());
    let added = "add real server FWM 8191 IPv4 -> 127.0.0.1:0 weight 1 route";
    assert!(plan.iter().any(|line| line == added), "{plan:#?}");
    assert!(proxy.restarted().sync().is_empty());
    proxy.take_in([Event::ServiceDeleted(web.name)]);
    let plan = lines(&proxy.sync());
    // The clients that it has keep it.
    let drained = "set real server FWM 8191 IPv4 -> 127.0.0.1:0 weight 0 route";
    assert!(plan.iter().any(|line| line == drained), "{plan:#?}");
    let mut proxy = proxy.restarted();
    assert!(proxy.sync().is_empty());
    proxy.drain_all();
    assert_eq!(pass(&proxy.kernel.state), 0);
}

#[test]
fn an_endpoint_more_elsewhere_is_one_step_more() {
    let mut proxy = synced(vec![local("ns/web")], vec![both()]);
    let [key] = marked(&proxy.kernel.state)[..] else {
        panic!("one mark");
    };
    let mut slice = both();
    slice.endpoints.push(endpoint("10.0.2.2"));
    proxy.take_in([Event::SliceApplied(slice)]);
    assert_eq!(
        lines(&proxy.sync()),
        [
            "add real server TCP 10.96.0.1:80 -> 10.0.2.2:8080 weight 1 masquerade".to_owned(),
            format!("add real server {key} -> 10.0.2.2:8080 weight 1 masquerade"),
        ]
    );
    assert!(proxy.restarted().sync().is_empty());
}

#[test]
fn a_policy_that_becomes_local_and_back_never_lacks_a_server() {
    let cluster = || service("ns/web").port(80).external_ip("203.0.113.1");
    let mut proxy = synced(vec![cluster()], vec![both()]);
    proxy.take_in([Event::ServiceApplied(local("ns/web"))]);
    let plan = lines(&proxy.sync());
    let at = |text: &str| plan.iter().position(|line| line.contains(text)).unwrap();
    assert!(at("add real server FWM") < at("set real server TCP 203.0.113.1:80 -> 10.0.2.1"));
    proxy.take_in([Event::ServiceApplied(cluster())]);
    let plan = lines(&proxy.sync());
    let at = |text: &str| plan.iter().position(|line| line.contains(text)).unwrap();
    assert!(at("real server TCP 203.0.113.1:80 -> 10.0.2.1") < at("delete entry KUBE-LOCAL"));
    assert!(at("delete entry KUBE-LOCAL-POLICY-MARK") < at("set real server FWM"));
    proxy.drain_all();
    assert_eq!(marked(&proxy.kernel.state), []);
}

#[test]
fn a_mark_whose_service_is_gone_drains_over_a_restart() {
    let mut proxy = synced(vec![local("ns/web")], vec![both()]);
    proxy.take_in([Event::ServiceDeleted(service("ns/web").name)]);
    proxy.sync();
    assert_eq!(marked(&proxy.kernel.state).len(), 1);
    let mut restarted = proxy.restarted();
    assert!(restarted.sync().is_empty());
    restarted.drain_all();
    assert_eq!(restarted.kernel.state.virtual_servers, BTreeMap::new());
    assert!(restarted.sync().is_empty());
}

#[test]
fn marks_of_others_stay() {
    let mut proxy = synced(vec![local("ns/web")], vec![both()]);
    let server = || VirtualServer {
        scheduler: "wlc".into(),
        flags: 0,
        timeout: 0,
        netmask: 32,
    };
    let real_server = RealServer {
        weight: 100,
        forwarding: Forwarding::Route,
        ..RealServer::default()
    };
    // The last two are in our range: one serves, one is new.
    for (mark, servers) in [(1, 1), (0x8000, 0), (0x2345, 1), (0x2346, 0)] {
        let key = VirtualServerKey::Mark {
            mark,
            family: IpFamily::V4,
        };
        let real_servers = (0..servers).map(|_| (rs("192.0.2.1:80"), real_server));
        let state = VirtualServerState {
            server: server(),
            real_servers: Arc::new(real_servers.collect()),
        };
        proxy.kernel.state.virtual_servers.insert(key, state);
    }
    let before = proxy.kernel.state.virtual_servers.clone();
    let mut restarted = proxy.restarted();
    assert!(restarted.sync().is_empty());
    assert_eq!(restarted.kernel.state.virtual_servers, before);
    restarted.take_in([Event::ServiceDeleted(service("ns/web").name)]);
    restarted.sync();
    restarted.drain_all();
    assert_eq!(marked(&restarted.kernel.state).len(), 4);
}

#[test]
fn a_changed_mark_of_an_entry_is_one_step() {
    let mut proxy = synced(vec![local("ns/web")], vec![both()]);
    let name = SetId::LocalPolicyMark.name(IpFamily::V4);
    let set = proxy.kernel.state.sets.get_mut(&name).unwrap();
    let Some(SetEntry::IpPortMark(ip, protocol, port, mark)) = set.entries.pop_first() else {
        panic!("one entry");
    };
    set.entries
        .insert(SetEntry::IpPortMark(ip, protocol, port, mark ^ 1));
    proxy.observe();
    assert_eq!(
        lines(&proxy.sync()),
        [format!(
            "add entry {name} 203.0.113.1,tcp:80 skbmark {mark:#x}/0x1fff"
        )]
    );
}

/// Two Services whose names hash to the same mark.
fn rivals() -> (Service, Service) {
    let mark_of = |name: &str| marked(&synced(vec![local(name)], vec![]).kernel.state)[0];
    let mut seen = BTreeMap::new();
    for number in 0.. {
        let name = format!("ns/s{number}");
        if let Some(first) = seen.insert(mark_of(&name), name.clone()) {
            let at =
                |name: &str, address| service(name).port(80).external_ip(address).external_local();
            return (at(&first, "203.0.113.1"), at(&name, "203.0.113.2"));
        }
    }
    unreachable!("there are more names than marks")
}

#[test]
fn service_that_moves_to_another_mark_takes_everything_along() {
    let (mut older, mut younger) = rivals();
    older.created = 1;
    younger.created = 2;
    // The younger one appears first and has the mark until the older one is known.
    let mut proxy = synced(vec![younger.clone()], vec![]);
    let first = marked(&proxy.kernel.state);
    proxy.take_in([Event::ServiceApplied(older.clone())]);
    proxy.sync();
    proxy.drain_all();
    let two = marked(&proxy.kernel.state);
    assert!(two.len() == 2 && two.contains(&first[0]), "{two:?}");
    let at_once = synced(vec![younger, older.clone()], vec![]);
    assert_eq!(proxy.kernel.state, at_once.kernel.state);
    // And back.
    proxy.take_in([Event::ServiceDeleted(older.name)]);
    proxy.sync();
    proxy.drain_all();
    assert_eq!(marked(&proxy.kernel.state), first);
    assert!(proxy.restarted().sync().is_empty());
}
