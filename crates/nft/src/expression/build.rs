// SPDX-License-Identifier: Apache-2.0
//! The expressions of common matches and statements, as `nft` makes them of its words.

use super::Expression;
use super::keys::{
    BitwiseOperation, Comparison, CtKey, FibResult, MetaKey, NatKind, PayloadBase, RejectKind,
    fib_flag,
};
use super::kinds::{
    Bitwise, Cmp, Counter, Ct, Fib, Immediate, Lookup, Masquerade, Meta, Nat, NatFamily, Payload,
    Reject,
};
use crate::data::{Data, Value, Verdict};
use crate::family::Family;
use crate::name::Name;
use crate::register::Register;

/// `RTN_LOCAL` of `linux/rtnetlink.h`: an address of this machine.
const RTN_LOCAL: u32 = 2;

/// Something of a packet that a rule can match or look up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Field {
    /// `ip saddr`
    Ipv4Source,
    /// `ip daddr`
    Ipv4Destination,
    /// `ip6 saddr`
    Ipv6Source,
    /// `ip6 daddr`
    Ipv6Destination,
    /// `th sport`: of TCP, UDP, SCTP and their like.
    SourcePort,
    /// `th dport`
    DestinationPort,
    /// `tcp flags`, a byte.
    TcpFlags,
    /// `@nh,120,8` and the like.
    NetworkBytes(NetworkBytes),
    /// `meta KEY`, such as `meta l4proto`.
    Meta(MetaKey),
    /// `ct KEY`, of those that have no direction.
    Ct(CtKey),
}

/// Bytes of the IP header, wherever its fields begin and end. `nft` counts both in bits:
/// `@nh,120,8` is the byte at offset 15.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkBytes {
    /// Bytes before it.
    pub offset: u32,
    /// How many bytes.
    pub length: u32,
}

impl NetworkBytes {
    /// Words of four bytes that it takes in a key.
    pub(crate) const fn words(self) -> u32 {
        self.length.div_ceil(4)
    }
}

impl Field {
    /// Loads it.
    pub fn load(self, register: Register) -> Expression {
        use PayloadBase::{Network, Transport};
        let payload = |base, offset, length| {
            Payload {
                source: None,
                destination: Some(register),
                base,
                offset,
                length,
                checksum: None,
                checksum_offset: None,
                checksum_flags: None,
            }
            .into()
        };
        match self {
            Self::Ipv4Source => payload(Network, 12, 4),
            Self::Ipv4Destination => payload(Network, 16, 4),
            Self::Ipv6Source => payload(Network, 8, 16),
            Self::Ipv6Destination => payload(Network, 24, 16),
            Self::SourcePort => payload(Transport, 0, 2),
            Self::DestinationPort => payload(Transport, 2, 2),
            Self::TcpFlags => payload(Transport, 13, 1),
            Self::NetworkBytes(bytes) => payload(Network, bytes.offset, bytes.length),
            Self::Meta(key) => Meta {
                key,
                destination: Some(register),
                source: None,
            }
            .into(),
            Self::Ct(key) => Ct {
                key,
                destination: Some(register),
                direction: None,
                source: None,
            }
            .into(),
        }
    }

    /// Loads fields one behind the other from [`Register::FIRST`] on, as the key of a
    /// concatenation.
    pub fn load_all(fields: &[Self]) -> Vec<Expression> {
        let mut word = 0;
        let mut loads = Vec::new();
        for field in fields {
            loads.push(field.load(Register::word(word)));
            word += field.words();
        }
        loads
    }

    /// Words of four bytes that it takes.
    const fn words(self) -> u32 {
        match self {
            Self::Ipv6Source
            | Self::Ipv6Destination
            | Self::Meta(MetaKey::InputName | MetaKey::OutputName)
            | Self::Ct(CtKey::SourceIpv6 | CtKey::DestinationIpv6) => 4,
            Self::NetworkBytes(bytes) => bytes.words(),
            _ => 1,
        }
    }
}

impl Expression {
    /// Goes on if [`Register::FIRST`] equals a value, or begins with it.
    pub fn equals(value: Value) -> Self {
        Self::compares(Comparison::Equal, value)
    }

    /// Goes on if [`Register::FIRST`] does not equal a value, nor begin with it.
    pub fn differs(value: Value) -> Self {
        Self::compares(Comparison::NotEqual, value)
    }

    /// Goes on if [`Register::FIRST`] compares so to a value.
    pub fn compares(comparison: Comparison, value: Value) -> Self {
        Cmp {
            source: Register::FIRST,
            comparison,
            data: Data::Value(value),
        }
        .into()
    }

    /// Keeps the bits of a mask in [`Register::FIRST`] and flips others then: `(register & mask) ^
    /// xor`. Both have the length of the value.
    pub fn masks(mask: Value, xor: Value) -> Self {
        Bitwise {
            source: Register::FIRST,
            source2: None,
            destination: Register::FIRST,
            operation: BitwiseOperation::MaskXor,
            length: u32::try_from(mask.as_bytes().len()).unwrap_or(u32::MAX),
            mask: Some(Data::Value(mask)),
            xor: Some(Data::Value(xor)),
            data: None,
        }
        .into()
    }

    /// Goes on if the key from [`Register::FIRST`] on is in a set.
    pub fn is_in(set: Name) -> Self {
        Self::looks_up(set, None, 0)
    }

    /// Goes on if the key from [`Register::FIRST`] on is not in a set.
    pub fn is_not_in(set: Name) -> Self {
        Self::looks_up(set, None, 1)
    }

    /// Loads what a map has for the key from [`Register::FIRST`] on, or breaks off. A map of
    /// verdicts loads [`Register::VERDICT`].
    pub fn maps(map: Name, destination: Register) -> Self {
        Self::looks_up(map, Some(destination), 0)
    }

    fn looks_up(set: Name, destination: Option<Register>, flags: u32) -> Self {
        Lookup {
            source: Register::FIRST,
            destination,
            set,
            set_id: None,
            flags,
        }
        .into()
    }

    /// A verdict.
    pub fn verdict(verdict: Verdict) -> Self {
        Immediate {
            destination: Register::VERDICT,
            data: Data::Verdict(verdict),
        }
        .into()
    }

    /// Loads a value.
    pub fn loads(register: Register, value: Value) -> Self {
        Immediate {
            destination: register,
            data: Data::Value(value),
        }
        .into()
    }

    /// Sets the packet's mark from [`Register::FIRST`].
    pub fn sets_mark() -> Self {
        Meta {
            key: MetaKey::Mark,
            destination: None,
            source: Some(Register::FIRST),
        }
        .into()
    }

    /// Counts from zero.
    pub fn counts() -> Self {
        Counter::default().into()
    }

    /// `masquerade` with bits of [`nat_flag`](super::nat_flag).
    pub fn masquerades(flags: u32) -> Self {
        Masquerade {
            flags,
            port: None,
            last_port: None,
        }
        .into()
    }

    /// Translates the destination to the address and port in two registers; without one for it the
    /// port stays.
    pub fn translates_destination(
        family: Family,
        address: Register,
        port: Option<Register>,
    ) -> Self {
        let flags = port.map_or(0, |_| super::nat_flag::PORT);
        Nat {
            kind: NatKind::Destination,
            family: NatFamily(family),
            address: Some(address),
            last_address: None,
            port,
            last_port: None,
            flags,
        }
        .into()
    }

    /// Answers "port unreachable", with the ICMP of a table's family.
    pub fn rejects_port(family: Family) -> Self {
        // ICMP_PORT_UNREACH, ICMPV6_PORT_UNREACH, NFT_REJECT_ICMPX_PORT_UNREACH
        let (kind, code) = match family {
            Family::Ipv4 => (RejectKind::Icmp, 3),
            Family::Ipv6 => (RejectKind::Icmp, 4),
            _ => (RejectKind::Icmpx, 1),
        };
        Reject { kind, code }.into()
    }

    /// Goes on if the packet's state is one of [`ct_state`](super::ct_state).
    pub fn state_is(states: u32) -> [Self; 3] {
        [
            Field::Ct(CtKey::State).load(Register::FIRST),
            Self::masks(Value::mark(states), Value::mark(0)),
            Self::differs(Value::mark(0)),
        ]
    }

    /// Goes on if the bits of the packet's mark under a mask are these.
    pub fn mark_is(bits: u32, mask: u32) -> [Self; 3] {
        [
            Field::Meta(MetaKey::Mark).load(Register::FIRST),
            Self::masks(Value::mark(mask), Value::mark(0)),
            Self::equals(Value::mark(bits)),
        ]
    }

    /// Sets the bits of the packet's mark under a mask and leaves the others.
    pub fn marks(bits: u32, mask: u32) -> [Self; 3] {
        [
            Field::Meta(MetaKey::Mark).load(Register::FIRST),
            Self::masks(Value::mark(!mask), Value::mark(bits & mask)),
            Self::sets_mark(),
        ]
    }

    /// Goes on if the source address is this machine's.
    pub fn source_is_local() -> [Self; 2] {
        Self::is_local(fib_flag::SOURCE, Comparison::Equal)
    }

    /// Goes on if the source address is not this machine's.
    pub fn source_is_not_local() -> [Self; 2] {
        Self::is_local(fib_flag::SOURCE, Comparison::NotEqual)
    }

    /// Goes on if the destination address is this machine's.
    pub fn destination_is_local() -> [Self; 2] {
        Self::is_local(fib_flag::DESTINATION, Comparison::Equal)
    }

    /// Goes on if the destination address is not this machine's.
    pub fn destination_is_not_local() -> [Self; 2] {
        Self::is_local(fib_flag::DESTINATION, Comparison::NotEqual)
    }

    fn is_local(flags: u32, comparison: Comparison) -> [Self; 2] {
        let fib = Fib {
            flags,
            result: FibResult::AddressType,
            destination: Register::FIRST,
        };
        [
            fib.into(),
            Self::compares(comparison, Value::mark(RTN_LOCAL)),
        ]
    }
}
