// SPDX-License-Identifier: Apache-2.0
//! Plans: any order of changes has the same result as a fresh start.

use std::collections::BTreeSet;

use proptest::prelude::*;

use crate::model::testing::{endpoint, endpoint_at, ip, service, service_name, slice, tracker};
use crate::model::{EndpointSlice, Event, IpFamily, Protocol, Service, SliceName};
use crate::plan::Context;
use crate::plan::iptables::step::Step;
use crate::plan::iptables::tests::proxy::{Proxy, name};
use crate::plan::iptables::{Plan, State};
use crate::plan::mode::Planner as _;
use crate::plan::ruleset::RuleBatch;
use crate::plan::ruleset::{Edit, Rule, Ruleset, Table};
use crate::plan::testing::context;
use crate::plan::testing::fake::Fault;

fn edits(plan: &Plan) -> Vec<&Edit> {
    plan.steps()
        .filter_map(|step| match step {
            Step::EditRules(RuleBatch { edits, .. }) => Some(edits),
            _ => None,
        })
        .flatten()
        .collect()
}

fn some_service(n: usize, shape: u8, family: IpFamily) -> Service {
    let [high, low] = u16::try_from(n).unwrap().to_be_bytes();
    let web = service(&format!("ns/web{n}"))
        .cluster_ips(&[&format!("10.96.{high}.{low}"), &format!("fd00:96::{n:x}")])
        .named_port("http", Protocol::Tcp, 80);
    // Some external addresses are claimed by several.
    let (shared, range) = match family {
        IpFamily::V4 => (format!("203.0.113.{}", n % 3), "192.0.2.0/24"),
        IpFamily::V6 => (format!("2001:db8::{}", n % 3), "2001:db8:1::/64"),
    };
    match shape % 8 {
        0 => web,
        1 => web.node_port(30_000 + u16::from(low)),
        2 => web.external_ip(&shared).external_local(),
        3 => web.vip(&shared).source_range(range),
        4 => web.affinity(10 + u64::from(shape & 8)).internal_local(),
        // Others are another Service's cluster IP.
        5 => web
            .named_port("dns", Protocol::Udp, 53)
            .external_ip(match family {
                IpFamily::V4 => "10.96.0.1",
                IpFamily::V6 => "fd00:96::1",
            }),
        6 => web
            .vip(&shared)
            .external_local()
            .node_port(31_000)
            .health_check(32_000),
        _ => web.created(5).external_ip(&shared),
    }
}

fn some_slice(n: usize, endpoints: usize, shape: u8, family: IpFamily) -> EndpointSlice {
    let endpoints = (0..endpoints)
        .map(|e| {
            let endpoint = match family {
                IpFamily::V4 => endpoint(&format!("10.1.{}.{e}", n % 5)),
                IpFamily::V6 => endpoint(&format!("fd00:1::{}:{e}", n % 5)),
            };
            match shape.wrapping_add(u8::try_from(e).unwrap()) % 4 {
                0 => endpoint.local(),
                1 => endpoint.terminating(),
                2 => endpoint.unready(),
                _ => endpoint,
            }
        })
        .collect();
    slice(&format!("ns/web{n}"), "a", endpoints)
        .named_port("http", Protocol::Tcp, 8080)
        .named_port("dns", Protocol::Udp, 5353)
}

#[derive(Clone, Debug)]
pub(super) enum Change {
    Service(usize, u8),
    NoService(usize),
    Slice(usize, usize, u8),
    NoSlice(usize),
    Node(u8),
}

impl Change {
    pub(super) fn event(&self, family: IpFamily) -> Option<Event> {
        Some(match *self {
            Self::Service(n, shape) => Event::ServiceApplied(some_service(n, shape, family)),
            Self::NoService(n) => Event::ServiceDeleted(service_name(&format!("ns/web{n}"))),
            Self::Slice(n, endpoints, shape) => {
                Event::SliceApplied(some_slice(n, endpoints, shape, family))
            }
            Self::NoSlice(n) => Event::SliceDeleted(SliceName {
                namespace: "ns".into(),
                name: format!("web{n}-a").into(),
            }),
            Self::Node(_) => return None,
        })
    }
}

/// A node as it may become while the proxy runs.
pub(super) fn some_node(family: IpFamily, shape: u8) -> Context {
    let mut node = context(family);
    let (pods, address) = match family {
        IpFamily::V4 => ("10.1.1.0/24", "192.168.0.77"),
        IpFamily::V6 => ("fd00:1::1:0/112", "fd00:192::77"),
    };
    if shape & 1 != 0 {
        node.zone = None;
    }
    if shape & 2 != 0 {
        node.local_detector = crate::model::node::LocalDetector::Cidr(pods.parse().unwrap());
    }
    if shape & 4 != 0 {
        node.node_ip = Some(ip(address));
    }
    if shape & 8 != 0 {
        node.node_port_addresses = BTreeSet::from([ip(address)]);
    }
    node.iptables.node_ports_everywhere = false;
    node.iptables.memory.has_sets = shape & 16 == 0;
    node
}

pub(super) fn changes() -> impl Strategy<Value = Vec<Change>> {
    let n = 0_usize..40;
    let change = prop_oneof![
        4 => (n.clone(), any::<u8>()).prop_map(|(n, shape)| Change::Service(n, shape)),
        1 => n.clone().prop_map(Change::NoService),
        4 => (n.clone(), 0_usize..40, any::<u8>()).prop_map(|(n, e, s)| Change::Slice(n, e, s)),
        1 => n.prop_map(Change::NoSlice),
        1 => any::<u8>().prop_map(Change::Node),
    ];
    prop::collection::vec(change, 1..60)
}

/// All rules that a fresh start on an empty kernel writes.
pub(super) fn fresh(context: Context, proxy: &Proxy) -> Ruleset {
    fresh_state(context, proxy).rules
}

/// The same with sets.
fn fresh_state(context: Context, proxy: &Proxy) -> State {
    let tracker = tracker(
        proxy.tracker.services().cloned().collect(),
        proxy.tracker.slices().cloned().collect(),
    );
    let mut fresh = Proxy::start(context, tracker, Ruleset::new());
    fresh.sync();
    fresh.kernel.state
}

/// The sets with their time-outs. Their sizes depend on the past.
pub(super) fn timeouts(state: &State) -> Vec<(&str, Option<u32>)> {
    let sets = state.sets.iter();
    sets.map(|(set, state)| (set.as_str(), state.timeout))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_order_of_changes_is_a_fresh_start(
        changes in changes(),
        every in 1_usize..20,
        is_v6 in any::<bool>(),
    ) {
        let family = if is_v6 { IpFamily::V6 } else { IpFamily::V4 };
        let mut node = some_node(family, 0);
        let mut proxy = Proxy::start(node.clone(), tracker(vec![], vec![]), Ruleset::new());
        proxy.sync();
        for part in changes.chunks(every) {
            proxy.take_in(part.iter().filter_map(|change| change.event(family)));
            for change in part {
                if let Change::Node(shape) = change {
                    node = some_node(family, *shape);
                    proxy.planner.set_context(node.clone(), &proxy.tracker).unwrap();
                }
            }
            proxy.sync();
        }
        let expected = fresh_state(node.clone(), &proxy);
        let found = proxy.kernel.state;
        prop_assert_eq!(&found.rules, &expected.rules);
        prop_assert_eq!(timeouts(&found), timeouts(&expected));
        // A restart finds nothing to do.
        let again = tracker(
            proxy.tracker.services().cloned().collect(),
            proxy.tracker.slices().cloned().collect(),
        );
        let restarted = Proxy::over(node, again, found);
        let plan = restarted.planner.plan();
        prop_assert!(plan.is_empty(), "{plan}");
    }

    #[test]
    fn chains_stay_short(changes in changes()) {
        let mut proxy = Proxy::start(context(IpFamily::V4), tracker(vec![], vec![]), Ruleset::new());
        proxy.take_in(changes.iter().filter_map(|change| change.event(IpFamily::V4)));
        proxy.sync();
        for ((_, chain), rules) in &proxy.kernel.state.rules.chains {
            // Affinity needs a rule for each endpoint's clients.
            let is_affinity = rules.iter().any(|rule| rule.as_str().contains("-m set"));
            prop_assert!(is_affinity || rules.len() <= 32, "{chain}: {}", rules.len());
        }
    }
}

fn many(services: usize, endpoints: usize) -> Proxy {
    let (mut all, mut slices) = (Vec::new(), Vec::new());
    for n in 0..services {
        all.push(some_service(n, 0, IpFamily::V4));
        let endpoints = (0..endpoints)
            .map(|e| {
                let at = u32::try_from(n * endpoints + e).unwrap();
                endpoint_at(std::net::Ipv4Addr::from_bits(0x0a80_0000 + at).into())
            })
            .collect();
        slices.push(slice(&format!("ns/web{n}"), "a", endpoints).named_port(
            "http",
            Protocol::Tcp,
            8080,
        ));
    }
    let detected = Context {
        local_detector: crate::model::node::LocalDetector::Cidr("10.128.0.0/9".parse().unwrap()),
        ..context(IpFamily::V4)
    };
    Proxy::start(detected, tracker(all, slices), Ruleset::new())
}

#[test]
fn five_thousand_services_have_few_rules() {
    let mut proxy = many(5_000, 10);
    let plan = proxy.planner.plan();
    let rules: usize = edits(&plan)
        .into_iter()
        .map(|edit| match edit {
            Edit::Replace { rules, .. } => rules.len(),
            _ => 1,
        })
        .sum();
    assert!((60_000..=65_000).contains(&rules), "{rules}");
    // The fake kernel would take too long to check all of them.
    let done = crate::plan::Outcome::Done;
    let outcomes = vec![done; plan.len()];
    proxy
        .planner
        .report(&plan, &crate::plan::Report { outcomes });
    assert!(proxy.planner.plan().is_empty());
    // One more Service changes its own chain and the one that jumps to it.
    let slice = slice("ns/new", "a", vec![endpoint("10.1.0.1")]).port(8080);
    let new = service("ns/new").cluster_ips(&["10.96.64.1"]).port(80);
    proxy.take_in([Event::ServiceApplied(new), Event::SliceApplied(slice)]);
    let plan = proxy.planner.plan();
    let changed: BTreeSet<_> = edits(&plan)
        .iter()
        .map(|edit| edit.chain().clone())
        .collect();
    assert!(changed.len() <= 3, "{changed:?}");
    assert_eq!(plan.len(), 1, "one batch");
}

#[test]
fn chains_of_kube_proxy_are_adopted() {
    let tracker = tracker(
        vec![service("ns/web").port(80)],
        vec![slice("ns/web", "a", vec![endpoint("10.1.0.1")]).port(8080)],
    );
    let mut found = Ruleset::new();
    let jump = Rule::new("-m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES");
    let foreign = Rule::new("-p tcp -j CNI-HOSTPORT");
    found.set(
        Table::Nat,
        name("PREROUTING"),
        vec![foreign.clone(), jump.clone()],
    );
    found.set(
        Table::Nat,
        name("KUBE-SERVICES"),
        vec![Rule::new("-d 10.96.0.9/32 -j KUBE-SVC-OLD")],
    );
    found.set(
        Table::Nat,
        name("KUBE-SVC-OLD"),
        vec![Rule::new("-j KUBE-SEP-OLD")],
    );
    found.set(Table::Nat, name("KUBE-SEP-OLD"), vec![]);
    found.set(Table::Nat, name("CNI-HOSTPORT"), vec![]);
    let kubelet = Rule::new("-j KUBELET");
    found.set(Table::Filter, name("KUBE-FIREWALL"), vec![kubelet.clone()]);
    found.set(Table::Mangle, name("KUBE-KUBELET-CANARY"), vec![]);
    let mut proxy = Proxy::start(context(IpFamily::V4), tracker, found);
    proxy.sync();
    let rules = &proxy.kernel.state.rules;
    for gone in ["KUBE-SVC-OLD", "KUBE-SEP-OLD"] {
        assert_eq!(rules.rules(Table::Nat, &name(gone)), None);
    }
    assert!(rules.rules(Table::Nat, &name("CNI-HOSTPORT")).is_some());
    assert!(
        rules
            .rules(Table::Mangle, &name("KUBE-KUBELET-CANARY"))
            .is_some()
    );
    assert_eq!(
        rules.rules(Table::Nat, &name("PREROUTING")).unwrap(),
        [foreign, jump],
        "a jump is left where it is"
    );
    let shared = rules.rules(Table::Filter, &name("KUBE-FIREWALL")).unwrap();
    assert_eq!((shared.len(), &shared[0]), (2, &kubelet));
}

#[test]
fn deleted_rules_come_back_and_nothing_else_is_written() {
    let mut proxy = many(50, 2);
    proxy.sync();
    let rules = &mut proxy.kernel.state.rules.chains;
    rules
        .get_mut(&(Table::Nat, name("PREROUTING")))
        .unwrap()
        .clear();
    rules
        .get_mut(&(Table::Filter, name("KUBE-FORWARD")))
        .unwrap()
        .pop();
    proxy.planner.observed(proxy.kernel.state.clone());
    let plan = proxy.sync();
    let written: Vec<String> = edits(&plan).iter().map(ToString::to_string).collect();
    assert_eq!(
        written,
        [
            "replace chain filter/KUBE-FORWARD with 3 rules",
            "prepend to nat/PREROUTING: -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES",
        ]
    );
}

#[test]
fn older_service_has_a_contested_address() {
    let claim = |name: &str, at: &str, created| {
        service(name)
            .cluster_ips(&[at])
            .port(80)
            .external_ip("203.0.113.1")
            .created(created)
    };
    let to = |name: &str| slice(name, "a", vec![endpoint("10.1.0.1")]).port(8080);
    let tracker = tracker(
        vec![
            claim("ns/a", "10.96.0.1", 20),
            claim("ns/b", "10.96.0.2", 10),
        ],
        vec![to("ns/a"), to("ns/b")],
    );
    let mut proxy = Proxy::start(context(IpFamily::V4), tracker, Ruleset::new());
    proxy.sync();
    let external = |proxy: &Proxy| -> Vec<String> {
        let rules = proxy.rules(Table::Nat, "KUBE-SERVICES").into_iter();
        rules
            .filter(|rule| rule.contains("203.0.113.1"))
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(external(&proxy).len(), 1);
    assert!(external(&proxy)[0].contains("ns/b external IP"));
    assert_eq!(proxy.planner.conflicts().len(), 1);
    // Without endpoints it still has it.
    proxy.take_in([Event::SlicesReplaced(vec![to("ns/a")])]);
    proxy.sync();
    assert!(external(&proxy).is_empty());
    proxy.take_in([Event::ServiceDeleted(service_name("ns/b"))]);
    proxy.sync();
    assert!(external(&proxy)[0].contains("ns/a external IP"));
}

#[test]
fn a_cluster_ip_goes_before_external_addresses_of_older_services() {
    let to = |name: &str| slice(name, "a", vec![endpoint("10.1.0.1")]).port(8080);
    for created in [20, 10] {
        let other = service("ns/a")
            .cluster_ips(&["10.96.0.1"])
            .port(80)
            .external_ip("10.96.0.2")
            .created(created);
        let theirs = service("ns/b")
            .cluster_ips(&["10.96.0.2"])
            .port(80)
            .created(20);
        let tracker = tracker(vec![other.clone(), theirs], vec![to("ns/a"), to("ns/b")]);
        let mut proxy = Proxy::start(context(IpFamily::V4), tracker, Ruleset::new());
        proxy.sync();
        let answering = |proxy: &Proxy| -> Vec<String> {
            let rules = proxy.rules(Table::Nat, "KUBE-SERVICES").into_iter();
            rules
                .filter(|rule| rule.contains("-d 10.96.0.2/32"))
                .map(str::to_owned)
                .collect()
        };
        let rules = answering(&proxy);
        assert!(
            rules.len() == 1 && rules[0].contains("ns/b cluster IP"),
            "{rules:?}"
        );
        // The address passes to the other Service once it is no longer a cluster IP.
        let moved = service("ns/b")
            .cluster_ips(&["10.96.0.3"])
            .port(80)
            .created(20);
        proxy.take_in([Event::ServiceApplied(moved)]);
        proxy.sync();
        let rules = answering(&proxy);
        assert!(
            rules.len() == 1 && rules[0].contains("ns/a external IP"),
            "{rules:?}"
        );
    }
}

#[test]
fn comments_of_endpoints_go_in_a_large_cluster() {
    let mut proxy = many(10, 100);
    proxy.sync();
    let with_comment = |proxy: &Proxy| {
        let rules = proxy.kernel.state.rules.chains.values().flatten();
        rules.filter(|rule| rule.as_str().contains(" -> ")).count()
    };
    assert_eq!(with_comment(&proxy), 1_000);
    let one_more =
        slice("ns/web0", "b", vec![endpoint("10.1.0.1")]).named_port("http", Protocol::Tcp, 8080);
    proxy.take_in([Event::SliceApplied(one_more)]);
    proxy.sync();
    assert_eq!(with_comment(&proxy), 0);
    assert_eq!(
        proxy.kernel.state.rules,
        fresh(proxy.planner.context().clone(), &proxy)
    );
}

#[test]
fn another_node_address_rewrites_only_what_names_it() {
    let mut proxy = many(30, 3);
    proxy.sync();
    let mut context = proxy.planner.context().clone();
    context.iptables.node_ports_everywhere = false;
    context.node_port_addresses = BTreeSet::from([ip("192.168.0.77")]);
    proxy.planner.set_context(context, &proxy.tracker).unwrap();
    let plan = proxy.sync();
    let changed: Vec<&str> = edits(&plan)
        .iter()
        .map(|edit| edit.chain().as_str())
        .collect();
    let named = ["KUBE-NODE-ADDRESSES", "KUBE-SERVICES"];
    let refused = ["KUBE-NODE-ADDRESSES", "KUBE-EXTERNAL-SERVICES"];
    let changed: BTreeSet<&str> = changed.into_iter().collect();
    assert_eq!(changed, named.into_iter().chain(refused).collect());
}

#[test]
fn many_node_addresses_make_no_long_chain() {
    let mut context = context(IpFamily::V4);
    context.iptables.node_ports_everywhere = false;
    context.node_port_addresses = (0..=255).map(|n| ip(&format!("172.16.0.{n}"))).collect();
    let mut proxy = many(60, 3);
    proxy.planner.set_context(context, &proxy.tracker).unwrap();
    proxy.sync();
    let chains = &proxy.kernel.state.rules.chains;
    let longest = chains.values().map(Vec::len).max();
    assert!(longest <= Some(32), "{longest:?}");
    // Where all addresses accept node ports, no address rules remain.
    proxy
        .planner
        .set_context(self::context(IpFamily::V4), &proxy.tracker)
        .unwrap();
    proxy.sync();
    assert_eq!(
        proxy.kernel.state.rules,
        fresh(proxy.planner.context().clone(), &proxy)
    );
}

#[test]
fn the_table_of_nftables_mode_goes_when_ours_serve() {
    let tracker = tracker(
        vec![service("ns/web").cluster_ips(&["10.96.0.1"]).port(80)],
        vec![slice("ns/web", "a", vec![endpoint("10.1.0.1")]).port(8080)],
    );
    let mut proxy = Proxy::start(context(IpFamily::V4), tracker, Ruleset::new());
    proxy.kernel.state.settings.has_nftables_table = true;
    proxy.planner.observed(proxy.kernel.state.clone());
    let is_edit = |step: &Step| matches!(step, Step::EditRules(_));
    proxy.try_sync(|step| is_edit(step).then_some(Fault::Refused));
    assert!(proxy.kernel.state.settings.has_nftables_table);
    while proxy.planner.is_pending() {
        proxy.try_sync(|_| None);
    }
    assert!(!proxy.kernel.state.settings.has_nftables_table);
    assert!(!proxy.rules(Table::Nat, "KUBE-SERVICES").is_empty());
    assert!(proxy.sync().is_empty());
}
