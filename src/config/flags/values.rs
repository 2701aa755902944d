// SPDX-License-Identifier: Apache-2.0
//! Values of flags, in the forms that kube-proxy's parsers take.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, PossibleValuesParser, TypedValueParser};

use super::super::defaults::split_host_port;
use super::super::types::{self, VmoduleItem};
use super::FlagError;
use kpr_core::model::address::parse_ip;

/// A number that a float can hold, as Go's `strconv.ParseFloat` has it.
pub(super) fn finite(text: &str) -> Result<f32, String> {
    let number: f32 = text.parse().map_err(|error| format!("{error}"))?;
    let names_infinity = text.to_ascii_lowercase().contains("inf");
    if number.is_infinite() && !names_infinity {
        return Err("value out of range".to_owned());
    }
    Ok(number)
}

/// A path that may be empty.
pub(super) fn path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// What Go's `strconv.ParseInt` takes if the prefix says the base: `0x10`, `010`, `1_000`.
pub(super) fn whole_number(text: &str) -> Result<i32, String> {
    let digits = text.trim_start_matches(['+', '-']);
    let separates = !digits.starts_with('_') && !digits.ends_with('_') && !digits.contains("__");
    crate::yaml::integer(&text.replace('_', ""))
        .filter(|_| separates)
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| format!("want a whole number from {} to {}", i32::MIN, i32::MAX))
}

/// A log level.
pub(super) fn level(text: &str) -> Result<u32, String> {
    let number = text.parse();
    number.map_err(|_error| format!("want a whole number from 0 to {}", i32::MAX))
}

/// An IP address, or nothing.
pub(super) fn address(text: &str) -> Result<String, &'static str> {
    let is_good = text.is_empty() || parse_ip(text).is_ok();
    is_good.then(|| text.to_owned()).ok_or("want an IP address")
}

/// An IP address with or without a port, or nothing.
pub(super) fn server_address(text: &str) -> Result<String, &'static str> {
    let is_port = |port: &str| port.parse::<u16>().is_ok() && !port.starts_with('+');
    let has_port =
        split_host_port(text).is_some_and(|(host, port)| parse_ip(host).is_ok() && is_port(port));
    let is_good = has_port || address(text).is_ok();
    is_good
        .then(|| text.to_owned())
        .ok_or("want an IP address or IP:port ([IP]:port for IPv6)")
}

pub(super) fn gate_list(text: &str) -> Result<String, String> {
    match gates(&[text.to_owned()]) {
        Ok(_) => Ok(text.to_owned()),
        Err(FlagError::Value { message, .. }) => Err(message),
        Err(error) => Err(error.to_string()),
    }
}

pub(super) fn csv_text(text: &str) -> Result<String, &'static str> {
    let fields = csv(text).ok_or("a quotation mark stands in or behind a field, or is missing");
    fields.map(|_| text.to_owned())
}

/// The fields of a list as pflag's `StringSlice` reads it, with Go's `encoding/csv`.
fn csv(text: &str) -> Option<Vec<String>> {
    let (mut fields, mut rest) = (Vec::new(), text);
    if text.is_empty() {
        return Some(fields);
    }
    loop {
        let (field, behind) = if let Some(quoted) = rest.strip_prefix('"') {
            // Two marks are one of the text.
            let mut marks = quoted.match_indices('"').map(|(at, _)| at);
            let mut end = marks.next()?;
            while quoted
                .get(end + 1..)
                .is_some_and(|next| next.starts_with('"'))
            {
                marks.next()?;
                end = marks.next()?;
            }
            let behind = quoted.get(end + 1..)?;
            (quoted.get(..end)?.replace("\"\"", "\""), behind)
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            let field = rest.get(..end).filter(|field| !field.contains('"'))?;
            (field.to_owned(), rest.get(end..)?)
        };
        fields.push(field);
        match behind.strip_prefix(',') {
            Some(next) => rest = next,
            None if behind.is_empty() => return Some(fields),
            None => return None,
        }
    }
}

/// The values of a flag that pflag calls `StringSlice`.
pub(in crate::config) fn strings(values: &[String]) -> Option<Vec<String>> {
    let fields = values.iter().filter_map(|value| csv(value)).flatten();
    (!values.is_empty()).then(|| fields.collect())
}

pub(super) fn size(text: &str) -> Result<String, &'static str> {
    let is_size = types::is_quantity(text.trim());
    is_size
        .then(|| text.trim().to_owned())
        .ok_or("want a size such as 512, 4k or 4Ki")
}

/// What Go's `strconv.ParseBool` takes.
pub(super) fn boolean() -> impl TypedValueParser<Value = bool> {
    PossibleValuesParser::new([
        "true", "false", "1", "0", "t", "f", "T", "F", "TRUE", "FALSE", "True", "False",
    ])
    .map(|text| matches!(text.as_str(), "true" | "1" | "t" | "T" | "TRUE" | "True"))
}

/// All values of a list flag: `--x=a,b --x=c`. `None` if it was not given, empty for `--x=`.
pub(in crate::config) fn list(values: &[String]) -> Option<Vec<String>> {
    (!values.is_empty()).then(|| {
        values
            .iter()
            .filter(|value| !value.is_empty())
            .flat_map(|value| value.split(','))
            .map(str::to_owned)
            .collect()
    })
}

/// `--feature-gates`.
pub(in crate::config) fn gates(values: &[String]) -> Result<BTreeMap<String, bool>, FlagError> {
    let invalid = |value: &str, message: String| FlagError::Value {
        flag: "feature-gates",
        value: value.to_owned(),
        message,
    };
    let pairs = list(values).unwrap_or_default();
    pairs
        .iter()
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair
                .split_once('=')
                .ok_or_else(|| invalid(pair, "malformed pair, expect string=bool".to_owned()))?;
            match value.trim() {
                "true" | "1" | "t" | "T" | "TRUE" | "True" => Ok((name.trim().to_owned(), true)),
                "false" | "0" | "f" | "F" | "FALSE" | "False" => {
                    Ok((name.trim().to_owned(), false))
                }
                value => Err(invalid(
                    pair,
                    format!("invalid value of {}: {value}", name.trim()),
                )),
            }
        })
        .collect()
}

/// `--vmodule`.
pub(in crate::config) fn vmodule(values: &[String]) -> Result<Vec<VmoduleItem>, FlagError> {
    let items = list(values).unwrap_or_default();
    items
        .iter()
        .filter(|item| !item.is_empty())
        .map(|item| {
            let parsed = item.split_once('=').and_then(|(pattern, level)| {
                let verbosity = level.parse().ok()?;
                (!pattern.is_empty()).then(|| VmoduleItem {
                    file_pattern: pattern.to_owned(),
                    verbosity,
                })
            });
            parsed.ok_or_else(|| FlagError::Value {
                flag: "vmodule",
                value: item.clone(),
                message: "want pattern=N".to_owned(),
            })
        })
        .collect()
}
