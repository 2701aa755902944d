// SPDX-License-Identifier: Apache-2.0
//! Counters and rates: `struct ip_vs_stats_user` (32-bit attributes) and `struct ip_vs_kstats`
//! (64-bit).

use netlink_pipeline::attribute::{Attribute, DecodeError, ListAttribute, Unknown, Writer};

/// Declares [`Stats`] and [`StatsCounter`].
macro_rules! counters {
    ($($(#[$doc:meta])* $field:ident, $counter:ident = $number:literal $name:ident;)*) => {
        /// Counters since creation (or the last zeroing) and current rates per second.
        ///
        /// The kernel adds up its processors' counters every two seconds, so these lag behind that
        /// much.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Stats {
            $($(#[$doc])* pub $field: u64,)*
        }

        impl Stats {
            fn slot(&mut self, counter: StatsCounter) -> &mut u64 {
                match counter {
                    $(StatsCounter::$counter => &mut self.$field,)*
                }
            }
        }

        /// Which counter or rate an attribute holds.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum StatsCounter {
            $(#[doc = concat!("`", stringify!($name), "`")] $counter = $number,)*
        }

        impl StatsCounter {
            /// The attribute's name, for errors.
            const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$counter => stringify!($name),)*
                }
            }

            const fn from_kind(kind: u16) -> Option<Self> {
                match kind {
                    $($number => Some(Self::$counter),)*
                    _ => None,
                }
            }
        }
    };
}

counters! {
    /// New connections.
    connections, Connections = 1 IPVS_STATS_ATTR_CONNS;
    /// Packets from clients.
    incoming_packets, IncomingPackets = 2 IPVS_STATS_ATTR_INPKTS;
    /// Packets to clients. Only masqueraded ones come by IPVS.
    outgoing_packets, OutgoingPackets = 3 IPVS_STATS_ATTR_OUTPKTS;
    /// Bytes from clients, with IP headers.
    incoming_bytes, IncomingBytes = 4 IPVS_STATS_ATTR_INBYTES;
    /// Bytes to clients, with IP headers. Only masqueraded ones come by IPVS.
    outgoing_bytes, OutgoingBytes = 5 IPVS_STATS_ATTR_OUTBYTES;
    /// New connections a second.
    connections_per_second, ConnectionsPerSecond = 6 IPVS_STATS_ATTR_CPS;
    /// Packets from clients a second.
    incoming_packets_per_second, IncomingPacketsPerSecond = 7 IPVS_STATS_ATTR_INPPS;
    /// Packets to clients a second.
    outgoing_packets_per_second, OutgoingPacketsPerSecond = 8 IPVS_STATS_ATTR_OUTPPS;
    /// Bytes from clients a second.
    incoming_bytes_per_second, IncomingBytesPerSecond = 9 IPVS_STATS_ATTR_INBPS;
    /// Bytes to clients a second.
    outgoing_bytes_per_second, OutgoingBytesPerSecond = 10 IPVS_STATS_ATTR_OUTBPS;
}

impl Stats {
    /// The values in a list of attributes; what is not there is zero.
    pub fn from_attributes(attributes: &[StatsAttribute]) -> Self {
        let mut stats = Self::default();
        for attribute in attributes {
            if let StatsAttribute::Counter(counter, number) = attribute {
                *stats.slot(*counter) = number.get();
            }
        }
        stats
    }
}

/// `IPVS_STATS_ATTR_PAD`
const PAD: u16 = 11;

/// A value in the width that it has on the wire. In `…_ATTR_STATS` only bytes are 64 bits wide, in
/// `…_ATTR_STATS64` everything is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatsNumber {
    /// Four bytes; wraps around.
    U32(u32),
    /// Eight bytes.
    U64(u64),
}

impl StatsNumber {
    /// The value.
    pub const fn get(self) -> u64 {
        match self {
            // `u64::from` is not const.
            Self::U32(value) => value as u64,
            Self::U64(value) => value,
        }
    }
}

/// An attribute inside `IPVS_{SVC,DEST}_ATTR_STATS` and `…_STATS64`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StatsAttribute {
    /// A counter or rate.
    Counter(StatsCounter, StatsNumber),
    /// `IPVS_STATS_ATTR_PAD`: no value; aligns a 64-bit attribute.
    Pad,
    /// An attribute that this crate does not know.
    Other(Unknown),
}

impl ListAttribute for StatsAttribute {
    fn write(&self, writer: &mut Writer) {
        match self {
            Self::Counter(counter, StatsNumber::U32(value)) => writer.u32(*counter as u16, *value),
            Self::Counter(counter, StatsNumber::U64(value)) => writer.u64(*counter as u16, *value),
            Self::Pad => writer.flag(PAD),
            Self::Other(unknown) => unknown.write(writer),
        };
    }

    fn read(raw: &Attribute<'_>) -> Result<Self, DecodeError> {
        if let Some(counter) = StatsCounter::from_kind(raw.kind()) {
            let number = if raw.value().len() == 4 {
                raw.u32(counter.as_str()).map(StatsNumber::U32)
            } else {
                raw.u64(counter.as_str()).map(StatsNumber::U64)
            };
            return number.map(|number| Self::Counter(counter, number));
        }
        if raw.kind() == PAD && raw.value().is_empty() {
            return Ok(Self::Pad);
        }
        Ok(Self::Other(raw.to_unknown()))
    }
}
