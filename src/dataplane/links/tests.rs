// SPDX-License-Identifier: Apache-2.0
use std::net::IpAddr;

use netlink_packet_core::NetlinkBuffer;
use proptest::prelude::*;

use super::*;
use netlink_pipeline::{Reply, Request};

const CAPTURE: &str = include_str!("../../../tests/wire/links.txt");

/// The messages of a command: those that `ip` sent, or those that the kernel answered.
fn captured(command: &str, direction: &str) -> Vec<(u16, u16, Vec<u8>)> {
    let mut messages = Vec::new();
    let mut inside = false;
    for line in CAPTURE.lines() {
        if let Some(text) = line.strip_prefix("$ ") {
            inside = text == command;
        } else if inside && let Some(hex) = line.strip_prefix(direction) {
            let bytes: Vec<u8> = hex
                .split_whitespace()
                .map(|byte| u8::from_str_radix(byte, 16).unwrap())
                .collect();
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let message = NetlinkBuffer::new_checked(rest).unwrap();
                let length = message.length() as usize;
                messages.push((
                    message.message_type(),
                    message.flags(),
                    rest[16..length].to_vec(),
                ));
                rest = rest.get((length + 3) & !3..).unwrap_or_default();
            }
        }
    }
    assert!(!messages.is_empty(), "{command} is not in the capture");
    messages
}

fn replies(command: &str) -> Vec<Reply> {
    captured(command, "< ")
        .into_iter()
        .map(|(kind, _, payload)| Reply { kind, payload })
        .collect()
}

/// `NLM_F_CREATE` and `NLM_F_EXCL`, which say what is asked for. The socket adds the others.
const OPERATION_FLAGS: u16 = 0x0600;
/// `NLM_F_DUMP`, of which one bit means `NLM_F_EXCL` in requests that change something.
const DUMP_FLAGS: u16 = 0x0300;

fn assert_sent(command: &str, request: &Request) {
    let (kind, flags, payload) = captured(command, "> ").remove(0);
    assert_eq!(request.kind, kind, "{command}");
    let is_dump = flags & DUMP_FLAGS == DUMP_FLAGS;
    let operation = if is_dump { 0 } else { flags & OPERATION_FLAGS };
    assert_eq!(request.flags, operation, "{command}");
    assert_eq!(request.payload, payload, "{command}");
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn requests_have_the_bytes_of_ip() {
    assert_sent(
        "ip addr add 10.96.0.1/32 dev va",
        &codec::add_address(3, ip("10.96.0.1")),
    );
    assert_sent(
        "ip addr del 10.96.0.1/32 dev va",
        &codec::delete_address(3, ip("10.96.0.1")),
    );
    assert_sent(
        "ip addr del fd00:96::1/128 dev va",
        &codec::delete_address(3, ip("fd00:96::1")),
    );
    assert_sent("ip addr show dev va", &codec::list_addresses(Some(3), None));
    assert_sent(
        "ip route show table main # default via 192.0.2.1",
        &codec::list_routes(IpFamily::V4),
    );
    assert_sent(
        "ip -6 route show table main # default via 2001:db8::1 dev va",
        &codec::list_routes(IpFamily::V6),
    );
}

#[test]
fn an_ipv6_address_is_added_with_the_flags_of_ip() {
    let (_, _, sent) = captured(
        "ip -6 addr add fd00:96::1/128 dev va nodad noprefixroute",
        "> ",
    )
    .remove(0);
    let request = codec::add_address(3, ip("fd00:96::1"));
    // The order of the attributes differs, which means nothing.
    let sorted = |payload: &[u8]| {
        let mut attributes: Vec<Vec<u8>> = netlink_packet_core::NlasIterator::new(&payload[8..])
            .map(|attribute| attribute.unwrap())
            .map(|attribute| {
                let length = usize::from(attribute.length());
                attribute.into_inner()[..length].to_vec()
            })
            .collect();
        attributes.sort();
        (payload[..8].to_vec(), attributes)
    };
    assert_eq!(sorted(&request.payload), sorted(&sent));
}

#[test]
fn a_dummy_link_is_asked_for_by_name_and_kind() {
    let (_, _, sent) = captured("ip link add kube-ipvs0 type dummy", "> ").remove(0);
    let request = codec::create_dummy("kube-ipvs0");
    let as_reply = |payload: Vec<u8>| {
        codec::link_of(&Reply {
            kind: codec::RTM_NEWLINK,
            payload,
        })
    };
    let link = as_reply(request.payload).unwrap().unwrap();
    assert_eq!(Some(link.clone()), as_reply(sent).unwrap());
    assert_eq!(
        (link.name.as_str(), link.kind.as_deref()),
        ("kube-ipvs0", Some("dummy"))
    );
    assert!(!link.is_up);
}

#[test]
fn a_link_is_read_by_name_kind_and_state() {
    let links: Vec<Link> = replies("ip link show dev va")
        .iter()
        .filter_map(|r| codec::link_of(r).unwrap())
        .collect();
    assert_eq!(
        links,
        [Link {
            index: 3,
            name: "va".into(),
            kind: Some("veth".into()),
            is_up: true,
            alias: None,
        }]
    );
}

#[test]
fn addresses_are_read_with_scope_and_state() {
    let mut addresses: Vec<Address> = replies("ip addr show dev va")
        .iter()
        .filter_map(|reply| codec::address_of(reply).unwrap())
        .collect();
    addresses.retain(|address| address.scope == Scope::Global);
    let expected = |text, prefix_len| Address {
        ip: ip(text),
        prefix_len,
        link: 3,
        scope: Scope::Global,
        is_tentative: false,
    };
    assert_eq!(
        addresses,
        [
            expected("192.0.2.2", 24),
            expected("10.96.0.1", 32),
            expected("fd00:96::1", 128),
        ]
    );
    assert!(addresses[1].is_host() && !addresses[0].is_host());
    let link_local: Vec<Address> = replies("ip addr show dev va")
        .iter()
        .filter_map(|reply| codec::address_of(reply).unwrap())
        .filter(|address| address.scope == Scope::Link)
        .collect();
    assert_eq!(link_local.len(), 1);
    assert!(link_local[0].is_tentative);
}

#[test]
fn gateways_of_default_routes_are_found_one_or_many() {
    let gateways = |command| -> Vec<String> {
        replies(command)
            .iter()
            .flat_map(|reply| codec::gateways_of(reply).unwrap())
            .map(|gateway| gateway.to_string())
            .collect()
    };
    assert_eq!(
        gateways("ip route show table main # default via 192.0.2.1"),
        ["192.0.2.1"]
    );
    assert_eq!(
        gateways(
            "ip route show table main # default nexthop via 192.0.2.1 dev va nexthop via 192.0.2.3 dev va"
        ),
        ["192.0.2.1", "192.0.2.3"]
    );
    assert_eq!(
        gateways("ip -6 route show table main # default via 2001:db8::1 dev va"),
        ["2001:db8::1"]
    );
}

#[test]
fn an_attribute_that_cannot_be_read_does_not_hide_a_link() {
    let mut reply = replies("ip link show dev va").remove(0);
    // IFLA_MTU of one byte, which no parser of numbers takes.
    reply.payload.extend_from_slice(&[5, 0, 4, 0, 1, 0, 0, 0]);
    assert_eq!(codec::link_of(&reply).unwrap().unwrap().name, "va");
}

proptest! {
    #[test]
    fn any_answer_is_read_or_refused(
        kind in prop_oneof![Just(16_u16), Just(20_u16), Just(24_u16)],
        payload in prop::collection::vec(any::<u8>(), 0..120),
    ) {
        let reply = Reply { kind, payload };
        let _link = codec::link_of(&reply);
        let _address = codec::address_of(&reply);
        let _gateways = codec::gateways_of(&reply);
    }

    #[test]
    fn damaged_answers_are_read_or_refused(
        which in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let all: Vec<Reply> = [
            "ip link show dev va",
            "ip addr show dev va",
            "ip route show table main # default nexthop via 192.0.2.1 dev va nexthop via 192.0.2.3 dev va",
            "ip -6 route show table main # default via 2001:db8::1 dev va",
        ]
        .into_iter()
        .flat_map(replies)
        .filter(|reply| !reply.payload.is_empty())
        .collect();
        let mut reply = which.get(&all).clone();
        let at = at.index(reply.payload.len());
        reply.payload[at] = byte;
        let _link = codec::link_of(&reply);
        let _address = codec::address_of(&reply);
        let _gateways = codec::gateways_of(&reply);
    }
}
