// SPDX-License-Identifier: Apache-2.0
//! Attributes of one kind as an enum that is declared as a table: see
//! [`attributes!`](crate::attributes).

use super::{Attribute, DecodeError, NLA_F_NET_BYTEORDER, Unknown, Writer, list};

/// How a value of type `T` stands in an attribute.
pub trait Codec<T> {
    /// Reads an attribute; `name` is for the error.
    fn read(raw: &Attribute<'_>, name: &'static str) -> Result<T, DecodeError>;

    /// Appends an attribute.
    fn write(value: &T, kind: u16, writer: &mut Writer);
}

/// Integers in the machine's byte order, and everything that has no byte order.
#[derive(Debug)]
pub enum Plain {}

/// Big-endian integers.
#[derive(Debug)]
pub enum BigEndian {}

/// Big-endian integers that are written with [`NLA_F_NET_BYTEORDER`]; any flag is read.
#[derive(Debug)]
pub enum NetOrder {}

macro_rules! integers {
    ($($type:ty),*) => {$(
        integers!(@one $type, Plain, from_ne_bytes, to_ne_bytes, 0);
        integers!(@one $type, BigEndian, from_be_bytes, to_be_bytes, 0);
        integers!(@one $type, NetOrder, from_be_bytes, to_be_bytes, NLA_F_NET_BYTEORDER);
    )*};
    (@one $type:ty, $codec:ty, $from:ident, $to:ident, $flag:expr) => {
        impl Codec<$type> for $codec {
            fn read(raw: &Attribute<'_>, name: &'static str) -> Result<$type, DecodeError> {
                raw.array(name).map(<$type>::$from)
            }

            fn write(value: &$type, kind: u16, writer: &mut Writer) {
                writer.bytes(kind | $flag, &value.$to());
            }
        }
    };
}

integers!(u8, u16, u32, u64, i32);

impl<const N: usize> Codec<[u8; N]> for Plain {
    fn read(raw: &Attribute<'_>, name: &'static str) -> Result<[u8; N], DecodeError> {
        raw.array(name)
    }

    fn write(value: &[u8; N], kind: u16, writer: &mut Writer) {
        writer.bytes(kind, value);
    }
}

impl Codec<String> for Plain {
    fn read(raw: &Attribute<'_>, _name: &'static str) -> Result<String, DecodeError> {
        Ok(raw.string())
    }

    fn write(value: &String, kind: u16, writer: &mut Writer) {
        writer.string(kind, value);
    }
}

/// An attribute of one kind of list.
pub trait ListAttribute: Sized {
    /// Reads one attribute.
    fn read(raw: &Attribute<'_>) -> Result<Self, DecodeError>;

    /// Appends the attribute.
    fn write(&self, writer: &mut Writer);

    /// Reads all attributes of a list.
    fn read_all(bytes: &[u8]) -> Result<Vec<Self>, DecodeError> {
        list(bytes).map(|raw| Self::read(&raw?)).collect()
    }
}

/// A nested list.
impl<A: ListAttribute> Codec<Vec<A>> for Plain {
    fn read(raw: &Attribute<'_>, _name: &'static str) -> Result<Vec<A>, DecodeError> {
        A::read_all(raw.value())
    }

    fn write(value: &Vec<A>, kind: u16, writer: &mut Writer) {
        writer.nested(kind, |inner| {
            for attribute in value {
                attribute.write(inner);
            }
        });
    }
}

/// An attribute that is not decoded.
impl Codec<Unknown> for Plain {
    fn read(raw: &Attribute<'_>, _name: &'static str) -> Result<Unknown, DecodeError> {
        Ok(raw.to_unknown())
    }

    fn write(value: &Unknown, _kind: u16, writer: &mut Writer) {
        value.write(writer);
    }
}

/// Declares the attributes of one kind of list, each with its number and its kernel name, as an
/// enum that is a [`ListAttribute`]. A [`Codec`] other than [`Plain`] is named with `as`.
/// Attributes that are not in the table become `Other`.
///
/// ```
/// use netlink_pipeline::attribute::{BigEndian, ListAttribute, Writer};
///
/// netlink_pipeline::attributes! {
///     /// Parts of an address.
///     pub enum Part {
///         /// Interface.
///         Index(u32) = 1 EXAMPLE_INDEX,
///         /// Port.
///         Port(u16) = 2 EXAMPLE_PORT as BigEndian,
///     }
/// }
///
/// let mut writer = Writer::new();
/// Part::Port(80).write(&mut writer);
/// let bytes = writer.finish()?;
/// assert_eq!(Part::read_all(&bytes)?, [Part::Port(80)]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[macro_export]
macro_rules! attributes {
    ($(#[$about:meta])* pub enum $table:ident {
        $(
            $(#[$doc:meta])*
            $variant:ident($type:ty) = $number:literal $name:ident $(as $codec:ty)?,
        )*
    }) => {
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum $table {
            $($(#[$doc])* $variant($type),)*
            /// An attribute that this crate does not know.
            Other($crate::attribute::Unknown),
        }

        impl $crate::attribute::ListAttribute for $table {
            fn read(
                raw: &$crate::attribute::Attribute<'_>,
            ) -> Result<Self, $crate::attribute::DecodeError> {
                use $crate::attribute::Codec;
                Ok(match raw.kind() {
                    $($number => Self::$variant(
                        <$crate::attributes!(@codec $($codec)?) as Codec<$type>>::read(
                            raw, stringify!($name),
                        )?,
                    ),)*
                    _ => Self::Other(raw.to_unknown()),
                })
            }

            fn write(&self, writer: &mut $crate::attribute::Writer) {
                use $crate::attribute::Codec;
                match self {
                    $(Self::$variant(value) =>
                        <$crate::attributes!(@codec $($codec)?) as Codec<$type>>::write(
                            value, $number, writer,
                        ),)*
                    Self::Other(unknown) => {
                        unknown.write(writer);
                    }
                }
            }
        }
    };
    (@codec) => { $crate::attribute::Plain };
    (@codec $codec:ty) => { $codec };
}

/// The value of the last attribute of one variant in a slice of attributes.
#[macro_export]
macro_rules! find_attribute {
    ($attributes:expr, $variant:path) => {
        $attributes
            .iter()
            .rev()
            .find_map(|attribute| match attribute {
                $variant(value) => Some(value),
                _ => None,
            })
    };
}
