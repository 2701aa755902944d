// SPDX-License-Identifier: Apache-2.0
//! Counters and rates: `struct ip_vs_stats_user` (32-bit attributes) and `struct ip_vs_kstats`
//! (64-bit).

use netlink_pipeline::attribute::{self, Attribute, DecodeError, Unknown, Writer};

use super::constants::{
    IPVS_STATS_ATTR_CONNS, IPVS_STATS_ATTR_CPS, IPVS_STATS_ATTR_INBPS, IPVS_STATS_ATTR_INBYTES,
    IPVS_STATS_ATTR_INPKTS, IPVS_STATS_ATTR_INPPS, IPVS_STATS_ATTR_OUTBPS,
    IPVS_STATS_ATTR_OUTBYTES, IPVS_STATS_ATTR_OUTPKTS, IPVS_STATS_ATTR_OUTPPS, IPVS_STATS_ATTR_PAD,
};

/// Counters since creation (or the last zeroing) and current rates per second.
///
/// The kernel adds up its processors' counters every two seconds, so these lag behind that much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// New connections.
    pub connections: u64,
    /// Packets from clients.
    pub incoming_packets: u64,
    /// Packets to clients. Only masqueraded ones come by IPVS.
    pub outgoing_packets: u64,
    /// Bytes from clients, with IP headers.
    pub incoming_bytes: u64,
    /// Bytes to clients, with IP headers. Only masqueraded ones come by IPVS.
    pub outgoing_bytes: u64,
    /// New connections a second.
    pub connections_per_second: u64,
    /// Packets from clients a second.
    pub incoming_packets_per_second: u64,
    /// Packets to clients a second.
    pub outgoing_packets_per_second: u64,
    /// Bytes from clients a second.
    pub incoming_bytes_per_second: u64,
    /// Bytes to clients a second.
    pub outgoing_bytes_per_second: u64,
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

    fn slot(&mut self, counter: StatsCounter) -> &mut u64 {
        match counter {
            StatsCounter::Connections => &mut self.connections,
            StatsCounter::IncomingPackets => &mut self.incoming_packets,
            StatsCounter::OutgoingPackets => &mut self.outgoing_packets,
            StatsCounter::IncomingBytes => &mut self.incoming_bytes,
            StatsCounter::OutgoingBytes => &mut self.outgoing_bytes,
            StatsCounter::ConnectionsPerSecond => &mut self.connections_per_second,
            StatsCounter::IncomingPacketsPerSecond => &mut self.incoming_packets_per_second,
            StatsCounter::OutgoingPacketsPerSecond => &mut self.outgoing_packets_per_second,
            StatsCounter::IncomingBytesPerSecond => &mut self.incoming_bytes_per_second,
            StatsCounter::OutgoingBytesPerSecond => &mut self.outgoing_bytes_per_second,
        }
    }
}

/// Which counter or rate an attribute holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StatsCounter {
    /// `IPVS_STATS_ATTR_CONNS`
    Connections,
    /// `IPVS_STATS_ATTR_INPKTS`
    IncomingPackets,
    /// `IPVS_STATS_ATTR_OUTPKTS`
    OutgoingPackets,
    /// `IPVS_STATS_ATTR_INBYTES`
    IncomingBytes,
    /// `IPVS_STATS_ATTR_OUTBYTES`
    OutgoingBytes,
    /// `IPVS_STATS_ATTR_CPS`
    ConnectionsPerSecond,
    /// `IPVS_STATS_ATTR_INPPS`
    IncomingPacketsPerSecond,
    /// `IPVS_STATS_ATTR_OUTPPS`
    OutgoingPacketsPerSecond,
    /// `IPVS_STATS_ATTR_INBPS`
    IncomingBytesPerSecond,
    /// `IPVS_STATS_ATTR_OUTBPS`
    OutgoingBytesPerSecond,
}

impl StatsCounter {
    const fn kind(self) -> u16 {
        match self {
            Self::Connections => IPVS_STATS_ATTR_CONNS,
            Self::IncomingPackets => IPVS_STATS_ATTR_INPKTS,
            Self::OutgoingPackets => IPVS_STATS_ATTR_OUTPKTS,
            Self::IncomingBytes => IPVS_STATS_ATTR_INBYTES,
            Self::OutgoingBytes => IPVS_STATS_ATTR_OUTBYTES,
            Self::ConnectionsPerSecond => IPVS_STATS_ATTR_CPS,
            Self::IncomingPacketsPerSecond => IPVS_STATS_ATTR_INPPS,
            Self::OutgoingPacketsPerSecond => IPVS_STATS_ATTR_OUTPPS,
            Self::IncomingBytesPerSecond => IPVS_STATS_ATTR_INBPS,
            Self::OutgoingBytesPerSecond => IPVS_STATS_ATTR_OUTBPS,
        }
    }

    /// The attribute's name, for errors.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "IPVS_STATS_ATTR_CONNS",
            Self::IncomingPackets => "IPVS_STATS_ATTR_INPKTS",
            Self::OutgoingPackets => "IPVS_STATS_ATTR_OUTPKTS",
            Self::IncomingBytes => "IPVS_STATS_ATTR_INBYTES",
            Self::OutgoingBytes => "IPVS_STATS_ATTR_OUTBYTES",
            Self::ConnectionsPerSecond => "IPVS_STATS_ATTR_CPS",
            Self::IncomingPacketsPerSecond => "IPVS_STATS_ATTR_INPPS",
            Self::OutgoingPacketsPerSecond => "IPVS_STATS_ATTR_OUTPPS",
            Self::IncomingBytesPerSecond => "IPVS_STATS_ATTR_INBPS",
            Self::OutgoingBytesPerSecond => "IPVS_STATS_ATTR_OUTBPS",
        }
    }

    const fn from_kind(kind: u16) -> Option<Self> {
        Some(match kind {
            IPVS_STATS_ATTR_CONNS => Self::Connections,
            IPVS_STATS_ATTR_INPKTS => Self::IncomingPackets,
            IPVS_STATS_ATTR_OUTPKTS => Self::OutgoingPackets,
            IPVS_STATS_ATTR_INBYTES => Self::IncomingBytes,
            IPVS_STATS_ATTR_OUTBYTES => Self::OutgoingBytes,
            IPVS_STATS_ATTR_CPS => Self::ConnectionsPerSecond,
            IPVS_STATS_ATTR_INPPS => Self::IncomingPacketsPerSecond,
            IPVS_STATS_ATTR_OUTPPS => Self::OutgoingPacketsPerSecond,
            IPVS_STATS_ATTR_INBPS => Self::IncomingBytesPerSecond,
            IPVS_STATS_ATTR_OUTBPS => Self::OutgoingBytesPerSecond,
            _ => return None,
        })
    }
}

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

impl StatsAttribute {
    pub(super) fn write(&self, writer: &mut Writer) {
        match self {
            Self::Counter(counter, StatsNumber::U32(value)) => writer.u32(counter.kind(), *value),
            Self::Counter(counter, StatsNumber::U64(value)) => writer.u64(counter.kind(), *value),
            Self::Pad => writer.flag(IPVS_STATS_ATTR_PAD),
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
        if raw.kind() == IPVS_STATS_ATTR_PAD && raw.value().is_empty() {
            return Ok(Self::Pad);
        }
        Ok(Self::Other(raw.to_unknown()))
    }

    /// Reads a nested list.
    pub(super) fn read_list(raw: &Attribute<'_>) -> Result<Vec<Self>, DecodeError> {
        attribute::list(raw.value())
            .map(|attribute| Self::read(&attribute?))
            .collect()
    }
}

/// Writes a nested list.
pub(super) fn write_stats<'w>(
    writer: &'w mut Writer,
    kind: u16,
    stats: &[StatsAttribute],
) -> &'w mut Writer {
    writer.nested(kind, |inner| {
        for attribute in stats {
            attribute.write(inner);
        }
    })
}
