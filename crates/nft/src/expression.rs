// SPDX-License-Identifier: Apache-2.0
//! Expressions, of which rules are made.

mod build;
mod keys;
mod kinds;

use netlink_pipeline::attribute::{Attribute, DecodeError, Unknown, Writer, list};

pub use build::{Field, NetworkBytes};
pub use keys::{
    BitwiseOperation, ByteOrderOperation, Comparison, CtKey, DynsetOperation, FibResult, LimitKind,
    MetaKey, NatKind, PayloadBase, RangeComparison, RejectKind, ct_state, fib_flag, nat_flag,
};
pub use kinds::{
    Bitwise, ByteOrder, Cmp, Counter, Ct, Dynset, Fib, Immediate, Limit, Lookup, Masquerade, Meta,
    Nat, NatFamily, NoTrack, ObjectReference, Payload, Range, Redirect, Reject,
};

use crate::wire::{Wire, missing};

const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;

/// A kind of expression.
pub(crate) trait Kind: Sized {
    /// What the kernel calls it.
    const NAME: &'static str;
    /// Whether there is an `NFTA_EXPR_DATA` at all.
    const HAS_DATA: bool;

    fn read(attributes: &[u8]) -> Result<Self, DecodeError>;
    fn write(&self, writer: &mut Writer);
}

/// An expression that this crate does not know, or not with these attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherExpression {
    /// What the kernel calls it.
    pub name: String,
    /// Its attributes as they came.
    pub attributes: Vec<Unknown>,
}

macro_rules! expressions {
    ($($(#[$doc:meta])* $kind:ident,)*) => {
        /// A step of a rule: the steps are taken one after the other until one breaks off or there
        /// is a verdict.
        #[derive(Clone, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Expression {
            $($(#[$doc])* $kind($kind),)*
            /// Kept as it came.
            Other(OtherExpression),
        }

        $(impl From<$kind> for Expression {
            fn from(kind: $kind) -> Self {
                Self::$kind(kind)
            }
        })*

        impl Expression {
            /// What the kernel calls it.
            pub fn name(&self) -> &str {
                match self {
                    $(Self::$kind(_) => $kind::NAME,)*
                    Self::Other(other) => &other.name,
                }
            }

            /// The expression of a name with these attributes, if they can be told as such.
            fn known(name: &str, attributes: &[u8]) -> Option<Self> {
                match name {
                    $($kind::NAME => $kind::read(attributes).ok().map(Self::$kind),)*
                    _ => None,
                }
            }

            fn write_attributes(&self, kind: u16, writer: &mut Writer) {
                match self {
                    $(Self::$kind(known) => {
                        if $kind::HAS_DATA {
                            writer.nested(kind, |data| known.write(data));
                        }
                    })*
                    Self::Other(other) if other.attributes.is_empty() => {}
                    Self::Other(other) => {
                        writer.nested(kind, |data| {
                            for attribute in &other.attributes {
                                attribute.write(data);
                            }
                        });
                    }
                }
            }
        }
    };
}

expressions! {
    /// Loads or sets what the kernel knows of a packet beside its bytes.
    Meta,
    /// Loads or sets bytes of the packet.
    Payload,
    /// Loads or sets what is known of the packet's connection.
    Ct,
    /// Compares a register with a value and breaks off where they differ.
    Cmp,
    /// The same with a range.
    Range,
    /// Computes with the bits of a register.
    Bitwise,
    /// Changes the byte order of a register.
    ByteOrder,
    /// Looks a register up in a set or map.
    Lookup,
    /// Adds the content of a register to a set.
    Dynset,
    /// Loads a value, or is a verdict.
    Immediate,
    /// Asks the routing table.
    Fib,
    /// Counts packets.
    Counter,
    /// Breaks off above a rate.
    Limit,
    /// Uses a stateful object by its name.
    ObjectReference,
    /// Translates the source or destination.
    Nat,
    /// Translates the source to an address of the outgoing interface.
    Masquerade,
    /// Translates the destination to this machine.
    Redirect,
    /// Answers with an error and drops.
    Reject,
    /// Exempts the packet from connection tracking.
    NoTrack,
}

impl Expression {
    /// The same without what the kernel changes: what was counted, and flags that it infers. Two
    /// expressions with the same canonical form do the same.
    #[must_use]
    pub fn canonical(&self) -> Self {
        match self.clone() {
            Self::Counter(_) => Self::Counter(Counter::default()),
            Self::Nat(nat) => Self::Nat(nat.canonical()),
            Self::Masquerade(masquerade) => Self::Masquerade(masquerade.canonical()),
            Self::Redirect(redirect) => Self::Redirect(redirect.canonical()),
            Self::Lookup(lookup) => Self::Lookup(Lookup {
                set_id: None,
                ..lookup
            }),
            Self::Dynset(dynset) => Self::Dynset(Dynset {
                set_id: None,
                ..dynset
            }),
            other => other,
        }
    }
}

/// Nested: a name and the attributes of that kind of expression.
impl Wire for Expression {
    fn read(raw: &Attribute<'_>, _name: &'static str) -> Result<Self, DecodeError> {
        let mut name = None;
        let mut attributes: &[u8] = &[];
        for raw in list(raw.value()) {
            let raw = raw?;
            match raw.kind() {
                NFTA_EXPR_NAME => name = Some(raw.string()),
                NFTA_EXPR_DATA => attributes = raw.value(),
                _ => {}
            }
        }
        let name = name.ok_or(missing("NFTA_EXPR_NAME"))?;
        if let Some(known) = Self::known(&name, attributes) {
            return Ok(known);
        }
        let attributes = list(attributes)
            .map(|raw| raw.map(|raw| raw.to_unknown()))
            .collect::<Result<_, _>>()?;
        Ok(Self::Other(OtherExpression { name, attributes }))
    }

    fn write(&self, kind: u16, writer: &mut Writer) {
        writer.nested(kind, |expression| {
            expression.string(NFTA_EXPR_NAME, self.name());
            self.write_attributes(NFTA_EXPR_DATA, expression);
        });
    }
}

impl Wire for Box<Expression> {
    fn read(raw: &Attribute<'_>, name: &'static str) -> Result<Self, DecodeError> {
        Expression::read(raw, name).map(Self::new)
    }

    fn write(&self, kind: u16, writer: &mut Writer) {
        self.as_ref().write(kind, writer);
    }
}

/// A list of expressions.
impl Wire for Vec<Expression> {
    fn read(raw: &Attribute<'_>, name: &'static str) -> Result<Self, DecodeError> {
        list(raw.value())
            .map(|raw| Expression::read(&raw?, name))
            .collect()
    }

    fn write(&self, kind: u16, writer: &mut Writer) {
        writer.nested(kind, |list| {
            for expression in self {
                expression.write(NFTA_LIST_ELEM, list);
            }
        });
    }
}
