// SPDX-License-Identifier: Apache-2.0
//! Destinations (real servers): `struct ip_vs_dest_user_kern` and its attributes.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use netlink_pipeline::attribute::{BigEndian, DecodeError};
use netlink_pipeline::{attributes, find_attribute};

use super::constants::{
    IP_VS_CONN_F_BYPASS, IP_VS_CONN_F_DROUTE, IP_VS_CONN_F_FWD_MASK, IP_VS_CONN_F_LOCALNODE,
    IP_VS_CONN_F_MASQ, IP_VS_CONN_F_TUNNEL, IP_VS_TUNNEL_ENCAP_FLAG_CSUM,
    IP_VS_TUNNEL_ENCAP_FLAG_REMCSUM,
};
use super::field::{AddressFamily, address_bytes, missing};
use super::stats::{Stats, StatsAttribute};

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
        let family = find_attribute!(attributes, DestinationAttribute::Family).unwrap_or(&family);
        let address = find_attribute!(attributes, DestinationAttribute::Address)
            .ok_or_else(|| missing("IPVS_DEST_ATTR_ADDR"))?;
        let port = find_attribute!(attributes, DestinationAttribute::Port)
            .ok_or_else(|| missing("IPVS_DEST_ATTR_PORT"))?;
        Ok(Self {
            address: family.address(*address),
            port: *port,
        })
    }
}

impl fmt::Display for DestinationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.address, self.port).fmt(f)
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

netlink_pipeline::numbered! {
    /// A tunnel type.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub enum TunnelKind: u8 {
        /// IP in IP (RFC 2003).
        #[default]
        IpIp = 0,
        /// Generic UDP encapsulation.
        Gue = 1,
        /// Generic routing encapsulation (RFC 2784).
        Gre = 2,
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
        let count = |value: Option<&u32>| value.copied().unwrap_or(0);
        let counters = find_attribute!(attributes, DestinationAttribute::Stats64)
            .or_else(|| find_attribute!(attributes, DestinationAttribute::Stats));
        Ok(Self {
            destination: Destination::from_attributes(attributes, family)?,
            active_connections: count(find_attribute!(
                attributes,
                DestinationAttribute::ActiveConnections
            )),
            inactive_connections: count(find_attribute!(
                attributes,
                DestinationAttribute::InactiveConnections
            )),
            persistent_connections: count(find_attribute!(
                attributes,
                DestinationAttribute::PersistentConnections
            )),
            stats: counters
                .map(|counters| Stats::from_attributes(counters))
                .unwrap_or_default(),
        })
    }
}

attributes! {
    /// An attribute inside `IPVS_CMD_ATTR_DEST`.
    pub enum DestinationAttribute {
        /// `IPVS_DEST_ATTR_ADDR`, `union nf_inet_addr`: the family says how many of the bytes
        /// count.
        Address([u8; 16]) = 1 IPVS_DEST_ATTR_ADDR,
        /// `IPVS_DEST_ATTR_PORT`
        Port(u16) = 2 IPVS_DEST_ATTR_PORT as BigEndian,
        /// `IPVS_DEST_ATTR_FWD_METHOD`: `IP_VS_CONN_F_*` under `IP_VS_CONN_F_FWD_MASK`.
        ForwardingMethod(u32) = 3 IPVS_DEST_ATTR_FWD_METHOD,
        /// `IPVS_DEST_ATTR_WEIGHT`
        Weight(u32) = 4 IPVS_DEST_ATTR_WEIGHT,
        /// `IPVS_DEST_ATTR_U_THRESH`: connections.
        UpperThreshold(u32) = 5 IPVS_DEST_ATTR_U_THRESH,
        /// `IPVS_DEST_ATTR_L_THRESH`: connections.
        LowerThreshold(u32) = 6 IPVS_DEST_ATTR_L_THRESH,
        /// `IPVS_DEST_ATTR_ACTIVE_CONNS`
        ActiveConnections(u32) = 7 IPVS_DEST_ATTR_ACTIVE_CONNS,
        /// `IPVS_DEST_ATTR_INACT_CONNS`
        InactiveConnections(u32) = 8 IPVS_DEST_ATTR_INACT_CONNS,
        /// `IPVS_DEST_ATTR_PERSIST_CONNS`
        PersistentConnections(u32) = 9 IPVS_DEST_ATTR_PERSIST_CONNS,
        /// `IPVS_DEST_ATTR_STATS`: 32-bit, but for bytes.
        Stats(Vec<StatsAttribute>) = 10 IPVS_DEST_ATTR_STATS,
        /// `IPVS_DEST_ATTR_ADDR_FAMILY` (Linux 3.18).
        Family(AddressFamily) = 11 IPVS_DEST_ATTR_ADDR_FAMILY,
        /// `IPVS_DEST_ATTR_STATS64` (Linux 4.1).
        Stats64(Vec<StatsAttribute>) = 12 IPVS_DEST_ATTR_STATS64,
        /// `IPVS_DEST_ATTR_TUN_TYPE` (Linux 5.3), see [`TunnelKind`].
        TunnelType(u8) = 13 IPVS_DEST_ATTR_TUN_TYPE,
        /// `IPVS_DEST_ATTR_TUN_PORT`
        TunnelPort(u16) = 14 IPVS_DEST_ATTR_TUN_PORT as BigEndian,
        /// `IPVS_DEST_ATTR_TUN_FLAGS`
        TunnelFlags(u16) = 15 IPVS_DEST_ATTR_TUN_FLAGS,
    }
}
