// SPDX-License-Identifier: Apache-2.0
//! Fields shared by services and destinations: addresses, ports, plain numbers.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_pipeline::attribute::{Attribute, Codec, DecodeError, Plain, Writer};

/// `AF_INET` or `AF_INET6`; IPVS has no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AddressFamily {
    /// IPv4.
    Inet,
    /// IPv6.
    Inet6,
}

impl AddressFamily {
    /// The family of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::Inet,
            IpAddr::V6(_) => Self::Inet6,
        }
    }

    /// The number on the wire (16 bits there, as in `sa_family_t`).
    pub const fn number(self) -> u16 {
        match self {
            // Linux: include/linux/socket.h.
            Self::Inet => 2,
            Self::Inet6 => 10,
        }
    }

    /// The family with a number on the wire, if it is an IP one.
    pub const fn from_number(number: u16) -> Option<Self> {
        match number {
            2 => Some(Self::Inet),
            10 => Some(Self::Inet6),
            _ => None,
        }
    }

    /// Reads `union nf_inet_addr`: an IPv4 address takes the first four bytes.
    pub fn address(self, bytes: [u8; 16]) -> IpAddr {
        match self {
            Self::Inet => {
                let [a, b, c, d, ..] = bytes;
                Ipv4Addr::new(a, b, c, d).into()
            }
            Self::Inet6 => Ipv6Addr::from(bytes).into(),
        }
    }
}

impl Codec<AddressFamily> for Plain {
    fn read(raw: &Attribute<'_>, attribute: &'static str) -> Result<AddressFamily, DecodeError> {
        let number = raw.u16(attribute)?;
        AddressFamily::from_number(number).ok_or_else(|| DecodeError::Value {
            attribute,
            reason: format!("address family {number} is not an IP one"),
        })
    }

    fn write(value: &AddressFamily, kind: u16, writer: &mut Writer) {
        writer.u16(kind, value.number());
    }
}

impl fmt::Display for AddressFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inet => "IPv4",
            Self::Inet6 => "IPv6",
        })
    }
}

/// Writes `union nf_inet_addr`.
pub(super) fn address_bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        }
        IpAddr::V6(address) => address.octets(),
    }
}

/// The error for an attribute that an object cannot do without.
pub(super) const fn missing(attribute: &'static str) -> DecodeError {
    DecodeError::Missing { attribute }
}
