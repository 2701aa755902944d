// SPDX-License-Identifier: Apache-2.0

use std::collections::BTreeSet;
use std::net::SocketAddr;

use netlink_packet_core::NetlinkBuffer;
use proptest::prelude::*;

use super::*;
use crate::dataplane::flows::delete_stale;
use kpr_core::model::testing::{endpoint, service, service_name, slice, tracker};
use kpr_core::model::{IpFamily, Protocol, ServiceView};
use kpr_core::plan::conntrack::flows::{Cleanup, Flows};
use netlink_pipeline::scripted::{Header, Scripted, done, message, verdict};
use netlink_pipeline::{KernelErrorKind, Request};

const CAPTURE: &str = include_str!("../../../tests/wire/conntrack.txt");

/// The messages of a command: those that `conntrack` sent, or those that the kernel answered.
fn captured(command: &str, direction: &str) -> Vec<Request> {
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
                messages.push(Request {
                    kind: message.message_type(),
                    flags: message.flags(),
                    payload: rest[16..length].to_vec(),
                });
                rest = rest.get((length + 3) & !3..).unwrap_or_default();
            }
        }
    }
    assert!(!messages.is_empty(), "{command} is not in the capture");
    messages
}

/// What a listing says of UDP flows.
fn listed(command: &str) -> Vec<Entry> {
    captured(command, "< ")
        .iter()
        .filter_map(|reply| codec::entry_of(reply.kind, &reply.payload).unwrap())
        .collect()
}

#[test]
fn flows_are_read_and_others_are_not() {
    let flows = |command| -> Vec<(SocketAddr, SocketAddr)> {
        let entries = listed(command).into_iter();
        entries.map(|e| (e.destination, e.reply_source)).collect()
    };
    let flow = |destination: &str, reply_source: &str| {
        (destination.parse().unwrap(), reply_source.parse().unwrap())
    };
    // The TCP connection is not in it.
    assert_eq!(
        flows("conntrack -L"),
        [
            flow("127.0.0.1:99", "127.0.0.1:99"),
            flow("[fd00:96::a]:53", "[fd00:244::9]:5353"),
            flow("10.96.0.10:53", "10.244.0.9:5353"),
        ]
    );
    assert_eq!(
        flows("conntrack -L -f ipv6"),
        [flow("[fd00:96::a]:53", "[fd00:244::9]:5353")]
    );
}

#[test]
fn first_request_counts_flows() {
    let [sent] = &captured("conntrack -C", "> ")[..] else {
        panic!("one request")
    };
    let ours = codec::count().unwrap();
    assert_eq!((ours.kind, &ours.payload), (sent.kind, &sent.payload));
}

#[test]
fn deletions_begin_like_those_of_the_tool_and_name_the_flow_by_its_id() {
    for (command, listing, family, tuple_len, rest) in [
        (
            "conntrack -D -p udp --orig-dst 10.96.0.10",
            "conntrack -L",
            IpFamily::V4,
            52,
            8,
        ),
        (
            "conntrack -D -f ipv6 -p udp",
            "conntrack -L -f ipv6",
            IpFamily::V6,
            76,
            8,
        ),
        // With its zone.
        (
            "conntrack -D -p udp -w 7",
            "conntrack -L",
            IpFamily::V4,
            52,
            16,
        ),
    ] {
        let sent = captured(command, "> ").pop().unwrap();
        // `nfgenmsg` and the tuple of the original direction.
        let begin = &sent.payload[..4 + tuple_len];
        let ours: Vec<Request> = listed(listing)
            .iter()
            .map(|entry| codec::delete(family, entry).unwrap())
            .collect();
        let same = ours.iter().find(|ours| ours.payload.starts_with(begin));
        let same = same.unwrap_or_else(|| panic!("{command}: {ours:?}"));
        assert_eq!(same.kind, sent.kind, "{command}");
        assert_eq!(same.payload.len(), begin.len() + rest, "{command}");
    }
}

#[test]
fn filters_say_which_parts_count() {
    let filter = EntryFilter {
        address: Some("10.96.0.10".parse().unwrap()),
        port: Some(53),
    };
    let list = |filter: &EntryFilter| codec::list(IpFamily::V4, filter).unwrap().payload;
    #[rustfmt::skip]
    let expected = [
        2, 0, 0, 0,
        // CTA_TUPLE_ORIG: CTA_TUPLE_IP (destination), CTA_TUPLE_PROTO (number, destination port)
        36, 0, 1, 0x80, 12, 0, 1, 0x80, 8, 0, 2, 0, 10, 96, 0, 10,
        20, 0, 2, 0x80, 5, 0, 1, 0, 17, 0, 0, 0, 6, 0, 3, 0, 0, 53, 0, 0,
        // CTA_FILTER: CTA_FILTER_ORIG_FLAGS
        12, 0, 25, 0x80, 8, 0, 1, 0, 0b10_1010, 0, 0, 0,
    ];
    assert_eq!(list(&filter), expected);
    // Of IPv6 only the port: the kernel would list all other addresses.
    let six = EntryFilter {
        address: Some("fd00:96::a".parse().unwrap()),
        port: Some(53),
    };
    let port_alone = EntryFilter {
        address: None,
        ..six
    };
    let asked = |filter| codec::list(IpFamily::V6, filter).unwrap().payload;
    assert_eq!(asked(&six), asked(&port_alone));
    assert_eq!(asked(&six)[4..28], list(&port_alone)[4..28]);
    assert_eq!(
        list(&EntryFilter::default())[4..],
        [
            16, 0, 1, 0x80, 12, 0, 2, 0x80, 5, 0, 1, 0, 17, 0, 0, 0, //
            12, 0, 25, 0x80, 8, 0, 1, 0, 0b1000, 0, 0, 0,
        ]
    );
}

#[test]
fn connections_of_any_protocol_are_read_for_people() {
    let shown = |command| -> Vec<Connection> {
        captured(command, "< ")
            .iter()
            .filter_map(|reply| connection::read(reply.kind, &reply.payload).unwrap())
            .collect()
    };
    let all = shown("conntrack -L");
    let dns = all
        .iter()
        .find(|it| it.destination.to_string() == "10.96.0.10:53");
    let dns = dns.unwrap();
    assert_eq!(dns.answerer.to_string(), "10.244.0.9:5353");
    assert_eq!(dns.reply_to, dns.client);
    assert_eq!(
        (dns.protocol, dns.state, dns.is_answered),
        (Protocol::Udp, None, false)
    );
    assert!(
        dns.seconds_left.is_some_and(|seconds| seconds <= 30),
        "{dns:?}"
    );
    let web = all.iter().find(|it| it.protocol == Protocol::Tcp).unwrap();
    assert_eq!(web.destination.to_string(), "127.0.0.1:8080");
    assert!(web.state.is_some() && web.is_answered, "{web:?}");
    let zones: Vec<_> = all.iter().map(|it| it.zone).collect();
    assert!(
        zones.contains(&Some(7)) && zones.contains(&None),
        "{zones:?}"
    );
    let six = shown("conntrack -L -f ipv6");
    let ends = |it: &Connection| (it.destination.to_string(), it.answerer.to_string());
    let wanted = (
        "[fd00:96::a]:53".to_owned(),
        "[fd00:244::9]:5353".to_owned(),
    );
    assert_eq!(six.iter().map(ends).collect::<Vec<_>>(), [wanted]);
}

#[test]
fn a_kernel_that_ignores_filters_shows_the_same_connections() {
    let wanted = Wanted {
        destination: "10.96.0.10:53".parse().unwrap(),
        protocol: Protocol::Udp,
        client: None,
    };
    let script = Scripted::default()
        .then(counted)
        .then(everything)
        .then(everything)
        .then(everything);
    let (_script, mut client) = client(script);
    let mut found = |wanted: Wanted| {
        let mut found = Vec::new();
        let mut each = |connection: Connection| found.push(connection.client);
        client.connections_to(&wanted, &mut each).unwrap();
        found
    };
    let clients = found(wanted);
    assert_eq!(clients.len(), 1);
    let of = |client| found_of(wanted, client);
    assert_eq!(found(of(clients[0].ip())), clients);
    assert_eq!(found(of("192.0.2.99".parse().unwrap())), []);
}

fn found_of(wanted: Wanted, client: std::net::IpAddr) -> Wanted {
    Wanted {
        client: Some(client),
        ..wanted
    }
}

#[test]
fn the_kernel_is_asked_for_connections_to_one_place() {
    let wanted = Wanted {
        destination: "10.96.0.10:80".parse().unwrap(),
        protocol: Protocol::Tcp,
        client: Some("192.0.2.7".parse().unwrap()),
    };
    #[rustfmt::skip]
    let expected = [
        2, 0, 0, 0,
        // CTA_TUPLE_ORIG: CTA_TUPLE_IP (source, destination), CTA_TUPLE_PROTO (number, port)
        44, 0, 1, 0x80, 20, 0, 1, 0x80, 8, 0, 1, 0, 192, 0, 2, 7, 8, 0, 2, 0, 10, 96, 0, 10,
        20, 0, 2, 0x80, 5, 0, 1, 0, 6, 0, 0, 0, 6, 0, 3, 0, 0, 80, 0, 0,
        // CTA_FILTER: CTA_FILTER_ORIG_FLAGS
        12, 0, 25, 0x80, 8, 0, 1, 0, 0b10_1011, 0, 0, 0,
    ];
    assert_eq!(wanted.request().unwrap().payload, expected);
}

/// DNS at 10.96.0.10 without endpoints, at a node port too: two filters.
fn cleanup() -> Cleanup {
    let dns = service("ns/dns")
        .cluster_ips(&["10.96.0.10"])
        .named_port("dns", Protocol::Udp, 53)
        .node_port(30_053);
    let slice = slice("ns/dns", "a", vec![endpoint("10.1.0.1")]);
    let tracker = tracker(vec![dns], vec![slice.named_port("dns", Protocol::Udp, 53)]);
    let mut flows = Flows::new(IpFamily::V4, BTreeSet::new());
    flows.update(&ServiceView::of(
        &tracker,
        &service_name("ns/dns"),
        IpFamily::V4,
    ));
    flows.due().unwrap()
}

fn client(script: Scripted) -> (Scripted, Client) {
    let client = Client::over(script.socket()).unwrap();
    (script, client)
}

fn counted(sent: &[Header]) -> Vec<std::io::Result<Vec<u8>>> {
    vec![Ok(verdict(sent[0].sequence, 0))]
}

/// The flows of the captured listing, whatever is asked for.
fn everything(sent: &[Header]) -> Vec<std::io::Result<Vec<u8>>> {
    let sequence = sent[0].sequence;
    let mut answers: Vec<_> = captured("conntrack -L", "< ")
        .iter()
        .filter(|reply| reply.kind == 0x100)
        .map(|reply| Ok(message(reply.kind, 2, sequence, &reply.payload)))
        .collect();
    answers.push(Ok(done(sequence, 2)));
    answers
}

fn nothing(sent: &[Header]) -> Vec<std::io::Result<Vec<u8>>> {
    vec![Ok(done(sent[0].sequence, 2))]
}

#[test]
fn kernel_that_ignores_filters_is_asked_for_everything_from_then_on() {
    let script = Scripted::default()
        .then(counted)
        .then(everything)
        .then(nothing)
        .then(everything)
        .then(counted)
        .then(everything)
        .then(counted);
    let (script, mut client) = client(script);
    assert_eq!(delete_stale(&mut client, &cleanup()).unwrap(), 1);
    assert_eq!(delete_stale(&mut client, &cleanup()).unwrap(), 1);
    let kinds: Vec<Vec<u16>> = script
        .headers()
        .iter()
        .map(|sent| sent.iter().map(|(kind, ..)| *kind).collect())
        .collect();
    assert_eq!(
        kinds,
        [
            [0x105],
            [0x101],
            [0x101],
            [0x101],
            [0x102],
            [0x101],
            [0x102]
        ]
    );
}

#[test]
fn kernel_that_filters_is_asked_for_each_port() {
    let script = Scripted::default()
        .then(counted)
        .then(nothing)
        .then(nothing);
    let (script, mut client) = client(script);
    assert_eq!(delete_stale(&mut client, &cleanup()).unwrap(), 0);
    assert_eq!(script.headers().len(), 3);
}

#[test]
fn flow_that_ended_meanwhile_is_no_failure_and_a_refused_deletion_is_one() {
    let (_, mut gone) = client(
        Scripted::default()
            .then(counted)
            .then(everything)
            .then(nothing)
            .then(everything)
            .then(|sent| vec![Ok(verdict(sent[0].sequence, libc::ENOENT))]),
    );
    assert_eq!(delete_stale(&mut gone, &cleanup()).unwrap(), 0);
    let (_, mut refusing) = client(
        Scripted::default()
            .then(counted)
            .then(everything)
            .then(nothing)
            .then(everything)
            .then(|sent| vec![Ok(verdict(sent[0].sequence, libc::EPERM))]),
    );
    let error = delete_stale(&mut refusing, &cleanup()).unwrap_err();
    assert!(
        matches!(&error, Error::Refused { failed: 1, deleted: 0, source }
            if source.kind == KernelErrorKind::Permission),
        "{error:?}"
    );
}

#[test]
fn kernel_without_ctnetlink_is_detected_at_once() {
    let script = Scripted::default().then(|sent| vec![Ok(verdict(sent[0].sequence, libc::EINVAL))]);
    let error = Client::over(script.socket()).unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
    assert!(error.to_string().contains("nf_conntrack_netlink"));
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_a_panic(
        kind in prop_oneof![Just(0x100_u16), any::<u16>()],
        payload in proptest::collection::vec(any::<u8>(), 0..96),
    ) {
        drop(codec::entry_of(kind, &payload));
        drop(connection::read(kind, &payload));
    }

    #[test]
    fn damaged_answers_are_read_without_a_panic(
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        length in any::<prop::sample::Index>(),
    ) {
        for reply in captured("conntrack -L", "< ") {
            let mut payload = reply.payload;
            let at = at.index(payload.len());
            payload[at] = byte;
            drop(codec::entry_of(reply.kind, &payload));
            drop(connection::read(reply.kind, &payload));
            payload.truncate(length.index(payload.len()));
            drop(codec::entry_of(reply.kind, &payload));
            drop(connection::read(reply.kind, &payload));
        }
    }
}
