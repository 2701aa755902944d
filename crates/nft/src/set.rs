// SPDX-License-Identifier: Apache-2.0
//! Sets and maps.

use std::ops::BitOr;
use std::time::Duration;

use netlink_pipeline::attribute::{Attribute, Codec, DecodeError, Writer, list};
use netlink_pipeline::find_attribute;

use crate::expression::{Expression, NetworkBytes};
use crate::family::Family;
use crate::key_type::{BYTEORDER_NONE, DataType, KeyType};
use crate::name::Name;
use crate::table::{SetKey, TableKey};
use crate::user_data;
use crate::wire::{Nft, Wire, missing};

// enum nft_set_flags, those that follow from the rest of a set.
const NFT_SET_MAP: u32 = 0x8;
const NFT_SET_OBJECT: u32 = 0x40;
const NFT_SET_CONCAT: u32 = 0x80;
const NFT_SET_EXPR: u32 = 0x100;

/// `NFT_DATA_VERDICT` of `enum nft_data_types`.
const NFT_DATA_VERDICT: u32 = 0xffff_ff00;

netlink_pipeline::attributes! {
    /// An attribute of a set or map.
    pub enum SetAttribute {
        /// `NFTA_SET_TABLE`
        Table(Name) = 1 NFTA_SET_TABLE as Nft,
        /// `NFTA_SET_NAME`
        Name(Name) = 2 NFTA_SET_NAME as Nft,
        /// `NFTA_SET_FLAGS`: `enum nft_set_flags`.
        Flags(u32) = 3 NFTA_SET_FLAGS as Nft,
        /// `NFTA_SET_KEY_TYPE`: `nft`'s number of the type.
        KeyType(u32) = 4 NFTA_SET_KEY_TYPE as Nft,
        /// `NFTA_SET_KEY_LEN`: bytes.
        KeyLength(u32) = 5 NFTA_SET_KEY_LEN as Nft,
        /// `NFTA_SET_DATA_TYPE`: of maps.
        DataType(u32) = 6 NFTA_SET_DATA_TYPE as Nft,
        /// `NFTA_SET_DATA_LEN`: of maps.
        DataLength(u32) = 7 NFTA_SET_DATA_LEN as Nft,
        /// `NFTA_SET_POLICY`: `enum nft_set_policies`.
        Policy(u32) = 8 NFTA_SET_POLICY as Nft,
        /// `NFTA_SET_DESC`
        Description(Vec<DescriptionAttribute>) = 9 NFTA_SET_DESC,
        /// `NFTA_SET_ID`: its number in the transaction that creates it.
        Id(u32) = 10 NFTA_SET_ID as Nft,
        /// `NFTA_SET_TIMEOUT`: milliseconds.
        Timeout(u64) = 11 NFTA_SET_TIMEOUT as Nft,
        /// `NFTA_SET_GC_INTERVAL`: milliseconds.
        GcInterval(u32) = 12 NFTA_SET_GC_INTERVAL as Nft,
        /// `NFTA_SET_USERDATA`: what `nft` needs to print it.
        UserData(Vec<u8>) = 13 NFTA_SET_USERDATA as Nft,
        /// `NFTA_SET_OBJ_TYPE`: of maps of objects, `NFT_OBJECT_*`.
        ObjectType(u32) = 15 NFTA_SET_OBJ_TYPE as Nft,
        /// `NFTA_SET_HANDLE`
        Handle(u64) = 16 NFTA_SET_HANDLE as Nft,
        /// `NFTA_SET_EXPR`: what each element has.
        Expression(Expression) = 17 NFTA_SET_EXPR as Nft,
        /// `NFTA_SET_EXPRESSIONS`: the same, if there are several.
        Expressions(Vec<Expression>) = 18 NFTA_SET_EXPRESSIONS as Nft,
        /// `NFTA_SET_TYPE`: the kernel's data structure.
        Backend(String) = 19 NFTA_SET_TYPE as Nft,
        /// `NFTA_SET_COUNT`: elements.
        Count(u32) = 20 NFTA_SET_COUNT as Nft,
    }
}

netlink_pipeline::attributes! {
    /// An attribute of a set's description.
    pub enum DescriptionAttribute {
        /// `NFTA_SET_DESC_SIZE`: the most elements.
        Size(u32) = 1 NFTA_SET_DESC_SIZE as Nft,
        /// `NFTA_SET_DESC_CONCAT`: bytes of each part of the key.
        Concatenation(Vec<u32>) = 2 NFTA_SET_DESC_CONCAT as PartLengths,
    }
}

/// A list of lists, each with one length.
enum PartLengths {}

const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_FIELD_LEN: u16 = 1;

impl Codec<Vec<u32>> for PartLengths {
    fn read(raw: &Attribute<'_>, _name: &'static str) -> Result<Vec<u32>, DecodeError> {
        let mut lengths = Vec::new();
        for part in list(raw.value()) {
            for raw in list(part?.value()) {
                let raw = raw?;
                if raw.kind() == NFTA_SET_FIELD_LEN {
                    lengths.push(u32::read(&raw, "NFTA_SET_FIELD_LEN")?);
                }
            }
        }
        Ok(lengths)
    }

    fn write(value: &Vec<u32>, kind: u16, writer: &mut Writer) {
        writer.nested(kind, |parts| {
            for length in value {
                parts.nested(NFTA_LIST_ELEM, |part| {
                    length.write(NFTA_SET_FIELD_LEN, part);
                });
            }
        });
    }
}

/// What a set can do, of `enum nft_set_flags`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetFlags(u32);

impl SetFlags {
    /// It is gone with the last rule that uses it.
    pub const ANONYMOUS: Self = Self(0x1);
    /// Its elements do not change once a rule uses it.
    pub const CONSTANT: Self = Self(0x2);
    /// Its elements are ranges.
    pub const INTERVAL: Self = Self(0x4);
    /// Its elements may expire.
    pub const TIMEOUT: Self = Self(0x10);
    /// Rules may add elements.
    pub const DYNAMIC: Self = Self(0x20);

    /// Flags from the wire; those that follow from the rest of a set are left out.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits & !(NFT_SET_MAP | NFT_SET_OBJECT | NFT_SET_CONCAT | NFT_SET_EXPR))
    }

    /// The bits as the kernel numbers them.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether any of `other` is set.
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether all of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for SetFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What a set holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Contents {
    /// Keys: a set.
    Keys,
    /// A value for each key: a map.
    Values(KeyType),
    /// A verdict for each key: a verdict map.
    Verdicts,
    /// A stateful object for each key, of a type `NFT_OBJECT_*`. Elements are listed without it.
    Objects(u32),
}

/// A named set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Which set.
    pub key: SetKey,
    /// The type of its keys.
    pub key_type: KeyType,
    /// What it holds.
    pub contents: Contents,
    /// What it can do.
    pub flags: SetFlags,
    /// After which time elements expire that have none of their own.
    pub timeout: Option<Duration>,
    /// The most elements.
    pub size: Option<u32>,
    /// Of which bytes of packets its keys are, if they have no type: `nft` prints them by it, and
    /// the kernel keeps it for `nft`. Not read from the kernel.
    pub key_bytes: Vec<NetworkBytes>,
}

impl Set {
    /// A set of keys.
    pub fn keys(key: SetKey, key_type: impl Into<KeyType>) -> Self {
        Self::holding(key, key_type, Contents::Keys)
    }

    /// A set of keys that are bytes of packets: `typeof @nh,120,8 . @nh,152,8`.
    pub fn of_bytes(key: SetKey, parts: &[NetworkBytes]) -> Self {
        Self {
            key_bytes: parts.to_vec(),
            ..Self::keys(key, KeyType::of_bytes(parts))
        }
    }

    /// A map from keys to values.
    pub fn map(key: SetKey, key_type: impl Into<KeyType>, value: impl Into<KeyType>) -> Self {
        Self::holding(key, key_type, Contents::Values(value.into()))
    }

    /// A map from keys to verdicts.
    pub fn verdict_map(key: SetKey, key_type: impl Into<KeyType>) -> Self {
        Self::holding(key, key_type, Contents::Verdicts)
    }

    fn holding(key: SetKey, key_type: impl Into<KeyType>, contents: Contents) -> Self {
        Self {
            key,
            key_type: key_type.into(),
            contents,
            flags: SetFlags::default(),
            timeout: None,
            size: None,
            key_bytes: Vec::new(),
        }
    }

    /// The same set with further flags.
    #[must_use]
    pub fn with(mut self, flags: SetFlags) -> Self {
        self.flags = self.flags | flags;
        self
    }

    /// Whether its elements are ranges of one part, each of which is two elements to the kernel.
    pub(crate) fn has_simple_intervals(&self) -> bool {
        self.flags.contains(SetFlags::INTERVAL) && !self.key_type.is_concatenation()
    }

    /// Bytes of the parts of a key, where the kernel must know them.
    fn part_lengths(&self) -> Option<Vec<u32>> {
        let is_needed = self.flags.contains(SetFlags::INTERVAL) && self.key_type.is_concatenation();
        let parts = self.key_type.parts().filter(|_| is_needed)?;
        Some(parts.into_iter().map(DataType::length).collect())
    }

    /// What describes it on the wire. `id` is its number in the transaction, which no other set of
    /// the transaction may have.
    pub fn to_attributes(&self, id: u32) -> Vec<SetAttribute> {
        let part_lengths = self.part_lengths();
        let mut flags = self.flags.bits();
        if part_lengths.is_some() {
            flags |= NFT_SET_CONCAT;
        }
        let mut data = Vec::new();
        let mut data_order = None;
        match self.contents {
            Contents::Keys => {}
            Contents::Values(value) => {
                flags |= NFT_SET_MAP;
                data_order = Some(value.byte_order());
                data.push(SetAttribute::DataType(value.number));
                data.push(SetAttribute::DataLength(value.length));
            }
            Contents::Verdicts => {
                flags |= NFT_SET_MAP;
                data_order = Some(BYTEORDER_NONE);
                data.push(SetAttribute::DataType(NFT_DATA_VERDICT));
                data.push(SetAttribute::DataLength(0));
            }
            Contents::Objects(kind) => {
                flags |= NFT_SET_OBJECT;
                data.push(SetAttribute::ObjectType(kind));
            }
        }
        let mut attributes = self.key.to_attributes();
        attributes.push(SetAttribute::Flags(flags));
        attributes.push(SetAttribute::KeyType(self.key_type.number));
        attributes.push(SetAttribute::KeyLength(self.key_type.length));
        attributes.append(&mut data);
        attributes.push(SetAttribute::Id(id));
        let size = self.size.map(DescriptionAttribute::Size);
        let parts = part_lengths.map(DescriptionAttribute::Concatenation);
        let description: Vec<_> = size.into_iter().chain(parts).collect();
        if !description.is_empty() {
            attributes.push(SetAttribute::Description(description));
        }
        attributes.extend(self.timeout.map(milliseconds).map(SetAttribute::Timeout));
        let mut noted = user_data::byte_orders(self.key_type.byte_order(), data_order);
        if !self.key_bytes.is_empty() {
            noted.extend(user_data::key_bytes(&self.key_bytes));
        }
        attributes.push(SetAttribute::UserData(noted));
        attributes
    }
}

impl SetKey {
    pub(crate) fn to_attributes(&self) -> Vec<SetAttribute> {
        vec![
            SetAttribute::Table(self.table.name.clone()),
            SetAttribute::Name(self.name.clone()),
        ]
    }
}

/// What the kernel says of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SetStatus {
    /// What would create it.
    pub set: Set,
    /// The kernel's number of it.
    pub handle: Option<u64>,
    /// Elements; only newer kernels say.
    pub elements: Option<u32>,
}

impl SetStatus {
    /// Reads the answer about a set of a family.
    pub fn from_attributes(
        family: Family,
        attributes: &[SetAttribute],
    ) -> Result<Self, DecodeError> {
        let table =
            find_attribute!(attributes, SetAttribute::Table).ok_or(missing("NFTA_SET_TABLE"))?;
        let name =
            find_attribute!(attributes, SetAttribute::Name).ok_or(missing("NFTA_SET_NAME"))?;
        let key_length = find_attribute!(attributes, SetAttribute::KeyLength)
            .ok_or(missing("NFTA_SET_KEY_LEN"))?;
        let number = |found: Option<&u32>| found.copied().unwrap_or_default();
        let flags = number(find_attribute!(attributes, SetAttribute::Flags));
        let value = KeyType {
            number: number(find_attribute!(attributes, SetAttribute::DataType)),
            length: number(find_attribute!(attributes, SetAttribute::DataLength)),
        };
        let contents = if flags & NFT_SET_OBJECT != 0 {
            Contents::Objects(number(find_attribute!(
                attributes,
                SetAttribute::ObjectType
            )))
        } else if flags & NFT_SET_MAP == 0 {
            Contents::Keys
        } else if value.number == NFT_DATA_VERDICT {
            Contents::Verdicts
        } else {
            Contents::Values(value)
        };
        let description = find_attribute!(attributes, SetAttribute::Description);
        let size = description
            .and_then(|description| find_attribute!(description, DescriptionAttribute::Size));
        Ok(Self {
            set: Set {
                key: TableKey::new(family, table.clone()).set(name.clone()),
                key_type: KeyType {
                    number: number(find_attribute!(attributes, SetAttribute::KeyType)),
                    length: *key_length,
                },
                contents,
                flags: SetFlags::from_bits(flags),
                timeout: find_attribute!(attributes, SetAttribute::Timeout)
                    .filter(|timeout| **timeout != 0)
                    .map(|timeout| Duration::from_millis(*timeout)),
                size: size.copied(),
                key_bytes: Vec::new(),
            },
            handle: find_attribute!(attributes, SetAttribute::Handle).copied(),
            elements: find_attribute!(attributes, SetAttribute::Count).copied(),
        })
    }
}

/// A time as the kernel takes it.
pub(crate) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
