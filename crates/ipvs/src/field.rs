// SPDX-License-Identifier: Apache-2.0
//! Fields shared by services and destinations: addresses, ports, plain numbers.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{DecodeError, ErrorContext, parse_ipv6, parse_u16_be};

/// `AF_INET` or `AF_INET6`; IPVS has no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AddressFamily {
    Inet,
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

    /// The family with a number on the wire.
    pub fn from_number(number: u16) -> Result<Self, DecodeError> {
        match number {
            2 => Ok(Self::Inet),
            10 => Ok(Self::Inet6),
            other => Err(DecodeError::from(format!(
                "address family {other} is not an IP one"
            ))),
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

/// Copies a value to the begin of an attribute's buffer. The buffer has the length that `value_len`
/// promised; where it has not, nothing is written rather than panicked.
pub(super) fn put(buffer: &mut [u8], value: &[u8]) {
    if let Some(target) = buffer.get_mut(..value.len()) {
        target.copy_from_slice(value);
    }
}

pub(super) fn parse_address(value: &[u8], name: &'static str) -> Result<[u8; 16], DecodeError> {
    parse_ipv6(value).with_context(|| format!("invalid {name} value"))
}

pub(super) fn parse_port(value: &[u8], name: &'static str) -> Result<u16, DecodeError> {
    parse_u16_be(value).with_context(|| format!("invalid {name} value"))
}

/// The error for an attribute that an object cannot do without.
pub(super) fn missing(name: &'static str) -> DecodeError {
    DecodeError::from(format!("{name} is missing"))
}
