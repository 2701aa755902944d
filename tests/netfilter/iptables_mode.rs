// SPDX-License-Identifier: Apache-2.0
//! iptables mode's rules in a real kernel: `iptables-save` prints them exactly as planned, so that
//! a second sync has nothing to do.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use kpr_core::model::endpoint::Conditions;
use kpr_core::model::node::LocalDetector;
use kpr_core::model::{
    EndpointSlice, Event, IpFamily, NodeHint, PortSpec, Protocol, Service, ServiceName,
    ServiceView, SliceEndpoint, SliceName, SlicePort, Tracker,
};
use kpr_core::plan::iptables::{Planner, State, Step as PlanStep};
use kpr_core::plan::ruleset::{ChainName, Edit, Table};
use kpr_core::plan::{Context, Hairpin, Outcome, Planner as _, Report, Step, testing};
use kube_proxy_rs::clock::Clock;
use kube_proxy_rs::dataplane::client_sets::ClientSets;
use kube_proxy_rs::dataplane::exec::System;
use kube_proxy_rs::dataplane::iptables::{Backend, Backends, Iptables};

use kpr_testkit::isolated::{Need, Test};

pub(crate) const TESTS: &[Test] = &[
    (
        "iptables_mode_is_saved_as_it_was_written_legacy",
        &[Need::Namespaces, Need::Legacy],
        || written(Backend::Legacy),
    ),
    (
        "iptables_mode_is_saved_as_it_was_written_nft",
        &[Need::Namespaces, Need::Nft],
        || written(Backend::Nft),
    ),
];

const TABLES: [Table; 2] = [Table::Nat, Table::Filter];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Addresses of a family.
struct Addresses {
    node: &'static str,
    service: &'static str,
    external: &'static str,
    pod: &'static str,
    ranges: [&'static str; 2],
}

const fn addresses(family: IpFamily) -> Addresses {
    match family {
        IpFamily::V4 => Addresses {
            node: "192.168.0.10",
            service: "10.96.0.",
            external: "203.0.113.",
            pod: "10.1.0.",
            ranges: ["192.0.2.0/24", "192.168.0.10/32"],
        },
        IpFamily::V6 => Addresses {
            node: "fd00:192::10",
            service: "fd00:96::",
            external: "2001:db8::",
            pod: "fd00:1::",
            ranges: ["2001:db8:1::/48", "fd00:192::10/128"],
        },
    }
}

fn contexts(family: IpFamily) -> Vec<Context> {
    let node = BTreeSet::from([ip(addresses(family).node)]);
    let pods: String = match family {
        IpFamily::V4 => "10.1.0.0/16".into(),
        IpFamily::V6 => "fd00:1::/64".into(),
    };
    let plain = Context {
        node_addresses: node.clone(),
        node_port_addresses: node,
        ..testing::context(family)
    };
    let mut narrow = plain.clone();
    narrow.iptables.node_ports_everywhere = false;
    narrow.iptables.drop_invalid = false;
    narrow.iptables.hairpin = Hairpin::OneRule;
    narrow.masquerade_mark = 1 << 31;
    narrow.local_detector = LocalDetector::Cidr(pods.parse().unwrap());
    let mut bridge = plain.clone();
    bridge.iptables.localhost_node_ports = false;
    bridge.local_detector = LocalDetector::BridgeInterface("cni0".parse().unwrap());
    let mut prefix = plain.clone();
    prefix.local_detector = LocalDetector::InterfacePrefix("veth".parse().unwrap());
    let mut all = plain.clone();
    all.masquerade_all = true;
    vec![plain, narrow, bridge, prefix, all]
}

/// Services of every shape, with as many endpoints as their number.
fn objects(family: IpFamily) -> Vec<Event> {
    let at = addresses(family);
    let mut services = Vec::new();
    let mut slices = Vec::new();
    for n in 1..=60_u16 {
        let name = ServiceName::new("a-namespace", format!("web{n}").as_str());
        let port = |name: &str, protocol, port: u16, node_port: u16| PortSpec {
            name: name.into(),
            protocol,
            port,
            node_port: NonZeroU16::new(node_port),
        };
        let is = |every: u16| n.is_multiple_of(every);
        services.push(Service {
            name: name.clone(),
            uid: "".into(),
            created: 0,
            cluster_ips: vec![ip(&format!("{}{n}", at.service))],
            ports: vec![
                port(
                    "http",
                    Protocol::Tcp,
                    80,
                    if is(2) { 30_000 + n } else { 0 },
                ),
                port("", Protocol::Udp, 53, if is(3) { 31_000 + n } else { 0 }),
                port("s", Protocol::Sctp, 9, if is(5) { 32_000 + n } else { 0 }),
            ],
            client_ip_affinity: is(7).then_some(Duration::from_hours(3)),
            external_ips: if is(3) {
                vec![ip(&format!("{}{n}", at.external))]
            } else {
                vec![]
            },
            load_balancer_vips: if is(4) {
                vec![ip(&format!("{}{}", at.external, 100 + n))]
            } else {
                vec![]
            },
            load_balancer_source_ranges: if is(8) {
                at.ranges
                    .iter()
                    .map(|range| range.parse().unwrap())
                    .collect()
            } else {
                vec![]
            },
            external_policy_local: is(6),
            internal_policy_local: is(9),
            health_check_node_port: NonZeroU16::new(if is(12) { 32_500 + n } else { 0 }),
            ipvs: None,
        });
        let endpoints = if is(10) { 0 } else { n };
        let slice_port = |name: &str, protocol| SlicePort {
            name: name.into(),
            protocol,
            port: 8080,
        };
        slices.push(EndpointSlice {
            name: SliceName {
                namespace: name.namespace.clone(),
                name: name.name.clone(),
            },
            service: name,
            family,
            ports: vec![
                slice_port("http", Protocol::Tcp),
                slice_port("", Protocol::Udp),
                slice_port("s", Protocol::Sctp),
            ],
            endpoints: (1..=endpoints)
                .map(|e| SliceEndpoint {
                    address: ip(&format!("{}{e}", at.pod)),
                    local: is(4) && e < 30,
                    conditions: Conditions::from_api(None, None, None),
                    node_hint: NodeHint::Absent,
                    zones: Arc::default(),
                    weight: None,
                })
                .collect(),
            last_change_trigger: None,
        });
    }
    vec![
        Event::ServicesReplaced(services),
        Event::SlicesReplaced(slices),
    ]
}

fn observe(iptables: &Iptables) -> State {
    State {
        rules: iptables.save(&TABLES).unwrap(),
        sets: ClientSets::open()
            .unwrap()
            .observe(iptables.family())
            .unwrap(),
        ..State::default()
    }
}

/// Makes what is to be done about sets.
fn make_sets(planner: &Planner) {
    let mut sets = ClientSets::open().unwrap();
    let plan = planner.plan();
    for step in plan.steps().filter(|step| step.is_about_set()) {
        assert_eq!(sets.make(step), Outcome::Done, "{step}");
    }
}

fn edits(planner: &Planner) -> Vec<Edit> {
    let plan = planner.plan();
    plan.steps().flat_map(Step::edits).cloned().collect()
}

fn written(backend: Backend) {
    let exec = Arc::new(System::new(Clock::system(), System::DEFAULT_DEADLINE));
    let backends = Backends::detect(exec.as_ref(), Some(backend)).unwrap();
    for family in IpFamily::ALL {
        let iptables = Iptables::new(exec.clone(), backends.programs(family));
        let mut tracker = Tracker::default();
        for event in objects(family) {
            tracker.apply(event);
        }
        let mut planner = Planner::new(contexts(family).remove(0));
        planner.observed(observe(&iptables));
        planner.update_all(&tracker);
        for context in contexts(family) {
            planner.set_context(context, &tracker).unwrap();
            let plan = planner.plan();
            make_sets(&planner);
            iptables.restore(&edits(&planner)).unwrap();
            let outcomes = vec![Outcome::Done; plan.len()];
            planner.report(&plan, &Report { outcomes });
            planner.observed(observe(&iptables));
            let plan = planner.plan();
            let is_setting = |step: &PlanStep| matches!(step, PlanStep::SetSysctl { .. });
            assert!(plan.steps().all(is_setting), "{plan}");
        }
        // All Services are deleted, and with them their chains.
        tracker.apply(Event::ServicesReplaced(vec![]));
        for name in tracker.take().services {
            planner.update(&ServiceView::of(&tracker, &name, family), &tracker);
        }
        let before = observe(&iptables).rules;
        assert!(before.rule_count() > 3_000);
        iptables.restore(&edits(&planner)).unwrap();
        make_sets(&planner);
        assert!(observe(&iptables).sets.is_empty());
        let after = observe(&iptables).rules;
        let left: Vec<&ChainName> = after
            .table(Table::Nat)
            .map(|(chain, _)| chain)
            .filter(|chain| chain.as_str().matches('-').count() > 1)
            .collect();
        let expected: Vec<ChainName> = ["KUBE-MARK-MASQ"]
            .map(|n| ChainName::new(n).unwrap())
            .into();
        assert_eq!(left, expected.iter().collect::<Vec<_>>());
    }
}
