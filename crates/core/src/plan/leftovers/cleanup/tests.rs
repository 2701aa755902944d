// SPDX-License-Identifier: Apache-2.0
use std::sync::Arc;

use super::*;
use crate::model::testing::{endpoint, ip, service, slice, tracker};
use crate::model::{Protocol, Tracker};
use crate::plan::Step as _;
use crate::plan::iptables;
use crate::plan::ipvs::object::VirtualServer;
use crate::plan::ipvs::set::{SetType, node_ports_of_kube_proxy};
use crate::plan::ipvs::state::SetState;
use crate::plan::ipvs::state::VirtualServerState;
use crate::plan::mode::Planner as _;
use crate::plan::testing::fake::{FakeKernel, in_iptables_mode};
use crate::plan::testing::{Proxy, context, tcp, udp, vs};

/// One Service of every kind.
fn objects() -> Tracker {
    let web = service("ns/web")
        .cluster_ips(&["10.96.0.1", "fd00:96::1"])
        .port(80)
        .node_port(30_080)
        .external_ip("203.0.113.1")
        .vip("198.51.100.1")
        .source_range("192.0.2.0/24")
        .external_local()
        .affinity(10);
    let more = (2..60).map(|n| {
        service(&format!("ns/more{n}"))
            .cluster_ips(&[&format!("10.96.0.{n}"), &format!("fd00:96::{n}")])
            .named_port("dns", Protocol::Udp, 53)
            .node_port(30_100 + n)
    });
    let endpoints = vec![endpoint("10.1.0.1").local(), endpoint("10.1.0.2")];
    tracker(
        [web].into_iter().chain(more).collect(),
        vec![slice("ns/web", "a", endpoints).port(8080)],
    )
}

/// Foreign rules, as printed by `iptables-save`.
const FOREIGN: &str = "*mangle
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
*nat
:OUTPUT ACCEPT [0:0]
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-MARK-DROP - [0:0]
-A POSTROUTING -s 10.0.0.0/8 -j MASQUERADE
-A KUBE-MARK-DROP -j MARK --set-xmark 0x8000/0x8000
COMMIT
*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-FIREWALL - [0:0]
-A INPUT -j KUBE-FIREWALL
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment \"block incoming localnet connections\" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
COMMIT
";

fn server() -> VirtualServerState {
    VirtualServerState {
        server: VirtualServer {
            scheduler: "wlc".into(),
            flags: 0,
            timeout: 0,
            netmask: 32,
        },
        real_servers: Arc::default(),
    }
}

fn foreign() -> State {
    let mut state = State {
        rules: Ruleset::parse(FOREIGN).unwrap(),
        ..State::default()
    };
    let mark = VirtualServerKey::Mark {
        mark: 7,
        family: IpFamily::V4,
    };
    for key in [
        tcp("203.0.113.99:99"),
        // At an address of the node, and foreign.
        tcp("192.168.0.10:80"),
        mark,
    ] {
        state.virtual_servers.insert(key, server());
    }
    state
}

fn facts(family: IpFamily) -> Facts {
    Facts {
        node_addresses: context(family).node_addresses,
        exclude_cidrs: Vec::new(),
        node_port_range: None,
    }
}

fn after_ipvs_mode(state: State, family: IpFamily) -> State {
    let mut proxy = Proxy::start(context(family), objects(), state);
    let plan = proxy.planner.plan();
    assert!(proxy.kernel.apply(&plan).is_success());
    proxy.kernel.state
}

fn after_iptables_mode(mut state: State, family: IpFamily) -> State {
    let mut planner = iptables::Planner::new(context(family));
    planner.update_all(&objects());
    in_iptables_mode(&mut state, |kernel| {
        planner.observed(kernel.state.clone());
        let report = kernel.apply(&planner.plan());
        assert!(report.is_success(), "{report:?}");
    });
    state
}

/// Runs the plans in the order of the program.
fn clean(kernel: &mut FakeKernel<State>, family: IpFamily) -> Vec<String> {
    let observed = kernel.state.clone();
    let apply = |kernel: &mut FakeKernel<State>, plan: &Plan| {
        let report = kernel.apply(plan);
        assert!(report.is_success(), "{report:?}\n{plan}");
    };
    apply(kernel, &servers(&observed, &facts(family)));
    let (plan, obstacles) = rules(&(&observed).into(), family);
    in_iptables_mode(&mut kernel.state, |kernel| {
        let sets = client_sets(&kernel.state.sets);
        for plan in [plan, sets] {
            let report = kernel.apply(&plan);
            assert!(report.is_success(), "{report:?}\n{plan}");
        }
    });
    apply(kernel, &sets(&observed, family, &obstacles));
    obstacles.iter().map(ToString::to_string).collect()
}

/// Sysctls and timeouts are not restored.
fn assert_is(mut found: State, before: &State) {
    found.node = before.node.clone();
    // A built-in chain without rules need not be present.
    let filled = |state: &State| {
        let mut state = state.clone();
        state
            .rules
            .chains
            .retain(|(table, chain), rules| !table.has_built_in(chain) || !rules.is_empty());
        state
    };
    assert_eq!(filled(&found), filled(before));
}

#[test]
fn after_any_mode_nothing_is_left_and_foreign_objects_are() {
    for family in IpFamily::ALL {
        for before in [State::default(), foreign()] {
            let only_ipvs = after_ipvs_mode(before.clone(), family);
            let only_iptables = after_iptables_mode(before.clone(), family);
            let to_ipvs = after_ipvs_mode(only_iptables.clone(), family);
            let to_iptables = after_iptables_mode(only_ipvs.clone(), family);
            let after_nftables_mode = State {
                has_nftables_table: true,
                ..before.clone()
            };
            for state in [
                only_ipvs,
                only_iptables,
                to_ipvs,
                to_iptables,
                after_nftables_mode,
            ] {
                let mut kernel = FakeKernel::new(state);
                assert_eq!(clean(&mut kernel, family), [""; 0]);
                assert_is(kernel.state.clone(), &before);
                // A second run finds nothing to do.
                let cleaned = kernel.state.clone();
                assert!(servers(&cleaned, &facts(family)).is_empty());
                assert!(rules(&(&cleaned).into(), family).0.is_empty());
                assert!(sets(&cleaned, family, &[]).is_empty());
            }
        }
    }
}

#[test]
fn what_the_sets_list_is_ours_when_the_link_is_gone() {
    let mut state = after_ipvs_mode(State::default(), IpFamily::V4);
    state.apply(&Step::DeleteLink).unwrap();
    // A Service's address that is also the node's is not on the link.
    let name = SetId::ExternalIp.name(IpFamily::V4);
    let entry = SetEntry::IpPort(ip("192.168.0.10"), Protocol::Tcp, 443);
    state.apply(&Step::AddEntry { set: name, entry }).unwrap();
    state
        .virtual_servers
        .insert(tcp("192.168.0.10:443"), server());
    let mut kernel = FakeKernel::new(state);
    clean(&mut kernel, IpFamily::V4);
    assert_eq!(kernel.state.virtual_servers.len(), 0);
}

#[test]
fn without_sets_a_node_port_shows_by_its_range() {
    let mut state = State::default();
    for key in [
        tcp("192.168.0.10:30080"),
        udp("172.16.0.10:32767"),
        vs(Protocol::Sctp, "192.168.0.10:30080"),
        tcp("192.168.0.10:32768"),
        tcp("192.168.0.11:30080"),
    ] {
        state.virtual_servers.insert(key, server());
    }
    let said = Facts {
        node_port_range: Some("30000-32767".parse().unwrap()),
        ..facts(IpFamily::V4)
    };
    let steps = |state: &State| servers(state, &said).to_string();
    assert_eq!(steps(&state), "");
    state.node.link_exists = true;
    // The range is the cluster's: none is assumed.
    let unsaid = servers(&state, &facts(IpFamily::V4)).to_string();
    assert_eq!(unsaid, "delete link kube-ipvs0\n");
    assert_eq!(
        steps(&state),
        "delete link kube-ipvs0\n\
         delete virtual server UDP 172.16.0.10:32767\n\
         delete virtual server TCP 192.168.0.10:30080\n\
         delete virtual server SCTP 192.168.0.10:30080\n"
    );
    // A set is better evidence.
    let set = SetState {
        set_type: SetType::BitmapPort,
        max_entries: 65_536,
        entries: BTreeSet::from([SetEntry::Port(30_081)]),
    };
    let name = node_ports_of_kube_proxy(Protocol::Tcp, IpFamily::V4);
    state.sets.insert(name.clone(), set);
    assert!(!steps(&state).contains("delete virtual server TCP"));
    let set = state.sets.get_mut(&name).unwrap();
    set.entries.insert(SetEntry::Port(30_080));
    assert!(steps(&state).contains("delete virtual server TCP 192.168.0.10:30080"));
    // The same for our set.
    state.sets.remove(&name);
    let set = SetState {
        set_type: SetType::HashIpPort,
        max_entries: 65_536,
        entries: BTreeSet::new(),
    };
    state.sets.insert(SetId::NodePort.name(IpFamily::V4), set);
    assert!(!steps(&state).contains("delete virtual server TCP"));
}

#[test]
fn excluded_addresses_are_foreign() {
    let mut state = State::default();
    state.node.link_exists = true;
    state.addresses.insert(ip("203.0.113.1"));
    state
        .virtual_servers
        .insert(tcp("203.0.113.1:80"), server());
    let facts = Facts {
        exclude_cidrs: vec!["203.0.113.0/24".parse().unwrap()],
        ..Facts::default()
    };
    assert_eq!(
        servers(&state, &facts).to_string(),
        "delete link kube-ipvs0\n"
    );
}

#[test]
fn chain_and_set_in_use_are_named_and_the_rest_goes() {
    let mut state = after_ipvs_mode(State::default(), IpFamily::V4);
    let foreign = Ruleset::parse(
        "*filter\n:MINE - [0:0]\n-A MINE -m set --match-set KUBE-CLUSTER-IP dst,dst -j KUBE-FORWARD\nCOMMIT\n",
    )
    .unwrap();
    state.rules.chains.extend(foreign.chains.clone());
    let mut kernel = FakeKernel::new(state);
    let obstacles = clean(&mut kernel, IpFamily::V4);
    assert_eq!(
        obstacles,
        [
            "chain filter/KUBE-FORWARD is used by a rule of chain filter/MINE",
            "set KUBE-CLUSTER-IP is used by a rule of chain filter/MINE",
        ]
    );
    let mut left = foreign;
    let chain = ChainName::new("KUBE-FORWARD").unwrap();
    left.set(Table::Filter, chain, Vec::new());
    let chains = kernel.state.rules.chains.iter();
    let kept = chains.filter(|((table, chain), _)| !table.has_built_in(chain));
    assert!(kept.eq(left.chains.iter()));
    let sets: Vec<&str> = kernel.state.sets.keys().map(SetName::as_str).collect();
    assert_eq!(sets, ["KUBE-CLUSTER-IP"]);
}

#[test]
fn loopback_is_closed_before_the_rule_that_guards_it_goes() {
    let state = after_iptables_mode(State::default(), IpFamily::V4);
    assert_eq!(state.node.sysctls[ROUTE_LOCALNET], "1");
    let (plan, _) = rules(&(&state).into(), IpFamily::V4);
    let kinds: Vec<&str> = plan.steps().map(iptables::Step::kind).collect();
    assert_eq!(kinds, ["set-sysctl", "edit-rules", "edit-rules"]);

    // Where it cannot be unset the guard stays.
    let mut kernel = FakeKernel::new(iptables::State::from(&state));
    let is_setting = |step: &iptables::Step| matches!(step, iptables::Step::SetSysctl { .. });
    let refused = crate::plan::testing::fake::Fault::Refused;
    kernel.apply_with(&plan, |step| is_setting(step).then_some(refused));
    let chains: Vec<String> = kernel
        .state
        .rules
        .chains
        .keys()
        .filter(|(table, chain)| !table.has_built_in(chain))
        .map(|(table, chain)| format!("{table}/{chain}"))
        .collect();
    assert_eq!(chains, ["filter/KUBE-FIREWALL"]);

    // With kubelet on the node, the rule is also kubelet's.
    let mut with_kubelet = state;
    let canary = ChainName::new("KUBE-KUBELET-CANARY").unwrap();
    with_kubelet.rules.set(Table::Mangle, canary, Vec::new());
    let (plan, _) = rules(&(&with_kubelet).into(), IpFamily::V4);
    let kinds: Vec<&str> = plan.steps().map(iptables::Step::kind).collect();
    assert_eq!(kinds, ["edit-rules"]);
}
