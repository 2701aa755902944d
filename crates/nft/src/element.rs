// SPDX-License-Identifier: Apache-2.0
//! Elements of sets and maps.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use netlink_pipeline::attribute::{
    Attribute, Codec, DecodeError, ListAttribute as _, Writer, list,
};
use netlink_pipeline::find_attribute;

use crate::data::{Data, Value};
use crate::expression::Expression;
use crate::name::Name;
use crate::set::milliseconds;
use crate::user_data;
use crate::wire::{Nft, missing};

// enum nft_set_elem_flags
const NFT_SET_ELEM_INTERVAL_END: u32 = 1;
const NFT_SET_ELEM_CATCHALL: u32 = 2;

netlink_pipeline::attributes! {
    /// An attribute of a list of elements.
    pub enum ElementListAttribute {
        /// `NFTA_SET_ELEM_LIST_TABLE`
        Table(Name) = 1 NFTA_SET_ELEM_LIST_TABLE as Nft,
        /// `NFTA_SET_ELEM_LIST_SET`
        Set(Name) = 2 NFTA_SET_ELEM_LIST_SET as Nft,
        /// `NFTA_SET_ELEM_LIST_ELEMENTS`
        Elements(Vec<Vec<ElementAttribute>>) = 3 NFTA_SET_ELEM_LIST_ELEMENTS as Elements,
        /// `NFTA_SET_ELEM_LIST_SET_ID`: the set's number in the transaction that creates it.
        SetId(u32) = 4 NFTA_SET_ELEM_LIST_SET_ID as Nft,
    }
}

netlink_pipeline::attributes! {
    /// An attribute of an element.
    pub enum ElementAttribute {
        /// `NFTA_SET_ELEM_KEY`
        Key(Data) = 1 NFTA_SET_ELEM_KEY as Nft,
        /// `NFTA_SET_ELEM_DATA`: of maps.
        Data(Data) = 2 NFTA_SET_ELEM_DATA as Nft,
        /// `NFTA_SET_ELEM_FLAGS`: `enum nft_set_elem_flags`.
        Flags(u32) = 3 NFTA_SET_ELEM_FLAGS as Nft,
        /// `NFTA_SET_ELEM_TIMEOUT`: milliseconds.
        Timeout(u64) = 4 NFTA_SET_ELEM_TIMEOUT as Nft,
        /// `NFTA_SET_ELEM_EXPIRATION`: milliseconds that are left.
        Expiration(u64) = 5 NFTA_SET_ELEM_EXPIRATION as Nft,
        /// `NFTA_SET_ELEM_USERDATA`: comment and others of `nft`.
        UserData(Vec<u8>) = 6 NFTA_SET_ELEM_USERDATA as Nft,
        /// `NFTA_SET_ELEM_EXPR`: what it has, such as a counter.
        Expression(Expression) = 7 NFTA_SET_ELEM_EXPR as Nft,
        /// `NFTA_SET_ELEM_OBJREF`: of maps of objects.
        Object(Name) = 9 NFTA_SET_ELEM_OBJREF as Nft,
        /// `NFTA_SET_ELEM_KEY_END`: of ranges of concatenations.
        KeyEnd(Data) = 10 NFTA_SET_ELEM_KEY_END as Nft,
        /// `NFTA_SET_ELEM_EXPRESSIONS`: what it has, if there are several.
        Expressions(Vec<Expression>) = 11 NFTA_SET_ELEM_EXPRESSIONS as Nft,
    }
}

/// A list of lists. `nft` numbers them in some way, the kernel does not look at it.
enum Elements {}

const NFTA_LIST_ELEM: u16 = 1;

impl Codec<Vec<Vec<ElementAttribute>>> for Elements {
    fn read(
        raw: &Attribute<'_>,
        _name: &'static str,
    ) -> Result<Vec<Vec<ElementAttribute>>, DecodeError> {
        list(raw.value())
            .map(|element| ElementAttribute::read_all(element?.value()))
            .collect()
    }

    fn write(value: &Vec<Vec<ElementAttribute>>, kind: u16, writer: &mut Writer) {
        writer.nested(kind, |list| {
            for attributes in value {
                write(attributes, list);
            }
        });
    }
}

/// Writes one element of a list.
pub(crate) fn write(attributes: &[ElementAttribute], writer: &mut Writer) {
    writer.nested(NFTA_LIST_ELEM, |element| {
        for attribute in attributes {
            attribute.write(element);
        }
    });
}

/// What an element stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum ElementKey {
    /// One value.
    Value(Value),
    /// In sets of [intervals](crate::SetFlags::INTERVAL) with keys of one part: all values from one
    /// to another, as numbers in network order. Each element of such a set must be one of these.
    Range {
        /// The lowest.
        first: Value,
        /// The highest.
        last: Value,
    },
    /// In sets of intervals with concatenated keys: all values of which each part is in a range.
    /// Each element of such a set must be one of these.
    Ranges {
        /// The lowest of each part.
        first: Value,
        /// The highest of each part.
        last: Value,
    },
    /// All values that no other element stands for (Linux 5.13).
    Any,
}

impl ElementKey {
    /// The addresses of a network. Host bits do not matter.
    pub fn network(address: IpAddr, prefix: u8) -> Self {
        let (first, last) = network(address, prefix);
        Self::Range { first, last }
    }
}

/// The first and last address of a network, whatever the host bits of `address` are. With other
/// parts they make the two keys of [`ElementKey::Ranges`].
pub fn network(address: IpAddr, prefix: u8) -> (Value, Value) {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or_default();
            let bits = v4.to_bits();
            let ends = [bits & !mask, bits | mask].map(u32::to_be_bytes);
            (Value::new(ends[0]), Value::new(ends[1]))
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shr(u32::from(prefix)).unwrap_or_default();
            let bits = v6.to_bits();
            let ends = [bits & !mask, bits | mask].map(u128::to_be_bytes);
            (Value::new(ends[0]), Value::new(ends[1]))
        }
    }
}

impl From<Value> for ElementKey {
    fn from(value: Value) -> Self {
        Self::Value(value)
    }
}

impl fmt::Display for ElementKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(value) => value.fmt(f),
            Self::Range { first, last } | Self::Ranges { first, last } => {
                write!(f, "{first}-{last}")
            }
            Self::Any => f.write_str("*"),
        }
    }
}

/// An element of a set or map.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Element {
    /// What it stands for.
    pub key: ElementKey,
    /// Of maps: what it holds.
    pub data: Option<Data>,
    /// After which time it expires, if not after that of its set.
    pub timeout: Option<Duration>,
    /// What `nft` shows behind it; the kernel keeps 127 bytes.
    pub comment: Option<String>,
}

impl Element {
    /// An element of a set.
    pub fn key(key: impl Into<ElementKey>) -> Self {
        Self {
            key: key.into(),
            data: None,
            timeout: None,
            comment: None,
        }
    }

    /// An element of a map.
    pub fn entry(key: impl Into<ElementKey>, data: impl Into<Data>) -> Self {
        Self {
            data: Some(data.into()),
            ..Self::key(key)
        }
    }

    /// What describes it on the wire: one list of attributes, or two for a range.
    pub fn to_attributes(&self) -> Vec<Vec<ElementAttribute>> {
        let mut attributes = Vec::with_capacity(6);
        let mut end = None;
        if self.key == ElementKey::Any {
            attributes.push(ElementAttribute::Flags(NFT_SET_ELEM_CATCHALL));
        }
        let timeout = self.timeout.map(milliseconds);
        attributes.extend(timeout.map(ElementAttribute::Timeout));
        match &self.key {
            ElementKey::Value(value) => attributes.push(key_of(value)),
            ElementKey::Range { first, last } => {
                attributes.push(key_of(first));
                // What comes behind the range ends it; behind the highest value is nothing.
                end = last.next().map(|end| {
                    vec![
                        ElementAttribute::Flags(NFT_SET_ELEM_INTERVAL_END),
                        key_of(&end),
                    ]
                });
            }
            ElementKey::Ranges { first, last } => {
                attributes.push(key_of(first));
                attributes.push(ElementAttribute::KeyEnd(Data::Value(last.clone())));
            }
            ElementKey::Any => {}
        }
        attributes.extend(self.data.clone().map(ElementAttribute::Data));
        let comment = self.comment.as_deref().map(user_data::comment);
        attributes.extend(comment.map(ElementAttribute::UserData));
        [attributes].into_iter().chain(end).collect()
    }
}

fn key_of(value: &Value) -> ElementAttribute {
    ElementAttribute::Key(Data::Value(value.clone()))
}

/// `0x0a000001 : jump web`
impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.key.fmt(f)?;
        match &self.data {
            Some(data) => write!(f, " : {data}"),
            None => Ok(()),
        }
    }
}

/// What the kernel says of an element.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ElementStatus {
    /// What would add it.
    pub element: Element,
    /// When it expires.
    pub expires_in: Option<Duration>,
}

/// One element as the kernel has it, which may be the end of a range.
pub(crate) struct RawElement {
    key: Option<Value>,
    is_end: bool,
    status: ElementStatus,
}

impl RawElement {
    pub(crate) fn from_attributes(attributes: &[ElementAttribute]) -> Result<Self, DecodeError> {
        let flags = find_attribute!(attributes, ElementAttribute::Flags).copied();
        let flags = flags.unwrap_or_default();
        let value = |data: &Data| match data {
            Data::Value(value) => Some(value.clone()),
            Data::Verdict(_) => None,
        };
        let first = find_attribute!(attributes, ElementAttribute::Key).and_then(value);
        let last = find_attribute!(attributes, ElementAttribute::KeyEnd).and_then(value);
        let key = match (first.clone(), last) {
            (Some(first), Some(last)) => ElementKey::Ranges { first, last },
            (Some(value), None) => ElementKey::Value(value),
            (None, _) if flags & NFT_SET_ELEM_CATCHALL != 0 => ElementKey::Any,
            (None, _) => return Err(missing("NFTA_SET_ELEM_KEY")),
        };
        let time = |found: Option<&u64>| found.copied().map(Duration::from_millis);
        Ok(Self {
            key: first,
            is_end: flags & NFT_SET_ELEM_INTERVAL_END != 0,
            status: ElementStatus {
                element: Element {
                    key,
                    data: find_attribute!(attributes, ElementAttribute::Data).cloned(),
                    timeout: time(find_attribute!(attributes, ElementAttribute::Timeout)),
                    comment: find_attribute!(attributes, ElementAttribute::UserData)
                        .and_then(|bytes| user_data::comment_of(bytes)),
                },
                expires_in: time(find_attribute!(attributes, ElementAttribute::Expiration)),
            },
        })
    }
}

/// Elements as they are, of a set that has no simple intervals.
pub(crate) fn plain(raw: Vec<RawElement>) -> Vec<ElementStatus> {
    raw.into_iter().map(|raw| raw.status).collect()
}

/// Joins the two elements that the kernel has for each interval.
pub(crate) fn intervals(mut raw: Vec<RawElement>) -> Vec<ElementStatus> {
    // The end of a range has the key of the next one's beginning where they touch.
    raw.sort_by(|a, b| (&a.key, !a.is_end).cmp(&(&b.key, !b.is_end)));
    let mut joined = Vec::new();
    let mut open: Option<RawElement> = None;
    for element in raw {
        let Some(key) = element.key.clone() else {
            // What catches all others is no interval.
            joined.push(element.status);
            continue;
        };
        let end = key.previous();
        let begun = if element.is_end {
            open.take()
        } else {
            open.replace(element)
        };
        joined.extend(begun.and_then(|begun| begun.until(end)));
    }
    joined.extend(open.and_then(|begun| begun.until(None)));
    joined
}

impl RawElement {
    /// The range that begins here; without `last` it goes to the highest value.
    fn until(self, last: Option<Value>) -> Option<ElementStatus> {
        let first = self.key?;
        let last = last.unwrap_or_else(|| first.highest());
        let mut status = self.status;
        status.element.key = ElementKey::Range { first, last };
        Some(status)
    }
}
