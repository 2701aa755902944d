// SPDX-License-Identifier: Apache-2.0
//! Large changes in parts: no part takes away what was served, others take turns, and whatever
//! fails is made up for.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use proptest::prelude::*;

use crate::model::testing::{endpoint, ip, service, slice, tracker};
use crate::model::{Event, IpFamily, Protocol, Service};
use crate::plan::Context;
use crate::plan::iptables::Step;
use crate::plan::iptables::tests::planner::{changes, fresh, some_node};
use crate::plan::iptables::tests::proxy::Proxy;
use crate::plan::mode::{Isolation as _, Planner as _};
use crate::plan::ruleset::{Edit, Rule, Ruleset, Table};
use crate::plan::testing::context;
use crate::plan::testing::fake::{FakeKernel, Fault};
use crate::plan::testing::tracer::{End, Packet, Tracer};

/// A node whose batches have few rules.
fn narrow(node: Context, limit: usize) -> Context {
    let mut node = node;
    node.iptables.batch_limit = Some(limit);
    node
}

fn settle(proxy: &mut Proxy) -> usize {
    for round in 1..10_000 {
        let plan = proxy.planner.plan();
        let report = proxy.kernel.apply(&plan);
        assert!(report.is_success(), "{report:?}\n{plan}");
        proxy.planner.report(&plan, &report);
        if !proxy.planner.is_pending() {
            assert!(!proxy.planner.goes_on());
            return round;
        }
        assert!(proxy.planner.goes_on());
    }
    panic!("never settled")
}

/// Packets to addresses that [`some_service`] gives its Services.
fn packets() -> Vec<Packet> {
    let mut to: Vec<(String, Protocol)> = Vec::new();
    for n in 0..40 {
        to.push((format!("10.96.0.{n}:80"), Protocol::Tcp));
        to.push((format!("10.96.0.{n}:53"), Protocol::Udp));
        to.push((format!("192.168.0.10:{}", 30_000 + n), Protocol::Tcp));
    }
    to.extend((0..3).map(|n| (format!("203.0.113.{n}:80"), Protocol::Tcp)));
    to.push(("192.168.0.10:31000".to_owned(), Protocol::Tcp));
    let clients = [
        ("10.1.0.9", Some("cni0")),
        ("192.168.0.10", None),
        ("192.0.2.7", Some("eth0")),
    ];
    let packet = |(from, interface), (to, protocol): &(String, Protocol)| Packet {
        from: ip(from),
        interface,
        to: to.parse().unwrap(),
        protocol: *protocol,
        known_to: None,
    };
    let each = |client| to.iter().map(move |to| packet(client, to));
    clients.into_iter().flat_map(each).collect()
}

/// Whether a packet reaches an endpoint, whichever way it goes.
fn is_served(rules: &Ruleset, packet: &Packet) -> bool {
    served(rules, packet).is_some()
}

/// The endpoints that a packet may reach; `None` if it may also end otherwise.
fn served(rules: &Ruleset, packet: &Packet) -> Option<BTreeSet<SocketAddr>> {
    let local = vec![ip("192.168.0.10"), ip("127.0.0.1")];
    let ends = Tracer { rules, local }.trace(packet);
    let reached = ends.into_keys().map(|end| match end {
        End::To(endpoint) | End::Masqueraded(endpoint) => Some(endpoint),
        End::Untouched | End::Rejected | End::Dropped => None,
    });
    reached.collect()
}

/// The Service ports that rules lead a packet to, by the hashes in the names of their chains.
fn owners(rules: &Ruleset, to: SocketAddr) -> BTreeSet<String> {
    let (address, port) = (
        format!("-d {}/32 ", to.ip()),
        format!("--dport {} ", to.port()),
    );
    let is_about =
        |rule: &&str| rule.contains(&port) && (rule.contains(&address) || !rule.contains("-d "));
    rules
        .table(Table::Nat)
        .flat_map(|(_, rules)| rules.iter().map(Rule::as_str))
        .filter(is_about)
        .filter_map(|rule| {
            Some(
                rule.rsplit_once("-j KUBE-")?
                    .1
                    .split_once('-')?
                    .1
                    .to_owned(),
            )
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn what_is_served_is_served_after_each_part(
        before in changes(),
        then in changes(),
        node in any::<u8>(),
        limit in 8_usize..80,
    ) {
        let family = IpFamily::V4;
        let first = some_node(family, 0);
        let mut proxy = Proxy::start(first, tracker(vec![], vec![]), Ruleset::new());
        proxy.take_in(before.iter().filter_map(|change| change.event(family)));
        proxy.sync();
        let old = proxy.kernel.state.rules.clone();
        // All that differs is one plan, as after a start.
        let node = narrow(some_node(family, node), limit);
        proxy.planner.set_context(node.clone(), &proxy.tracker).unwrap();
        proxy.take_in(then.iter().filter_map(|change| change.event(family)));
        let plan = proxy.planner.plan();
        let mut kernel = FakeKernel::new(proxy.kernel.state.clone());
        let report = proxy.kernel.apply(&plan);
        prop_assert!(report.is_success(), "{report:?}\n{plan}");
        proxy.planner.report(&plan, &report);
        prop_assert!(!proxy.planner.is_pending());
        prop_assert!(proxy.planner.plan().is_empty());
        let new = proxy.kernel.state.rules.clone();
        prop_assert_eq!(&new, &fresh(node, &proxy));

        // Where a frontend changes hands, the old Service may refuse the client in the meantime.
        let is_wanted = |packet: &Packet| {
            is_served(&old, packet)
                && is_served(&new, packet)
                && owners(&old, packet.to) == owners(&new, packet.to)
        };
        let wanted: Vec<Packet> = packets().into_iter().filter(is_wanted).collect();
        for (phase, step) in plan.phases() {
            let mut part = crate::plan::Plan::default();
            part.push(*phase, step.clone());
            prop_assert!(kernel.apply(&part).is_success());
            let rules = &kernel.state.rules;
            let lost = wanted.iter().find(|packet| !is_served(rules, packet));
            prop_assert!(lost.is_none(), "{lost:?} is lost after {step}\n{plan}");
        }
        prop_assert_eq!(&kernel.state.rules, &new);
    }

    #[test]
    fn changes_in_turns_lead_to_the_same_rules(
        changes in changes(),
        every in 1_usize..20,
        limit in 1_usize..60,
    ) {
        let family = IpFamily::V4;
        let node = narrow(some_node(family, 0), limit);
        let mut proxy = Proxy::start(node.clone(), tracker(vec![], vec![]), Ruleset::new());
        settle(&mut proxy);
        for part in changes.chunks(every) {
            proxy.take_in(part.iter().filter_map(|change| change.event(family)));
            // Sometimes more arrives before all of it is written.
            let plan = proxy.planner.plan();
            let report = proxy.kernel.apply(&plan);
            proxy.planner.report(&plan, &report);
        }
        settle(&mut proxy);
        prop_assert_eq!(&proxy.kernel.state.rules, &fresh(node, &proxy));
    }

    #[test]
    fn a_kill_between_parts_is_made_up_for(changes in changes(), cut in 0_usize..30) {
        let family = IpFamily::V4;
        let node = narrow(some_node(family, 0), 20);
        let mut proxy = Proxy::start(node.clone(), tracker(vec![], vec![]), Ruleset::new());
        proxy.take_in(changes.iter().filter_map(|change| change.event(family)));
        let mut part = crate::plan::Plan::default();
        for (phase, step) in proxy.planner.plan().phases().iter().take(cut) {
            part.push(*phase, step.clone());
        }
        prop_assert!(proxy.kernel.apply(&part).is_success());
        let objects = tracker(
            proxy.tracker.services().cloned().collect(),
            proxy.tracker.slices().cloned().collect(),
        );
        let mut restarted = Proxy::over(node.clone(), objects, proxy.kernel.state.clone());
        settle(&mut restarted);
        prop_assert_eq!(&restarted.kernel.state.rules, &fresh(node, &proxy));
    }
}

/// A Service of many ports.
fn large(ports: u16) -> Service {
    let mut large = service("tenant/large").cluster_ips(&["10.96.1.1"]);
    for port in 1..=ports {
        large = large.named_port(&format!("p{port}"), Protocol::Tcp, port);
    }
    large
}

fn large_slice(ports: u16, endpoints: u8) -> Event {
    let endpoints = (1..=endpoints).map(|n| endpoint(&format!("10.1.1.{n}")));
    let mut all = slice("tenant/large", "a", endpoints.collect());
    for port in 1..=ports {
        all = all.named_port(&format!("p{port}"), Protocol::Tcp, port);
    }
    Event::SliceApplied(all)
}

fn victim(address: &str) -> Event {
    Event::SliceApplied(slice("ns/victim", "a", vec![endpoint(address)]).port(8080))
}

#[test]
fn another_services_change_waits_for_one_batch() {
    let node = narrow(context(IpFamily::V4), 100);
    let services = vec![service("ns/victim").cluster_ips(&["10.96.0.1"]).port(80)];
    let mut proxy = Proxy::start(node, tracker(services, vec![]), Ruleset::new());
    settle(&mut proxy);
    // Created, changed, deleted: each takes many rounds.
    let stages = [
        vec![Event::ServiceApplied(large(300)), large_slice(300, 8)],
        vec![large_slice(300, 7)],
        vec![Event::ServicesReplaced(vec![
            service("ns/victim").cluster_ips(&["10.96.0.1"]).port(80),
        ])],
    ];
    for (stage, events) in stages.into_iter().enumerate() {
        proxy.take_in(events);
        let address = format!("10.1.0.{}", stage + 1);
        for round in 0..3 {
            if round == 1 {
                proxy.take_in([victim(&address)]);
            }
            let plan = proxy.planner.plan();
            let rules = |edit: &Edit| match edit {
                Edit::Replace { rules, .. } => rules.len(),
                _ => 1,
            };
            let size: usize = plan
                .steps()
                .flat_map(crate::plan::Step::edits)
                .map(rules)
                .sum();
            assert!(size < 500, "{size} rules at once");
            let report = proxy.kernel.apply(&plan);
            proxy.planner.report(&plan, &report);
            assert!(proxy.planner.goes_on(), "stage {stage}, round {round}");
        }
        let to = Packet {
            from: ip("192.168.0.10"),
            interface: None,
            to: "10.96.0.1:80".parse().unwrap(),
            protocol: Protocol::Tcp,
            known_to: None,
        };
        let expected = BTreeSet::from([format!("{address}:8080").parse().unwrap()]);
        let rules = &proxy.kernel.state.rules;
        assert_eq!(served(rules, &to), Some(expected), "stage {stage}");
        assert!(settle(&mut proxy) > 3);
    }
}

#[test]
fn a_small_change_is_one_batch() {
    let mut proxy = Proxy::start(
        narrow(context(IpFamily::V4), 100),
        tracker(
            vec![service("ns/victim").cluster_ips(&["10.96.0.1"]).port(80)],
            vec![],
        ),
        Ruleset::new(),
    );
    let batches = |proxy: &Proxy| {
        let plan = proxy.planner.plan();
        let batches = plan.steps().filter_map(crate::plan::Step::batch);
        batches.count()
    };
    assert_eq!(batches(&proxy), 1);
    settle(&mut proxy);
    proxy.take_in([victim("10.1.0.1")]);
    assert_eq!(batches(&proxy), 1);
}

/// A batch with many rules does not end in time, nor does one with the rules of port 7.
fn slow(step: &Step) -> Option<Fault> {
    let Step::EditRules(batch) = step else {
        return None;
    };
    let is_of_seven = |edit: &Edit| match edit {
        Edit::Replace { chain, rules, .. } => {
            chain.as_str().starts_with("KUBE-SVC-")
                && rules
                    .iter()
                    .any(|rule| rule.as_str().ends_with("10.1.1.1:7"))
        }
        _ => false,
    };
    let is_slow = batch.edits.len() > 40 || batch.edits.iter().any(is_of_seven);
    is_slow.then_some(Fault::TimedOut)
}

#[test]
fn a_batch_that_does_not_end_is_made_smaller_until_the_slow_one_stands_alone() {
    let mut proxy = Proxy::start(
        narrow(context(IpFamily::V4), 10_000),
        tracker(vec![], vec![]),
        Ruleset::new(),
    );
    settle(&mut proxy);
    proxy.take_in([Event::ServiceApplied(large(100)), large_slice(100, 2)]);
    for _ in 0..30 {
        proxy.try_sync(slow);
        if !proxy.planner.is_pending() {
            break;
        }
    }
    assert!(!proxy.planner.is_pending());
    let aside: Vec<_> = proxy
        .planner
        .quarantined()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(aside, ["tenant/large:p7"]);
}
