// SPDX-License-Identifier: Apache-2.0
//! The conversation against a scripted kernel.

use std::io;

use netlink_pipeline::scripted::{Header, Scripted, done, message, verdict};

use super::{chain, name, set, table};
use crate::{
    Chain, Client, Command, DataType, Element, ElementKey, Error, Family, Generation,
    KernelErrorKind, Message, Operation, Set, Table, TableKey, Value, Verdict,
};

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_CREATE: u16 = 0x400;
const ERESTART: i32 = 85;

type Answers = Vec<io::Result<Vec<u8>>>;

/// The answer to the question for the generation, which is 7.
fn generation(sent: &[Header]) -> Answers {
    let attributes = [0, 0, 0, 0, 8, 0, 1, 0, 0, 0, 0, 7];
    vec![
        Ok(message(0x0a0f, 0, sent[0].sequence, &attributes)),
        Ok(verdict(sent[0].sequence, 0)),
    ]
}

/// Success of a transaction: the ACK of the only message that asks for one.
fn done_all(sent: &[Header]) -> Answers {
    sent.iter()
        .filter(|header| header.flags & NLM_F_ACK != 0)
        .map(|header| Ok(verdict(header.sequence, 0)))
        .collect()
}

fn client(kernel: &Scripted) -> Client {
    Client::over(kernel.socket()).unwrap()
}

fn three() -> [Operation; 3] {
    [
        Operation::AddTable(Table::new(table())),
        Operation::AddSet(Set::keys(set("ports"), DataType::Port)),
        Operation::AddElements(
            set("ports"),
            [80, 443, 8080]
                .map(|port| Element::key(Value::port(port)))
                .into(),
        ),
    ]
}

#[test]
fn a_transaction_is_one_datagram_with_one_ack() {
    let kernel = Scripted::default().then(generation).then(done_all);
    let mut client = client(&kernel);
    client.apply(&three()).unwrap();
    let headers: Vec<(u16, u16)> = kernel.headers()[1]
        .iter()
        .map(|(kind, flags, _)| (*kind, *flags))
        .collect();
    assert_eq!(
        headers,
        [
            (0x10, NLM_F_REQUEST),
            (0x0a00, NLM_F_REQUEST),
            (0x0a09, NLM_F_REQUEST | NLM_F_CREATE),
            (0x0a0c, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_ACK),
            (0x11, NLM_F_REQUEST),
        ]
    );
    assert_eq!(client.socket_stats().round_trips, 2);
    // Nothing to do is done without asking.
    client.apply(&[]).unwrap();
    assert_eq!(client.socket_stats().round_trips, 2);
    assert_eq!(kernel.resets(), 0);
}

#[test]
fn refusals_name_operation_and_element() {
    let kernel = Scripted::default()
        .then(generation)
        .then(|sent| {
            // The set is refused, and of the elements the second: nlmsghdr (16), nfgenmsg (4),
            // table "t" (8), set "ports" (12), the list's header (4), an element (16).
            let refused = |header: &Header, errno: i32, offset: Option<u32>| {
                let mut payload = (-errno).to_ne_bytes().to_vec();
                payload.extend_from_slice(&message(header.kind, 0, header.sequence, b""));
                if let Some(offset) = offset {
                    payload.extend_from_slice(&[8, 0, 2, 0]);
                    payload.extend_from_slice(&offset.to_ne_bytes());
                }
                // NLM_F_CAPPED | NLM_F_ACK_TLVS
                Ok(message(2, 0x300, header.sequence, &payload))
            };
            vec![
                refused(&sent[2], libc::EEXIST, None),
                refused(&sent[3], libc::ENOENT, Some(16 + 4 + 8 + 12 + 4 + 16)),
            ]
        })
        .then(done_all);
    let mut client = client(&kernel);
    let error = client.apply(&three()).unwrap_err();
    assert_eq!(error.to_string(), "nftables refused 2 of 3 operations");
    let told: Vec<_> = error
        .refusals()
        .map(|refusal| {
            (
                refusal.operation,
                refusal.element,
                refusal.to_string(),
                refusal.source.kind,
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            (
                Some(1),
                None,
                "cannot add set ip t ports".to_owned(),
                KernelErrorKind::AlreadyExists
            ),
            (
                Some(2),
                Some(1),
                "cannot add 3 elements to ip t ports".to_owned(),
                KernelErrorKind::NotFound
            ),
        ]
    );
    assert!(!error.is_retryable());
    // The next one begins with a fresh socket.
    client.apply(&three()).unwrap();
    assert_eq!(kernel.resets(), 1);
}

#[test]
fn a_refused_interval_is_found_by_either_of_its_ends() {
    let kernel = Scripted::default().then(generation).then(|sent| {
        let header = &sent[1];
        let mut payload = (-libc::EEXIST).to_ne_bytes().to_vec();
        payload.extend_from_slice(&message(header.kind, 0, header.sequence, b""));
        payload.extend_from_slice(&[8, 0, 2, 0]);
        // Three lists in: nlmsghdr, nfgenmsg, table "t", set "nets", the list's header; the two of
        // the first range (16 and 24) and the first of the second one.
        let offset: u32 = 16 + 4 + 8 + 12 + 4 + 16 + 24 + 16;
        payload.extend_from_slice(&offset.to_ne_bytes());
        vec![Ok(message(2, 0x300, header.sequence, &payload))]
    });
    let ranges = ["10.0.0.0", "10.1.0.0"]
        .map(|address| Element::key(ElementKey::network(address.parse().unwrap(), 16)));
    let error = client(&kernel)
        .apply(&[Operation::AddElements(set("nets"), ranges.into())])
        .unwrap_err();
    let elements: Vec<_> = error.refusals().map(|refusal| refusal.element).collect();
    assert_eq!(elements, [Some(1)]);
}

#[test]
fn another_generation_refuses_the_whole() {
    let kernel = Scripted::default()
        .then(generation)
        .then(generation)
        .then(|sent| vec![Ok(verdict(sent[0].sequence, ERESTART))]);
    let mut client = client(&kernel);
    let seen: Generation = client.generation().unwrap();
    assert_eq!(seen.id, 7);
    let error = client.apply_at(&seen, &three()).unwrap_err();
    assert!(matches!(error, Error::Changed(_)), "{error:?}");
    assert!(error.is_retryable());
    // nfgenmsg with the subsystem, and NFNL_BATCH_GENID.
    assert_eq!(
        kernel.sent()[2][0].payload,
        [0, 0, 0, 10, 8, 0, 1, 0, 0, 0, 0, 7]
    );
}

#[test]
fn a_failed_commit_is_a_refusal_although_the_last_message_has_its_ack() {
    let kernel = Scripted::default().then(generation).then(|sent| {
        vec![
            Ok(verdict(sent[0].sequence, libc::ENOMEM)),
            Ok(verdict(sent[3].sequence, 0)),
        ]
    });
    let error = client(&kernel).apply(&three()).unwrap_err();
    let refusal = error.refusals().next().unwrap();
    assert_eq!(refusal.operation, None);
    assert_eq!(refusal.to_string(), "cannot change nftables");
    assert!(error.is_retryable());
}

#[test]
fn an_absent_kernel_module_and_a_missing_capability_are_told_apart() {
    for (errno, is_absent) in [(libc::EINVAL, true), (libc::EPERM, false)] {
        let kernel = match errno {
            libc::EINVAL => {
                Scripted::default().then(|sent| vec![Ok(verdict(sent[0].sequence, libc::EINVAL))])
            }
            _ => Scripted::default().then(|sent| vec![Ok(verdict(sent[0].sequence, libc::EPERM))]),
        };
        let error = Client::over(kernel.socket()).unwrap_err();
        match error {
            Error::NotAvailable(_) => assert!(is_absent),
            Error::Permission(_) => assert!(!is_absent),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_does_not_exist_is_not_listed() {
    let refuse = |sent: &[Header]| vec![Ok(verdict(sent[0].sequence, libc::ENOENT))];
    let kernel = Scripted::default()
        .then(generation)
        .then(refuse)
        .then(refuse)
        .then(refuse)
        .then(|sent| vec![Ok(done(sent[0].sequence, 0))]);
    let mut client = client(&kernel);
    assert_eq!(client.table(&table()).unwrap(), None);
    let ports = Set::keys(set("ports"), DataType::Port);
    assert_eq!(client.elements(&ports).unwrap(), []);
    assert_eq!(client.tables().unwrap(), []);
    let flags = NLM_F_REQUEST | NLM_F_DUMP;
    assert_eq!(kernel.headers()[2][0].1, flags);
}

/// A set with two elements, of which a list has the given keys.
fn list_of(sent: &[Header], ports: &[u16]) -> Answers {
    let list = ports
        .iter()
        .flat_map(|port| Element::key(Value::port(*port)).to_attributes())
        .collect();
    let attributes = vec![crate::ElementListAttribute::Elements(list)];
    let message_of = Message::new(Command::NewElements, Family::Ipv4, attributes);
    let payload = message_of.payload().unwrap();
    vec![
        Ok(message(0x0a0c, 0, sent[0].sequence, &payload)),
        Ok(done(sent[0].sequence, 0)),
    ]
}

fn set_of_two(sent: &[Header]) -> Answers {
    let mut attributes = Set::keys(set("ports"), DataType::Port).to_attributes(1);
    attributes.push(crate::SetAttribute::Count(2));
    let message_of = Message::new(Command::NewSet, Family::Ipv4, attributes);
    let payload = message_of.payload().unwrap();
    vec![
        Ok(message(0x0a09, 0, sent[0].sequence, &payload)),
        Ok(verdict(sent[0].sequence, 0)),
    ]
}

#[test]
fn a_list_that_lacks_or_repeats_elements_is_asked_for_again() {
    let kernel = Scripted::default()
        .then(generation)
        .then(|sent| list_of(sent, &[80]))
        .then(set_of_two)
        .then(|sent| list_of(sent, &[80, 80]))
        .then(set_of_two)
        .then(|sent| list_of(sent, &[80, 443]))
        .then(set_of_two);
    let ports = Set::keys(set("ports"), DataType::Port);
    let listed = client(&kernel).elements(&ports).unwrap();
    let elements: Vec<Element> = listed.into_iter().map(|status| status.element).collect();
    assert_eq!(
        elements,
        [80, 443].map(|port| Element::key(Value::port(port)))
    );
}

#[test]
fn only_what_was_asked_for_is_listed() {
    let kernel = Scripted::default().then(generation).then(|sent| {
        // An old kernel lists the chains of all tables.
        let other = TableKey::new(Family::Ipv4, name("other"));
        let chains = [chain("web"), other.chain(name("web"))];
        let mut answers: Answers = chains
            .into_iter()
            .map(|key| {
                let attributes = Chain::regular(key).to_attributes();
                let payload = Message::new(Command::NewChain, Family::Ipv4, attributes)
                    .payload()
                    .unwrap();
                Ok(message(0x0a03, 0, sent[0].sequence, &payload))
            })
            .collect();
        answers.push(Ok(done(sent[0].sequence, 0)));
        answers
    });
    let chains = client(&kernel).chains(&table()).unwrap();
    let keys: Vec<_> = chains.into_iter().map(|status| status.chain.key).collect();
    assert_eq!(keys, [chain("web")]);
}

#[test]
fn an_unexpected_answer_is_an_error() {
    let kernel = Scripted::default().then(generation).then(|sent| {
        let chain = Chain::regular(chain("web")).to_attributes();
        let payload = Message::new(Command::NewChain, Family::Ipv4, chain)
            .payload()
            .unwrap();
        vec![
            Ok(message(0x0a03, 0, sent[0].sequence, &payload)),
            Ok(done(sent[0].sequence, 0)),
        ]
    });
    let error = client(&kernel).tables().unwrap_err();
    assert!(matches!(error, Error::Decode { .. }), "{error:?}");
}

#[test]
fn operations_say_what_they_do() {
    let entry = Element::entry(Value::port(80), Verdict::Jump(name("web")));
    assert_eq!(entry.to_string(), "0x0050 : jump web");
    let texts: Vec<String> = three().iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "add table ip t",
            "add set ip t ports",
            "add 3 elements to ip t ports",
        ]
    );
}
