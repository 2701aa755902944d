// SPDX-License-Identifier: Apache-2.0
//! Bodies that arrive in pieces of any size.

use futures::executor::block_on;
use http::header::CONTENT_TYPE;
use kpr_testkit::protobuf::{envelope, field, number};
use proptest::prelude::*;
use serde_json::json;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;

use super::super::PROTOBUF;
use super::super::event::{Change, event};
use super::super::object::{Decode, decode_item};
use super::*;
use crate::source::Options;
use crate::source::convert::{Converted, Converter};

const LONG: Duration = Duration::from_hours(1);

/// All of a text at once: bodies of many frames are in the tests against a server.
fn incoming(text: &str) -> Incoming {
    let mut incoming = Incoming::new(&HeaderMap::new(), Body::empty(), LONG).unwrap();
    incoming.buffer.extend_from_slice(text.as_bytes());
    incoming
}

fn items(text: &str) -> Result<(Vec<String>, ListMeta), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut items = Items::new(incoming(text));
        let mut found = Vec::new();
        while let Some(item) = items.next().await? {
            found.push(String::from_utf8(item.to_vec()).unwrap());
        }
        Ok((found, items.meta()?))
    })
}

#[test]
fn a_list_is_taken_apart_wherever_its_version_stands() {
    let list = r#"{"kind": "List", "items" : [ {"a": "}]\"{"} , {"items": [{}]},null], "metadata":{"resourceVersion":"7","continue":"x"}}"#;
    let (found, meta) = items(list).unwrap();
    assert_eq!(found, [r#"{"a": "}]\"{"}"#, r#"{"items": [{}]}"#]);
    assert_eq!(meta.resource_version.as_deref(), Some("7"));
    assert_eq!(meta.token.as_deref(), Some("x"));
    let (found, meta) = items(r#"{"metadata":{"resourceVersion":"8"},"items":null}"#).unwrap();
    assert_eq!(found, Vec::<String>::new());
    assert_eq!(meta.resource_version.as_deref(), Some("8"));
}

#[test]
fn what_breaks_off_is_no_list() {
    let list = r#"{"metadata":{"resourceVersion":"7"},"items":[{"a":1},{"b":2}]}"#;
    for end in 0..list.len() {
        let part = list.get(..end).unwrap();
        assert!(items(part).is_err(), "{part}");
    }
    assert!(items(list).is_ok());
    assert!(items("<html></html>").is_err());
}

proptest! {
    /// Whatever is in them, items are found as they are.
    #[test]
    fn items_are_found_as_they_are(texts in prop::collection::vec(".*", 0..6)) {
        let written: Vec<_> = texts
            .iter()
            .map(|text| json!({ text.as_str(): [text, {"items": [text]}] }).to_string())
            .collect();
        let list = format!("{{\"items\":[{}],\"metadata\":{{}}}}", written.join(","));
        let (found, _) = items(&list).unwrap();
        prop_assert_eq!(found, written);
    }

    /// Nonsense ends in an error, not in a panic.
    #[test]
    fn any_text_is_survived(text in r#"[\[\]{}":,a\\ items]{0,40}"#) {
        drop(items(&text));
    }
}

#[test]
fn lines_are_found_and_blank_ones_passed_over() {
    let mut lines = incoming("a\n\n \nbc\n");
    block_on(async {
        assert_eq!(lines.line().await.unwrap().unwrap(), "a");
        assert_eq!(lines.line().await.unwrap().unwrap(), "bc");
    });
}

/// A list that arrives in two parts.
fn messages(list: &[u8], cut: usize) -> Result<(Vec<Bytes>, ListMeta), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let headers = [(CONTENT_TYPE, PROTOBUF.parse().unwrap())];
    let body = Body::from(list[cut..].to_vec());
    let mut incoming = Incoming::new(&headers.into_iter().collect(), body, LONG)?;
    incoming.buffer.extend_from_slice(&list[..cut]);
    runtime.block_on(async {
        let mut items = Items::new(incoming);
        let mut found = Vec::new();
        while let Some(item) = items.next().await? {
            found.push(item);
        }
        Ok((found, items.meta()?))
    })
}

fn list_of(items: &[&[u8]]) -> Vec<u8> {
    let meta = field(1, &[field(2, b"7"), field(3, b"x")].concat());
    // Fields of later versions, of each type, around the items.
    let other = [
        number(9, i64::MAX),
        field(10, b"later"),
        [&[0x59][..], &[1; 8]].concat(),
        [&[0x65][..], &[1; 4]].concat(),
    ];
    let items = items.iter().map(|item| field(2, item));
    let list = [
        meta,
        other.concat(),
        items.collect::<Vec<_>>().concat(),
        other.concat(),
    ];
    [
        envelope("v1", "ServiceList", &list.concat()),
        field(7, b"later"),
    ]
    .concat()
}

#[test]
fn a_list_of_messages_is_taken_apart_wherever_it_is_cut() {
    let list = list_of(&[b"one", b"", &[b'x'; 300]]);
    for cut in 0..=list.len() {
        let (found, meta) = messages(&list, cut).unwrap();
        let lengths: Vec<_> = found.iter().map(Bytes::len).collect();
        assert_eq!(lengths, [3, 0, 300]);
        assert_eq!(meta.resource_version.as_deref(), Some("7"));
        assert_eq!(meta.token.as_deref(), Some("x"));
    }
    assert!(messages(&list_of(&[]), 0).unwrap().0.is_empty());
}

#[test]
fn a_list_of_messages_that_breaks_off_is_none() {
    let list = list_of(&[b"one", b"two"]);
    // Behind the list itself comes nothing that counts.
    let behind = [field(3, b""), field(4, b""), field(7, b"later")].concat();
    for end in 0..list.len() - behind.len() {
        assert!(messages(&list[..end], end / 2).is_err(), "{end}");
    }
    let encoded = [&list[..list.len() - behind.len()], &field(3, b"gzip")].concat();
    let large = [&b"k8s\0"[..], &[0x0a, 0x80, 0x80, 0x80, 0x10]].concat();
    for none in [
        b"<html></html>".to_vec(),
        envelope("v1", "Status", b""),
        envelope("v1", "ServiceList", &field(2, b"one")[..4]),
        envelope("v1", "ServiceList", &[0x13]),
        encoded,
        // Refused by its length alone.
        large,
    ] {
        assert!(
            matches!(messages(&none, 0), Err(Failure::Malformed(_))),
            "{none:?}"
        );
    }
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        drop(messages(&bytes, 0));
        let behind_magic = [&b"k8s\0"[..], &bytes].concat();
        drop(messages(&behind_magic, 0));
        drop(messages(&envelope("v1", "ServiceList", &bytes), 0));
    }
}

/// A line of what a real server answered.
fn real(name: &str) -> &'static str {
    let mut lines = include_str!("../message/real.txt").lines();
    let line = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.expect("it was recorded")
}

fn from_hex(text: &str) -> Vec<u8> {
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

#[test]
fn what_a_real_server_sends_is_the_same_in_both_forms() {
    fn check<K: Decode, T: PartialEq + std::fmt::Debug>(
        name: &str,
        convert: impl Fn(&mut Converter, &K) -> Converted<T>,
    ) {
        let options = || Options {
            node_name: "here".into(),
            allow_external_ips: true,
            annotations: crate::source::Annotations::default(),
            cluster: crate::source::ClusterSize::default(),
        };
        let all = |encoding, items: Vec<Bytes>| -> Vec<Converted<T>> {
            let mut converter = Converter::new(&options());
            let objects = items
                .into_iter()
                .map(|item| decode_item::<K>(encoding, item));
            objects
                .map(|object| convert(&mut converter, &object.expect("it can be read")))
                .collect()
        };
        let (texts, meta) = items(real(&format!("{name}-json"))).unwrap();
        let texts: Vec<Bytes> = texts.into_iter().map(Bytes::from).collect();
        let (found, same_meta) = messages(&from_hex(real(name)), 0).unwrap();
        assert_eq!(meta.resource_version, same_meta.resource_version);
        let converted = all(Encoding::Protobuf, found);
        assert_eq!(converted, all(Encoding::Json, texts));
        assert!(
            converted.iter().any(|(object, _)| object.is_some()),
            "{name}"
        );
    }
    check::<Service, _>("services", Converter::service);
    check::<EndpointSlice, _>("endpointslices", Converter::slice);
    check::<Node, _>("nodes", Converter::node);
    check::<ServiceCIDR, _>("servicecidrs", Converter::service_cidr);
}

#[test]
fn a_watch_of_a_real_server_is_read() {
    let headers = [(CONTENT_TYPE, PROTOBUF.parse().unwrap())];
    let body = Body::from(from_hex(real("watch")));
    let mut incoming = Incoming::new(&headers.into_iter().collect(), body, LONG).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let mut seen = Vec::new();
    runtime.block_on(async {
        while let Some(bytes) = incoming.event().await.unwrap() {
            seen.push(match event::<Service>(Encoding::Protobuf, bytes).unwrap() {
                Change::Applied(object) => object.unwrap().metadata.name.unwrap(),
                Change::Deleted(_) => "deleted".to_owned(),
                Change::Bookmark { ends_list, .. } => format!("bookmark {ends_list}"),
            });
        }
    });
    assert_eq!(seen, ["kubernetes", "web", "bookmark true"]);
}
