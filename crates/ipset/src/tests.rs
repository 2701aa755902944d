// SPDX-License-Identifier: Apache-2.0
use std::collections::{BTreeSet, VecDeque};
use std::io;

use ipnet::IpNet;
use proptest::prelude::*;

use super::*;
use crate::IpFamily;
use netlink_pipeline::attribute::ListAttribute as _;
use netlink_pipeline::attribute::{Unknown, Writer};
use netlink_pipeline::{Socket, Transport};

const CAPTURE: &str = include_str!("wire/ipset.txt");

/// Request datagrams of the capture with the kernel's answers, in order.
fn captured() -> Vec<(String, Vec<u8>, Vec<Vec<u8>>)> {
    let mut exchanges = Vec::new();
    let mut command = String::new();
    for line in CAPTURE.lines() {
        let bytes = |hex: &str| -> Vec<u8> {
            hex.split(' ')
                .map(|byte| u8::from_str_radix(byte, 16).unwrap())
                .collect()
        };
        if let Some(text) = line.strip_prefix("$ ") {
            command = text.to_owned();
        } else if let Some(hex) = line.strip_prefix("> ") {
            exchanges.push((command.clone(), bytes(hex), Vec::new()));
        } else if let Some(hex) = line.strip_prefix("< ") {
            exchanges.last_mut().unwrap().2.push(bytes(hex));
        }
    }
    exchanges
}

/// The kernel of the capture: knows the answers to the requests that `ipset` sent, refuses all
/// others.
#[derive(Debug, Default)]
struct CapturedKernel {
    answers: VecDeque<Vec<u8>>,
}

impl Transport for CapturedKernel {
    fn send(&mut self, datagram: &[u8]) -> io::Result<()> {
        // Type and content. Flags differ where ipset asks for an ACK of a dump, and where it
        // numbers lists of entries it gives the request the number of the first.
        let identity = |datagram: &[u8]| {
            let kind = u16::from_le_bytes([datagram[4], datagram[5]]);
            let mut message = Message::parse(kind, &datagram[16..]).unwrap();
            for attribute in &mut message.attributes {
                if let Attribute::LineNo(line) = attribute {
                    *line = 0;
                }
            }
            (kind, message.payload().unwrap())
        };
        let (_, _, answers) = captured()
            .into_iter()
            .find(|(_, request, _)| identity(request) == identity(datagram))
            .ok_or_else(|| io::Error::other(format!("ipset never sent {datagram:02x?}")))?;
        let only_data = answers.iter().all(|answer| answer[4..6] != [2, 0]);
        let ended = answers.iter().any(|answer| answer[4..6] == [3, 0]);
        for mut answer in answers {
            answer[8..12].copy_from_slice(&datagram[8..12]);
            self.answers.push_back(answer);
        }
        if only_data && !ended {
            // ipset asks for no ACK there, we do.
            let mut ack = vec![36, 0, 0, 0, 2, 0, 0, 1];
            ack.extend_from_slice(&datagram[8..12]);
            ack.extend_from_slice(&[0; 8]);
            ack.extend_from_slice(&datagram[..16]);
            self.answers.push_back(ack);
        }
        Ok(())
    }

    fn receive(&mut self, buffer: &mut Vec<u8>) -> io::Result<()> {
        *buffer = self.answers.pop_front().ok_or(io::ErrorKind::WouldBlock)?;
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        self.answers.clear();
        Ok(())
    }

    fn queue_limit(&self) -> usize {
        1 << 20
    }
}

fn client() -> Client {
    Client::over(Socket::over(Box::new(CapturedKernel::default()))).unwrap()
}

fn name(text: &str) -> SetName {
    SetName::new(text).unwrap()
}

fn ip_port(ip: &str, protocol: u8, port: u16) -> Entry {
    Entry::IpPort {
        ip: ip.parse().unwrap(),
        protocol,
        port,
    }
}

fn net_entry(net: &str) -> Entry {
    Entry::IpPortNet {
        ip: "fd00::1".parse().unwrap(),
        protocol: 17,
        port: 53,
        net: net.parse().unwrap(),
    }
}

#[test]
fn sets_are_created_with_the_bytes_of_ipset() {
    let mut client = client();
    assert_eq!(
        client.protocol(),
        Protocol {
            version: 7,
            kernel: 7
        }
    );
    let hash = |text, set_type, family| SetSpec::hash(name(text), set_type, family);
    let mut marked = hash("M", HashType::IpPort, IpFamily::V4);
    if let SetShape::Hash { skbinfo, .. } = &mut marked.shape {
        *skbinfo = true;
    }
    let mut timed = hash("T", HashType::Ip, IpFamily::V4);
    if let SetShape::Hash {
        hashsize, timeout, ..
    } = &mut timed.shape
    {
        *hashsize = 4096;
        *timeout = Some(10_800);
    }
    for spec in [
        hash("KUBE-CLUSTER-IP", HashType::IpPort, IpFamily::V4),
        SetSpec::bitmap_port(name("P")),
        hash("N6", HashType::IpPortNet, IpFamily::V6),
        hash("I", HashType::Ip, IpFamily::V4),
        hash("L", HashType::IpPortIp, IpFamily::V4),
        marked,
        timed,
    ] {
        client
            .create(&spec)
            .unwrap_or_else(|error| panic!("{spec}: {error:?}"));
    }
}

#[test]
fn entries_are_added_and_deleted_with_the_bytes_of_ipset() {
    let mut client = client();
    let none = Vec::new();
    let cluster_ips = [ip_port("10.96.0.1", 6, 443), ip_port("10.96.0.10", 17, 53)];
    let marks = [
        SetEntry {
            entry: ip_port("10.0.0.1", 6, 80),
            mark: Some(SkbMark {
                mark: 0x10,
                mask: 0xff,
            }),
            timeout: None,
        },
        SetEntry {
            entry: ip_port("10.0.0.2", 6, 80),
            mark: Some(SkbMark {
                mark: 0x4000,
                mask: u32::MAX,
            }),
            timeout: None,
        },
    ];
    let timed = [("10.0.0.1", 77), ("10.0.0.2", 10_800)].map(|(ip, seconds)| SetEntry {
        timeout: Some(seconds),
        ..Entry::Ip(ip.parse().unwrap()).into()
    });
    let loop_backs = [
        Entry::IpPortIp {
            ip: "10.0.0.1".parse().unwrap(),
            protocol: 132,
            port: 80,
            ip2: "10.0.0.2".parse().unwrap(),
        },
        Entry::IpPortIp {
            ip: "10.0.0.2".parse().unwrap(),
            protocol: 6,
            port: 80,
            ip2: "10.0.0.2".parse().unwrap(),
        },
    ];
    let ips = ["10.0.0.1", "10.0.0.2"].map(|ip| Entry::Ip(ip.parse().unwrap()));
    for (set, entries) in [
        ("KUBE-CLUSTER-IP", cluster_ips.map(SetEntry::from)),
        (
            "N6",
            [net_entry("fd01::/64"), net_entry("fd01::7/128")].map(SetEntry::from),
        ),
        (
            "P",
            [Entry::Port(30080), Entry::Port(30443)].map(SetEntry::from),
        ),
        ("I", ips.map(SetEntry::from)),
        ("L", loop_backs.map(SetEntry::from)),
        ("M", marks),
        ("T", timed),
    ] {
        assert_eq!(client.add(&name(set), &entries).unwrap(), none, "{set}");
    }
    let gone = [ip_port("10.96.0.1", 6, 443), ip_port("10.96.0.9", 17, 53)];
    assert_eq!(
        client.delete(&name("KUBE-CLUSTER-IP"), &gone).unwrap(),
        none
    );
}

#[test]
fn a_refused_entry_is_named_and_the_rest_is_sent_again() {
    let mut client = client();
    let entries = [
        net_entry("fd01::8/128"),
        net_entry("::/0"),
        net_entry("fd01::9/128"),
    ]
    .map(SetEntry::from);
    // The kernel of the capture does not know the second message, which has the third entry alone.
    let error = client.add(&name("N6"), &entries).unwrap_err();
    assert!(matches!(&error, Error::Netlink(_)), "{error:?}");
    // With nothing behind the refused one it is a result.
    let (_, _, answers) = captured()
        .into_iter()
        .find(|(command, ..)| command.contains("::/0"))
        .unwrap();
    // struct nlmsghdr, the code, the echoed struct nlmsghdr.
    assert_eq!(Message::refused_line(&answers[0][36..]), Some(2));
}

#[test]
fn listings_decode_to_specs_and_canonical_entries() {
    let mut client = client();
    let (info, entries) = client.entries(&name("N6")).unwrap().unwrap();
    assert_eq!(
        info.spec,
        Some(SetSpec::hash(name("N6"), HashType::IpPortNet, IpFamily::V6))
    );
    assert_eq!(
        (info.revision, info.references, info.elements),
        (8, 0, Some(2))
    );
    assert_eq!(
        entries,
        BTreeSet::from([
            net_entry("fd01::/64").into(),
            net_entry("fd01::7/128").into()
        ])
    );
    let texts: Vec<String> = entries.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        ["fd00::1,udp:53,fd01::/64", "fd00::1,udp:53,fd01::7"]
    );

    let text_of = |client: &mut Client, set| -> Vec<String> {
        let (_, entries) = client.entries(&name(set)).unwrap().unwrap();
        entries.iter().map(ToString::to_string).collect()
    };
    assert_eq!(
        text_of(&mut client, "M"),
        [
            "10.0.0.1,tcp:80 skbmark 0x10/0xff",
            "10.0.0.2,tcp:80 skbmark 0x4000"
        ]
    );
    assert_eq!(
        text_of(&mut client, "T"),
        ["10.0.0.1 timeout 76", "10.0.0.2 timeout 10799"]
    );
    let (timed, _) = client.entries(&name("T")).unwrap().unwrap();
    assert_eq!(
        timed.spec.unwrap().to_string(),
        "T hash:ip family inet hashsize 4096 maxelem 65536 timeout 10800"
    );
    assert_eq!(text_of(&mut client, "P"), ["30080", "30443"]);
    assert_eq!(text_of(&mut client, "I"), ["10.0.0.1", "10.0.0.2"]);
    assert_eq!(
        text_of(&mut client, "L"),
        ["10.0.0.1,sctp:80,10.0.0.2", "10.0.0.2,tcp:80,10.0.0.2"]
    );
}

#[test]
fn headers_and_names_of_all_sets_are_listed() {
    let mut client = client();
    let names = ["I", "KUBE-CLUSTER-IP", "L", "M", "N6", "P"].map(name);
    assert_eq!(client.names().unwrap(), BTreeSet::from(names.clone()));
    let sets = client.sets().unwrap();
    let listed: BTreeSet<SetName> = sets.iter().map(|set| set.name.clone()).collect();
    assert_eq!(listed, BTreeSet::from(names));
    let specs: Vec<String> = sets
        .iter()
        .map(|set| set.spec.as_ref().unwrap().to_string())
        .collect();
    assert!(
        specs.contains(&"P bitmap:port range 0-65535".to_owned()),
        "{specs:?}"
    );
    assert!(
        specs
            .contains(&"M hash:ip,port family inet hashsize 1024 maxelem 65536 skbinfo".to_owned()),
        "{specs:?}"
    );
    let one = client.set(&name("KUBE-CLUSTER-IP")).unwrap().unwrap();
    assert_eq!(one.type_name, "hash:ip,port");
}

#[test]
fn swap_and_flush_have_the_bytes_of_ipset() {
    let mut client = client();
    client.swap(&name("KUBE-CLUSTER-IP"), &name("M")).unwrap();
    client.flush(&name("P")).unwrap();
    client.destroy(&name("P")).unwrap();
}

#[test]
fn a_set_can_serve_if_it_is_alike_and_not_smaller() {
    let small = SetSpec::hash(name("A"), HashType::Ip, IpFamily::V4);
    let big = small.clone().with_room_for(100_000);
    assert!(big.to_string().ends_with("maxelem 131072"), "{big}");
    assert!(big.can_serve(&small));
    assert!(!small.can_serve(&big));
    assert!(!small.can_serve(&SetSpec::hash(name("A"), HashType::Ip, IpFamily::V6)));
    assert!(!small.can_serve(&SetSpec::bitmap_port(name("A"))));
    let mut grown = small.clone();
    if let SetShape::Hash { hashsize, .. } = &mut grown.shape {
        *hashsize = 4096;
    }
    assert!(grown.can_serve(&small) && small.can_serve(&grown));
    let mut timed = small.clone();
    if let SetShape::Hash { timeout, .. } = &mut timed.shape {
        *timeout = Some(60);
    }
    assert!(!timed.can_serve(&small) && !small.can_serve(&timed));
}

#[test]
fn source_ranges_are_canonical_and_all_becomes_two_halves() {
    let entries = |net: &str| -> Vec<String> {
        Entry::ip_port_net(
            "10.0.0.1".parse().unwrap(),
            6,
            80,
            net.parse::<IpNet>().unwrap(),
        )
        .iter()
        .map(ToString::to_string)
        .collect()
    };
    assert_eq!(entries("192.0.2.7/32"), ["10.0.0.1,tcp:80,192.0.2.7"]);
    assert_eq!(entries("192.0.2.7/24"), ["10.0.0.1,tcp:80,192.0.2.0/24"]);
    assert_eq!(
        entries("0.0.0.0/0"),
        ["10.0.0.1,tcp:80,0.0.0.0/1", "10.0.0.1,tcp:80,128.0.0.0/1"]
    );
    assert_eq!(
        entries("::/0"),
        ["10.0.0.1,tcp:80,::/1", "10.0.0.1,tcp:80,8000::/1"]
    );
}

#[test]
fn names_are_checked() {
    assert!(SetName::new("KUBE-6-LOAD-BALANCER-SOURCE-CID").is_ok());
    assert_eq!(SetName::new(""), Err(InvalidSetName::Empty));
    assert_eq!(
        SetName::new("x".repeat(32)),
        Err(InvalidSetName::TooLong("x".repeat(32)))
    );
    assert_eq!(
        SetName::new("a\0b"),
        Err(InvalidSetName::Nul("a\0b".into()))
    );
}

#[test]
fn every_captured_request_is_decoded_and_encoded_to_itself() {
    for (command, request, _) in captured() {
        let kind = u16::from_le_bytes([request[4], request[5]]);
        let message = Message::parse(kind, &request[16..]).unwrap();
        assert_eq!(message.payload().unwrap(), &request[16..], "{command}");
        assert_eq!(Message::kind(message.command), kind, "{command}");
    }
}

#[test]
fn a_full_message_fits_into_an_attribute() {
    let entry = SetEntry {
        entry: net_entry("fd01::/64"),
        mark: Some(SkbMark { mark: 1, mask: 1 }),
        timeout: Some(1),
    };
    let list = (1..=500)
        .map(|line| entry_attribute::attributes_of(&entry, line))
        .collect();
    let message = Message {
        command: 9,
        attributes: vec![Attribute::Adt(list)],
    };
    assert!(message.payload().unwrap().len() < 60_000);
}

fn any_set_attribute() -> impl Strategy<Value = SetAttribute> {
    prop_oneof![
        any::<u16>().prop_map(SetAttribute::PortFrom),
        any::<u16>().prop_map(SetAttribute::PortTo),
        any::<u32>().prop_map(SetAttribute::Timeout),
        any::<u32>().prop_map(SetAttribute::Flags),
        any::<u32>().prop_map(SetAttribute::InitVal),
        any::<u32>().prop_map(SetAttribute::HashSize),
        any::<u32>().prop_map(SetAttribute::MaxElem),
        any::<u8>().prop_map(SetAttribute::BucketSize),
        any::<u32>().prop_map(SetAttribute::Elements),
        any::<u32>().prop_map(SetAttribute::References),
        any::<u32>().prop_map(SetAttribute::MemSize),
        any_unknown().prop_map(SetAttribute::Other),
    ]
}

fn any_unknown() -> impl Strategy<Value = Unknown> {
    (
        28_u16..0x3fff,
        0_u16..4,
        prop::collection::vec(any::<u8>(), 0..9),
    )
        .prop_map(|(kind, flags, value)| Unknown {
            kind: kind | (flags << 14),
            value,
        })
}

fn any_entry_attribute() -> impl Strategy<Value = EntryAttribute> {
    prop_oneof![
        any::<std::net::IpAddr>().prop_map(EntryAttribute::Ip),
        any::<std::net::IpAddr>().prop_map(EntryAttribute::Ip2),
        any::<u8>().prop_map(EntryAttribute::Cidr),
        any::<u8>().prop_map(EntryAttribute::Cidr2),
        any::<u16>().prop_map(EntryAttribute::Port),
        any::<u8>().prop_map(EntryAttribute::Proto),
        any::<u32>().prop_map(EntryAttribute::LineNo),
        any::<(u32, u32)>()
            .prop_map(|(mark, mask)| EntryAttribute::SkbMark(SkbMark { mark, mask })),
        any_unknown().prop_map(EntryAttribute::Other),
    ]
}

fn any_attribute() -> impl Strategy<Value = Attribute> {
    let entry = prop::collection::vec(any_entry_attribute(), 0..6);
    prop_oneof![
        any::<u8>().prop_map(Attribute::Protocol),
        "[^\0]{0,31}".prop_map(Attribute::SetName),
        "[^\0]{0,31}".prop_map(Attribute::TypeName),
        any::<u8>().prop_map(Attribute::Revision),
        any::<u8>().prop_map(Attribute::Family),
        any::<u32>().prop_map(Attribute::Flags),
        prop::collection::vec(any_set_attribute(), 0..6).prop_map(Attribute::Data),
        prop::collection::vec(entry, 0..4).prop_map(Attribute::Adt),
        any::<u32>().prop_map(Attribute::LineNo),
        any::<u8>().prop_map(Attribute::Minimum),
        any::<u16>().prop_map(Attribute::Index),
        any_unknown().prop_map(Attribute::Other),
    ]
}

fn any_entry() -> impl Strategy<Value = SetEntry> {
    let entry = (
        0..5,
        any::<(std::net::IpAddr, u8, u16, std::net::IpAddr)>(),
        0_u8..=128,
    )
        .prop_map(|(which, (ip, protocol, port, ip2), length)| match which {
            0 => Entry::Ip(ip),
            1 => ip_port(&ip.to_string(), protocol, port),
            2 => Entry::IpPortIp {
                ip,
                protocol,
                port,
                ip2,
            },
            3 => {
                let max = if ip2.is_ipv4() { 32 } else { 128 };
                let net = IpNet::new(ip2, length.clamp(1, max)).unwrap().trunc();
                Entry::IpPortNet {
                    ip,
                    protocol,
                    port,
                    net,
                }
            }
            _ => Entry::Port(port),
        });
    let mark = prop::option::of((1_u32.., any::<u32>()));
    (entry, mark, any::<Option<u32>>()).prop_map(|(entry, mark, timeout)| SetEntry {
        entry,
        mark: mark.map(|(mark, mask)| SkbMark { mark, mask }),
        timeout,
    })
}

proptest! {
    #[test]
    fn messages_survive_encoding(
        command in any::<u8>(),
        attributes in prop::collection::vec(any_attribute(), 0..6),
    ) {
        let message = Message { command, attributes };
        let payload = message.payload().unwrap();
        prop_assert_eq!(Message::parse(Message::kind(command), &payload), Ok(message));
    }

    #[test]
    fn entries_survive_encoding(entry in any_entry(), line in any::<u32>()) {
        let attributes = entry_attribute::attributes_of(&entry, line);
        let mut writer = Writer::new();
        for attribute in &attributes {
            attribute.write(&mut writer);
        }
        let bytes = writer.finish().unwrap();
        let read: Vec<EntryAttribute> =
            netlink_pipeline::attribute::list(&bytes).map(|raw| EntryAttribute::read(&raw.unwrap()).unwrap()).collect();
        prop_assert_eq!(&read, &attributes);
        prop_assert_eq!(entry_attribute::entry_of(entry.entry.set_type(), &read), Ok(entry));
    }

    #[test]
    fn any_bytes_decode_or_are_refused(
        payload in prop::collection::vec(any::<u8>(), 0..200),
        kind in prop_oneof![any::<u16>(), 0x0600_u16..0x0610],
    ) {
        let _message = Message::parse(kind, &payload);
        let _line = Message::refused_line(&payload);
    }

    #[test]
    fn damaged_answers_decode_or_are_refused(
        which in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        keep in any::<prop::sample::Index>(),
    ) {
        let answers: Vec<Vec<u8>> = captured().into_iter().flat_map(|(_, _, answers)| answers).collect();
        let mut answer = which.get(&answers)[16..].to_vec();
        let at = at.index(answer.len());
        answer[at] = byte;
        answer.truncate(keep.index(answer.len() + 1));
        let _message = Message::parse(0x0607, &answer);
    }
}
