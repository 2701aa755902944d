// SPDX-License-Identifier: Apache-2.0
//! What is inside of `IPSET_ATTR_DATA` when a set is created or its header listed.

use super::constants::{
    IPSET_ATTR_BUCKETSIZE, IPSET_ATTR_CADT_FLAGS, IPSET_ATTR_ELEMENTS, IPSET_ATTR_HASHSIZE,
    IPSET_ATTR_INITVAL, IPSET_ATTR_MAXELEM, IPSET_ATTR_MEMSIZE, IPSET_ATTR_PORT,
    IPSET_ATTR_PORT_TO, IPSET_ATTR_REFERENCES, IPSET_ATTR_TIMEOUT,
};
use netlink_pipeline::attribute::{Attribute as Raw, DecodeError, Unknown, Writer};

/// A property of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SetAttribute {
    /// `IPSET_ATTR_PORT`: first port of a bitmap.
    PortFrom(u16),
    /// `IPSET_ATTR_PORT_TO`: last port of a bitmap.
    PortTo(u16),
    /// `IPSET_ATTR_TIMEOUT`: the set's entries expire, after so many seconds by default.
    Timeout(u32),
    /// `IPSET_ATTR_CADT_FLAGS`: extensions, `enum ipset_cadt_flags`.
    Flags(u32),
    /// `IPSET_ATTR_INITVAL`: the seed of the hash.
    InitVal(u32),
    /// `IPSET_ATTR_HASHSIZE`: hash buckets.
    HashSize(u32),
    /// `IPSET_ATTR_MAXELEM`: most entries.
    MaxElem(u32),
    /// `IPSET_ATTR_BUCKETSIZE`: most entries of one bucket.
    BucketSize(u8),
    /// `IPSET_ATTR_ELEMENTS`: entries (Linux 4.9).
    Elements(u32),
    /// `IPSET_ATTR_REFERENCES`: rules and sets that use it.
    References(u32),
    /// `IPSET_ATTR_MEMSIZE`: bytes.
    MemSize(u32),
    /// An attribute that this crate does not know.
    Other(Unknown),
}

impl SetAttribute {
    pub(super) fn write<'w>(&self, writer: &'w mut Writer) -> &'w mut Writer {
        match self {
            Self::PortFrom(port) => writer.u16_net(IPSET_ATTR_PORT, *port),
            Self::PortTo(port) => writer.u16_net(IPSET_ATTR_PORT_TO, *port),
            Self::Timeout(seconds) => writer.u32_net(IPSET_ATTR_TIMEOUT, *seconds),
            Self::Flags(flags) => writer.u32_net(IPSET_ATTR_CADT_FLAGS, *flags),
            Self::InitVal(seed) => writer.u32_net(IPSET_ATTR_INITVAL, *seed),
            Self::HashSize(buckets) => writer.u32_net(IPSET_ATTR_HASHSIZE, *buckets),
            Self::MaxElem(entries) => writer.u32_net(IPSET_ATTR_MAXELEM, *entries),
            Self::BucketSize(entries) => writer.u8(IPSET_ATTR_BUCKETSIZE, *entries),
            Self::Elements(entries) => writer.u32_net(IPSET_ATTR_ELEMENTS, *entries),
            Self::References(count) => writer.u32_net(IPSET_ATTR_REFERENCES, *count),
            Self::MemSize(bytes) => writer.u32_net(IPSET_ATTR_MEMSIZE, *bytes),
            Self::Other(unknown) => unknown.write(writer),
        }
    }

    pub(super) fn read(raw: &Raw<'_>) -> Result<Self, DecodeError> {
        Ok(match raw.kind() {
            IPSET_ATTR_PORT => Self::PortFrom(raw.u16_be("IPSET_ATTR_PORT")?),
            IPSET_ATTR_PORT_TO => Self::PortTo(raw.u16_be("IPSET_ATTR_PORT_TO")?),
            IPSET_ATTR_TIMEOUT => Self::Timeout(raw.u32_be("IPSET_ATTR_TIMEOUT")?),
            IPSET_ATTR_CADT_FLAGS => Self::Flags(raw.u32_be("IPSET_ATTR_CADT_FLAGS")?),
            IPSET_ATTR_INITVAL => Self::InitVal(raw.u32_be("IPSET_ATTR_INITVAL")?),
            IPSET_ATTR_HASHSIZE => Self::HashSize(raw.u32_be("IPSET_ATTR_HASHSIZE")?),
            IPSET_ATTR_MAXELEM => Self::MaxElem(raw.u32_be("IPSET_ATTR_MAXELEM")?),
            IPSET_ATTR_BUCKETSIZE => Self::BucketSize(raw.u8("IPSET_ATTR_BUCKETSIZE")?),
            IPSET_ATTR_ELEMENTS => Self::Elements(raw.u32_be("IPSET_ATTR_ELEMENTS")?),
            IPSET_ATTR_REFERENCES => Self::References(raw.u32_be("IPSET_ATTR_REFERENCES")?),
            IPSET_ATTR_MEMSIZE => Self::MemSize(raw.u32_be("IPSET_ATTR_MEMSIZE")?),
            _ => Self::Other(raw.to_unknown()),
        })
    }
}
