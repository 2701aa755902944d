// SPDX-License-Identifier: Apache-2.0
//! `docs/configuration.md`, made from the flags and from the fields of the file, with their doc
//! comments.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;

use super::flags::{OURS, command, counts_always, shown};
use super::notices::notices;
use super::types::{API_VERSION, KIND, KubeProxyConfiguration, Nftables, Winkernel};
use crate::testing::document_is;

const TYPES: &str = include_str!("types.rs");

/// A field of a struct in `types.rs`.
struct Field {
    name: String,
    kind: String,
    about: String,
}

/// The structs of `types.rs` by name. A field is what follows its doc comment and its attributes.
fn structs() -> BTreeMap<String, Vec<Field>> {
    let mut structs: BTreeMap<String, Vec<Field>> = BTreeMap::new();
    let (mut current, mut about) = (String::new(), String::new());
    for line in TYPES.lines() {
        let text = line.trim();
        if let Some(rest) = text.strip_prefix("pub struct ") {
            current = rest.split([' ', '(']).next().unwrap_or_default().to_owned();
            about = String::new();
        } else if let Some(words) = text.strip_prefix("/// ") {
            about = format!("{about} {words}").trim().to_owned();
        } else if let Some((name, kind)) = text
            .strip_prefix("pub ")
            .and_then(|text| text.split_once(": "))
        {
            let kind = kind.trim_end_matches(',');
            let (name, kind) = match kind.split_once(" = ") {
                Some((kind, given)) => (given.trim_matches('"').to_owned(), kind.to_owned()),
                None => (camel_case(name), kind.to_owned()),
            };
            let about = std::mem::take(&mut about);
            structs
                .entry(current.clone())
                .or_default()
                .push(Field { name, kind, about });
        }
    }
    structs
}

fn camel_case(name: &str) -> String {
    let mut words = name.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |text, word| {
        text + &word[..1].to_uppercase() + &word[1..]
    })
}

/// Path, default and words of each field below a struct.
fn fields(of: &str, path: &str, defaults: &Value, into: &mut Vec<(String, String, String)>) {
    let structs = structs();
    for field in &structs[of] {
        let path = format!("{path}{}", field.name);
        let default = &defaults[&field.name];
        let is_value = ["Quantity", "FlushFrequency"].contains(&field.kind.as_str());
        if structs.contains_key(&field.kind) && !is_value {
            fields(&field.kind, &format!("{path}."), default, into);
        } else {
            into.push((path, written(default), field.about.clone()));
        }
    }
}

fn written(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) if text.is_empty() => String::new(),
        Value::String(text) => format!("`{text}`"),
        other => format!("`{other}`"),
    }
}

fn all_fields() -> Vec<(String, String, String)> {
    let mut configuration = KubeProxyConfiguration::with_defaults();
    configuration.set_platform_defaults();
    let defaults = serde_json::to_value(configuration).unwrap();
    let mut all = Vec::new();
    fields("KubeProxyConfiguration", "", &defaults, &mut all);
    for (_, _, about) in &mut all {
        *about = about.replace("[`API_VERSION`]", &format!("`{API_VERSION}`"));
        *about = about.replace("[`KIND`]", &format!("`{KIND}`"));
    }
    all
}

#[test]
fn the_document_is_as_the_code() {
    let mut text = "<!-- Made from the code by hack/update-golden.sh. -->
# Configuration
Flags and the configuration file are kube-proxy's (v1.37.2), so that its ConfigMap works unmodified; additions are marked *ours*. With
`--config`, all flags but those marked *always* are ignored. A changed file is applied without a restart of the container, and an
invalid one changes nothing. `kube-proxy-rs check-config FILE` reports what is wrong, unsupported or deprecated. `/configz` and `/flagz`
on the metrics port show what is in use.

The file is read as kube-proxy reads it: the first of several documents counts; unknown and repeated fields are passed over with one
warning, and the last of a repeated field counts; words and numbers are those of YAML 1.1 (`yes`, `0014`); a file that begins with a
brace is JSON. [Differences](design/differences.md#configuration-and-flags) are few.

## Flags
| flag | default | always | origin | description |
|---|---|---|---|---|
"
    .to_owned();
    let defaults: BTreeMap<String, String> = shown(["kube-proxy-rs".into()])
        .unwrap()
        .into_iter()
        .collect();
    let command = command();
    let mut flags: Vec<_> = command
        .get_arguments()
        .filter(|flag| flag.get_long().is_some())
        .collect();
    flags.sort_by_key(|flag| flag.get_long());
    for flag in flags {
        let name = flag.get_long().unwrap();
        if name == "help" {
            continue;
        }
        let about = flag.get_help().map(ToString::to_string).unwrap_or_default();
        let (about, said) = about.split_once(" [default: ").unwrap_or((&about, ""));
        let said = said.split(']').next().unwrap().trim_matches('`');
        let default = defaults
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty() && *value != "[]")
            .or_else(|| (!said.is_empty()).then_some(said));
        let default = default
            .map(|value| format!("`{value}`"))
            .unwrap_or_default();
        let always = if counts_always(flag.get_id().as_str()) {
            "yes"
        } else {
            ""
        };
        let origin = if OURS.contains(&name) {
            "ours"
        } else {
            "kube-proxy's"
        };
        writeln!(
            text,
            "| `--{name}` | {default} | {always} | {origin} | {about}{} |",
            if about.ends_with(['.', ']']) { "" } else { "." }
        )
        .unwrap();
    }
    text.push_str(
        "
`kube-proxy-rs plan` takes the same flags, `--output text|json|yaml` and `--verbose`.

## Fields of the file
All are kube-proxy's; kube-proxy-rs adds none.

| field | default | description |
|---|---|---|
",
    );
    for (path, default, about) in all_fields() {
        writeln!(text, "| `{path}` | {default} | {about} |").unwrap();
    }
    text.push_str(
        "
## Feature gates
Every gate of kube-proxy v1.37 is accepted. These have an effect: `AllowServiceExternalIPs`, `KubeProxyIPVS`, `LoggingAlphaOptions`,
`LoggingBetaOptions`, and the groups `AllAlpha` and `AllBeta` for the last two. As for kube-proxy, a gate that needs others
is refused without them, whatever turned it on; that is why `AllAlpha: true` alone is refused.
",
    );
    document_is("docs/configuration.md", &text);
}

/// What has no effect according to `check-config` has none in the document.
#[test]
fn fields_without_effect_say_so() {
    let mut configuration = KubeProxyConfiguration::with_defaults();
    configuration.nftables = Nftables {
        masquerade_all: true,
        ..Nftables::default()
    };
    configuration.winkernel = Winkernel {
        enable_dsr: true,
        ..Winkernel::default()
    };
    configuration.windows_run_as_service = true;
    configuration.port_range = "1-2".to_owned();
    configuration.show_hidden_metrics_for_version = "1.36".to_owned();
    configuration.enable_profiling = true;
    configuration.client_connection.content_type = "x".to_owned();
    configuration.client_connection.accept_content_types = "x".to_owned();
    configuration.client_connection.qps = 7.0;
    configuration.config_sync_period = kpr_core::model::GoDuration::from_secs(1);
    configuration.logging.flush_frequency = kpr_core::model::GoDuration::from_secs(1).into();
    configuration.logging.options.text.split_stream = true;
    let fields = all_fields();
    let mut checked = 0;
    for notice in notices(&configuration) {
        if !notice.message.contains("no effect") {
            continue;
        }
        checked += 1;
        let below = format!("{}.", notice.subject);
        let mut named = fields
            .iter()
            .filter(|(path, _, _)| *path == notice.subject || path.starts_with(&below));
        assert!(
            named.any(|(_, _, about)| about.to_lowercase().contains("no effect")),
            "{notice}"
        );
    }
    assert_eq!(checked, 12);
}
