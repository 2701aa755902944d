// SPDX-License-Identifier: Apache-2.0
//! What a word of YAML stands for: `resolve.go` of `go.yaml.in/yaml/v2` v2.4.4.

use super::{Value, Words};

/// A word with its tag (`int` for `!!int`, if it has one). A word that is not plain is a text.
pub(super) fn resolve(
    text: &str,
    tag: Option<&str>,
    is_plain: bool,
    words: Words,
) -> Result<Value, String> {
    if words == Words::Json {
        return if is_plain {
            json(text)
        } else {
            Ok(Value::Text(text.to_owned()))
        };
    }
    let value = match tag {
        None if !is_plain => return Ok(Value::Text(text.to_owned())),
        // Tags of other programs do not count.
        Some("bool" | "int" | "float" | "null") | None => plain(text, words),
        Some(_) => return Ok(Value::Text(text.to_owned())),
    };
    let fits = match (tag, &value) {
        (None, _)
        | (Some("bool"), Value::Bool(_))
        | (Some("null"), Value::Null)
        | (Some("float"), Value::Number(_)) => true,
        (Some("int"), Value::Number(_)) => integer(&text.replace('_', "")).is_some(),
        _ => false,
    };
    match value {
        Value::Number(number) if number.is_empty() => {
            Err(format!("{text} is no number that can be used"))
        }
        value if fits => Ok(value),
        _ => Err(format!(
            "`{text}` is not what its tag !!{} says",
            tag.unwrap_or_default()
        )),
    }
}

fn json(text: &str) -> Result<Value, String> {
    match text {
        "null" => Ok(Value::Null),
        "true" => Ok(Value::Bool(true)),
        "false" => Ok(Value::Bool(false)),
        _ if text.starts_with(|c: char| c == '-' || c.is_ascii_digit()) => {
            Ok(Value::Number(text.to_owned()))
        }
        _ => Err(format!("`{text}` is no JSON")),
    }
}

/// A number that JSON has no form for is empty.
fn plain(text: &str, words: Words) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        ".nan" | ".NaN" | ".NAN" | ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF"
        | "-.inf" | "-.Inf" | "-.INF" => return Value::Number(String::new()),
        "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" if words == Words::Yaml11 => {
            return Value::Bool(true);
        }
        "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" if words == Words::Yaml11 => {
            return Value::Bool(false);
        }
        _ => {}
    }
    let number = if text.starts_with('.') {
        float(text)
    } else if text.starts_with(|c: char| c == '+' || c == '-' || c.is_ascii_digit()) {
        let digits = text.replace('_', "");
        integer(&digits).or_else(|| float(&digits))
    } else {
        None
    };
    number.map_or_else(|| Value::Text(text.to_owned()), Value::Number)
}

/// Go's `ParseInt` and `ParseUint` of 64 bits with the base that the prefix says: `0x10`, `0b1`,
/// `0o17` and `017`.
pub(crate) fn integer(text: &str) -> Option<String> {
    let (negative, digits) = match text.strip_prefix(['+', '-']) {
        Some(digits) => (text.starts_with('-'), digits),
        None => (false, text),
    };
    let (base, digits) = match digits.get(..2) {
        Some("0x" | "0X") => (16, digits.get(2..)?),
        Some("0b" | "0B") => (2, digits.get(2..)?),
        Some("0o" | "0O") => (8, digits.get(2..)?),
        Some(two) if two.starts_with('0') => (8, digits.get(1..)?),
        _ => (10, digits),
    };
    // Another sign is none of a number.
    if !digits.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return None;
    }
    let value = i128::from(u64::from_str_radix(digits, base).ok()?);
    let value = if negative { -value } else { value };
    let has_sign = text.starts_with(['+', '-']);
    let fits = i64::try_from(value).is_ok() || !has_sign;
    fits.then(|| value.to_string())
}

/// `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`, as Go's `encoding/json` prints it.
fn float(text: &str) -> Option<String> {
    if !is_float(text) {
        return None;
    }
    let value: f64 = text.parse().ok()?;
    if !value.is_finite() {
        return None;
    }
    let size = value.abs();
    Some(if size != 0.0 && !(1e-6..1e21).contains(&size) {
        format!("{value:e}")
    } else {
        format!("{value}")
    })
}

fn is_float(text: &str) -> bool {
    let text = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (number, exponent) = match text.split_once(['e', 'E']) {
        Some((number, exponent)) => (number, Some(exponent)),
        None => (text, None),
    };
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let is_number = match number.split_once('.') {
        Some(("", fraction)) => is_digits(fraction),
        Some((whole, fraction)) => is_digits(whole) && (fraction.is_empty() || is_digits(fraction)),
        None => is_digits(number),
    };
    let is_exponent = |text: &str| is_digits(text.strip_prefix(['+', '-']).unwrap_or(text));
    is_number && exponent.is_none_or(is_exponent)
}
