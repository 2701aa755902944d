// SPDX-License-Identifier: Apache-2.0
//! Destinations (real servers): `struct ip_vs_dest_user_kern` and its attributes.

use std::fmt;
use std::net::IpAddr;

use netlink_pipeline::attribute::{self, Attribute, DecodeError, Unknown, Writer};

use super::constants::{
    IP_VS_CONN_F_BYPASS, IP_VS_CONN_F_DROUTE, IP_VS_CONN_F_FWD_MASK, IP_VS_CONN_F_LOCALNODE,
    IP_VS_CONN_F_MASQ, IP_VS_CONN_F_TUNNEL, IP_VS_CONN_F_TUNNEL_TYPE_GRE,
    IP_VS_CONN_F_TUNNEL_TYPE_GUE, IP_VS_CONN_F_TUNNEL_TYPE_IPIP, IP_VS_TUNNEL_ENCAP_FLAG_CSUM,
    IP_VS_TUNNEL_ENCAP_FLAG_REMCSUM, IPVS_DEST_ATTR_ACTIVE_CONNS, IPVS_DEST_ATTR_ADDR,
    IPVS_DEST_ATTR_ADDR_FAMILY, IPVS_DEST_ATTR_FWD_METHOD, IPVS_DEST_ATTR_INACT_CONNS,
    IPVS_DEST_ATTR_L_THRESH, IPVS_DEST_ATTR_PERSIST_CONNS, IPVS_DEST_ATTR_PORT,
    IPVS_DEST_ATTR_STATS, IPVS_DEST_ATTR_STATS64, IPVS_DEST_ATTR_TUN_FLAGS,
    IPVS_DEST_ATTR_TUN_PORT, IPVS_DEST_ATTR_TUN_TYPE, IPVS_DEST_ATTR_U_THRESH,
    IPVS_DEST_ATTR_WEIGHT,
};
use super::field::{AddressFamily, address_bytes, missing};
use super::stats::{Stats, StatsAttribute, write_stats};

/// What the kernel looks a destination up by, within its service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DestinationKey {
    /// Of either family, if it is tunnelled; else of the service's.
    pub address: IpAddr,
    /// Not looked at with direct routing and tunnels; zero where that of the packet counts.
    pub port: u16,
}

impl DestinationKey {
    /// The attributes that identify the destination. The family comes first, as `ipvsadm` has it;
    /// kernels before 3.18 do not know it and take the service's.
    pub fn to_attributes(self) -> Vec<DestinationAttribute> {
        vec![
            DestinationAttribute::Family(AddressFamily::of(self.address)),
            DestinationAttribute::Address(address_bytes(self.address)),
            DestinationAttribute::Port(self.port),
        ]
    }

    /// Reads the key among the attributes of a destination. `family` is that of the service, for
    /// kernels that do not report the destination's.
    pub fn from_attributes(
        attributes: &[DestinationAttribute],
        family: AddressFamily,
    ) -> Result<Self, DecodeError> {
        let mut family = family;
        let mut address = None;
        let mut port = None;
        for attribute in attributes {
            match attribute {
                DestinationAttribute::Family(value) => family = *value,
                DestinationAttribute::Address(value) => address = Some(*value),
                DestinationAttribute::Port(value) => port = Some(*value),
                _ => {}
            }
        }
        Ok(Self {
            address: family.address(address.ok_or_else(|| missing("IPVS_DEST_ATTR_ADDR"))?),
            port: port.ok_or_else(|| missing("IPVS_DEST_ATTR_PORT"))?,
        })
    }
}

impl fmt::Display for DestinationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            IpAddr::V4(address) => write!(f, "{address}:{}", self.port),
            IpAddr::V6(address) => write!(f, "[{address}]:{}", self.port),
        }
    }
}

/// How packets get to a destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Forwarding {
    /// Network address translation, `ipvsadm -m`.
    #[default]
    Masquerade,
    /// To this host itself.
    Local,
    /// Encapsulated, `ipvsadm -i`.
    Tunnel(Tunnel),
    /// With the destination's link-layer address, `ipvsadm -g`.
    DirectRoute,
    /// To the packet's own destination; only connections have it.
    Bypass,
    /// A method that only newer kernels know.
    Other(u32),
}

impl Forwarding {
    /// `IPVS_DEST_ATTR_FWD_METHOD`.
    const fn number(self) -> u32 {
        match self {
            Self::Masquerade => IP_VS_CONN_F_MASQ,
            Self::Local => IP_VS_CONN_F_LOCALNODE,
            Self::Tunnel(_) => IP_VS_CONN_F_TUNNEL,
            Self::DirectRoute => IP_VS_CONN_F_DROUTE,
            Self::Bypass => IP_VS_CONN_F_BYPASS,
            Self::Other(number) => number,
        }
    }

    const fn from_number(number: u32, tunnel: Tunnel) -> Self {
        match number & IP_VS_CONN_F_FWD_MASK {
            IP_VS_CONN_F_MASQ => Self::Masquerade,
            IP_VS_CONN_F_LOCALNODE => Self::Local,
            IP_VS_CONN_F_TUNNEL => Self::Tunnel(tunnel),
            IP_VS_CONN_F_DROUTE => Self::DirectRoute,
            IP_VS_CONN_F_BYPASS => Self::Bypass,
            number => Self::Other(number),
        }
    }
}

/// As `ipvsadm -Ln` names it.
impl fmt::Display for Forwarding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Masquerade => f.write_str("Masq"),
            Self::Local => f.write_str("Local"),
            Self::Tunnel(_) => f.write_str("Tunnel"),
            Self::DirectRoute => f.write_str("Route"),
            Self::Bypass => f.write_str("Bypass"),
            Self::Other(number) => write!(f, "method {number}"),
        }
    }
}

/// The encapsulation of a tunnelled destination (Linux 5.3; earlier ones have IP in IP only).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tunnel {
    /// The protocol.
    pub kind: TunnelKind,
    /// The UDP port of GUE, else zero.
    pub port: u16,
    /// [`Tunnel::CHECKSUM`] and [`Tunnel::REMOTE_CHECKSUM`], for GUE and GRE.
    pub flags: u16,
}

impl Tunnel {
    /// The outer header has a checksum (`IP_VS_TUNNEL_ENCAP_FLAG_CSUM`).
    pub const CHECKSUM: u16 = IP_VS_TUNNEL_ENCAP_FLAG_CSUM;
    /// Remote checksum offload, GUE only (`IP_VS_TUNNEL_ENCAP_FLAG_REMCSUM`).
    pub const REMOTE_CHECKSUM: u16 = IP_VS_TUNNEL_ENCAP_FLAG_REMCSUM;
}

/// A tunnel type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum TunnelKind {
    /// IP in IP (RFC 2003).
    #[default]
    IpIp,
    /// Generic UDP encapsulation.
    Gue,
    /// Generic routing encapsulation (RFC 2784).
    Gre,
    /// A type that only newer kernels know.
    Other(u8),
}

impl TunnelKind {
    const fn number(self) -> u8 {
        match self {
            Self::IpIp => IP_VS_CONN_F_TUNNEL_TYPE_IPIP,
            Self::Gue => IP_VS_CONN_F_TUNNEL_TYPE_GUE,
            Self::Gre => IP_VS_CONN_F_TUNNEL_TYPE_GRE,
            Self::Other(number) => number,
        }
    }

    const fn from_number(number: u8) -> Self {
        match number {
            IP_VS_CONN_F_TUNNEL_TYPE_IPIP => Self::IpIp,
            IP_VS_CONN_F_TUNNEL_TYPE_GUE => Self::Gue,
            IP_VS_CONN_F_TUNNEL_TYPE_GRE => Self::Gre,
            number => Self::Other(number),
        }
    }
}

/// The configuration of a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Destination {
    /// Which destination of the service.
    pub key: DestinationKey,
    /// How packets get there.
    pub forwarding: Forwarding,
    /// Zero takes no new connections. The kernel refuses more than `i32::MAX`.
    pub weight: u32,
    /// Connections at which new ones are held off; zero is no limit.
    pub upper_threshold: u32,
    /// Connections below which new ones are let in again; zero is three quarters of the upper one.
    pub lower_threshold: u32,
}

impl Destination {
    /// A masqueraded destination without thresholds.
    pub const fn new(key: DestinationKey, weight: u32) -> Self {
        Self {
            key,
            forwarding: Forwarding::Masquerade,
            weight,
            upper_threshold: 0,
            lower_threshold: 0,
        }
    }

    /// The attributes that add or change the destination, in the order of `ipvsadm`.
    pub fn to_attributes(&self) -> Vec<DestinationAttribute> {
        let tunnel = match self.forwarding {
            Forwarding::Tunnel(tunnel) => tunnel,
            _ => Tunnel::default(),
        };
        let mut attributes = self.key.to_attributes();
        attributes.extend([
            DestinationAttribute::ForwardingMethod(self.forwarding.number()),
            DestinationAttribute::Weight(self.weight),
            DestinationAttribute::TunnelType(tunnel.kind.number()),
            DestinationAttribute::TunnelPort(tunnel.port),
            DestinationAttribute::TunnelFlags(tunnel.flags),
            DestinationAttribute::UpperThreshold(self.upper_threshold),
            DestinationAttribute::LowerThreshold(self.lower_threshold),
        ]);
        attributes
    }

    /// Reads the attributes of a destination of a service of `family`.
    pub fn from_attributes(
        attributes: &[DestinationAttribute],
        family: AddressFamily,
    ) -> Result<Self, DecodeError> {
        let key = DestinationKey::from_attributes(attributes, family)?;
        let mut method = None;
        let mut tunnel = Tunnel::default();
        let mut destination = Self::new(key, 0);
        for attribute in attributes {
            match attribute {
                DestinationAttribute::ForwardingMethod(value) => method = Some(*value),
                DestinationAttribute::Weight(value) => destination.weight = *value,
                DestinationAttribute::UpperThreshold(value) => destination.upper_threshold = *value,
                DestinationAttribute::LowerThreshold(value) => destination.lower_threshold = *value,
                DestinationAttribute::TunnelType(value) => {
                    tunnel.kind = TunnelKind::from_number(*value);
                }
                DestinationAttribute::TunnelPort(value) => tunnel.port = *value,
                DestinationAttribute::TunnelFlags(value) => tunnel.flags = *value,
                _ => {}
            }
        }
        let method = method.ok_or_else(|| missing("IPVS_DEST_ATTR_FWD_METHOD"))?;
        destination.forwarding = Forwarding::from_number(method, tunnel);
        Ok(destination)
    }
}

/// One line: `10.1.0.1:8080 Masq weight 1`.
impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} weight {}", self.key, self.forwarding, self.weight)?;
        if (self.upper_threshold, self.lower_threshold) != (0, 0) {
            write!(
                f,
                " thresholds {}..{}",
                self.lower_threshold, self.upper_threshold
            )?;
        }
        Ok(())
    }
}

/// A destination as the kernel reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DestinationStatus {
    /// Its configuration.
    pub destination: Destination,
    /// Connections in a state that counts as active (TCP: established).
    pub active_connections: u32,
    /// All other connections that are still tracked.
    pub inactive_connections: u32,
    /// Templates of persistent clients.
    pub persistent_connections: u32,
    /// Counters and rates.
    pub stats: Stats,
}

impl DestinationStatus {
    /// Reads the attributes of a destination of a service of `family`.
    pub fn from_attributes(
        attributes: &[DestinationAttribute],
        family: AddressFamily,
    ) -> Result<Self, DecodeError> {
        let mut status = Self {
            destination: Destination::from_attributes(attributes, family)?,
            active_connections: 0,
            inactive_connections: 0,
            persistent_connections: 0,
            stats: Stats::default(),
        };
        let mut narrow = None;
        let mut wide = None;
        for attribute in attributes {
            match attribute {
                DestinationAttribute::ActiveConnections(value) => {
                    status.active_connections = *value;
                }
                DestinationAttribute::InactiveConnections(value) => {
                    status.inactive_connections = *value;
                }
                DestinationAttribute::PersistentConnections(value) => {
                    status.persistent_connections = *value;
                }
                DestinationAttribute::Stats(values) => narrow = Some(values),
                DestinationAttribute::Stats64(values) => wide = Some(values),
                _ => {}
            }
        }
        if let Some(values) = wide.or(narrow) {
            status.stats = Stats::from_attributes(values);
        }
        Ok(status)
    }
}

/// An attribute inside `IPVS_CMD_ATTR_DEST`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DestinationAttribute {
    /// `IPVS_DEST_ATTR_ADDR`, `union nf_inet_addr`: the family says how many of the bytes count.
    Address([u8; 16]),
    /// `IPVS_DEST_ATTR_PORT`
    Port(u16),
    /// `IPVS_DEST_ATTR_FWD_METHOD`: `IP_VS_CONN_F_*` under `IP_VS_CONN_F_FWD_MASK`.
    ForwardingMethod(u32),
    /// `IPVS_DEST_ATTR_WEIGHT`
    Weight(u32),
    /// `IPVS_DEST_ATTR_U_THRESH`: connections.
    UpperThreshold(u32),
    /// `IPVS_DEST_ATTR_L_THRESH`: connections.
    LowerThreshold(u32),
    /// `IPVS_DEST_ATTR_ACTIVE_CONNS`
    ActiveConnections(u32),
    /// `IPVS_DEST_ATTR_INACT_CONNS`
    InactiveConnections(u32),
    /// `IPVS_DEST_ATTR_PERSIST_CONNS`
    PersistentConnections(u32),
    /// `IPVS_DEST_ATTR_STATS`: 32-bit, but for bytes.
    Stats(Vec<StatsAttribute>),
    /// `IPVS_DEST_ATTR_ADDR_FAMILY` (Linux 3.18).
    Family(AddressFamily),
    /// `IPVS_DEST_ATTR_STATS64` (Linux 4.1).
    Stats64(Vec<StatsAttribute>),
    /// `IPVS_DEST_ATTR_TUN_TYPE` (Linux 5.3), see [`TunnelKind`].
    TunnelType(u8),
    /// `IPVS_DEST_ATTR_TUN_PORT`
    TunnelPort(u16),
    /// `IPVS_DEST_ATTR_TUN_FLAGS`
    TunnelFlags(u16),
    /// An attribute that this crate does not know.
    Other(Unknown),
}

impl DestinationAttribute {
    pub(super) fn write(&self, writer: &mut Writer) {
        match self {
            Self::Address(bytes) => writer.bytes(IPVS_DEST_ATTR_ADDR, bytes),
            Self::Port(port) => writer.u16_be(IPVS_DEST_ATTR_PORT, *port),
            Self::ForwardingMethod(value) => writer.u32(IPVS_DEST_ATTR_FWD_METHOD, *value),
            Self::Weight(value) => writer.u32(IPVS_DEST_ATTR_WEIGHT, *value),
            Self::UpperThreshold(value) => writer.u32(IPVS_DEST_ATTR_U_THRESH, *value),
            Self::LowerThreshold(value) => writer.u32(IPVS_DEST_ATTR_L_THRESH, *value),
            Self::ActiveConnections(value) => writer.u32(IPVS_DEST_ATTR_ACTIVE_CONNS, *value),
            Self::InactiveConnections(value) => writer.u32(IPVS_DEST_ATTR_INACT_CONNS, *value),
            Self::PersistentConnections(value) => writer.u32(IPVS_DEST_ATTR_PERSIST_CONNS, *value),
            Self::Stats(stats) => write_stats(writer, IPVS_DEST_ATTR_STATS, stats),
            Self::Family(family) => writer.u16(IPVS_DEST_ATTR_ADDR_FAMILY, family.number()),
            Self::Stats64(stats) => write_stats(writer, IPVS_DEST_ATTR_STATS64, stats),
            Self::TunnelType(value) => writer.u8(IPVS_DEST_ATTR_TUN_TYPE, *value),
            Self::TunnelPort(port) => writer.u16_be(IPVS_DEST_ATTR_TUN_PORT, *port),
            Self::TunnelFlags(value) => writer.u16(IPVS_DEST_ATTR_TUN_FLAGS, *value),
            Self::Other(unknown) => unknown.write(writer),
        };
    }

    fn read(raw: &Attribute<'_>) -> Result<Self, DecodeError> {
        Ok(match raw.kind() {
            IPVS_DEST_ATTR_ADDR => Self::Address(raw.array("IPVS_DEST_ATTR_ADDR")?),
            IPVS_DEST_ATTR_PORT => Self::Port(raw.u16_be("IPVS_DEST_ATTR_PORT")?),
            IPVS_DEST_ATTR_FWD_METHOD => {
                Self::ForwardingMethod(raw.u32("IPVS_DEST_ATTR_FWD_METHOD")?)
            }
            IPVS_DEST_ATTR_WEIGHT => Self::Weight(raw.u32("IPVS_DEST_ATTR_WEIGHT")?),
            IPVS_DEST_ATTR_U_THRESH => Self::UpperThreshold(raw.u32("IPVS_DEST_ATTR_U_THRESH")?),
            IPVS_DEST_ATTR_L_THRESH => Self::LowerThreshold(raw.u32("IPVS_DEST_ATTR_L_THRESH")?),
            IPVS_DEST_ATTR_ACTIVE_CONNS => {
                Self::ActiveConnections(raw.u32("IPVS_DEST_ATTR_ACTIVE_CONNS")?)
            }
            IPVS_DEST_ATTR_INACT_CONNS => {
                Self::InactiveConnections(raw.u32("IPVS_DEST_ATTR_INACT_CONNS")?)
            }
            IPVS_DEST_ATTR_PERSIST_CONNS => {
                Self::PersistentConnections(raw.u32("IPVS_DEST_ATTR_PERSIST_CONNS")?)
            }
            IPVS_DEST_ATTR_STATS => Self::Stats(StatsAttribute::read_list(raw)?),
            IPVS_DEST_ATTR_ADDR_FAMILY => {
                Self::Family(AddressFamily::read(raw, "IPVS_DEST_ATTR_ADDR_FAMILY")?)
            }
            IPVS_DEST_ATTR_STATS64 => Self::Stats64(StatsAttribute::read_list(raw)?),
            IPVS_DEST_ATTR_TUN_TYPE => Self::TunnelType(raw.u8("IPVS_DEST_ATTR_TUN_TYPE")?),
            IPVS_DEST_ATTR_TUN_PORT => Self::TunnelPort(raw.u16_be("IPVS_DEST_ATTR_TUN_PORT")?),
            IPVS_DEST_ATTR_TUN_FLAGS => Self::TunnelFlags(raw.u16("IPVS_DEST_ATTR_TUN_FLAGS")?),
            _ => Self::Other(raw.to_unknown()),
        })
    }

    /// Reads a nested list.
    pub(super) fn read_list(raw: &Attribute<'_>) -> Result<Vec<Self>, DecodeError> {
        attribute::list(raw.value())
            .map(|attribute| Self::read(&attribute?))
            .collect()
    }
}
