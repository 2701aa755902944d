// SPDX-License-Identifier: Apache-2.0
//! Enums of the kernel's numbers.

/// Declares an enum with the kernel's number of each variant; every other number is `Other`.
///
/// ```
/// netlink_pipeline::numbered! {
///     /// A family of addresses.
///     #[derive(Clone, Copy, Debug, PartialEq, Eq)]
///     pub enum Family: u8 {
///         /// `AF_INET`
///         V4 = 2,
///     }
/// }
///
/// assert_eq!(Family::from_number(2), Family::V4);
/// assert_eq!(Family::Other(7).number(), 7);
/// ```
#[macro_export]
macro_rules! numbered {
    ($(#[$about:meta])* pub enum $name:ident: $type:ty {
        $($(#[$doc:meta])* $variant:ident = $number:literal,)*
    }) => {
        $(#[$about])*
        #[non_exhaustive]
        pub enum $name {
            $($(#[$doc])* $variant,)*
            /// A number that this crate does not know.
            Other($type),
        }

        impl $name {
            /// The number on the wire.
            pub const fn number(self) -> $type {
                match self {
                    $(Self::$variant => $number,)*
                    Self::Other(number) => number,
                }
            }

            /// What a number on the wire means.
            pub const fn from_number(number: $type) -> Self {
                match number {
                    $($number => Self::$variant,)*
                    number => Self::Other(number),
                }
            }
        }
    };
}
