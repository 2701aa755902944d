// SPDX-License-Identifier: Apache-2.0
//! Values of the file into fields, as `encoding/json` of Go does it for kube-proxy: null leaves a
//! field as it is, names are case-sensitive, an unknown field is passed over. Wrong types are
//! collected, so that an operator sees all of them at once.

use std::collections::BTreeMap;

use kpr_core::model::GoDuration;

use super::gone;
use crate::yaml::{Entry, Node, Place, Value};

/// Something in a file that kube-proxy passes over, with a remark in its log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The field: `ipvs.masqueradeAll`.
    pub field: String,
    /// Its line, from 1.
    pub line: usize,
    /// What about it.
    pub message: String,
}

/// A value of the wrong type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Line, from 1; 0 if it is not known.
    pub line: usize,
    /// Column, from 1; 0 if it is not known.
    pub column: usize,
    /// The field and what it should be.
    pub message: String,
}

impl Mistake {
    pub(super) fn at(place: Place, message: impl Into<String>) -> Self {
        Self {
            line: place.line,
            column: place.column,
            message: message.into(),
        }
    }
}

/// A type of a field.
pub(super) trait Field {
    /// Takes over a value, or says that it cannot.
    fn set(&mut self, node: &Node, to: &mut Decoder);
}

/// Where the decoding is, and what it found.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    /// Names of the sections and fields around the current value.
    path: Vec<String>,
    pub(super) findings: Vec<Finding>,
    pub(super) mistakes: Vec<Mistake>,
}

impl Decoder {
    fn field(&self) -> String {
        self.path.join(".").replace(".[", "[")
    }

    fn within(&mut self, name: &str, work: impl FnOnce(&mut Self)) {
        self.path.push(name.to_owned());
        work(self);
        self.path.pop();
    }

    /// Takes over the fields of a section. `set` says whether it knows the name of a field.
    pub(super) fn section(
        &mut self,
        node: &Node,
        mut set: impl FnMut(&str, &Node, &mut Self) -> bool,
    ) {
        let entries = match &node.value {
            Value::Null => return,
            Value::Map(entries) => entries,
            _ => return self.wrong(node, "a section with fields of its own"),
        };
        for (index, entry) in entries.iter().enumerate() {
            let mut is_known = true;
            self.within(&entry.key, |decoder| {
                is_known = set(&entry.key, &entry.node, decoder);
                if !is_known {
                    let message = gone::field(&decoder.field());
                    decoder.find(entry, message);
                }
            });
            if is_known {
                self.repeated_json(entries, index);
            }
        }
    }

    /// A JSON file keeps its repeated keys.
    fn repeated_json(&mut self, entries: &[Entry], index: usize) {
        let (before, entry) = (entries.get(..index), entries.get(index));
        if let (Some(before), Some(entry)) = (before, entry)
            && before.iter().any(|other| other.key == entry.key)
        {
            self.within(&entry.key, |decoder| {
                decoder.find(entry, REPEATED.to_owned());
            });
        }
    }

    fn find(&mut self, entry: &Entry, message: String) {
        self.findings.push(Finding {
            field: self.field(),
            line: entry.place.line,
            message,
        });
    }

    /// The value is not what the field wants.
    pub(super) fn wrong(&mut self, node: &Node, wanted: &str) {
        let (field, found) = (self.field(), node.value.named());
        let subject = if field.is_empty() {
            "the file".to_owned()
        } else {
            field
        };
        let message = format!("{subject}: want {wanted}, not {found}");
        self.mistakes.push(Mistake::at(node.place, message));
    }
}

/// What to say of a repeated key.
pub(super) const REPEATED: &str = "stands here a second time: the last one counts";

impl Field for String {
    fn set(&mut self, node: &Node, to: &mut Decoder) {
        match &node.value {
            Value::Null => {}
            Value::Text(text) => self.clone_from(text),
            Value::Number(_) | Value::Bool(_) => to.wrong(node, "a text (put it in quotes)"),
            _ => to.wrong(node, "a text"),
        }
    }
}

impl Field for bool {
    fn set(&mut self, node: &Node, to: &mut Decoder) {
        match &node.value {
            Value::Null => {}
            Value::Bool(value) => *self = *value,
            Value::Text(text) if matches!(text.as_str(), "true" | "false") => {
                to.wrong(node, "true or false (without quotes)");
            }
            _ => to.wrong(node, "true or false"),
        }
    }
}

/// Numbers, with what is wanted of them.
macro_rules! numbers {
    ($($type:ty: $wanted:expr),*) => {$(
        impl Field for $type {
            fn set(&mut self, node: &Node, to: &mut Decoder) {
                match &node.value {
                    Value::Null => {}
                    Value::Number(text) => match text.parse() {
                        Ok(number) => *self = number,
                        Err(_) => to.wrong(node, &$wanted),
                    },
                    Value::Text(text) if text.parse::<Self>().is_ok() => {
                        to.wrong(node, &format!("{} (without quotes)", $wanted));
                    }
                    _ => to.wrong(node, &$wanted),
                }
            }
        }
    )*};
}

numbers! {
    i32: format!("a whole number from {} to {}", i32::MIN, i32::MAX),
    u32: format!("a whole number from 0 to {}", u32::MAX)
}

impl Field for f32 {
    fn set(&mut self, node: &Node, to: &mut Decoder) {
        match &node.value {
            Value::Null => {}
            Value::Number(text) => match text.parse::<Self>() {
                Ok(number) if number.is_finite() => *self = number,
                _ => to.wrong(node, "a smaller number"),
            },
            _ => to.wrong(node, "a number"),
        }
    }
}

impl<T: Field + Default> Field for Option<T> {
    fn set(&mut self, node: &Node, to: &mut Decoder) {
        if node.value == Value::Null {
            *self = None;
        } else {
            self.get_or_insert_default().set(node, to);
        }
    }
}

impl<T: Field + Default> Field for Vec<T> {
    fn set(&mut self, node: &Node, to: &mut Decoder) {
        match &node.value {
            Value::Null => self.clear(),
            Value::List(items) => {
                self.clear();
                for (index, item) in items.iter().enumerate() {
                    let mut value = T::default();
                    to.within(&format!("[{index}]"), |decoder| value.set(item, decoder));
                    self.push(value);
                }
            }
            Value::Text(text) if !text.is_empty() => {
                to.wrong(node, &format!("a list ([{text}])"));
            }
            _ => to.wrong(node, "a list"),
        }
    }
}

impl Field for BTreeMap<String, bool> {
    fn set(&mut self, node: &Node, to: &mut Decoder) {
        match &node.value {
            Value::Null => self.clear(),
            Value::Map(entries) => {
                for (index, entry) in entries.iter().enumerate() {
                    let mut value = false;
                    to.within(&entry.key, |decoder| value.set(&entry.node, decoder));
                    self.insert(entry.key.clone(), value);
                    to.repeated_json(entries, index);
                }
            }
            _ => to.wrong(node, "a map of names to true or false ({Name: true})"),
        }
    }
}

impl Field for GoDuration {
    fn set(&mut self, node: &Node, to: &mut Decoder) {
        match &node.value {
            Value::Text(text) => match text.parse() {
                Ok(duration) => *self = duration,
                Err(_) => to.wrong(node, DURATION),
            },
            Value::Number(number) if !number.contains('.') => {
                to.wrong(
                    node,
                    &format!("a duration with its unit, such as {number}s"),
                );
            }
            _ => to.wrong(node, DURATION),
        }
    }
}

pub(super) const DURATION: &str = "a duration such as 30s, 15m or 1h30m";
