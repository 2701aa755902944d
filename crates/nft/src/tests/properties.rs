// SPDX-License-Identifier: Apache-2.0
//! Properties of the codec: what is written is read, and any bytes are read or refused.

use netlink_pipeline::attribute::DecodeError;
use proptest::prelude::*;

use super::captured;
use super::{name, set};
use crate::element::{RawElement, intervals};
use crate::{
    Body, ChainStatus, Data, Element, ElementKey, ElementListAttribute, Expression, Family, Field,
    Generation, Message, MetaKey, Operation, OtherExpression, Register, Rule, RuleAttribute,
    RuleStatus, SetStatus, TableStatus, Unknown, Value, Verdict,
};

/// Everything that a message can be made of.
fn interpret(message: &Message) -> Result<(), DecodeError> {
    match &message.body {
        Body::Table(attributes) => {
            TableStatus::from_attributes(message.family, attributes)?;
        }
        Body::Chain(attributes) => {
            ChainStatus::from_attributes(message.family, attributes)?;
        }
        Body::Rule(attributes) => {
            let status = RuleStatus::from_attributes(message.family, attributes)?;
            assert!(status.rule.does_what(&status.rule));
        }
        Body::Set(attributes) => {
            let status = SetStatus::from_attributes(message.family, attributes)?;
            status.set.to_attributes(1);
        }
        Body::Elements(attributes) => {
            let mut raw = Vec::new();
            for attribute in attributes {
                if let ElementListAttribute::Elements(list) = attribute {
                    for element in list {
                        raw.push(RawElement::from_attributes(element)?);
                    }
                }
            }
            intervals(raw);
        }
        Body::Generation(attributes) => {
            Generation::from_attributes(attributes)?;
        }
        Body::Other(_) => {}
    }
    Ok(())
}

fn round_trip(message: &Message) -> Message {
    let kind = Message::kind(message.command);
    Message::parse(kind, &message.payload().unwrap()).unwrap()
}

fn value() -> impl Strategy<Value = Value> {
    prop::collection::vec(any::<u8>(), 1..65).prop_map(Value::new)
}

fn verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        Just(Verdict::Accept),
        Just(Verdict::Drop),
        Just(Verdict::Return),
        "[a-z]{1,255}".prop_map(|chain| Verdict::Jump(chain.parse().unwrap())),
        "[a-z]{1,255}".prop_map(|chain| Verdict::Goto(chain.parse().unwrap())),
        (2..i32::MAX).prop_map(Verdict::Other),
    ]
}

fn expression() -> impl Strategy<Value = Expression> {
    let unknown =
        (1_u16..0x3fff, 0_u16..4, any::<Vec<u8>>()).prop_map(|(kind, flags, value)| Unknown {
            kind: kind | (flags << 14),
            value,
        });
    let register = (0_u32..40).prop_map(Register::from_number);
    prop_oneof![
        register
            .clone()
            .prop_map(|register| Field::Meta(MetaKey::Mark).load(register)),
        (0_u32..50, register.clone())
            .prop_map(|(key, register)| Field::Meta(MetaKey::from_number(key)).load(register)),
        register
            .clone()
            .prop_map(|register| Field::Ipv6Source.load(register)),
        value().prop_map(Expression::equals),
        (value(), value()).prop_map(|(mask, xor)| Expression::masks(mask, xor)),
        verdict().prop_map(Expression::verdict),
        (value(), register.clone()).prop_map(|(value, to)| Expression::loads(to, value)),
        register.prop_map(|register| Expression::maps(name("map"), register)),
        any::<u32>().prop_map(Expression::masquerades),
        Just(Expression::counts()),
        ("[a-z]{3,9}x", prop::collection::vec(unknown, 0..4))
            .prop_map(|(name, attributes)| { OtherExpression { name, attributes } })
            .prop_map(Expression::Other),
    ]
}

proptest! {
    #[test]
    fn a_rule_is_read_as_it_was_written(
        expressions in prop::collection::vec(expression(), 0..8),
        comment in proptest::option::of("[^\0]{0,30}"),
    ) {
        let chain = super::chain("c");
        let rule = Rule { chain, expressions, comment };
        let mut attributes = rule.to_attributes();
        attributes.push(RuleAttribute::Handle(7));
        let message = Message::new(crate::Command::NewRule, Family::Ipv4, attributes);
        let read = round_trip(&message);
        prop_assert_eq!(&read, &message);
        let Body::Rule(attributes) = read.body else { panic!("a rule") };
        let status = RuleStatus::from_attributes(Family::Ipv4, &attributes).unwrap();
        prop_assert_eq!(status.rule, rule);
    }

    #[test]
    fn an_element_is_read_as_it_was_written(
        key in value(),
        last in value(),
        which in 0..3,
        data in proptest::option::of(prop_oneof![
            value().prop_map(Data::Value),
            verdict().prop_map(Data::Verdict),
        ]),
    ) {
        let key = match which {
            0 => ElementKey::Value(key),
            1 => ElementKey::Ranges { first: key, last },
            _ => ElementKey::Any,
        };
        let element = Element { data, ..Element::key(key) };
        let attributes = element.to_attributes();
        let requests = Operation::AddElements(set("s"), vec![element.clone()])
            .to_requests(1)
            .unwrap();
        let message = Message::parse(requests[0].kind, &requests[0].payload).unwrap();
        let Body::Elements(read) = &message.body else { panic!("elements") };
        prop_assert!(read.contains(&ElementListAttribute::Elements(attributes.clone())));
        let raw = RawElement::from_attributes(&attributes[0]).unwrap();
        prop_assert_eq!(&crate::element::plain(vec![raw])[0].element, &element);
    }

    #[test]
    fn disjoint_intervals_are_read_as_they_were_written(mut ends in prop::collection::btree_set(any::<u16>(), 0..20)) {
        if ends.len() % 2 == 1 {
            ends.pop_last();
        }
        let ends: Vec<u16> = ends.into_iter().collect();
        let elements: Vec<Element> = ends
            .chunks(2)
            .map(|ends| Element::key(ElementKey::Range {
                first: Value::port(ends[0]),
                last: Value::port(ends[1]),
            }))
            .collect();
        let mut raw: Vec<RawElement> = elements
            .iter()
            .flat_map(Element::to_attributes)
            .map(|attributes| RawElement::from_attributes(&attributes).unwrap())
            .collect();
        raw.reverse();
        let read: Vec<Element> = intervals(raw).into_iter().map(|status| status.element).collect();
        prop_assert_eq!(read, elements);
    }

    #[test]
    fn decoding_survives_any_bytes(mut bytes: Vec<u8>, command in 0_u8..40) {
        bytes.splice(..0, [2, 0, 0, 0]);
        let kind = u16::from_be_bytes([10, command]);
        if let Ok(message) = Message::parse(kind, &bytes) {
            // Whatever was understood can be written down again.
            prop_assert_eq!(round_trip(&message), message.clone());
            drop(interpret(&message));
        }
    }

    /// Random bytes rarely get past the first header; broken messages of a kernel do.
    #[test]
    fn decoding_survives_broken_messages(
        which: prop::sample::Index,
        changes in prop::collection::vec(any::<(prop::sample::Index, u8)>(), 0..8),
        length: prop::sample::Index,
    ) {
        let mut messages = captured::requests();
        messages.extend(captured::answers());
        let captured = which.get(&messages);
        let mut bytes = captured.payload.clone();
        for (index, value) in changes {
            let index = index.index(bytes.len());
            bytes[index] = value;
        }
        bytes.truncate(length.index(bytes.len() + 1));
        if let Ok(message) = Message::parse(captured.kind, &bytes) {
            prop_assert_eq!(round_trip(&message), message.clone());
            drop(interpret(&message));
        }
    }
}
