// SPDX-License-Identifier: Apache-2.0
//! Tables.

use std::fmt;

use netlink_pipeline::attribute::DecodeError;
use netlink_pipeline::find_attribute;

use crate::family::Family;
use crate::name::Name;
use crate::wire::{Nft, missing};

netlink_pipeline::attributes! {
    /// An attribute of a table.
    pub enum TableAttribute {
        /// `NFTA_TABLE_NAME`
        Name(Name) = 1 NFTA_TABLE_NAME as Nft,
        /// `NFTA_TABLE_FLAGS`: `enum nft_table_flags`.
        Flags(u32) = 2 NFTA_TABLE_FLAGS as Nft,
        /// `NFTA_TABLE_USE`: chains, sets and other objects in it.
        Use(u32) = 3 NFTA_TABLE_USE as Nft,
        /// `NFTA_TABLE_HANDLE`
        Handle(u64) = 4 NFTA_TABLE_HANDLE as Nft,
        /// `NFTA_TABLE_USERDATA`: comment and others of `nft`.
        UserData(Vec<u8>) = 6 NFTA_TABLE_USERDATA as Nft,
        /// `NFTA_TABLE_OWNER`: the netlink port of the process to which it belongs.
        Owner(u32) = 7 NFTA_TABLE_OWNER as Nft,
    }
}

/// What identifies a table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableKey {
    /// Which packets it sees.
    pub family: Family,
    /// Its name, which is unique in its family.
    pub name: Name,
}

impl TableKey {
    /// A key.
    pub const fn new(family: Family, name: Name) -> Self {
        Self { family, name }
    }

    /// A chain of it.
    pub fn chain(&self, name: Name) -> ChainKey {
        ChainKey {
            table: self.clone(),
            name,
        }
    }

    /// A set or map of it.
    pub fn set(&self, name: Name) -> SetKey {
        SetKey {
            table: self.clone(),
            name,
        }
    }

    pub(crate) fn to_attributes(&self) -> Vec<TableAttribute> {
        vec![TableAttribute::Name(self.name.clone())]
    }
}

/// `ip nat`
impl fmt::Display for TableKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family, self.name)
    }
}

macro_rules! member_keys {
    ($($(#[$doc:meta])* $key:ident,)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $key {
            /// Its table.
            pub table: TableKey,
            /// Its name, which is unique among its kind in the table.
            pub name: Name,
        }

        /// `ip nat NAME`
        impl fmt::Display for $key {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{} {}", self.table, self.name)
            }
        }
    )*};
}

member_keys! {
    /// What identifies a chain.
    ChainKey,
    /// What identifies a set or map.
    SetKey,
}

/// A table: it holds chains, sets and maps, which see each other only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Which table.
    pub key: TableKey,
    /// `enum nft_table_flags`: 1 makes its chains see no packets, 2 makes it vanish with the
    /// process.
    pub flags: u32,
}

impl Table {
    /// A table whose chains see packets.
    pub const fn new(key: TableKey) -> Self {
        Self { key, flags: 0 }
    }

    /// What describes it on the wire.
    pub fn to_attributes(&self) -> Vec<TableAttribute> {
        let mut attributes = self.key.to_attributes();
        attributes.push(TableAttribute::Flags(self.flags));
        attributes
    }
}

/// What the kernel says of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TableStatus {
    /// What would create it.
    pub table: Table,
    /// The kernel's number of it.
    pub handle: Option<u64>,
    /// Chains, sets and other objects in it.
    pub uses: u32,
}

impl TableStatus {
    /// Reads the answer about a table of a family.
    pub fn from_attributes(
        family: Family,
        attributes: &[TableAttribute],
    ) -> Result<Self, DecodeError> {
        let name =
            find_attribute!(attributes, TableAttribute::Name).ok_or(missing("NFTA_TABLE_NAME"))?;
        let flags = find_attribute!(attributes, TableAttribute::Flags).copied();
        let uses = find_attribute!(attributes, TableAttribute::Use).copied();
        Ok(Self {
            table: Table {
                key: TableKey::new(family, name.clone()),
                flags: flags.unwrap_or_default(),
            },
            handle: find_attribute!(attributes, TableAttribute::Handle).copied(),
            uses: uses.unwrap_or_default(),
        })
    }
}
