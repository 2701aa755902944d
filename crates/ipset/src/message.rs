// SPDX-License-Identifier: Apache-2.0
//! A message of ipset: `struct nfgenmsg` and attributes at command level.

use super::constants::{NFNETLINK_V0, NFNL_SUBSYS_IPSET};
use super::entry_attribute::EntryAttribute;
use super::set_attribute::SetAttribute;
use netlink_pipeline::attribute::{
    self, Attribute as Raw, AttributeTooLong, Codec, DecodeError, ListAttribute as _, NetOrder,
    Plain, Writer,
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

/// `IPSET_ATTR_LINENO`
const LINENO: u16 = 9;

netlink_pipeline::attributes! {
    /// An attribute at command level.
    pub enum Attribute {
        /// `IPSET_ATTR_PROTOCOL`: the version in which the message is written.
        Protocol(u8) = 1 IPSET_ATTR_PROTOCOL,
        /// `IPSET_ATTR_SETNAME`
        SetName(String) = 2 IPSET_ATTR_SETNAME,
        /// `IPSET_ATTR_TYPENAME`; the same number is `IPSET_ATTR_SETNAME2`, the other set of a
        /// swap.
        TypeName(String) = 3 IPSET_ATTR_TYPENAME,
        /// `IPSET_ATTR_REVISION`: of a type.
        Revision(u8) = 4 IPSET_ATTR_REVISION,
        /// `IPSET_ATTR_FAMILY`: `NFPROTO_*`.
        Family(u8) = 5 IPSET_ATTR_FAMILY,
        /// `IPSET_ATTR_FLAGS`: `enum ipset_cmd_flags`.
        Flags(u32) = 6 IPSET_ATTR_FLAGS as NetOrder,
        /// `IPSET_ATTR_DATA` of a set.
        Data(Vec<SetAttribute>) = 7 IPSET_ATTR_DATA,
        /// `IPSET_ATTR_ADT`: entries.
        Adt(Vec<Vec<EntryAttribute>>) = 8 IPSET_ATTR_ADT as Entries,
        /// `IPSET_ATTR_LINENO`: must be there when entries carry line numbers; the kernel writes
        /// the refused one here.
        LineNo(u32) = 9 IPSET_ATTR_LINENO as NetOrder,
        /// `IPSET_ATTR_PROTOCOL_MIN`, which is `IPSET_ATTR_REVISION_MIN` too.
        Minimum(u8) = 10 IPSET_ATTR_PROTOCOL_MIN,
        /// `IPSET_ATTR_INDEX`: the kernel's number of the set.
        Index(u16) = 11 IPSET_ATTR_INDEX as NetOrder,
    }
}

/// A list of lists, each an `IPSET_ATTR_DATA`.
enum Entries {}

impl Codec<Vec<Vec<EntryAttribute>>> for Entries {
    fn read(raw: &Raw<'_>, _name: &'static str) -> Result<Vec<Vec<EntryAttribute>>, DecodeError> {
        attribute::list(raw.value())
            .map(|entry| EntryAttribute::read_all(entry?.value()))
            .collect()
    }

    fn write(value: &Vec<Vec<EntryAttribute>>, kind: u16, writer: &mut Writer) {
        const IPSET_ATTR_DATA: u16 = 7;
        writer.nested(kind, |list| {
            for entry in value {
                Plain::write(entry, IPSET_ATTR_DATA, list);
            }
        });
    }
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
        let attributes = Attribute::read_all(attributes)?;
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
            .find(|raw| raw.kind() == LINENO)
            .and_then(|raw| raw.u32_be("IPSET_ATTR_LINENO").ok())
            .filter(|line| *line != 0)
    }
}
