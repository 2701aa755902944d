// SPDX-License-Identifier: Apache-2.0
//! Netlink attributes (`struct nlattr` of `include/uapi/linux/netlink.h`) as bytes: a [`Writer`]
//! that cannot overflow and a reader, [`list`], that survives any bytes.
//!
//! ```
//! use netlink_pipeline::attribute::{self, Writer};
//!
//! let mut writer = Writer::new();
//! writer.string(2, "rr").nested(1, |inner| {
//!     inner.u32(7, 300);
//! });
//! let bytes = writer.finish()?;
//!
//! let read = attribute::list(&bytes).collect::<Result<Vec<_>, _>>()?;
//! assert_eq!((read[0].kind(), read[0].string()), (2, "rr".to_owned()));
//! for inner in attribute::list(read[1].value()) {
//!     assert_eq!(inner?.u32("SOME_TIMEOUT")?, 300);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod table;

pub use table::{BigEndian, Codec, ListAttribute, NetOrder, Plain};

/// Set in the type of an attribute whose value is a list of attributes.
pub const NLA_F_NESTED: u16 = 0x8000;
/// Set in the type of an attribute whose value is a number in network order. Few families use it.
pub const NLA_F_NET_BYTEORDER: u16 = 0x4000;

/// The bits of an attribute's type that are flags.
const FLAGS: u16 = NLA_F_NESTED | NLA_F_NET_BYTEORDER;

/// Bytes of `struct nlattr`.
const HEADER_LEN: usize = 4;

/// Rounds up to `NLMSG_ALIGNTO`, which is also `NLA_ALIGNTO`.
pub const fn align(length: usize) -> usize {
    length.saturating_add(3) & !3
}

/// An attribute that does not fit into its 16-bit length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("attribute {kind} is too long for netlink")]
pub struct AttributeTooLong {
    /// The attribute's type, without flags.
    pub kind: u16,
}

/// Bytes that are not the message or the attribute they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// There are fewer bytes than the header of the message has.
    #[error("message is shorter than its header")]
    Short,
    /// The kernel confirmed a request for something and did not send it.
    #[error("the kernel sent an ACK and no answer")]
    NoAnswer,
    /// The message belongs to another netlink family or subsystem.
    #[error("message type {kind:#06x} is unexpected")]
    Kind {
        /// `nlmsg_type`.
        kind: u16,
    },
    /// The length of an attribute is less than its header's or more than there is.
    #[error("attribute list is cut off")]
    CutOff,
    /// The value of an attribute is longer or shorter than its type.
    #[error("{attribute} has {length} bytes")]
    Length {
        /// The attribute under its kernel name.
        attribute: &'static str,
        /// Bytes of its value.
        length: usize,
    },
    /// The value of an attribute is not one that the kernel gives it.
    #[error("invalid {attribute}: {reason}")]
    Value {
        /// The attribute under its kernel name.
        attribute: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A message lacks an attribute without which it says nothing.
    #[error("{attribute} is missing")]
    Missing {
        /// The attribute under its kernel name.
        attribute: &'static str,
    },
}

/// The attributes of a list, one after the other. Ends after an error.
pub fn list(bytes: &[u8]) -> impl Iterator<Item = Result<Attribute<'_>, DecodeError>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let read = split(rest);
        rest = read.as_ref().map_or(&[], |(_, rest)| rest);
        Some(read.map(|(attribute, _)| attribute))
    })
}

/// Reads the first attribute and returns what follows it.
fn split(bytes: &[u8]) -> Result<(Attribute<'_>, &[u8]), DecodeError> {
    let ([l0, l1, k0, k1], _) = bytes
        .split_first_chunk::<HEADER_LEN>()
        .ok_or(DecodeError::CutOff)?;
    let length = usize::from(u16::from_ne_bytes([*l0, *l1]));
    let attribute = Attribute {
        kind: u16::from_ne_bytes([*k0, *k1]),
        value: bytes.get(HEADER_LEN..length).ok_or(DecodeError::CutOff)?,
    };
    // The last one may come without padding.
    Ok((attribute, bytes.get(align(length)..).unwrap_or(&[])))
}

/// One attribute of a list, its length checked.
///
/// Methods that read a number take the attribute's kernel name, for their error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attribute<'a> {
    kind: u16,
    value: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// The type, without `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`.
    pub const fn kind(&self) -> u16 {
        self.kind & !FLAGS
    }

    /// The value without padding. That of a nested list is for [`list`].
    pub const fn value(&self) -> &'a [u8] {
        self.value
    }

    /// The value, if it has `N` bytes.
    pub fn array<const N: usize>(&self, attribute: &'static str) -> Result<[u8; N], DecodeError> {
        self.value
            .try_into()
            .map_err(|_other_length| DecodeError::Length {
                attribute,
                length: self.value.len(),
            })
    }

    /// An 8-bit number.
    pub fn u8(&self, attribute: &'static str) -> Result<u8, DecodeError> {
        self.array(attribute).map(u8::from_ne_bytes)
    }

    /// A 16-bit number in host order.
    pub fn u16(&self, attribute: &'static str) -> Result<u16, DecodeError> {
        self.array(attribute).map(u16::from_ne_bytes)
    }

    /// A 32-bit number in host order.
    pub fn u32(&self, attribute: &'static str) -> Result<u32, DecodeError> {
        self.array(attribute).map(u32::from_ne_bytes)
    }

    /// A 64-bit number in host order.
    pub fn u64(&self, attribute: &'static str) -> Result<u64, DecodeError> {
        self.array(attribute).map(u64::from_ne_bytes)
    }

    /// A 16-bit number in network order, marked as such or not.
    pub fn u16_be(&self, attribute: &'static str) -> Result<u16, DecodeError> {
        self.array(attribute).map(u16::from_be_bytes)
    }

    /// A 32-bit number in network order, marked as such or not.
    pub fn u32_be(&self, attribute: &'static str) -> Result<u32, DecodeError> {
        self.array(attribute).map(u32::from_be_bytes)
    }

    /// A 64-bit number in network order, marked as such or not.
    pub fn u64_be(&self, attribute: &'static str) -> Result<u64, DecodeError> {
        self.array(attribute).map(u64::from_be_bytes)
    }

    /// The bytes of a string: those before the first NUL, or all.
    pub fn string_bytes(&self) -> &'a [u8] {
        self.value
            .split(|byte| *byte == 0)
            .next()
            .unwrap_or_default()
    }

    /// A string. What is not UTF-8 becomes replacement characters.
    pub fn string(&self) -> String {
        String::from_utf8_lossy(self.string_bytes()).into_owned()
    }

    /// A copy that can be kept and written back as it is.
    pub fn to_unknown(&self) -> Unknown {
        Unknown {
            kind: self.kind,
            value: self.value.to_vec(),
        }
    }
}

/// An attribute that its reader does not know, kept as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown {
    /// The type, with the bits `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`.
    pub kind: u16,
    /// The value without padding.
    pub value: Vec<u8>,
}

impl Unknown {
    /// Writes it as it came.
    pub fn write<'w>(&self, writer: &'w mut Writer) -> &'w mut Writer {
        writer.bytes(self.kind, &self.value)
    }
}

/// Builds a list of attributes. The first one that is too long is remembered and reported by
/// [`Writer::finish`].
#[derive(Clone, Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
    too_long: Option<u16>,
}

impl Writer {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// A list behind a family header, such as `genlmsghdr` or `nfgenmsg`, which must be padded.
    pub fn after(header: &[u8]) -> Self {
        Self {
            bytes: header.to_vec(),
            too_long: None,
        }
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// An attribute with any value.
    pub fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.header(kind, value.len());
        self.bytes.extend_from_slice(value);
        self.pad();
        self
    }

    /// An attribute without a value.
    pub fn flag(&mut self, kind: u16) -> &mut Self {
        self.bytes(kind, &[])
    }

    /// An 8-bit number.
    pub fn u8(&mut self, kind: u16, value: u8) -> &mut Self {
        self.bytes(kind, &[value])
    }

    /// A 16-bit number in host order.
    pub fn u16(&mut self, kind: u16, value: u16) -> &mut Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// A 32-bit number in host order.
    pub fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// A 64-bit number in host order.
    pub fn u64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// A 16-bit number in network order, not marked as such.
    pub fn u16_be(&mut self, kind: u16, value: u16) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// A 32-bit number in network order, not marked as such.
    pub fn u32_be(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// A 16-bit number in network order, marked with `NLA_F_NET_BYTEORDER` (ipset requires it).
    pub fn u16_net(&mut self, kind: u16, value: u16) -> &mut Self {
        self.bytes(kind | NLA_F_NET_BYTEORDER, &value.to_be_bytes())
    }

    /// A 32-bit number in network order, marked with `NLA_F_NET_BYTEORDER` (ipset requires it).
    pub fn u32_net(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind | NLA_F_NET_BYTEORDER, &value.to_be_bytes())
    }

    /// A 64-bit number in network order, marked with `NLA_F_NET_BYTEORDER` (ipset requires it).
    pub fn u64_net(&mut self, kind: u16, value: u64) -> &mut Self {
        self.bytes(kind | NLA_F_NET_BYTEORDER, &value.to_be_bytes())
    }

    /// A string with its terminating NUL.
    pub fn string(&mut self, kind: u16, value: &str) -> &mut Self {
        self.header(kind, value.len() + 1);
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.pad();
        self
    }

    /// A list inside the list, marked with `NLA_F_NESTED`.
    pub fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        self.header(kind | NLA_F_NESTED, 0);
        fill(self);
        // Written in place, and the length afterwards: lists may hold thousands of others.
        let length = self.checked_len(kind, self.bytes.len() - start);
        if let Some(place) = self.bytes.get_mut(start..start + 2) {
            place.copy_from_slice(&length.to_ne_bytes());
        }
        self
    }

    /// The bytes.
    pub fn finish(self) -> Result<Vec<u8>, AttributeTooLong> {
        match self.too_long {
            Some(kind) => Err(AttributeTooLong { kind }),
            None => Ok(self.bytes),
        }
    }

    fn header(&mut self, kind: u16, value_len: usize) {
        let length = self.checked_len(kind, HEADER_LEN + value_len);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
    }

    /// The length of an attribute as its header has it.
    fn checked_len(&mut self, kind: u16, length: usize) -> u16 {
        u16::try_from(length).unwrap_or_else(|_| {
            self.too_long.get_or_insert(kind & !FLAGS);
            0
        })
    }

    fn pad(&mut self) {
        self.bytes.resize(align(self.bytes.len()), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_but_their_length_is_not() {
        let mut writer = Writer::new();
        writer.string(2, "rr").u16_be(5, 80);
        let mut expected = Vec::new();
        expected.extend_from_slice(&7_u16.to_ne_bytes());
        expected.extend_from_slice(&2_u16.to_ne_bytes());
        expected.extend_from_slice(b"rr\0\0");
        expected.extend_from_slice(&6_u16.to_ne_bytes());
        expected.extend_from_slice(&5_u16.to_ne_bytes());
        expected.extend_from_slice(&[0, 80, 0, 0]);
        assert_eq!(writer.finish(), Ok(expected));
    }

    #[test]
    fn nested_lists_carry_the_flag_and_their_inner_length() {
        let mut writer = Writer::new();
        writer.nested(1, |inner| {
            inner.u32_net(3, 1);
        });
        let mut expected = Vec::new();
        expected.extend_from_slice(&12_u16.to_ne_bytes());
        expected.extend_from_slice(&0x8001_u16.to_ne_bytes());
        expected.extend_from_slice(&8_u16.to_ne_bytes());
        expected.extend_from_slice(&0x4003_u16.to_ne_bytes());
        expected.extend_from_slice(&[0, 0, 0, 1]);
        assert_eq!(writer.finish(), Ok(expected));
    }

    #[test]
    fn flags_of_an_unknown_attribute_are_kept() {
        // Both flags; netlink-packet-core's attributes can carry either one only.
        let bytes = [9, 0, 0, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0];
        let read: Vec<_> = list(&bytes).collect();
        let Ok([attribute]) = <[_; 1]>::try_from(read) else {
            panic!("one attribute")
        };
        let attribute = attribute.unwrap();
        assert_eq!((attribute.kind(), attribute.value()), (0, &[0; 5][..]));
        let mut writer = Writer::new();
        attribute.to_unknown().write(&mut writer);
        assert_eq!(writer.finish().unwrap(), bytes);
    }

    #[test]
    fn a_list_ends_at_an_attribute_that_is_cut_off() {
        for bytes in [&[4, 0, 1][..], &[3, 0, 1, 0], &[9, 0, 1, 0, 1, 2, 3, 4]] {
            assert_eq!(
                list(bytes).collect::<Vec<_>>(),
                [Err(DecodeError::CutOff)],
                "{bytes:?}"
            );
        }
        // Padding may be missing at the end.
        assert_eq!(
            list(&[5, 0, 1, 0, 7]).next().unwrap().unwrap().u8("A"),
            Ok(7)
        );
    }

    #[test]
    fn too_long_an_attribute_is_an_error_not_a_wrapped_length() {
        let mut writer = Writer::new();
        writer.nested(7, |inner| {
            inner.bytes(9, &vec![0; 65_532]);
        });
        assert_eq!(writer.finish(), Err(AttributeTooLong { kind: 9 }));
    }
}
