// SPDX-License-Identifier: Apache-2.0
use super::*;
use crate::model::testing::{endpoint, ip, service, slice, tracker};
use crate::model::{Protocol, Tracker};
use crate::plan::iptables;
use crate::plan::mode::Planner as _;
use crate::plan::testing::fake::{FakeKernel, in_iptables_mode};
use crate::plan::testing::{Proxy, context, rs, tcp, udp};

fn objects() -> Tracker {
    let endpoints = || vec![endpoint("10.1.0.1").local(), endpoint("10.1.0.2")];
    tracker(
        vec![
            service("ns/web")
                .cluster_ips(&["10.96.0.1"])
                .port(80)
                .node_port(30_080),
            service("ns/dns")
                .cluster_ips(&["10.96.0.2"])
                .named_port("dns", Protocol::Udp, 53),
        ],
        vec![
            slice("ns/web", "a", endpoints()).port(8080),
            slice("ns/dns", "a", endpoints()).named_port("dns", Protocol::Udp, 5353),
        ],
    )
}

/// IPVS mode, followed by the first round of iptables mode.
fn switched() -> FakeKernel<State> {
    let context = context(IpFamily::V4);
    let mut proxy = Proxy::start(context.clone(), objects(), State::default());
    proxy.sync();
    let mut planner = iptables::Planner::new(context);
    planner.update_all(&objects());
    in_iptables_mode(&mut proxy.kernel.state, |kernel| {
        planner.observed(kernel.state.clone());
        assert!(kernel.apply(&planner.plan()).is_success());
    });
    proxy.kernel
}

fn facts() -> Facts {
    Facts {
        node_addresses: context(IpFamily::V4).node_addresses,
        exclude_cidrs: Vec::new(),
        node_port_range: None,
    }
}

/// One attempt on the kernel; these real servers have connections.
fn look(kernel: &mut FakeKernel<State>, busy: &[RealServerOf]) -> Plan {
    let state = kernel.state.clone();
    let mut idle = candidates(&state, &facts());
    idle.retain(|server| !busy.contains(server));
    let plan = steps(&state, IpFamily::V4, &facts(), &idle);
    let report = kernel.apply(&plan);
    assert!(report.is_success(), "{report:?}\n{plan}");
    plan
}

fn is_guarded(kernel: &FakeKernel<State>) -> bool {
    let (table, name) = GUARD;
    let chain = ChainName::new(name).unwrap();
    let refusal = [static_rules::refusal(IpFamily::V4)];
    kernel.state.rules.rules(table, &chain) == Some(&refusal[..])
}

#[test]
fn what_has_connections_stays_with_weight_0_until_they_end() {
    let mut kernel = switched();
    let web = (tcp("10.96.0.1:80"), rs("10.1.0.1:8080"));
    let dns = (udp("10.96.0.2:53"), rs("10.1.0.2:5353"));
    look(&mut kernel, &[web, dns]);
    let left = &kernel.state.virtual_servers;
    assert!(
        left.keys()
            .eq([&web.0, &dns.0].iter().copied().collect::<BTreeSet<_>>())
    );
    for (vs, server) in [web, dns] {
        let servers: Vec<_> = left[&vs]
            .real_servers
            .iter()
            .map(|(k, s)| (*k, s.weight))
            .collect();
        assert_eq!(servers, [(server, 0)]);
    }
    assert_eq!(
        kernel.state.addresses,
        BTreeSet::from([ip("10.96.0.1"), ip("10.96.0.2")])
    );
    assert!(is_guarded(&kernel));
    // A second attempt on the same state changes nothing.
    assert!(look(&mut kernel, &[web, dns]).is_empty());

    look(&mut kernel, &[web]);
    assert_eq!(kernel.state.addresses, BTreeSet::from([ip("10.96.0.1")]));
    let set = &kernel.state.sets[&SetId::IpvsIps.name(IpFamily::V4)];
    assert_eq!(set.entries, BTreeSet::from([SetEntry::Ip(ip("10.96.0.1"))]));

    look(&mut kernel, &[]);
    assert!(kernel.state.addresses.is_empty());
    assert!(is_guarded(&kernel));
    look(&mut kernel, &[]);
    let both = BTreeMap::from([
        (IpFamily::V4, kernel.state.clone()),
        (IpFamily::V6, State::default()),
    ]);
    kernel.apply(&link(&both));
    assert!(!is_due(&kernel.state, &facts()));
}

#[test]
fn in_the_end_nothing_of_ipvs_mode_is_left() {
    let mut kernel = switched();
    for _ in 0..2 {
        look(&mut kernel, &[]);
    }
    let of_ipvs = |state: &State| {
        let ids = state.rules.chains.keys();
        ids.filter(|id| Modes::of(id) == Some(Modes::Ipvs)).count()
    };
    assert_eq!(of_ipvs(&kernel.state), 0);
    assert!(stale_rules::foreign_jumps(&kernel.state.rules, Modes::Ipvs).is_empty());
    assert!(kernel.state.sets.is_empty());
    // Objects that serve are untouched.
    assert!(stale_rules::serves(&kernel.state.rules));
    assert!(look(&mut kernel, &[]).is_empty());
}

#[test]
fn the_link_waits_for_both_families() {
    let mut kernel = switched();
    look(&mut kernel, &[]);
    let mut other = State::default();
    other.node.link_exists = true;
    other.addresses.insert(ip("fd00:96::1"));
    let both = BTreeMap::from([(IpFamily::V4, kernel.state.clone()), (IpFamily::V6, other)]);
    assert!(link(&both).is_empty());
}
