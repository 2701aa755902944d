// SPDX-License-Identifier: Apache-2.0
//! Types of the keys of sets and of the values of maps.

use netlink_pipeline::attribute::align;

use crate::expression::NetworkBytes;

/// A type as the `nft` program numbers them (its `include/datatype.h`). The kernel keeps the number
/// for the program and looks at lengths only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum DataType {
    /// `ipv4_addr`
    Ipv4Address,
    /// `ipv6_addr`
    Ipv6Address,
    /// `ether_addr`
    EthernetAddress,
    /// `inet_proto`: an IP protocol number.
    Protocol,
    /// `inet_service`: a port.
    Port,
    /// `mark`: of a packet or of a connection.
    Mark,
    /// `iface_index`
    InterfaceIndex,
    /// `ct_state`
    ConntrackState,
    /// `ifname`
    InterfaceName,
}

/// Byte orders as `nft` numbers them; a concatenation has none of its own.
pub(crate) const BYTEORDER_NONE: u32 = 0;
const BYTEORDER_HOST: u32 = 1;
const BYTEORDER_NETWORK: u32 = 2;

/// `nft`'s number of a plain integer of any length.
const INTEGER: u32 = 4;

/// Bits of a type's number in that of a concatenation, `TYPE_BITS`.
const BITS: u32 = 6;

impl DataType {
    const ALL: [Self; 9] = [
        Self::Ipv4Address,
        Self::Ipv6Address,
        Self::EthernetAddress,
        Self::Protocol,
        Self::Port,
        Self::Mark,
        Self::InterfaceIndex,
        Self::ConntrackState,
        Self::InterfaceName,
    ];

    /// Number, bytes and byte order.
    const fn facts(self) -> (u32, u32, u32) {
        match self {
            Self::Ipv4Address => (7, 4, BYTEORDER_NETWORK),
            Self::Ipv6Address => (8, 16, BYTEORDER_NETWORK),
            Self::EthernetAddress => (9, 6, BYTEORDER_HOST),
            Self::Protocol => (12, 1, BYTEORDER_NETWORK),
            Self::Port => (13, 2, BYTEORDER_NETWORK),
            Self::Mark => (19, 4, BYTEORDER_HOST),
            Self::InterfaceIndex => (20, 4, BYTEORDER_HOST),
            Self::ConntrackState => (26, 4, BYTEORDER_HOST),
            Self::InterfaceName => (41, 16, BYTEORDER_HOST),
        }
    }

    /// `nft`'s number.
    pub const fn number(self) -> u32 {
        self.facts().0
    }

    /// Bytes of a value.
    pub const fn length(self) -> u32 {
        self.facts().1
    }

    /// The type of a number, if this crate knows it.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.number() == number)
    }
}

/// The type of a key or of a value: one type or a concatenation of up to five.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyType {
    /// `nft`'s number: that of a concatenation has six bits for each part.
    pub number: u32,
    /// Bytes of a value, at most 64. Each part of a concatenation takes whole words.
    pub length: u32,
}

impl KeyType {
    /// A single type.
    pub const fn single(part: DataType) -> Self {
        Self {
            number: part.number(),
            length: part.length(),
        }
    }

    /// A concatenation, such as `ipv4_addr . inet_proto . inet_service`. Of one part it is that
    /// part alone. `nft` cannot number more than five.
    pub fn concatenation(parts: &[DataType]) -> Self {
        if let [part] = parts {
            return Self::single(*part);
        }
        parts.iter().fold(
            Self {
                number: 0,
                length: 0,
            },
            |whole, part| Self {
                number: (whole.number << BITS) | part.number(),
                length: whole.length + padded(part.length()),
            },
        )
    }

    /// Bytes of packets that have no type of their own, such as `@nh,120,8 . @nh,152,8`.
    pub fn of_bytes(parts: &[NetworkBytes]) -> Self {
        let whole = Self {
            number: 0,
            length: 0,
        };
        parts.iter().fold(whole, |whole, part| Self {
            number: (whole.number << BITS) | INTEGER,
            length: match parts {
                [only] => only.length,
                _ => whole.length + 4 * part.words(),
            },
        })
    }

    /// The parts; `None` if one is of a type that this crate does not know.
    pub fn parts(self) -> Option<Vec<DataType>> {
        let mut parts = Vec::new();
        let mut rest = self.number;
        while rest != 0 {
            parts.insert(0, DataType::from_number(rest & ((1 << BITS) - 1))?);
            rest >>= BITS;
        }
        (Self::concatenation(&parts) == self).then_some(parts)
    }

    /// Whether it has several parts.
    pub const fn is_concatenation(self) -> bool {
        self.number >> BITS != 0
    }

    /// What `nft` keeps beside the number, to print values.
    pub(crate) fn byte_order(self) -> u32 {
        match self.parts().as_deref() {
            Some([part]) => part.facts().2,
            _ => BYTEORDER_NONE,
        }
    }
}

impl From<DataType> for KeyType {
    fn from(part: DataType) -> Self {
        Self::single(part)
    }
}

/// Bytes that a part takes in a concatenation.
fn padded(length: u32) -> u32 {
    let aligned = usize::try_from(length).map_or(0, align);
    u32::try_from(aligned).unwrap_or(0)
}
