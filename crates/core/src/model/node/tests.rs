// SPDX-License-Identifier: Apache-2.0
//! Node addresses, local traffic and node port ranges.

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| ip(text)).collect()
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn cidrs(ranges: &NodePortRanges) -> Vec<IpNet> {
    match &ranges.selection {
        Selection::All => panic!("every address"),
        Selection::Within(cidrs) => cidrs.clone(),
    }
}

fn node_port_addresses(texts: &[&str]) -> NodePortAddresses {
    NodePortAddresses::new(texts.iter().map(|text| text.parse().unwrap()).collect())
}

fn dual_stack_node() -> NodeIps {
    NodeIps::new(&ips(&["192.0.2.5", "2001:db8::5"]), &[], None)
}

#[test]
fn a_node_without_addresses_is_loopback_and_ipv4() {
    let node = NodeIps::new(&[], &[], None);
    assert_eq!(node, NodeIps::default());
    assert_eq!(node.primary_family(), IpFamily::V4);
    assert_eq!(node.ip(IpFamily::V4), ip("127.0.0.1"));
    assert_eq!(node.ip(IpFamily::V6), ip("::1"));
    assert_eq!(node.known_ip(IpFamily::V4), None);
}

#[test]
fn the_first_internal_address_decides_the_primary_family() {
    let node = NodeIps::new(
        &ips(&["2001:db8::5", "192.0.2.5", "192.0.2.6"]),
        &ips(&["198.51.100.1"]),
        None,
    );
    assert_eq!(node.primary_family(), IpFamily::V6);
    assert_eq!(node.ip(IpFamily::V6), ip("2001:db8::5"));
    assert_eq!(node.ip(IpFamily::V4), ip("192.0.2.5"));
}

#[test]
fn external_addresses_fill_a_family_without_internal_ones() {
    let node = NodeIps::new(
        &ips(&["192.0.2.5"]),
        &ips(&["198.51.100.1", "2001:db8::9"]),
        None,
    );
    assert_eq!(node.primary_family(), IpFamily::V4);
    assert_eq!(node.ip(IpFamily::V4), ip("192.0.2.5"));
    assert_eq!(node.ip(IpFamily::V6), ip("2001:db8::9"));
    let external_only = NodeIps::new(&[], &ips(&["2001:db8::9"]), None);
    assert_eq!(external_only.primary_family(), IpFamily::V6);
}

#[test]
fn a_bind_address_replaces_its_family_and_becomes_primary() {
    let node = NodeIps::new(
        &ips(&["192.0.2.5", "2001:db8::5"]),
        &[],
        Some(ip("2001:db8::77")),
    );
    assert_eq!(node.primary_family(), IpFamily::V6);
    assert_eq!(node.ip(IpFamily::V6), ip("2001:db8::77"));
    assert_eq!(node.ip(IpFamily::V4), ip("192.0.2.5"));
}

#[test]
fn an_unspecified_bind_address_changes_nothing() {
    let node = NodeIps::new(&ips(&["192.0.2.5"]), &[], Some(ip("::")));
    assert_eq!(node, NodeIps::new(&ips(&["192.0.2.5"]), &[], None));
}

#[test]
fn the_first_cidr_of_a_family_detects_local_traffic() {
    let cidrs = nets(&["10.244.0.0/16", "fd00:10::/56", "10.0.0.0/8"]);
    let mode = DetectLocal::ClusterCidr(cidrs);
    assert_eq!(
        mode.detector(IpFamily::V4, &[]),
        LocalDetector::Cidr("10.244.0.0/16".parse().unwrap())
    );
    assert_eq!(
        mode.detector(IpFamily::V6, &[]),
        LocalDetector::Cidr("fd00:10::/56".parse().unwrap())
    );
}

#[test]
fn a_family_without_cidr_has_no_detector() {
    let mode = DetectLocal::ClusterCidr(nets(&["10.244.0.0/16"]));
    assert_eq!(
        mode.detector(IpFamily::V6, &nets(&["fd00::/64"])),
        LocalDetector::None
    );
    assert!(!mode.needs_pod_cidrs());
}

#[test]
fn pod_cidrs_of_the_node_detect_local_traffic_in_node_cidr_mode() {
    let pod_cidrs = nets(&["10.244.3.0/24"]);
    assert!(DetectLocal::NodeCidr.needs_pod_cidrs());
    assert_eq!(
        DetectLocal::NodeCidr.detector(IpFamily::V4, &pod_cidrs),
        LocalDetector::Cidr("10.244.3.0/24".parse().unwrap())
    );
    assert_eq!(
        DetectLocal::NodeCidr.detector(IpFamily::V4, &[]),
        LocalDetector::None
    );
}

#[test]
fn interfaces_detect_local_traffic_in_both_families() {
    let bridge: InterfaceName = "cni0".parse().unwrap();
    let prefix: InterfaceName = "veth".parse().unwrap();
    for family in IpFamily::ALL {
        assert_eq!(
            DetectLocal::BridgeInterface(bridge.clone()).detector(family, &[]),
            LocalDetector::BridgeInterface(bridge.clone())
        );
        assert_eq!(
            DetectLocal::InterfaceNamePrefix(prefix.clone()).detector(family, &[]),
            LocalDetector::InterfacePrefix(prefix.clone())
        );
    }
}

#[test]
fn interface_names_have_at_most_15_bytes() {
    assert!("a23456789012345".parse::<InterfaceName>().is_ok());
    for name in [
        "",
        "a234567890123456",
        "a/b",
        "a b",
        ".",
        "..",
        "a\tb",
        "a:b",
        "veth+",
    ] {
        assert_eq!(
            name.parse::<InterfaceName>(),
            Err(InvalidInterfaceName(name.to_owned())),
            "{name:?}"
        );
    }
}

#[test]
fn no_entry_selects_every_address() {
    for family in IpFamily::ALL {
        let ranges = node_port_addresses(&[]).ranges(family, &dual_stack_node());
        assert_eq!(ranges, NodePortRanges::all(family));
        assert!(ranges.matches_all());
        assert!(ranges.contains_loopback());
    }
}

#[test]
fn entries_of_the_other_family_alone_select_every_address() {
    let addresses = node_port_addresses(&["192.0.2.0/24"]);
    assert!(
        addresses
            .ranges(IpFamily::V6, &dual_stack_node())
            .matches_all()
    );
    assert!(
        !addresses
            .ranges(IpFamily::V4, &dual_stack_node())
            .matches_all()
    );
}

#[test]
fn primary_selects_the_node_address_of_each_family() {
    let addresses = node_port_addresses(&["primary"]);
    let v4 = addresses.ranges(IpFamily::V4, &dual_stack_node());
    let v6 = addresses.ranges(IpFamily::V6, &dual_stack_node());
    assert_eq!(cidrs(&v4), nets(&["192.0.2.5/32"]));
    assert_eq!(cidrs(&v6), nets(&["2001:db8::5/128"]));
    assert!(!v4.contains_loopback());
}

#[test]
fn primary_selects_nothing_while_the_node_has_no_address() {
    let ranges = node_port_addresses(&["primary"]).ranges(IpFamily::V4, &NodeIps::default());
    assert!(!ranges.matches_all());
    assert_eq!(cidrs(&ranges), nets(&[]));
    assert!(!ranges.contains(ip("127.0.0.1")));
}

#[test]
fn localhost_selects_loopback_of_each_family() {
    let addresses = node_port_addresses(&["localhost"]);
    let v4 = addresses.ranges(IpFamily::V4, &dual_stack_node());
    assert_eq!(cidrs(&v4), nets(&["127.0.0.0/8"]));
    assert!(v4.contains_loopback());
    let v6 = addresses.ranges(IpFamily::V6, &dual_stack_node());
    assert_eq!(cidrs(&v6), nets(&["::1/128"]));
    assert!(v6.contains_loopback());
}

#[test]
fn all_beats_every_other_entry() {
    for entries in [&["primary", "all"][..], &["192.0.2.0/24", "0.0.0.0/0"]] {
        assert!(
            node_port_addresses(entries)
                .ranges(IpFamily::V4, &dual_stack_node())
                .matches_all(),
            "{entries:?}"
        );
    }
}

#[test]
fn a_zero_length_prefix_speaks_for_its_own_family_only() {
    let addresses = node_port_addresses(&["0.0.0.0/0", "fd00::/64"]);
    assert!(
        addresses
            .ranges(IpFamily::V4, &dual_stack_node())
            .matches_all()
    );
    assert_eq!(
        cidrs(&addresses.ranges(IpFamily::V6, &dual_stack_node())),
        nets(&["fd00::/64"])
    );
}

#[test]
fn part_of_loopback_and_more_than_loopback_contain_loopback() {
    for (entry, expected) in [
        ("127.0.0.1/32", true),
        ("127.0.0.0/8", true),
        ("126.0.0.0/7", true),
        ("64.0.0.0/2", true),
        ("128.0.0.0/8", false),
        ("10.0.0.0/8", false),
    ] {
        let ranges = node_port_addresses(&[entry]).ranges(IpFamily::V4, &dual_stack_node());
        assert_eq!(ranges.contains_loopback(), expected, "{entry}");
    }
}

#[test]
fn node_addresses_in_the_ranges_are_selected_once() {
    let addresses = ips(&[
        "192.0.2.5",
        "10.0.0.1",
        "192.0.2.5",
        "192.0.2.9",
        "2001:db8::5",
    ]);
    let ranges = node_port_addresses(&["192.0.2.0/24", "192.0.2.0/25", "2001:db8::/32"])
        .ranges(IpFamily::V4, &dual_stack_node());
    assert_eq!(
        ranges.select(&addresses).into_iter().collect::<Vec<_>>(),
        ips(&["192.0.2.5", "192.0.2.9"])
    );
    assert_eq!(
        NodePortRanges::all(IpFamily::V6).select(&addresses).len(),
        1
    );
}

#[test]
fn entries_print_as_configured() {
    for text in ["primary", "localhost", "all", "10.0.0.0/8"] {
        assert_eq!(text.parse::<NodePortAddress>().unwrap().to_string(), text);
    }
    assert!("Primary".parse::<NodePortAddress>().is_err());
}
