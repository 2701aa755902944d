// SPDX-License-Identifier: Apache-2.0
//! A message of ipset: `struct nfgenmsg` and attributes at command level.

use super::constants::{
    IPSET_ATTR_ADT, IPSET_ATTR_DATA, IPSET_ATTR_FAMILY, IPSET_ATTR_FLAGS, IPSET_ATTR_INDEX,
    IPSET_ATTR_LINENO, IPSET_ATTR_PROTOCOL, IPSET_ATTR_PROTOCOL_MIN, IPSET_ATTR_REVISION,
    IPSET_ATTR_SETNAME, IPSET_ATTR_TYPENAME, NFNETLINK_V0, NFNL_SUBSYS_IPSET,
};
use super::entry_attribute::EntryAttribute;
use super::set_attribute::SetAttribute;
use netlink_pipeline::attribute::{
    self, Attribute as Raw, AttributeTooLong, DecodeError, Unknown, Writer,
};

/// `AF_INET` in the one byte that `struct nfgenmsg` has for it.
const AF_INET: u8 = 2;

/// Bytes of `struct nfgenmsg`: family, version, resource id.
const NFGENMSG_LEN: usize = 4;

/// A request to ipset or an answer of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `enum ipset_cmd`.
    pub command: u8,
    /// In the order of the message.
    pub attributes: Vec<Attribute>,
}

/// An attribute at command level.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Attribute {
    /// `IPSET_ATTR_PROTOCOL`: the version in which the message is written.
    Protocol(u8),
    /// `IPSET_ATTR_SETNAME`
    SetName(String),
    /// `IPSET_ATTR_TYPENAME`; the same number is `IPSET_ATTR_SETNAME2`, the other set of a swap.
    TypeName(String),
    /// `IPSET_ATTR_REVISION`: of a type.
    Revision(u8),
    /// `IPSET_ATTR_FAMILY`: `NFPROTO_*`.
    Family(u8),
    /// `IPSET_ATTR_FLAGS`: `enum ipset_cmd_flags`.
    Flags(u32),
    /// `IPSET_ATTR_DATA` of a set.
    Data(Vec<SetAttribute>),
    /// `IPSET_ATTR_ADT`: entries.
    Adt(Vec<Vec<EntryAttribute>>),
    /// `IPSET_ATTR_LINENO`: must be there when entries carry line numbers; the kernel writes the
    /// refused one here.
    LineNo(u32),
    /// `IPSET_ATTR_PROTOCOL_MIN`, which is `IPSET_ATTR_REVISION_MIN` too.
    Minimum(u8),
    /// `IPSET_ATTR_INDEX`: the kernel's number of the set.
    Index(u16),
    /// An attribute that this crate does not know.
    Other(Unknown),
}

impl Message {
    /// The netlink message type of a command.
    pub const fn kind(command: u8) -> u16 {
        u16::from_be_bytes([NFNL_SUBSYS_IPSET, command])
    }

    /// What follows the netlink header.
    pub fn payload(&self) -> Result<Vec<u8>, AttributeTooLong> {
        // The family in here is of no use to ipset; its own tool writes AF_INET whatever the set's
        // family.
        let mut writer = Writer::after(&[AF_INET, NFNETLINK_V0, 0, 0]);
        for attribute in &self.attributes {
            attribute.write(&mut writer);
        }
        writer.finish()
    }

    /// Reads an answer. `payload` is what follows the netlink header.
    pub fn parse(kind: u16, payload: &[u8]) -> Result<Self, DecodeError> {
        let [subsystem, command] = kind.to_be_bytes();
        if subsystem != NFNL_SUBSYS_IPSET {
            return Err(DecodeError::Kind { kind });
        }
        let attributes = payload.get(NFGENMSG_LEN..).ok_or(DecodeError::Short)?;
        let attributes = attribute::list(attributes)
            .map(|raw| Attribute::read(&raw?))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            command,
            attributes,
        })
    }

    /// The line number in the echo of a refused request, which the kernel set to the refused
    /// entry's.
    pub(super) fn refused_line(echoed: &[u8]) -> Option<u32> {
        let attributes = echoed.get(NFGENMSG_LEN..)?;
        // Not parsed as a whole: the list of entries in it may be long.
        attribute::list(attributes)
            .map_while(Result::ok)
            .find(|raw| raw.kind() == IPSET_ATTR_LINENO)
            .and_then(|raw| raw.u32_be("IPSET_ATTR_LINENO").ok())
            .filter(|line| *line != 0)
    }
}

impl Attribute {
    fn write<'w>(&self, writer: &'w mut Writer) -> &'w mut Writer {
        match self {
            Self::Protocol(version) => writer.u8(IPSET_ATTR_PROTOCOL, *version),
            Self::SetName(name) => writer.string(IPSET_ATTR_SETNAME, name),
            Self::TypeName(name) => writer.string(IPSET_ATTR_TYPENAME, name),
            Self::Revision(revision) => writer.u8(IPSET_ATTR_REVISION, *revision),
            Self::Family(family) => writer.u8(IPSET_ATTR_FAMILY, *family),
            Self::Flags(flags) => writer.u32_net(IPSET_ATTR_FLAGS, *flags),
            Self::Data(attributes) => writer.nested(IPSET_ATTR_DATA, |inner| {
                for attribute in attributes {
                    attribute.write(inner);
                }
            }),
            Self::Adt(entries) => writer.nested(IPSET_ATTR_ADT, |list| {
                for entry in entries {
                    list.nested(IPSET_ATTR_DATA, |inner| {
                        for attribute in entry {
                            attribute.write(inner);
                        }
                    });
                }
            }),
            Self::LineNo(line) => writer.u32_net(IPSET_ATTR_LINENO, *line),
            Self::Minimum(version) => writer.u8(IPSET_ATTR_PROTOCOL_MIN, *version),
            Self::Index(index) => writer.u16_net(IPSET_ATTR_INDEX, *index),
            Self::Other(unknown) => unknown.write(writer),
        }
    }

    fn read(raw: &Raw<'_>) -> Result<Self, DecodeError> {
        Ok(match raw.kind() {
            IPSET_ATTR_PROTOCOL => Self::Protocol(raw.u8("IPSET_ATTR_PROTOCOL")?),
            IPSET_ATTR_SETNAME => Self::SetName(raw.string()),
            IPSET_ATTR_TYPENAME => Self::TypeName(raw.string()),
            IPSET_ATTR_REVISION => Self::Revision(raw.u8("IPSET_ATTR_REVISION")?),
            IPSET_ATTR_FAMILY => Self::Family(raw.u8("IPSET_ATTR_FAMILY")?),
            IPSET_ATTR_FLAGS => Self::Flags(raw.u32_be("IPSET_ATTR_FLAGS")?),
            IPSET_ATTR_DATA => Self::Data(
                attribute::list(raw.value())
                    .map(|inner| SetAttribute::read(&inner?))
                    .collect::<Result<_, _>>()?,
            ),
            IPSET_ATTR_ADT => Self::Adt(
                attribute::list(raw.value())
                    .map(|entry| {
                        attribute::list(entry?.value())
                            .map(|inner| EntryAttribute::read(&inner?))
                            .collect()
                    })
                    .collect::<Result<_, _>>()?,
            ),
            IPSET_ATTR_LINENO => Self::LineNo(raw.u32_be("IPSET_ATTR_LINENO")?),
            IPSET_ATTR_PROTOCOL_MIN => Self::Minimum(raw.u8("IPSET_ATTR_PROTOCOL_MIN")?),
            IPSET_ATTR_INDEX => Self::Index(raw.u16_be("IPSET_ATTR_INDEX")?),
            _ => Self::Other(raw.to_unknown()),
        })
    }
}
