// SPDX-License-Identifier: Apache-2.0
//! Reads the items of a list one by one while the document is parsed: a dump of a cluster is one
//! list, and takes many times its size as a tree of values.

use std::cell::RefCell;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::super::super::problem::reason;
use super::Reader;

/// What a typed list (`ServiceList`) says of its items.
pub(super) struct ItemType {
    pub(super) api_version: String,
    pub(super) kind: String,
}

impl ItemType {
    /// `None` for a plain `List`, or what is no list.
    fn of(fields: &Map<String, Value>) -> Option<Self> {
        let text = |name| fields.get(name).and_then(Value::as_str);
        let kind = text("kind")?.strip_suffix("List")?;
        (!kind.is_empty()).then(|| Self {
            api_version: text("apiVersion").unwrap_or_default().to_owned(),
            kind: kind.to_owned(),
        })
    }
}

/// Reads one value and gives it, or its items, to the reader.
pub(super) struct Seed<'a, 'r> {
    reader: &'a RefCell<Reader<'r>>,
}

impl<'a, 'r> Seed<'a, 'r> {
    pub(super) fn new(reader: &'a RefCell<Reader<'r>>) -> Self {
        Self { reader }
    }

    fn refuse(&self, message: &str) {
        self.reader.borrow_mut().refuse(message, reason::TYPE);
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// Visits of what is no object, which is a problem and not an error.
macro_rules! refused {
    ($($visit:ident($type:ty): $message:literal,)*) => {$(
        fn $visit<E: de::Error>(self, _: $type) -> Result<(), E> {
            self.refuse($message);
            Ok(())
        }
    )*};
}

impl<'de> Visitor<'de> for Seed<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut fields = Map::new();
        // Items that do not say what they are, before the list has said it.
        let mut untyped = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            let kind = fields.get("kind").and_then(Value::as_str);
            if name == "items" && kind.is_none_or(|kind| kind.ends_with("List")) {
                map.next_value_seed(Items {
                    reader: self.reader,
                    item: ItemType::of(&fields),
                    untyped: &mut untyped,
                })?;
            } else {
                fields.insert(name, map.next_value()?);
            }
        }
        let is_list = fields
            .get("kind")
            .and_then(Value::as_str)
            .is_some_and(|kind| kind.ends_with("List"));
        let mut reader = self.reader.borrow_mut();
        if is_list {
            let item = ItemType::of(&fields);
            for value in untyped {
                reader.value(value, item.as_ref());
            }
        } else {
            reader.value(Value::Object(fields), None);
        }
        Ok(())
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    refused! {
        visit_str(&str): "a string, not an object",
        visit_bool(bool): "a boolean, not an object",
        visit_i64(i64): "a number, not an object",
        visit_u64(u64): "a number, not an object",
        visit_f64(f64): "a number, not an object",
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element::<de::IgnoredAny>()?.is_some() {}
        self.refuse("a list, not an object");
        Ok(())
    }
}

/// The field `items` of a list.
struct Items<'a, 'r> {
    reader: &'a RefCell<Reader<'r>>,
    item: Option<ItemType>,
    untyped: &'a mut Vec<Value>,
}

impl<'de> DeserializeSeed<'de> for Items<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Items<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while let Some(value) = seq.next_element::<Value>()? {
            if self.item.is_none() && value.get("kind").is_none() {
                self.untyped.push(value);
            } else {
                self.reader.borrow_mut().value(value, self.item.as_ref());
            }
        }
        Ok(())
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        Ok(())
    }
}
