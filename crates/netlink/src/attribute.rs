// SPDX-License-Identifier: Apache-2.0
//! Netlink attributes (`struct nlattr`) as bytes: a writer that cannot overflow and readers.
//!
//! For families that build messages by hand. `netlink_packet_core::Nla` does the same for typed
//! attributes; its emission of one longer than 64 KiB would wrap, [`Writer`] refuses it.

use netlink_packet_core::{NLA_F_NESTED, NLA_F_NET_BYTEORDER};

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
    pub kind: u16,
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
        let mut inner = Self::new();
        fill(&mut inner);
        self.too_long = self.too_long.or(inner.too_long);
        self.bytes(kind | NLA_F_NESTED, &inner.bytes)
    }

    /// The bytes.
    pub fn finish(self) -> Result<Vec<u8>, AttributeTooLong> {
        match self.too_long {
            Some(kind) => Err(AttributeTooLong { kind }),
            None => Ok(self.bytes),
        }
    }

    fn header(&mut self, kind: u16, value_len: usize) {
        let length = u16::try_from(HEADER_LEN + value_len).unwrap_or_else(|_| {
            self.too_long.get_or_insert(kind);
            0
        });
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
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
    fn too_long_an_attribute_is_an_error_not_a_wrapped_length() {
        let mut writer = Writer::new();
        writer.nested(7, |inner| {
            inner.bytes(9, &vec![0; 65_532]);
        });
        assert_eq!(writer.finish(), Err(AttributeTooLong { kind: 9 }));
    }
}
