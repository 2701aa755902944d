// SPDX-License-Identifier: Apache-2.0
//! What expressions can do, under the numbers of `include/uapi/linux/netfilter/nf_tables.h`.

use crate::wire::numbers_on_the_wire;

netlink_pipeline::numbered! {
    /// What [`Meta`](super::Meta) loads or sets: `enum nft_meta_keys`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub enum MetaKey: u32 {
        /// Bytes of the packet.
        Length = 0,
        /// Its EtherType.
        EtherType = 1,
        /// Its priority.
        Priority = 2,
        /// Its mark.
        Mark = 3,
        /// Index of the incoming interface.
        InputIndex = 4,
        /// Index of the outgoing interface.
        OutputIndex = 5,
        /// Name of the incoming interface.
        InputName = 6,
        /// Name of the outgoing interface.
        OutputName = 7,
        /// Number of the user whose process sent it.
        User = 10,
        /// Number of that process's group.
        Group = 11,
        /// Whether it is traced.
        Trace = 12,
        /// `NFPROTO_*`
        Family = 15,
        /// IP protocol number, behind extension headers.
        Protocol = 16,
        /// Whether it is for this machine, for others or for all.
        PacketType = 19,
        /// The processor.
        Cpu = 20,
        /// A random number.
        Random = 24,
    }
}

netlink_pipeline::numbered! {
    /// What [`Ct`](super::Ct) loads or sets: `enum nft_ct_keys`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub enum CtKey: u32 {
        /// One bit of [`ct_state`].
        State = 0,
        /// Whether the packet is an answer.
        Direction = 1,
        /// Bits of `enum ip_conntrack_status`, such as whether the destination is translated.
        Status = 2,
        /// The connection's mark.
        Mark = 3,
        /// Milliseconds until it is forgotten.
        Expiration = 5,
        /// IP protocol number.
        Protocol = 10,
        /// Source port.
        SourcePort = 11,
        /// Destination port.
        DestinationPort = 12,
        /// The zone.
        Zone = 17,
        /// IPv4 source.
        SourceIpv4 = 19,
        /// IPv4 destination.
        DestinationIpv4 = 20,
        /// IPv6 source.
        SourceIpv6 = 21,
        /// IPv6 destination.
        DestinationIpv6 = 22,
    }
}

/// Bits of [`CtKey::State`], as `nft` has them (its `src/ct.c`).
pub mod ct_state {
    /// Belongs to no connection and to none that could begin.
    pub const INVALID: u32 = 1;
    /// Of a connection with packets in both directions.
    pub const ESTABLISHED: u32 = 1 << 1;
    /// About another connection, such as an ICMP error.
    pub const RELATED: u32 = 1 << 2;
    /// Begins a connection.
    pub const NEW: u32 = 1 << 3;
    /// Exempt from connection tracking.
    pub const UNTRACKED: u32 = 1 << 6;
}

netlink_pipeline::numbered! {
    /// Where the bytes of a [`Payload`](super::Payload) are counted from: `enum nft_payload_bases`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub enum PayloadBase: u32 {
        /// The link layer's header.
        Link = 0,
        /// The IP header.
        Network = 1,
        /// The header of TCP, UDP or SCTP.
        Transport = 2,
        /// What follows that.
        Inner = 3,
    }
}

netlink_pipeline::numbered! {
    /// How [`Cmp`](super::Cmp) compares: `enum nft_cmp_ops`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub enum Comparison: u32 {
        /// Equal.
        Equal = 0,
        /// Not equal.
        NotEqual = 1,
        /// Less, as numbers in network order.
        Less = 2,
        /// Less or equal.
        AtMost = 3,
        /// Greater.
        Greater = 4,
        /// Greater or equal.
        AtLeast = 5,
    }
}

netlink_pipeline::numbered! {
    /// What [`Range`](super::Range) asks: `enum nft_range_ops`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub enum RangeComparison: u32 {
        /// Whether it is inside.
        Inside = 0,
        /// Whether it is outside.
        Outside = 1,
    }
}

netlink_pipeline::numbered! {
    /// What [`Bitwise`](super::Bitwise) computes: `enum nft_bitwise_ops`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub enum BitwiseOperation: u32 {
        /// `(source & mask) ^ xor`
        MaskXor = 0,
        /// Shifts to the left by the number in `data`.
        ShiftLeft = 1,
        /// Shifts to the right by the number in `data`.
        ShiftRight = 2,
        /// Both of two registers (Linux 6.13).
        And = 3,
        /// Either of two registers (Linux 6.13).
        Or = 4,
        /// One of two registers (Linux 6.13).
        Xor = 5,
    }
}

/// A new expression masks and flips, which is zero on the wire.
impl Default for BitwiseOperation {
    fn default() -> Self {
        Self::MaskXor
    }
}

netlink_pipeline::numbered! {
    /// What [`ByteOrder`](super::ByteOrder) does: `enum nft_byteorder_ops`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub enum ByteOrderOperation: u32 {
        /// From network order to the machine's.
        ToHost = 0,
        /// From the machine's order to the network's.
        ToNetwork = 1,
    }
}

netlink_pipeline::numbered! {
    /// What [`Dynset`](super::Dynset) does: `enum nft_dynset_ops`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub enum DynsetOperation: u32 {
        /// Adds, and leaves what is there as it is.
        Add = 0,
        /// Adds, and lets the time-out of what is there begin anew.
        Update = 1,
        /// Deletes.
        Delete = 2,
    }
}

netlink_pipeline::numbered! {
    /// What [`Fib`](super::Fib) asks for: `enum nft_fib_result`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub enum FibResult: u32 {
        /// Index of the outgoing interface.
        OutputIndex = 1,
        /// Its name.
        OutputName = 2,
        /// The type of the address, `RTN_*`: local is 2.
        AddressType = 3,
    }
}

/// What [`Fib`](super::Fib) looks up with: `enum nft_fib_flags`.
pub mod fib_flag {
    /// The source address.
    pub const SOURCE: u32 = 1;
    /// The destination address.
    pub const DESTINATION: u32 = 1 << 1;
    /// With the packet's mark.
    pub const MARK: u32 = 1 << 2;
    /// Restricted to the incoming interface.
    pub const INPUT: u32 = 1 << 3;
    /// Restricted to the outgoing interface.
    pub const OUTPUT: u32 = 1 << 4;
    /// Whether there is a route at all.
    pub const PRESENT: u32 = 1 << 5;
}

netlink_pipeline::numbered! {
    /// What [`Nat`](super::Nat) translates: `enum nft_nat_types`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub enum NatKind: u32 {
        /// The source.
        Source = 0,
        /// The destination.
        Destination = 1,
    }
}

/// How addresses and ports are chosen: `NF_NAT_RANGE_*` of `linux/netfilter/nf_nat.h`.
pub mod nat_flag {
    /// An address is given. The kernel adds it by itself.
    pub const ADDRESS: u32 = 1;
    /// A port is given. Newer kernels add it by themselves.
    pub const PORT: u32 = 1 << 1;
    /// Ports are taken at random, by a hash (`random`).
    pub const RANDOM: u32 = 1 << 2;
    /// The same address for the same client (`persistent`).
    pub const PERSISTENT: u32 = 1 << 3;
    /// Ports are taken at random (`fully-random`).
    pub const FULLY_RANDOM: u32 = 1 << 4;
}

netlink_pipeline::numbered! {
    /// What [`Reject`](super::Reject) answers with: `enum nft_reject_types`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub enum RejectKind: u32 {
        /// ICMP or ICMPv6 "destination unreachable", with the code of that protocol.
        Icmp = 0,
        /// A TCP reset.
        TcpReset = 1,
        /// In tables of both families: with a code of `enum nft_reject_inet_code`.
        Icmpx = 2,
    }
}

netlink_pipeline::numbered! {
    /// What [`Limit`](super::Limit) counts: `enum nft_limit_type`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub enum LimitKind: u32 {
        /// Packets.
        Packets = 0,
        /// Bytes.
        Bytes = 1,
    }
}

numbers_on_the_wire!(
    MetaKey,
    CtKey,
    PayloadBase,
    Comparison,
    RangeComparison,
    BitwiseOperation,
    ByteOrderOperation,
    DynsetOperation,
    FibResult,
    NatKind,
    RejectKind,
    LimitKind,
);
