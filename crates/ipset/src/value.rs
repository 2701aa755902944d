// SPDX-License-Identifier: Apache-2.0
//! The values inside of ipset's attributes: numbers in network order, strings, addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLA_F_NESTED, NLA_F_NET_BYTEORDER, NlaBuffer, NlasIterator};

use super::constants::{IPSET_ATTR_IPADDR_IPV4, IPSET_ATTR_IPADDR_IPV6};
use netlink_pipeline::attribute::Writer;

/// Bytes of `struct nlattr`.
const NLA_HDRLEN: usize = 4;

/// Bytes that are no ipset message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("message is shorter than its header")]
    Short,
    #[error("message type {0:#06x} is none of ipset's")]
    NotIpset(u16),
    #[error("attribute list is cut off")]
    Attributes,
    #[error("{attribute} has {length} bytes")]
    Length {
        attribute: &'static str,
        length: usize,
    },
    #[error("{attribute} holds no address")]
    NoAddress { attribute: &'static str },
    #[error("{attribute} is missing")]
    Missing { attribute: &'static str },
    #[error("entry has no form that a set of type {set_type} can have")]
    Entry { set_type: &'static str },
}

/// One attribute, its length checked.
pub(super) struct Raw<'a> {
    /// Without the flag bits.
    pub(super) kind: u16,
    flags: u16,
    value: &'a [u8],
}

impl<'a> Raw<'a> {
    /// Splits a list of attributes.
    pub(super) fn list(bytes: &'a [u8]) -> impl Iterator<Item = Result<Self, DecodeError>> + 'a {
        NlasIterator::new(bytes).map(|attribute| {
            let attribute: NlaBuffer<&'a [u8]> =
                attribute.map_err(|_cut_off| DecodeError::Attributes)?;
            let kind = attribute.kind();
            let mut flags = 0;
            if attribute.nested_flag() {
                flags |= NLA_F_NESTED;
            }
            if attribute.network_byte_order_flag() {
                flags |= NLA_F_NET_BYTEORDER;
            }
            // NlaBuffer lends its value for its own lifetime only; this is the list's.
            let length = usize::from(attribute.length());
            let value = attribute.into_inner().get(NLA_HDRLEN..length);
            let value = value.ok_or(DecodeError::Attributes)?;
            Ok(Self { kind, flags, value })
        })
    }

    pub(super) const fn nested(&self) -> &'a [u8] {
        self.value
    }

    /// An attribute that we do not know, as it came.
    pub(super) fn unknown(&self) -> Unknown {
        Unknown {
            kind: self.kind | self.flags,
            value: self.value.to_vec(),
        }
    }

    pub(super) fn u8(&self, attribute: &'static str) -> Result<u8, DecodeError> {
        self.array::<1>(attribute).map(|[byte]| byte)
    }

    pub(super) fn u16(&self, attribute: &'static str) -> Result<u16, DecodeError> {
        self.array(attribute).map(u16::from_be_bytes)
    }

    pub(super) fn u32(&self, attribute: &'static str) -> Result<u32, DecodeError> {
        self.array(attribute).map(u32::from_be_bytes)
    }

    pub(super) fn u64(&self, attribute: &'static str) -> Result<u64, DecodeError> {
        self.array(attribute).map(u64::from_be_bytes)
    }

    /// Up to the first NUL. What is not UTF-8 was not named by us and is shown with replacement characters.
    pub(super) fn string(&self) -> String {
        let bytes = self
            .value
            .split(|byte| *byte == 0)
            .next()
            .unwrap_or_default();
        String::from_utf8_lossy(bytes).into_owned()
    }

    /// A nested `IPSET_ATTR_IPADDR_*`.
    pub(super) fn address(&self, attribute: &'static str) -> Result<IpAddr, DecodeError> {
        for inner in Raw::list(self.value) {
            let inner = inner?;
            match inner.kind {
                IPSET_ATTR_IPADDR_IPV4 => {
                    return inner
                        .array::<4>(attribute)
                        .map(|octets| Ipv4Addr::from(octets).into());
                }
                IPSET_ATTR_IPADDR_IPV6 => {
                    return inner
                        .array::<16>(attribute)
                        .map(|octets| Ipv6Addr::from(octets).into());
                }
                _ => {}
            }
        }
        Err(DecodeError::NoAddress { attribute })
    }

    fn array<const N: usize>(&self, attribute: &'static str) -> Result<[u8; N], DecodeError> {
        self.value
            .try_into()
            .map_err(|_other_length| DecodeError::Length {
                attribute,
                length: self.value.len(),
            })
    }
}

/// Writes an address as ipset wants it, nested.
pub(super) fn write_address(writer: &mut Writer, kind: u16, address: IpAddr) -> &mut Writer {
    writer.nested(kind, |inner| {
        match address {
            IpAddr::V4(v4) => {
                inner.bytes(IPSET_ATTR_IPADDR_IPV4 | NLA_F_NET_BYTEORDER, &v4.octets())
            }
            IpAddr::V6(v6) => {
                inner.bytes(IPSET_ATTR_IPADDR_IPV6 | NLA_F_NET_BYTEORDER, &v6.octets())
            }
        };
    })
}

/// An attribute that we do not know, kept as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown {
    /// With the flag bits `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`.
    pub kind: u16,
    pub value: Vec<u8>,
}

impl Unknown {
    pub(super) fn write<'w>(&self, writer: &'w mut Writer) -> &'w mut Writer {
        writer.bytes(self.kind, &self.value)
    }
}
