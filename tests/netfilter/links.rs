// SPDX-License-Identifier: Apache-2.0
//! Links and addresses, read back with `ip`.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use kpr_core::model::net::IpFamily;
use kube_proxy_rs::clock::Clock;
use kube_proxy_rs::dataplane::links::{Address, LinkError, Links, Monitor, Scope};
use netlink_pipeline::KernelErrorKind;

use kpr_testkit::isolated::{Need, Test, run};
use kpr_testkit::wait;

use super::sorted;

pub(crate) const TESTS: &[Test] = &[
    (
        "a_dummy_link_is_made_once_and_stays_down",
        DUMMY,
        dummy_link,
    ),
    ("another_link_of_that_name_is_refused", VETH, not_a_dummy),
    ("host_addresses_are_what_ip_lists", DUMMY, host_addresses),
    ("four_thousand_addresses", DUMMY, four_thousand_addresses),
    ("addresses_of_a_link_that_is_gone", DUMMY, link_is_gone),
    ("node_addresses_have_link_and_scope", VETH, node_addresses),
    (
        "default_gateways_are_those_of_ip_route",
        VETH,
        default_gateways,
    ),
    ("changes_of_addresses_are_heard", VETH, changes),
    ("changes_that_were_lost_are_said_so", VETH, lost_changes),
];

const DUMMY: &[Need] = &[Need::Namespaces, Need::Dummy];
const VETH: &[Need] = &[Need::Namespaces, Need::Veth];

const LINK: &str = "kube-ipvs0";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Addresses with their prefix length as `ip` lists them, sorted.
fn ip_lists(link: &str) -> Vec<String> {
    let text = run("ip", &["-o", "address", "show", "dev", link]);
    sorted(
        text.lines()
            .map(|line| line.split_whitespace().nth(3).unwrap().to_owned()),
    )
}

fn as_ip_lists(addresses: &[Address]) -> Vec<String> {
    sorted(
        addresses
            .iter()
            .map(|address| format!("{}/{}", address.ip, address.prefix_len)),
    )
}

fn dummy_link() {
    let mut links = Links::open().unwrap();
    assert_eq!(links.find(LINK).unwrap(), None);
    let link = links.ensure_dummy(LINK).unwrap();
    assert_eq!(links.ensure_dummy(LINK).unwrap(), link);
    assert_eq!(links.find(LINK).unwrap().as_ref(), Some(&link));
    assert!(!link.is_up);
    let text = run("ip", &["-d", "link", "show", LINK]);
    assert!(
        text.contains("state DOWN") && text.contains("NOARP"),
        "{text}"
    );
    assert!(text.contains("dummy"), "{text}");
    assert!(text.starts_with(&format!("{}: ", link.index)), "{text}");

    links.delete_dummy(LINK).unwrap();
    links.delete_dummy(LINK).unwrap();
    assert_eq!(links.find(LINK).unwrap(), None);
}

fn not_a_dummy() {
    run(
        "ip",
        &["link", "add", LINK, "type", "veth", "peer", "other"],
    );
    let error = Links::open().unwrap().ensure_dummy(LINK).unwrap_err();
    assert_eq!(
        error.to_string(),
        "link kube-ipvs0 is of kind veth, not dummy"
    );
    let error = Links::open().unwrap().ensure_dummy("lo").unwrap_err();
    assert!(matches!(error, LinkError::NotDummy { .. }), "{error:?}");
}

fn host_addresses() {
    let mut links = Links::open().unwrap();
    let link = links.ensure_dummy(LINK).unwrap().index;
    run("ip", &["link", "set", "lo", "up"]);
    let wanted = [
        "10.96.0.1",
        "10.96.0.10",
        "192.0.2.1",
        "fd00:96::1",
        "2001:db8::1",
    ]
    .map(ip);
    for _ in 0..2 {
        assert_eq!(links.add_addresses(link, &wanted).unwrap(), []);
        let listed = links.addresses_of(link, None).unwrap();
        assert_eq!(as_ip_lists(&listed), ip_lists(LINK));
        assert_eq!(
            listed
                .iter()
                .map(|address| address.ip)
                .collect::<BTreeSet<_>>(),
            BTreeSet::from(wanted)
        );
        assert!(listed.iter().all(|address| address.is_host()
            && address.link == link
            && address.scope == Scope::Global
            && !address.is_tentative));
    }
    // Only the addresses themselves became reachable.
    assert_eq!(run("ip", &["route"]), "");
    let text = run("ip", &["-6", "address", "show", "dev", LINK]);
    assert!(text.contains("nodad noprefixroute"), "{text}");
    // They are local even though the link is down.
    assert!(run("ip", &["route", "get", "10.96.0.1"]).starts_with("local "));

    let gone = [wanted[0], wanted[3]];
    for _ in 0..2 {
        assert_eq!(links.delete_addresses(link, &gone).unwrap(), []);
        assert_eq!(
            ip_lists(LINK),
            ["10.96.0.10/32", "192.0.2.1/32", "2001:db8::1/128"]
        );
    }
    // Those of the loopback device are not included.
    assert_eq!(
        as_ip_lists(&links.addresses_of(link, None).unwrap()),
        ip_lists(LINK)
    );
}

fn four_thousand_addresses() {
    let mut links = Links::open().unwrap();
    let clock = Clock::system();
    let link = links.ensure_dummy(LINK).unwrap().index;
    let addresses: Vec<IpAddr> = (0..2_000_u16)
        .flat_map(|index| {
            let [high, low] = index.to_be_bytes();
            [
                IpAddr::V4(Ipv4Addr::new(10, 96, high, low)),
                IpAddr::V6(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 1, index)),
            ]
        })
        .collect();
    let before = links.stats();
    let begin = clock.monotonic();
    assert_eq!(links.add_addresses(link, &addresses).unwrap(), []);
    let round_trips = links.stats().round_trips - before.round_trips;
    println!(
        "4,000 addresses: {:?}, {round_trips} round trips",
        clock.monotonic().saturating_sub(begin)
    );
    assert!(
        round_trips < 200,
        "{round_trips} round trips: requests were not pipelined"
    );
    assert_eq!(ip_lists(LINK).len(), 4_000);
    let listed = links.addresses_of(link, None).unwrap();
    assert_eq!(
        sorted(listed.iter().map(|address| address.ip)),
        sorted(addresses.clone())
    );
    assert_eq!(links.delete_addresses(link, &addresses).unwrap(), []);
    assert_eq!(links.addresses_of(link, None).unwrap(), []);
}

fn link_is_gone() {
    let mut links = Links::open().unwrap();
    let link = links.ensure_dummy(LINK).unwrap().index;
    links.delete_dummy(LINK).unwrap();
    assert_eq!(links.addresses_of(link, None).unwrap(), []);
    let addresses = [ip("10.96.0.1"), ip("fd00:96::1")];
    // Deleting from a missing link succeeds, adding to it fails.
    assert_eq!(links.delete_addresses(link, &addresses).unwrap(), []);
    let failures = links.add_addresses(link, &addresses).unwrap();
    assert_eq!(
        failures
            .iter()
            .map(|failure| failure.address)
            .collect::<Vec<_>>(),
        addresses
    );
    assert!(
        failures
            .iter()
            .all(|failure| failure.refusal.kind == KernelErrorKind::NotFound)
    );
}

fn node_addresses() {
    let mut links = Links::open().unwrap();
    assert_eq!(links.addresses().unwrap(), []);
    run("ip", &["link", "set", "lo", "up"]);
    run(
        "ip",
        &["link", "add", "eth0", "type", "veth", "peer", "peer0"],
    );
    run("ip", &["link", "set", "eth0", "up"]);
    run("ip", &["address", "add", "192.0.2.2/24", "dev", "eth0"]);
    run("ip", &["address", "add", "192.0.2.3/24", "dev", "eth0"]);
    run(
        "ip",
        &[
            "address",
            "add",
            "198.51.100.1",
            "peer",
            "198.51.100.2",
            "dev",
            "eth0",
        ],
    );
    run(
        "ip",
        &["address", "add", "2001:db8::2/64", "dev", "eth0", "nodad"],
    );
    run(
        "ip",
        &["address", "add", "fe80::2/64", "dev", "eth0", "nodad"],
    );
    let eth0 = links.find("eth0").unwrap().unwrap();
    let lo = links.find("lo").unwrap().unwrap();
    assert!(lo.is_up);
    let address = |text: &str, prefix_len, link, scope| Address {
        ip: ip(text),
        prefix_len,
        link,
        scope,
        is_tentative: false,
    };
    let wanted = vec![
        address("127.0.0.1", 8, lo.index, Scope::Host),
        address("::1", 128, lo.index, Scope::Host),
        address("192.0.2.2", 24, eth0.index, Scope::Global),
        address("192.0.2.3", 24, eth0.index, Scope::Global),
        address("198.51.100.1", 32, eth0.index, Scope::Global),
        address("2001:db8::2", 64, eth0.index, Scope::Global),
        address("fe80::2", 64, eth0.index, Scope::Link),
    ];
    let mut listed = links.addresses().unwrap();
    // The kernel may add a link-local address.
    listed.retain(|address| address.scope != Scope::Link || address.ip == ip("fe80::2"));
    assert_eq!(sorted(listed), sorted(wanted));
}

fn default_gateways() {
    let mut links = Links::open().unwrap();
    assert!(links.default_gateways(IpFamily::V4).unwrap().is_empty());
    run(
        "ip",
        &["link", "add", "eth0", "type", "veth", "peer", "peer0"],
    );
    for link in ["eth0", "peer0"] {
        run("ip", &["link", "set", link, "up"]);
    }
    run("ip", &["address", "add", "192.0.2.2/24", "dev", "eth0"]);
    run(
        "ip",
        &["address", "add", "2001:db8::2/64", "dev", "eth0", "nodad"],
    );
    run("ip", &["route", "add", "default", "via", "192.0.2.1"]);
    run(
        "ip",
        &["route", "add", "203.0.113.0/24", "via", "192.0.2.9"],
    );
    run(
        "ip",
        &[
            "route",
            "add",
            "default",
            "via",
            "192.0.2.8",
            "table",
            "100",
        ],
    );
    run(
        "ip",
        &["-6", "route", "add", "default", "via", "2001:db8::1"],
    );
    let mut gateways =
        |family| -> Vec<IpAddr> { Vec::from_iter(links.default_gateways(family).unwrap()) };
    assert_eq!(gateways(IpFamily::V4), [ip("192.0.2.1")]);
    assert_eq!(gateways(IpFamily::V6), [ip("2001:db8::1")]);
    run(
        "ip",
        &[
            "route",
            "replace",
            "default",
            "nexthop",
            "via",
            "192.0.2.1",
            "nexthop",
            "via",
            "192.0.2.3",
        ],
    );
    assert_eq!(gateways(IpFamily::V4), [ip("192.0.2.1"), ip("192.0.2.3")]);
}

/// Time limit for an expected change; long enough for a slow machine.
const PATIENCE: Duration = wait::LIMIT;
/// How long to wait for a change that must not happen.
const NOW: Duration = Duration::from_millis(1);

/// Waits until all links were reported, in one change or several: the kernel reports IPv6 addresses
/// later.
fn hear(monitor: &mut Monitor, links: &[u32]) {
    let mut missing: BTreeSet<u32> = links.iter().copied().collect();
    while !missing.is_empty() {
        let change = monitor.wait(PATIENCE).unwrap();
        let change = change.unwrap_or_else(|| panic!("no change of links {missing:?}"));
        assert!(!change.lost);
        missing.retain(|link| !change.links.contains(link));
    }
}

fn changes() {
    run(
        "ip",
        &["link", "add", "eth0", "type", "veth", "peer", "peer0"],
    );
    let mut links = Links::open().unwrap();
    let eth0 = links.find("eth0").unwrap().unwrap().index;
    let peer0 = links.find("peer0").unwrap().unwrap().index;
    let mut monitor = Monitor::open().unwrap();
    assert_eq!(monitor.wait(NOW).unwrap(), None);

    links
        .add_addresses(eth0, &[ip("192.0.2.1"), ip("192.0.2.2")])
        .unwrap();
    let change = monitor.wait(PATIENCE).unwrap().unwrap();
    assert_eq!(change.links, BTreeSet::from([eth0]));
    assert!(!change.lost && !change.concerns_others_than(eth0));
    // Both were reported as one change.
    assert_eq!(monitor.wait(NOW).unwrap(), None);

    links.delete_addresses(eth0, &[ip("192.0.2.1")]).unwrap();
    run(
        "ip",
        &["address", "add", "fd00::1/128", "dev", "peer0", "nodad"],
    );
    hear(&mut monitor, &[eth0, peer0]);
    run("ip", &["link", "delete", "eth0"]);
    hear(&mut monitor, &[eth0, peer0]);
}

/// An overrun of the socket's buffer is reported, not ignored.
fn lost_changes() {
    run(
        "ip",
        &["link", "add", "eth0", "type", "veth", "peer", "peer0"],
    );
    let mut links = Links::open().unwrap();
    let eth0 = links.find("eth0").unwrap().unwrap().index;
    let mut monitor = Monitor::open().unwrap();
    let many: Vec<IpAddr> = (0..5_000_u32)
        .map(|n| IpAddr::from(Ipv4Addr::from(0x0a00_0000 + n)))
        .collect();
    links.add_addresses(eth0, &many).unwrap();
    let change = monitor.wait(PATIENCE).unwrap().unwrap();
    assert!(change.lost, "{change:?}");
    // From here on it receives changes again.
    while monitor.wait(NOW).unwrap().is_some() {}
    links.delete_addresses(eth0, &many[..1]).unwrap();
    hear(&mut monitor, &[eth0]);
}
