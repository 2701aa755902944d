// SPDX-License-Identifier: Apache-2.0
//! The kinds of expressions, each as a table of its attributes in the order in which `nft` sends
//! them.

use netlink_pipeline::attribute::{DecodeError, Writer, list};

use super::keys::{
    BitwiseOperation, ByteOrderOperation, Comparison, CtKey, DynsetOperation, FibResult, LimitKind,
    MetaKey, NatKind, PayloadBase, RangeComparison, RejectKind, nat_flag,
};
use super::{Expression, Kind};
use crate::data::Data;
use crate::family::Family;
use crate::name::Name;
use crate::register::Register;
use crate::wire::{Wire, missing};

/// A field of an expression: always there, or there if it is `Some`.
trait Slot: Sized {
    type Value: Wire;

    fn of(value: Option<Self::Value>) -> Option<Self>;
    fn put(&self, kind: u16, writer: &mut Writer);
}

impl<T: Wire> Slot for T {
    type Value = T;

    fn of(value: Option<T>) -> Option<Self> {
        value
    }

    fn put(&self, kind: u16, writer: &mut Writer) {
        self.write(kind, writer);
    }
}

impl<T: Wire> Slot for Option<T> {
    type Value = T;

    fn of(value: Option<T>) -> Option<Self> {
        Some(value)
    }

    fn put(&self, kind: u16, writer: &mut Writer) {
        if let Some(value) = self {
            value.write(kind, writer);
        }
    }
}

/// Declares kinds of expressions: name, fields with type, number and kernel name of the attribute.
/// A field `or zero` is not sent when it is zero; one `or zero, sent` is sent all the same.
macro_rules! kinds {
    ($(
        $(#[$about:meta])*
        pub struct $kind:ident = $name:literal {
            $($(#[$doc:meta])* $field:ident: $type:ty = $number:literal $attribute:ident
                $(or $default:ident)?,)*
        }
    )*) => {$(
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $kind {
            $($(#[$doc])* pub $field: $type,)*
        }

        impl Kind for $kind {
            const NAME: &'static str = $name;
            const HAS_DATA: bool = !matches!($name.as_bytes(), b"notrack");

            fn read(attributes: &[u8]) -> Result<Self, DecodeError> {
                $(let mut $field: Option<<$type as Slot>::Value> = None;)*
                for raw in list(attributes) {
                    let raw = raw?;
                    match raw.kind() {
                        $($number => $field = Some(Wire::read(&raw, stringify!($attribute))?),)*
                        // Padding of old machines.
                        _ if raw.value().is_empty() => {}
                        other => {
                            return Err(DecodeError::Value {
                                attribute: "NFTA_EXPR_DATA",
                                reason: format!("attribute {other} of {} is not known", $name),
                            });
                        }
                    }
                }
                Ok(Self {
                    $($field: kinds!(@of $field, $attribute $(, $default)?),)*
                })
            }

            #[allow(unused_variables, reason = "a kind may have no attributes")]
            fn write(&self, writer: &mut Writer) {
                $(kinds!(@put self.$field, $number, writer $(, $default)?);)*
            }
        }
    )*};
    (@of $value:ident, $attribute:ident) => {
        Slot::of($value).ok_or(missing(stringify!($attribute)))?
    };
    (@of $value:ident, $attribute:ident, $default:ident) => {
        $value.unwrap_or_default()
    };
    (@put $value:expr, $number:literal, $writer:ident) => {
        Slot::put(&$value, $number, $writer)
    };
    (@put $value:expr, $number:literal, $writer:ident, zero) => {
        if $value != Default::default() {
            Wire::write(&$value, $number, $writer);
        }
    };
    (@put $value:expr, $number:literal, $writer:ident, sent) => {
        Wire::write(&$value, $number, $writer)
    };
}

kinds! {
    /// Loads into `destination`, or sets from `source`, what the kernel knows of a packet beside
    /// its bytes.
    pub struct Meta = "meta" {
        /// What.
        key: MetaKey = 2 NFTA_META_KEY,
        /// Where it is loaded.
        destination: Option<Register> = 1 NFTA_META_DREG,
        /// What it is set from.
        source: Option<Register> = 3 NFTA_META_SREG,
    }

    /// Loads bytes of the packet into `destination`, or sets them from `source`.
    pub struct Payload = "payload" {
        /// What they are set from.
        source: Option<Register> = 5 NFTA_PAYLOAD_SREG,
        /// Where they are loaded.
        destination: Option<Register> = 1 NFTA_PAYLOAD_DREG,
        /// Which header.
        base: PayloadBase = 2 NFTA_PAYLOAD_BASE,
        /// The first byte of the header.
        offset: u32 = 3 NFTA_PAYLOAD_OFFSET,
        /// Bytes.
        length: u32 = 4 NFTA_PAYLOAD_LEN,
        /// When setting: `enum nft_payload_csum_types`.
        checksum: Option<u32> = 6 NFTA_PAYLOAD_CSUM_TYPE,
        /// When setting: where the checksum is.
        checksum_offset: Option<u32> = 7 NFTA_PAYLOAD_CSUM_OFFSET,
        /// When setting: `enum nft_payload_csum_flags`.
        checksum_flags: Option<u32> = 8 NFTA_PAYLOAD_CSUM_FLAGS,
    }

    /// Loads into `destination`, or sets from `source`, what is known of the packet's connection.
    pub struct Ct = "ct" {
        /// What.
        key: CtKey = 2 NFTA_CT_KEY,
        /// Where it is loaded.
        destination: Option<Register> = 1 NFTA_CT_DREG,
        /// Whose: 0 is the way of the first packet, 1 that of the answers.
        direction: Option<u8> = 3 NFTA_CT_DIRECTION,
        /// What it is set from.
        source: Option<Register> = 4 NFTA_CT_SREG,
    }

    /// Goes on if a register compares so to a value.
    pub struct Cmp = "cmp" {
        /// The register.
        source: Register = 1 NFTA_CMP_SREG,
        /// How.
        comparison: Comparison = 2 NFTA_CMP_OP,
        /// With what. It may be shorter than what was loaded: a prefix.
        data: Data = 3 NFTA_CMP_DATA,
    }

    /// Goes on if a register is inside of a range, or outside.
    pub struct Range = "range" {
        /// The register.
        source: Register = 1 NFTA_RANGE_SREG,
        /// Inside or outside.
        comparison: RangeComparison = 2 NFTA_RANGE_OP,
        /// The lowest value inside.
        first: Data = 3 NFTA_RANGE_FROM_DATA,
        /// The highest value inside.
        last: Data = 4 NFTA_RANGE_TO_DATA,
    }

    /// Computes with the bits of a register.
    pub struct Bitwise = "bitwise" {
        /// The register.
        source: Register = 1 NFTA_BITWISE_SREG,
        /// The other register, of operations on two.
        source2: Option<Register> = 8 NFTA_BITWISE_SREG2,
        /// Where the result is loaded.
        destination: Register = 2 NFTA_BITWISE_DREG,
        /// What is computed.
        operation: BitwiseOperation = 6 NFTA_BITWISE_OP or zero,
        /// Bytes.
        length: u32 = 3 NFTA_BITWISE_LEN,
        /// The bits that are kept.
        mask: Option<Data> = 4 NFTA_BITWISE_MASK,
        /// The bits that are flipped afterwards.
        xor: Option<Data> = 5 NFTA_BITWISE_XOR,
        /// Of shifts: by how much.
        data: Option<Data> = 7 NFTA_BITWISE_DATA,
    }

    /// Changes the byte order of a register.
    pub struct ByteOrder = "byteorder" {
        /// The register.
        source: Register = 1 NFTA_BYTEORDER_SREG,
        /// Where the result is loaded.
        destination: Register = 2 NFTA_BYTEORDER_DREG,
        /// Which way.
        operation: ByteOrderOperation = 3 NFTA_BYTEORDER_OP,
        /// Bytes of all numbers.
        length: u32 = 4 NFTA_BYTEORDER_LEN,
        /// Bytes of one number.
        size: u32 = 5 NFTA_BYTEORDER_SIZE,
    }

    /// Goes on if a register is in a set, and loads what a map has for it.
    pub struct Lookup = "lookup" {
        /// The first register of the key.
        source: Register = 2 NFTA_LOOKUP_SREG,
        /// Where the map's value is loaded; the verdict register for a map of verdicts.
        destination: Option<Register> = 3 NFTA_LOOKUP_DREG,
        /// The set, of the same table.
        set: Name = 1 NFTA_LOOKUP_SET,
        /// The number that the set has in the transaction that creates both, for sets without a
        /// name of their own.
        set_id: Option<u32> = 4 NFTA_LOOKUP_SET_ID,
        /// 1 goes on if it is not in the set.
        flags: u32 = 5 NFTA_LOOKUP_FLAGS or zero,
    }

    /// Adds the content of a register to a set that was made for it (`dynamic`).
    pub struct Dynset = "dynset" {
        /// The first register of the key.
        key: Register = 4 NFTA_DYNSET_SREG_KEY,
        /// The register of the map's value.
        data: Option<Register> = 5 NFTA_DYNSET_SREG_DATA,
        /// What is done.
        operation: DynsetOperation = 3 NFTA_DYNSET_OP,
        /// Milliseconds after which the element expires.
        timeout: u64 = 6 NFTA_DYNSET_TIMEOUT or zero,
        /// The set, of the same table.
        set: Name = 1 NFTA_DYNSET_SET_NAME,
        /// The number that the set has in the transaction that creates both.
        set_id: Option<u32> = 2 NFTA_DYNSET_SET_ID,
        /// 1 goes on if it cannot be added; 2 says that there are expressions.
        flags: u32 = 9 NFTA_DYNSET_FLAGS or zero,
        /// What each element has, such as a counter, if it is one expression.
        expression: Option<Box<Expression>> = 7 NFTA_DYNSET_EXPR,
        /// The same, if there are several.
        expressions: Option<Vec<Expression>> = 10 NFTA_DYNSET_EXPRESSIONS,
    }

    /// Loads a value; a verdict goes to [`Register::VERDICT`].
    pub struct Immediate = "immediate" {
        /// Where it is loaded.
        destination: Register = 1 NFTA_IMMEDIATE_DREG,
        /// What.
        data: Data = 2 NFTA_IMMEDIATE_DATA,
    }

    /// Asks the routing table about an address of the packet.
    pub struct Fib = "fib" {
        /// Bits of [`fib_flag`](super::fib_flag).
        flags: u32 = 3 NFTA_FIB_FLAGS,
        /// What is asked for.
        result: FibResult = 2 NFTA_FIB_RESULT,
        /// Where the answer is loaded.
        destination: Register = 1 NFTA_FIB_DREG,
    }

    /// Counts the packets that come here.
    #[derive(Copy, Default)]
    pub struct Counter = "counter" {
        /// Bytes so far.
        bytes: u64 = 1 NFTA_COUNTER_BYTES or zero,
        /// Packets so far.
        packets: u64 = 2 NFTA_COUNTER_PACKETS or zero,
    }

    /// Goes on as long as a rate is not exceeded.
    pub struct Limit = "limit" {
        /// How many per unit of time.
        rate: u64 = 1 NFTA_LIMIT_RATE,
        /// Seconds of the unit of time.
        unit: u64 = 2 NFTA_LIMIT_UNIT,
        /// How many more at once.
        burst: u32 = 3 NFTA_LIMIT_BURST or sent,
        /// What is counted.
        kind: LimitKind = 4 NFTA_LIMIT_TYPE,
        /// 1 goes on above the rate only.
        flags: u32 = 5 NFTA_LIMIT_FLAGS or sent,
    }

    /// Uses a stateful object by its name, or the one that a map has for a register.
    pub struct ObjectReference = "objref" {
        /// `NFT_OBJECT_*`
        kind: Option<u32> = 1 NFTA_OBJREF_IMM_TYPE,
        /// The object, of the same table.
        object: Option<Name> = 2 NFTA_OBJREF_IMM_NAME,
        /// The first register of a map's key.
        source: Option<Register> = 3 NFTA_OBJREF_SET_SREG,
        /// The map.
        set: Option<Name> = 4 NFTA_OBJREF_SET_NAME,
        /// The number that the map has in the transaction that creates both.
        set_id: Option<u32> = 5 NFTA_OBJREF_SET_ID,
    }

    /// Translates the source or destination of the packet's connection.
    pub struct Nat = "nat" {
        /// Which.
        kind: NatKind = 1 NFTA_NAT_TYPE,
        /// Of the addresses.
        family: NatFamily = 2 NFTA_NAT_FAMILY,
        /// The register of the address, or of the lowest.
        address: Option<Register> = 3 NFTA_NAT_REG_ADDR_MIN,
        /// The register of the highest address.
        last_address: Option<Register> = 4 NFTA_NAT_REG_ADDR_MAX,
        /// The register of the port, or of the lowest.
        port: Option<Register> = 5 NFTA_NAT_REG_PROTO_MIN,
        /// The register of the highest port.
        last_port: Option<Register> = 6 NFTA_NAT_REG_PROTO_MAX,
        /// Bits of [`nat_flag`].
        flags: u32 = 7 NFTA_NAT_FLAGS or zero,
    }

    /// Translates the source to an address of the outgoing interface.
    #[derive(Copy, Default)]
    pub struct Masquerade = "masq" {
        /// Bits of [`nat_flag`].
        flags: u32 = 1 NFTA_MASQ_FLAGS or zero,
        /// The register of the port, or of the lowest.
        port: Option<Register> = 2 NFTA_MASQ_REG_PROTO_MIN,
        /// The register of the highest port.
        last_port: Option<Register> = 3 NFTA_MASQ_REG_PROTO_MAX,
    }

    /// Translates the destination to an address of this machine.
    #[derive(Copy, Default)]
    pub struct Redirect = "redir" {
        /// The register of the port, or of the lowest.
        port: Option<Register> = 1 NFTA_REDIR_REG_PROTO_MIN,
        /// The register of the highest port.
        last_port: Option<Register> = 2 NFTA_REDIR_REG_PROTO_MAX,
        /// Bits of [`nat_flag`].
        flags: u32 = 3 NFTA_REDIR_FLAGS or zero,
    }

    /// Drops the packet and answers with an error.
    pub struct Reject = "reject" {
        /// With what.
        kind: RejectKind = 1 NFTA_REJECT_TYPE,
        /// The ICMP code, of a meaning that depends on the kind.
        code: u8 = 2 NFTA_REJECT_ICMP_CODE or sent,
    }

    /// Exempts the packet from connection tracking.
    #[derive(Copy, Default)]
    pub struct NoTrack = "notrack" {}
}

/// The family of a translation, which takes four bytes here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NatFamily(pub Family);

impl Wire for NatFamily {
    fn read(
        raw: &netlink_pipeline::attribute::Attribute<'_>,
        name: &'static str,
    ) -> Result<Self, DecodeError> {
        let number = u32::read(raw, name)?;
        let number = u8::try_from(number).map_err(|_large| DecodeError::Value {
            attribute: name,
            reason: format!("{number} is no family"),
        })?;
        Ok(Self(Family::from_number(number)))
    }

    fn write(&self, kind: u16, writer: &mut Writer) {
        u32::from(self.0.number()).write(kind, writer);
    }
}

/// What the kernel infers from the registers.
const INFERRED: u32 = nat_flag::ADDRESS | nat_flag::PORT;

/// The end of a range that is one value.
fn end(first: Option<Register>, last: Option<Register>) -> Option<Register> {
    last.filter(|_| first != last)
}

impl Nat {
    pub(super) fn canonical(self) -> Self {
        Self {
            last_address: end(self.address, self.last_address),
            last_port: end(self.port, self.last_port),
            flags: self.flags & !INFERRED,
            ..self
        }
    }
}

impl Masquerade {
    pub(super) fn canonical(self) -> Self {
        Self {
            last_port: end(self.port, self.last_port),
            flags: self.flags & !INFERRED,
            ..self
        }
    }
}

impl Redirect {
    pub(super) fn canonical(self) -> Self {
        Self {
            last_port: end(self.port, self.last_port),
            flags: self.flags & !INFERRED,
            ..self
        }
    }
}
