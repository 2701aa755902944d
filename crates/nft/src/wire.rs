// SPDX-License-Identifier: Apache-2.0
//! How values stand in the attributes of `nf_tables`: numbers in network order and without the mark
//! that says so.

use netlink_pipeline::attribute::{Attribute, BigEndian, Codec, DecodeError, Plain, Writer};

/// A value of an attribute.
pub(crate) trait Wire: Sized {
    fn read(raw: &Attribute<'_>, name: &'static str) -> Result<Self, DecodeError>;
    fn write(&self, kind: u16, writer: &mut Writer);
}

/// The codec of all attributes here.
pub(crate) enum Nft {}

impl<T: Wire> Codec<T> for Nft {
    fn read(raw: &Attribute<'_>, name: &'static str) -> Result<T, DecodeError> {
        T::read(raw, name)
    }

    fn write(value: &T, kind: u16, writer: &mut Writer) {
        value.write(kind, writer);
    }
}

macro_rules! through {
    ($($codec:ident: $($type:ty),*;)*) => {$($(
        impl Wire for $type {
            fn read(raw: &Attribute<'_>, name: &'static str) -> Result<Self, DecodeError> {
                $codec::read(raw, name)
            }

            fn write(&self, kind: u16, writer: &mut Writer) {
                $codec::write(self, kind, writer);
            }
        }
    )*)*};
}

through! {
    BigEndian: u8, u32, u64, i32;
    Plain: String;
}

impl Wire for Vec<u8> {
    fn read(raw: &Attribute<'_>, _name: &'static str) -> Result<Self, DecodeError> {
        Ok(raw.value().to_vec())
    }

    fn write(&self, kind: u16, writer: &mut Writer) {
        writer.bytes(kind, self);
    }
}

/// Lets enums of [`netlink_pipeline::numbered!`] stand in attributes as their numbers.
macro_rules! numbers_on_the_wire {
    ($($type:ty),* $(,)?) => {$(
        impl $crate::wire::Wire for $type {
            fn read(
                raw: &netlink_pipeline::attribute::Attribute<'_>,
                name: &'static str,
            ) -> Result<Self, netlink_pipeline::attribute::DecodeError> {
                $crate::wire::Wire::read(raw, name).map(Self::from_number)
            }

            fn write(&self, kind: u16, writer: &mut netlink_pipeline::attribute::Writer) {
                self.number().write(kind, writer);
            }
        }
    )*};
}

pub(crate) use numbers_on_the_wire;

/// The error for an attribute without which a message says nothing.
pub(crate) const fn missing(attribute: &'static str) -> DecodeError {
    DecodeError::Missing { attribute }
}
