// SPDX-License-Identifier: Apache-2.0
//! Addresses inside of ipset's attributes, which are nested once more.

use std::net::IpAddr;

use netlink_pipeline::attribute::{self, Attribute, DecodeError, NLA_F_NET_BYTEORDER, Writer};

use super::constants::{IPSET_ATTR_IPADDR_IPV4, IPSET_ATTR_IPADDR_IPV6};

/// Reads a nested `IPSET_ATTR_IPADDR_*`.
pub(super) fn read_address(
    outer: &Attribute<'_>,
    attribute: &'static str,
) -> Result<IpAddr, DecodeError> {
    for inner in attribute::list(outer.value()) {
        let inner = inner?;
        match inner.kind() {
            IPSET_ATTR_IPADDR_IPV4 => return inner.array::<4>(attribute).map(IpAddr::from),
            IPSET_ATTR_IPADDR_IPV6 => return inner.array::<16>(attribute).map(IpAddr::from),
            _ => {}
        }
    }
    Err(DecodeError::Value {
        attribute,
        reason: "it holds no address".to_owned(),
    })
}

/// Writes an address as ipset wants it.
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
