// SPDX-License-Identifier: Apache-2.0
//! Sizes of sets and the order of phases.

use super::*;
use crate::model::testing::{endpoint_at, ip, service, service_name, slice, tracker};
use crate::model::{Budget, Event, IpFamily, Protocol, SliceEndpoint};
use crate::plan::Step as _;
use crate::plan::testing::{Proxy, context};

/// Local endpoints: each is an entry of `KUBE-LOOP-BACK`.
fn endpoints(range: std::ops::Range<u32>) -> Vec<SliceEndpoint> {
    let at = |n| std::net::Ipv4Addr::from_bits(0x0a00_0000 + n);
    range.map(|n| endpoint_at(at(n).into()).local()).collect()
}

fn serving(range: std::ops::Range<u32>) -> Proxy {
    let slice = slice("ns/web", "a", endpoints(range)).port(8080);
    let tracker = tracker(vec![service("ns/web").port(80)], vec![slice]);
    let mut context = context(IpFamily::V4);
    context.budget = Budget::UNLIMITED;
    let mut proxy = Proxy::start(context, tracker, State::default());
    proxy.sync();
    proxy
}

fn serve(proxy: &mut Proxy, range: std::ops::Range<u32>) -> Plan {
    let slice = slice("ns/web", "a", endpoints(range)).port(8080);
    proxy.take_in([Event::SliceApplied(slice)]);
    proxy.sync()
}

fn count_of(plan: &Plan, kind: &str) -> usize {
    plan.steps().filter(|step| step.kind() == kind).count()
}

fn loop_back(proxy: &Proxy) -> (u32, usize) {
    let set = &proxy.kernel.state.sets[&SetId::LoopBack.name(IpFamily::V4)];
    (set.max_entries, set.entries.len())
}

#[test]
fn a_set_keeps_its_size_while_it_suffices() {
    let mut proxy = serving(0..65_535);
    assert_eq!(loop_back(&proxy), (65_536, 65_535));
    let plan = serve(&mut proxy, 0..65_536);
    assert_eq!(
        (count_of(&plan, "swap-sets"), count_of(&plan, "add-entry")),
        (0, 1)
    );
    assert_eq!(loop_back(&proxy), (65_536, 65_536));
}

#[test]
fn a_full_set_is_replaced_in_one_step() {
    let mut proxy = serving(0..65_536);
    let plan = serve(&mut proxy, 0..65_537);
    assert_eq!(count_of(&plan, "create-set"), 1);
    assert_eq!(count_of(&plan, "add-entry"), 65_537);
    assert_eq!(count_of(&plan, "swap-sets"), 1);
    assert_eq!(count_of(&plan, "destroy-set"), 1);
    assert_eq!(loop_back(&proxy), (131_072, 65_537));
    // The next change is a small one again.
    let plan = serve(&mut proxy, 0..65_538);
    assert_eq!(count_of(&plan, "add-entry"), 1);
    assert!(proxy.restarted().sync().is_empty());
}

#[test]
fn there_is_room_for_old_and_new_entries_at_once() {
    let mut proxy = serving(0..65_000);
    // 64,000 stay, 1,000 are deleted and 1,000 added: for a moment there are 66,000.
    let plan = serve(&mut proxy, 1_000..66_000);
    assert_eq!(count_of(&plan, "swap-sets"), 1);
    assert_eq!(count_of(&plan, "delete-entry"), 0);
    assert_eq!(loop_back(&proxy), (131_072, 65_000));
}

#[test]
fn a_set_is_made_as_large_as_it_must_be() {
    let proxy = serving(0..70_000);
    assert_eq!(loop_back(&proxy), (131_072, 70_000));
}

#[test]
fn a_replacement_that_was_cut_short_is_removed_first() {
    let mut proxy = serving(0..2);
    let name = SetId::LoopBack.name(IpFamily::V4);
    let state = &mut proxy.kernel.state;
    let left_over = state.sets[&name].clone();
    state.sets.insert(name.replacement(), left_over);
    state.sets.get_mut(&name).unwrap().max_entries = 1;
    state.sets.get_mut(&name).unwrap().entries.clear();
    proxy.observe();
    let plan = proxy.sync();
    let steps: Vec<_> = plan.steps().map(ToString::to_string).collect();
    assert_eq!(
        steps,
        [
            "destroy set KUBE-LOOP-BACK-n",
            "create set KUBE-LOOP-BACK-n hash:ip,port,ip IPv4 maxelem 65536",
            "add entry KUBE-LOOP-BACK-n 10.0.0.0,tcp:8080,10.0.0.0",
            "add entry KUBE-LOOP-BACK-n 10.0.0.1,tcp:8080,10.0.0.1",
            "swap sets KUBE-LOOP-BACK-n KUBE-LOOP-BACK",
            "destroy set KUBE-LOOP-BACK-n",
        ]
    );
}

#[test]
fn names_of_sets_and_replacements_differ() {
    for family in IpFamily::ALL {
        let names = SetId::ALL.map(|id| id.name(family));
        let all: BTreeSet<SetName> = names
            .iter()
            .cloned()
            .chain(names.iter().map(SetName::replacement))
            .collect();
        assert_eq!(all.len(), 2 * SetId::ALL.len());
        assert!(all.iter().all(|name| name.as_str().len() <= 31));
    }
}

#[test]
fn making_comes_before_breaking() {
    let vip = |name: &str, vip: &str| service(name).port(80).vip(vip).source_range("10.0.0.0/8");
    let slice = slice("ns/web", "a", endpoints(0..1)).port(8080);
    let tracker = tracker(vec![vip("ns/web", "198.51.100.1").affinity(5)], vec![slice]);
    let mut proxy = Proxy::start(context(IpFamily::V4), tracker, State::default());
    proxy.sync();
    proxy.take_in([Event::ServiceApplied(vip("ns/web", "198.51.100.2"))]);
    let plan = proxy.sync();
    let steps: Vec<_> = plan.steps().map(ToString::to_string).collect();
    assert_eq!(
        steps,
        [
            "add entry KUBE-LOAD-BALANCER-SOURCE-CIDR 198.51.100.2,tcp:80,10.0.0.0/8",
            "add entry KUBE-LOAD-BALANCER-FW 198.51.100.2,tcp:80",
            "add entry KUBE-LOAD-BALANCER 198.51.100.2,tcp:80",
            "add entry KUBE-IPVS-IPS 198.51.100.2",
            "set virtual server TCP 10.96.0.1:80 scheduler rr",
            "add virtual server TCP 198.51.100.2:80 scheduler rr",
            "add real server TCP 198.51.100.2:80 -> 10.0.0.0:8080 weight 1 masquerade",
            "add address 198.51.100.2 to kube-ipvs0",
            "delete entry KUBE-LOAD-BALANCER 198.51.100.1,tcp:80",
            "delete entry KUBE-LOAD-BALANCER-FW 198.51.100.1,tcp:80",
            "delete entry KUBE-LOAD-BALANCER-SOURCE-CIDR 198.51.100.1,tcp:80,10.0.0.0/8",
            "set real server TCP 198.51.100.1:80 -> 10.0.0.0:8080 weight 0 masquerade",
        ]
    );
}

#[test]
fn the_two_lists_of_sets_agree() {
    let order: Vec<SetId> = SetId::ALL
        .into_iter()
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    assert_eq!(order, SetId::ALL);
    assert!(ip("0.0.0.0") < ip("::"));
    assert!(SetEntry::FIRST < SetEntry::Port(0));
}

#[test]
fn what_shows_that_a_server_is_ours_outlives_it() {
    let slice = slice("ns/dns", "a", vec![endpoint_at(ip("10.0.1.1")).local()]);
    let slice = slice.named_port("", Protocol::Udp, 53);
    let dns = service("ns/dns").named_port("", Protocol::Udp, 53);
    let dns = dns.node_port(30_053).vip("198.51.100.1").external_local();
    let tracker = tracker(vec![dns], vec![slice]);
    let mut proxy = Proxy::start(context(IpFamily::V4), tracker, State::default());
    proxy.sync();
    proxy.take_in([Event::ServiceDeleted(service_name("ns/dns"))]);
    let plan = proxy.sync();
    let last_of = |phase| plan.phases().iter().rposition(|(of, _)| *of == phase);
    let first_entry = plan.phases().iter().position(|(_, step)| {
        let text = step.to_string();
        text.contains("KUBE-NODE-PORT-HASH") || text.contains("KUBE-LOCAL-POLICY-MARK")
    });
    assert!(first_entry.is_some());
    assert!(last_of(Phase::OldServers) < first_entry, "{plan}");
}
