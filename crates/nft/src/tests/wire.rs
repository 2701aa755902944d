// SPDX-License-Identifier: Apache-2.0
//! Our bytes against those of `nft` 1.0.6 and Linux 6.18, recorded on a little-endian machine.
#![cfg(target_endian = "little")]

use super::captured::{self, Captured};
use super::spelled::{objects, rules, service_type};
use super::table;
use crate::{
    Body, Command, Contents, CtKey, DataType, Element, ElementAttribute, ElementKey,
    ElementListAttribute, Expression, Field, KeyType, Message, Operation, Register, Rule,
    RuleAttribute, RuleStatus, Set, SetAttribute, SetStatus, Table, TableStatus,
};

fn encode(message: &Message) -> Vec<u8> {
    message.payload().unwrap()
}

/// Removes what `nft` sends and the kernel does not need: the numbers of sets, which we refer to by
/// name, and what `nft` keeps for itself beside a set's byte orders.
fn lean(mut message: Message) -> Message {
    match &mut message.body {
        Body::Rule(attributes) => {
            for attribute in attributes {
                if let RuleAttribute::Expressions(expressions) = attribute {
                    for expression in expressions {
                        match expression {
                            Expression::Lookup(lookup) => lookup.set_id = None,
                            Expression::Dynset(dynset) => dynset.set_id = None,
                            _ => {}
                        }
                    }
                }
            }
        }
        Body::Elements(attributes) => {
            attributes.retain(|attribute| !matches!(attribute, ElementListAttribute::SetId(_)));
            // `flush set` names the set first.
            attributes
                .sort_by_key(|attribute| !matches!(attribute, ElementListAttribute::Table(_)));
        }
        Body::Set(attributes) => {
            for attribute in attributes {
                match attribute {
                    SetAttribute::Id(id) => *id = 1,
                    SetAttribute::UserData(bytes) => *bytes = byte_orders(bytes),
                    _ => {}
                }
            }
        }
        _ => {}
    }
    message
}

/// Of types, lengths and values those of the types 0 and 1, and the bytes that keys are of.
fn byte_orders(mut rest: &[u8]) -> Vec<u8> {
    let mut kept = Vec::new();
    while let [kind, length, ..] = rest {
        let (entry, next) = rest.split_at(2 + usize::from(*length));
        // `type` makes an empty one.
        let is_typeof = *kind == 3 && *length > 8;
        if *kind < 2 || is_typeof {
            kept.extend_from_slice(entry);
        }
        rest = next;
    }
    kept
}

#[test]
fn operations_are_the_bytes_of_nft() {
    for (command, operation) in objects().into_iter().chain(rules()) {
        let captured = captured::of(command);
        let ours = operation.to_requests(1).unwrap();
        assert_eq!(ours.len(), captured.len(), "{command}");
        for (ours, captured) in ours.iter().zip(captured) {
            assert_eq!(ours.kind, captured.kind, "{command}");
            // The socket adds NLM_F_REQUEST.
            let nft_flags = captured.flags & !0x205;
            assert_eq!(ours.flags, nft_flags, "{command}");
            let expected = lean(captured.decode());
            assert_eq!(
                Message::parse(ours.kind, &ours.payload).as_ref(),
                Ok(&expected),
                "{command}"
            );
            assert_eq!(ours.payload, encode(&expected), "{command}");
        }
    }
}

#[test]
fn intervals_are_the_elements_of_nft() {
    // nft adds one that ends what is before the first interval, which the kernel does not need.
    let captured = captured::of("add element ip t nets { 10.0.0.0/8, 192.0.2.7, 255.0.0.0/8 }");
    let Body::Elements(attributes) = captured[0].decode().body else {
        panic!("elements")
    };
    let Some(ElementListAttribute::Elements(mut expected)) = attributes
        .into_iter()
        .find(|attribute| matches!(attribute, ElementListAttribute::Elements(_)))
    else {
        panic!("elements")
    };
    let ours: Vec<_> = [("10.0.0.0", 8), ("192.0.2.7", 32), ("255.0.0.0", 8)]
        .into_iter()
        .flat_map(|(address, prefix)| {
            let key = ElementKey::network(address.parse().unwrap(), prefix);
            Element::key(key).to_attributes()
        })
        .collect();
    // And a note for itself at one that has no end.
    let noted = expected.last_mut().unwrap();
    assert!(matches!(noted.pop(), Some(ElementAttribute::UserData(_))));
    assert_eq!(ours, expected[1..]);
}

#[test]
fn transactions_begin_and_end_like_those_of_nft() {
    let boundaries = captured::boundaries();
    assert!(boundaries.len() > 80, "{}", boundaries.len());
    for Captured { payload, flags, .. } in boundaries {
        assert_eq!((payload.as_slice(), flags), (&[0, 0, 0, 10][..], 1));
    }
}

#[test]
fn every_captured_message_is_known_to_the_last_attribute() {
    for captured in captured::requests().into_iter().chain(captured::answers()) {
        let message = captured.decode();
        let is_known = !matches!(message.command, Command::Other(_));
        // Objects and flowtables, which this crate leaves alone.
        let is_left_out = captured.kind & 0xff >= 18 && captured.kind & 0xff <= 25;
        assert!(is_known || is_left_out, "{captured:?}");
        let text = format!("{message:?}");
        assert!(
            is_left_out || !text.contains("Other"),
            "{}: {text}",
            captured.command
        );
    }
}

#[test]
fn every_captured_request_is_encoded_as_it_was_decoded() {
    let mut differing = Vec::new();
    // nft leaves what it finds in the padding of its questions.
    let is_change = |captured: &Captured| !captured.command.starts_with("list");
    for captured in captured::requests().into_iter().filter(is_change) {
        let message = captured.decode();
        let encoded = encode(&message);
        assert_eq!(
            Message::parse(captured.kind, &encoded).as_ref(),
            Ok(&message)
        );
        // nft numbers the elements of a list.
        let has_elements = matches!(message.body, Body::Elements(_));
        if encoded != captured.payload && !has_elements {
            differing.push(captured.command);
        }
    }
    // Where nft sends the number of the bitwise operation, which is zero.
    assert_eq!(
        differing,
        [
            "add rule ip t pre meta mark & 0x4000 == 0x4000 accept",
            "add rule ip t pre meta mark set meta mark | 0x4000",
        ]
    );
}

/// The answers of `list ruleset`.
fn listed<T>(read: impl Fn(Message) -> Option<T>) -> Vec<T> {
    captured::answers()
        .into_iter()
        .filter(|message| message.command == "list ruleset")
        .filter_map(|message| read(message.decode()))
        .collect()
}

#[test]
fn rules_are_listed_as_they_were_written() {
    let listed = listed(|message| match &message.body {
        Body::Rule(attributes) => {
            Some(RuleStatus::from_attributes(message.family, attributes).unwrap())
        }
        _ => None,
    });
    let mut unseen: Vec<(&str, Rule)> = rules()
        .into_iter()
        .filter_map(|(command, operation)| match operation {
            Operation::AddRule(rule, _) if rule.chain.table == table() => Some((command, rule)),
            _ => None,
        })
        .collect();
    assert_eq!(listed.len(), unseen.len());
    for status in &listed {
        assert!(status.handle > 0);
        unseen.retain(|(_, rule)| !rule.does_what(&status.rule));
    }
    assert!(unseen.is_empty(), "{unseen:#?}");
    // What was inserted at the top comes first.
    assert_eq!(listed[0].rule.expressions.len(), 5);
    assert_eq!(
        listed[1].rule.comment.as_deref(),
        Some("to the web"),
        "{listed:?}"
    );
}

#[test]
fn sets_and_tables_are_listed_as_they_were_written() {
    let sets = listed(|message| match &message.body {
        Body::Set(attributes) => {
            Some(SetStatus::from_attributes(message.family, attributes).unwrap())
        }
        _ => None,
    });
    for (command, operation) in objects() {
        if let Operation::AddSet(wanted) = operation {
            let found = sets.iter().find(|status| status.set.key == wanted.key);
            let mut found = found.unwrap().set.clone();
            if let Contents::Values(value) = &mut found.contents {
                assert_eq!(value.parts(), Some(vec![DataType::Mark]));
            }
            // That is for `nft` alone.
            let wanted = Set {
                key_bytes: Vec::new(),
                ..wanted
            };
            assert_eq!(found, wanted, "{command}");
        }
    }
    let tables = listed(|message| match &message.body {
        Body::Table(attributes) => {
            Some(TableStatus::from_attributes(message.family, attributes).unwrap())
        }
        _ => None,
    });
    assert!(
        tables
            .iter()
            .any(|status| status.table == Table::new(table()))
    );
}

#[test]
fn types_are_numbered_as_nft_does() {
    let service = service_type(DataType::Ipv4Address);
    assert_eq!((service.number, service.length), (0x730d, 12));
    assert_eq!(
        service.parts(),
        Some(vec![
            DataType::Ipv4Address,
            DataType::Protocol,
            DataType::Port
        ])
    );
    assert_eq!(KeyType::from(DataType::Port).length, 2);
    // A type that we do not know, and a length that does not fit.
    let other = KeyType {
        number: 5,
        length: 4,
    };
    assert_eq!(other.parts(), None);
    let short = KeyType {
        number: 7,
        length: 2,
    };
    assert_eq!(short.parts(), None);
}

#[test]
fn registers_have_one_number_each() {
    let numbers: Vec<u32> = (0..6).map(|word| Register::word(word).number()).collect();
    assert_eq!(numbers, [1, 9, 10, 11, 2, 13]);
    assert_eq!(Register::from_number(8), Register::FIRST);
    assert_eq!(Register::from_number(0), Register::VERDICT);
    assert_eq!(Field::Ct(CtKey::State).load(Register::FIRST).name(), "ct");
}
