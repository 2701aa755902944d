// SPDX-License-Identifier: Apache-2.0
//! Elements: networks, intervals and how many fit into a message.

use std::net::IpAddr;

use netlink_pipeline::attribute::{ListAttribute as _, Writer};

use super::{captured, set};
use crate::element::{RawElement, intervals};
use crate::{
    Body, DataType, Element, ElementAttribute, ElementKey, ElementListAttribute, Message,
    Operation, Set, SetFlags, Value, Verdict, network,
};

fn address(text: &str) -> Value {
    text.parse::<IpAddr>().unwrap().into()
}

fn range(first: &str, last: &str) -> ElementKey {
    ElementKey::Range {
        first: address(first),
        last: address(last),
    }
}

#[test]
fn networks_have_a_first_and_a_last_address() {
    for (text, prefix, first, last) in [
        ("192.0.2.7", 24, "192.0.2.0", "192.0.2.255"),
        ("192.0.2.7", 32, "192.0.2.7", "192.0.2.7"),
        ("192.0.2.7", 0, "0.0.0.0", "255.255.255.255"),
        ("fd00::7", 64, "fd00::", "fd00::ffff:ffff:ffff:ffff"),
        ("fd00::7", 128, "fd00::7", "fd00::7"),
        // A length that no network has is that of a host.
        ("192.0.2.7", 200, "192.0.2.7", "192.0.2.7"),
    ] {
        let network = network(text.parse().unwrap(), prefix);
        assert_eq!(network, (address(first), address(last)), "{text}/{prefix}");
    }
}

/// What the kernel would list of elements, in any order.
fn through_the_kernel(elements: &[Element]) -> Vec<Element> {
    let mut raw: Vec<RawElement> = elements
        .iter()
        .flat_map(Element::to_attributes)
        .map(|attributes| RawElement::from_attributes(&attributes).unwrap())
        .collect();
    raw.reverse();
    intervals(raw)
        .into_iter()
        .map(|status| status.element)
        .collect()
}

#[test]
fn intervals_are_joined_again() {
    let elements = [
        Element::key(range("0.0.0.0", "0.0.0.255")),
        // Touches the one before it.
        Element::entry(range("0.0.1.0", "0.0.1.0"), Verdict::Drop),
        Element::key(range("10.0.0.0", "10.255.255.255")),
        // Has no end.
        Element::key(range("255.0.0.0", "255.255.255.255")),
    ];
    assert_eq!(through_the_kernel(&elements), elements);
    // What nft adds before the first one.
    let null = [
        ElementAttribute::Flags(1),
        ElementAttribute::Key(address("0.0.0.0").into()),
    ];
    let null = RawElement::from_attributes(&null).unwrap();
    assert!(intervals(vec![null]).is_empty());
}

#[test]
fn the_captured_intervals_are_read() {
    let lists = captured::answers()
        .into_iter()
        .filter(|message| message.command == "list set ip t nets")
        .filter_map(|message| match message.decode().body {
            Body::Elements(attributes) => Some(attributes),
            _ => None,
        });
    let mut raw = Vec::new();
    for attribute in lists.flatten() {
        if let ElementListAttribute::Elements(list) = attribute {
            raw.extend(
                list.iter()
                    .map(|element| RawElement::from_attributes(element).unwrap()),
            );
        }
    }
    let keys: Vec<ElementKey> = intervals(raw)
        .into_iter()
        .map(|status| status.element.key)
        .collect();
    assert_eq!(
        keys,
        [
            range("10.0.0.0", "10.255.255.255"),
            range("192.0.2.7", "192.0.2.7"),
            range("255.0.0.0", "255.255.255.255"),
        ]
    );
}

#[test]
fn a_hundred_thousand_elements_take_several_messages() {
    let elements: Vec<Element> = (0..100_000_u32)
        .map(|host| {
            let key = [
                Value::new(host.to_be_bytes()),
                Value::protocol(6),
                Value::port(80),
            ];
            Element::key(Value::concatenation(key))
        })
        .collect();
    let requests = Operation::AddElements(set("plain"), elements.clone())
        .to_requests(1)
        .unwrap();
    assert!(requests.len() > 10, "{}", requests.len());
    let mut read = Vec::new();
    for request in &requests {
        assert!(request.payload.len() < 65_536, "{}", request.payload.len());
        let message = Message::parse(request.kind, &request.payload).unwrap();
        let Body::Elements(attributes) = message.body else {
            panic!("elements")
        };
        for attribute in attributes {
            if let ElementListAttribute::Elements(list) = attribute {
                read.extend(list);
            }
        }
    }
    let written: Vec<_> = elements.iter().flat_map(Element::to_attributes).collect();
    assert_eq!(read, written);
    // None is no message.
    let none = Operation::DeleteElements(set("plain"), vec![]);
    assert_eq!(none.to_requests(1).unwrap(), []);
}

#[test]
fn the_longest_element_fits_behind_a_full_message() {
    let long = Value::new([7; 64]);
    let element = Element {
        comment: Some("c".repeat(300)),
        ..Element::entry(
            ElementKey::Ranges {
                first: long.clone(),
                last: long,
            },
            Verdict::Jump("j".repeat(255).parse().unwrap()),
        )
    };
    let mut writer = Writer::new();
    for attributes in element.to_attributes() {
        for attribute in attributes {
            attribute.write(&mut writer);
        }
    }
    assert!(writer.len() < 1024, "{}", writer.len());
}

#[test]
fn only_sets_of_one_part_have_two_elements_for_an_interval() {
    let nets = Set::keys(set("nets"), DataType::Ipv4Address);
    assert!(!nets.has_simple_intervals());
    assert!(nets.with(SetFlags::INTERVAL).has_simple_intervals());
}

#[test]
fn comments_are_cut_where_a_character_ends() {
    let element = |comment: String| {
        let element = Element {
            comment: Some(comment),
            ..Element::key(Value::port(1))
        };
        let raw = RawElement::from_attributes(&element.to_attributes()[0]).unwrap();
        intervals(vec![raw]).remove(0).element.comment.unwrap()
    };
    assert_eq!(element("short".to_owned()), "short");
    assert_eq!(element("ä".repeat(100)), "ä".repeat(63));
}
