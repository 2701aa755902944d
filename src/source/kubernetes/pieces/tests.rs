// SPDX-License-Identifier: Apache-2.0
//! Bodies that arrive in pieces of any size.

use futures::executor::block_on;
use proptest::prelude::*;
use serde_json::json;

use super::*;

const LONG: Duration = Duration::from_hours(1);

/// All of a text at once: bodies of many frames are in the tests against a server.
fn incoming(text: &str) -> Incoming {
    let mut incoming = Incoming::new(Body::empty(), LONG);
    incoming.buffer.extend_from_slice(text.as_bytes());
    incoming
}

fn items(text: &str) -> Result<(Vec<String>, Envelope), Failure> {
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
        Ok((found, items.envelope()?))
    })
}

#[test]
fn a_list_is_taken_apart_wherever_its_version_stands() {
    let list = r#"{"kind": "List", "items" : [ {"a": "}]\"{"} , {"items": [{}]},null], "metadata":{"resourceVersion":"7","continue":"x"}}"#;
    let (found, envelope) = items(list).unwrap();
    assert_eq!(found, [r#"{"a": "}]\"{"}"#, r#"{"items": [{}]}"#]);
    assert_eq!(envelope.metadata.resource_version.as_deref(), Some("7"));
    assert_eq!(envelope.metadata.token.as_deref(), Some("x"));
    let (found, envelope) = items(r#"{"metadata":{"resourceVersion":"8"},"items":null}"#).unwrap();
    assert_eq!(found, Vec::<String>::new());
    assert_eq!(envelope.metadata.resource_version.as_deref(), Some("8"));
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
