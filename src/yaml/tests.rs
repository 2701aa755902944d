// SPDX-License-Identifier: Apache-2.0
//! The same values as `sigs.k8s.io/yaml` makes of a text. Most rows were tried with kube-proxy's
//! libraries; `tests/cluster_configuration` compares with the program itself.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn read(text: &str) -> Result<(serde_json::Value, Vec<(String, usize)>), Error> {
    let mut reader = Reader::new(text, Words::Yaml11);
    if !reader.next_document()? {
        return Ok((json!(null), Vec::new()));
    }
    let node = reader.node()?;
    let repeated = reader.repeated.iter();
    let repeated = repeated.map(|found| (found.key.clone(), found.place.line));
    Ok((node.into(), repeated.collect()))
}

#[track_caller]
fn value(text: &str) -> serde_json::Value {
    read(text).unwrap().0
}

#[test]
fn words_and_numbers_are_those_of_yaml_1_1() {
    for (text, expected) in [
        ("yes", json!(true)),
        ("Off", json!(false)),
        ("y", json!(true)),
        ("\"yes\"", json!("yes")),
        ("~", json!(null)),
        ("", json!(null)),
        ("Null", json!(null)),
        ("nULL", json!("nULL")),
        ("0014", json!(12)),
        ("-017", json!(-15)),
        ("0o17", json!(15)),
        ("0x1F", json!(31)),
        ("0b101", json!(5)),
        ("-0b11", json!(-3)),
        ("1_000", json!(1000)),
        ("+12", json!(12)),
        // No octal number, so a float.
        ("08", json!(8)),
        ("10.0", json!(10)),
        ("1e3", json!(1000)),
        (".5", json!(0.5)),
        ("-.5", json!(-0.5)),
        ("5.", json!(5)),
        (
            "18446744073709551615",
            json!(18_446_744_073_709_551_615_u64),
        ),
        ("1:30", json!("1:30")),
        ("2001-01-01", json!("2001-01-01")),
        ("10.0.0.1", json!("10.0.0.1")),
        ("30s", json!("30s")),
        ("-", json!([null])),
        ("0x", json!("0x")),
        ("+-5", json!("+-5")),
        ("!!str 14", json!("14")),
        ("!!int \"14\"", json!(14)),
        ("!!float 14", json!(14)),
        ("!other 14", json!("14")),
        (
            "{1: a, true: b, 1.5: c}",
            json!({"1": "a", "true": "b", "1.5": "c"}),
        ),
    ] {
        assert_eq!(value(text), expected, "{text}");
    }
}

#[test]
fn the_last_of_a_repeated_key_counts_as_a_whole() {
    let (value, repeated) = read("a: {x: 1, y: 2}\nb: 1\na: {x: 3}\n").unwrap();
    assert_eq!(value, json!({"a": {"x": 3}, "b": 1}));
    assert_eq!(repeated, [("a".to_owned(), 3)]);
}

#[test]
fn merged_keys_count_where_they_stand() {
    let text = "base: &base {a: 1, b: 2}\nmore: &more {b: 3}\n";
    let merged = |rest: &str| value(&format!("{text}own:\n{rest}"))["own"].clone();
    assert_eq!(merged("  <<: *base\n  b: 9\n"), json!({"a": 1, "b": 9}));
    // As go-yaml v2 does; YAML says otherwise.
    assert_eq!(merged("  b: 9\n  <<: *base\n"), json!({"a": 1, "b": 2}));
    assert_eq!(merged("  <<: [*base, *more]\n"), json!({"a": 1, "b": 2}));
    let error = read("a: 1\nb: {<<: [1]}\n").unwrap_err();
    assert_eq!(error.place.line, 2);
}

#[test]
fn what_is_no_json_is_an_error_with_its_line() {
    for (text, line) in [
        ("a: 1\nb: .inf\n", 2),
        ("a: 1\n? [x]\n: 2\n", 2),
        ("a: 1\n~: 2\n", 2),
        ("a: !!int x\n", 1),
        ("a: &a [*a]\n", 1),
        ("a: 1\n\tb: 2\n", 2),
        ("a: [1\n", 1),
        ("%YAML 1.2\n---\na: 1\n", 2),
    ] {
        let error = read(text).unwrap_err();
        assert_eq!(error.place.line, line, "{text}: {error:?}");
        assert!(!error.message.is_empty(), "{text}");
    }
}

#[test]
fn aliases_cannot_fill_the_memory() {
    use std::fmt::Write as _;
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let below = vec![format!("*a{}", level - 1); 10].join(", ");
        writeln!(text, "a{level}: &a{level} [{below}]").unwrap();
    }
    let error = read(&text).unwrap_err();
    assert!(error.message.contains("too many"), "{error:?}");
}

#[test]
fn values_know_where_they_stand() {
    let mut reader = Reader::new("a: 1\nb:\n  c: |\n    text\n", Words::Yaml11);
    assert!(reader.next_document().unwrap());
    let node = reader.node().unwrap();
    let below = node.get("b").unwrap().entries();
    assert_eq!(below[0].place, Place { line: 3, column: 3 });
    assert!(below[0].node.is_literal);
    assert_eq!(below[0].node.place.line, 4);
}

#[test]
fn repeated_keys_of_json_are_kept_and_numbers_as_they_are() {
    let mut reader = Reader::new("{\"a\": 1.0, \"a\": yes2}", Words::Json);
    assert!(reader.next_document().unwrap());
    assert!(reader.node().is_err());
    let mut reader = Reader::new("{\"a\": 1.0, \"a\": 2}", Words::Json);
    assert!(reader.next_document().unwrap());
    let node = reader.node().unwrap();
    assert_eq!(node.entries().len(), 2);
    assert_eq!(
        node.entries()[0].node.value,
        Value::Number("1.0".to_owned())
    );
}

#[test]
fn items_come_one_by_one() {
    let text = "kind: List\nitems: [1, {a: 2}]\nafter: 3\n";
    let mut reader = Reader::new(text, Words::FewBooleans);
    assert!(reader.next_document().unwrap());
    let mut items = Vec::new();
    let node = reader
        .node_by_items(
            |_| true,
            |before, item| items.push((before.len(), serde_json::Value::from(item))),
        )
        .unwrap();
    assert_eq!(items, [(1, json!(1)), (1, json!({"a": 2}))]);
    assert_eq!(
        serde_json::Value::from(node),
        json!({"kind": "List", "after": 3})
    );
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "[a-z0-9:{}\\[\\]&*!<|>,#'\"%~. \n\t-]{0,60}") {
        drop(read(&format!("a: {text}")));
        drop(read(&text));
    }

    #[test]
    fn json_is_read_as_it_is(number: i64, text in "[ -~]{0,20}", word: bool) {
        let expected = json!({"n": number, "t": text, "w": word, "l": [number, null]});
        prop_assert_eq!(value(&expected.to_string()), expected);
    }
}
