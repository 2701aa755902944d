// SPDX-License-Identifier: Apache-2.0
//! Addresses inside of ipset's attributes, which are nested once more.

use std::net::IpAddr;

use netlink_pipeline::attribute::{
    Attribute, Codec, DecodeError, NLA_F_NET_BYTEORDER, Writer, list,
};

const IPSET_ATTR_IPADDR_IPV4: u16 = 1;
const IPSET_ATTR_IPADDR_IPV6: u16 = 2;

/// A nested `IPSET_ATTR_IPADDR_*`.
pub(super) enum Nested {}

impl Codec<IpAddr> for Nested {
    fn read(raw: &Attribute<'_>, name: &'static str) -> Result<IpAddr, DecodeError> {
        for inner in list(raw.value()) {
            let inner = inner?;
            match inner.kind() {
                IPSET_ATTR_IPADDR_IPV4 => return inner.array::<4>(name).map(IpAddr::from),
                IPSET_ATTR_IPADDR_IPV6 => return inner.array::<16>(name).map(IpAddr::from),
                _ => {}
            }
        }
        Err(DecodeError::Value {
            attribute: name,
            reason: "it holds no address".to_owned(),
        })
    }

    fn write(value: &IpAddr, kind: u16, writer: &mut Writer) {
        writer.nested(kind, |inner| {
            match value {
                IpAddr::V4(v4) => {
                    inner.bytes(IPSET_ATTR_IPADDR_IPV4 | NLA_F_NET_BYTEORDER, &v4.octets())
                }
                IpAddr::V6(v6) => {
                    inner.bytes(IPSET_ATTR_IPADDR_IPV6 | NLA_F_NET_BYTEORDER, &v6.octets())
                }
            };
        });
    }
}
