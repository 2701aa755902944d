// SPDX-License-Identifier: Apache-2.0
//! Virtual services: `struct ip_vs_service_user_kern` and its attributes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, ErrorContext, NLA_F_NESTED, Nla, NlaBuffer, NlasIterator,
    Parseable, parse_u16, parse_u32,
};

use super::constants::{
    IP_VS_SVC_F_PERSISTENT, IPVS_SVC_ATTR_ADDR, IPVS_SVC_ATTR_AF, IPVS_SVC_ATTR_FLAGS,
    IPVS_SVC_ATTR_FWMARK, IPVS_SVC_ATTR_NETMASK, IPVS_SVC_ATTR_PE_NAME, IPVS_SVC_ATTR_PORT,
    IPVS_SVC_ATTR_PROTOCOL, IPVS_SVC_ATTR_SCHED_NAME, IPVS_SVC_ATTR_STATS, IPVS_SVC_ATTR_STATS64,
    IPVS_SVC_ATTR_TIMEOUT,
};
use super::field::{AddressFamily, address_bytes, missing, parse_address, parse_port, put};
use super::flags::ServiceFlags;
use super::name::KernelName;
use super::stats::{Stats, StatsAttribute, parse_stats};

/// A transport protocol that IPVS can balance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
    /// Any other IANA number; today's kernels refuse it.
    Other(u16),
}

impl Protocol {
    /// The IANA number, 16 bits on the wire.
    pub const fn number(self) -> u16 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
            Self::Other(number) => number,
        }
    }

    /// The protocol with an IANA number.
    pub const fn from_number(number: u16) -> Self {
        match number {
            6 => Self::Tcp,
            17 => Self::Udp,
            132 => Self::Sctp,
            number => Self::Other(number),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp => f.write_str("TCP"),
            Self::Udp => f.write_str("UDP"),
            Self::Sctp => f.write_str("SCTP"),
            Self::Other(number) => write!(f, "protocol {number}"),
        }
    }
}

/// What the kernel looks a service up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServiceKey {
    /// Packets to an address and port.
    Address {
        protocol: Protocol,
        address: IpAddr,
        port: u16,
    },
    /// Packets of a family that carry a firewall mark, which is not zero.
    Mark { family: AddressFamily, mark: u32 },
}

impl ServiceKey {
    /// The key of an address.
    pub const fn new(protocol: Protocol, address: IpAddr, port: u16) -> Self {
        Self::Address {
            protocol,
            address,
            port,
        }
    }

    /// The family of the packets.
    pub const fn family(&self) -> AddressFamily {
        match self {
            Self::Address { address, .. } => AddressFamily::of(*address),
            Self::Mark { family, .. } => *family,
        }
    }

    /// The attributes that identify the service: all that the kernel reads of it when it deletes or
    /// finds one, or changes its destinations.
    pub fn to_attributes(self) -> Vec<ServiceAttribute> {
        let family = ServiceAttribute::Family(self.family());
        match self {
            Self::Address {
                protocol,
                address,
                port,
            } => vec![
                family,
                ServiceAttribute::Protocol(protocol),
                ServiceAttribute::Address(address_bytes(address)),
                ServiceAttribute::Port(port),
            ],
            Self::Mark { mark, .. } => vec![family, ServiceAttribute::Mark(mark)],
        }
    }

    /// Reads the key among the attributes of a service.
    pub fn from_attributes(attributes: &[ServiceAttribute]) -> Result<Self, DecodeError> {
        let mut family = None;
        let mut protocol = None;
        let mut address = None;
        let mut port = None;
        let mut mark = None;
        for attribute in attributes {
            match attribute {
                ServiceAttribute::Family(value) => family = Some(*value),
                ServiceAttribute::Protocol(value) => protocol = Some(*value),
                ServiceAttribute::Address(value) => address = Some(*value),
                ServiceAttribute::Port(value) => port = Some(*value),
                ServiceAttribute::Mark(value) => mark = Some(*value),
                _ => {}
            }
        }
        let family = family.ok_or_else(|| missing("IPVS_SVC_ATTR_AF"))?;
        if let Some(mark) = mark.filter(|mark| *mark != 0) {
            return Ok(Self::Mark { family, mark });
        }
        Ok(Self::Address {
            protocol: protocol.ok_or_else(|| missing("IPVS_SVC_ATTR_PROTOCOL"))?,
            address: family.address(address.ok_or_else(|| missing("IPVS_SVC_ATTR_ADDR"))?),
            port: port.ok_or_else(|| missing("IPVS_SVC_ATTR_PORT"))?,
        })
    }
}

/// As `ipvsadm -Ln` prints it: `TCP 10.0.0.1:80`, `FWM 7`.
impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address {
                protocol,
                address: IpAddr::V4(address),
                port,
            } => {
                write!(f, "{protocol} {address}:{port}")
            }
            Self::Address {
                protocol,
                address: IpAddr::V6(address),
                port,
            } => {
                write!(f, "{protocol} [{address}]:{port}")
            }
            Self::Mark {
                family: AddressFamily::Inet,
                mark,
            } => write!(f, "FWM {mark}"),
            Self::Mark {
                family: AddressFamily::Inet6,
                mark,
            } => write!(f, "FWM {mark} IPv6"),
        }
    }
}

/// Which clients persistence takes for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Netmask {
    /// The mask of an IPv4 service; need not be contiguous.
    Inet(Ipv4Addr),
    /// The prefix length of an IPv6 service, 1 to 128.
    Inet6(u32),
}

impl Netmask {
    /// Every address is a client of its own.
    pub const fn host(family: AddressFamily) -> Self {
        match family {
            AddressFamily::Inet => Self::Inet(Ipv4Addr::BROADCAST),
            AddressFamily::Inet6 => Self::Inet6(128),
        }
    }

    /// `IPVS_SVC_ATTR_NETMASK`: an IPv4 mask in network order or a prefix length in host order.
    const fn wire_bytes(self) -> [u8; 4] {
        match self {
            Self::Inet(mask) => mask.octets(),
            Self::Inet6(prefix_len) => prefix_len.to_ne_bytes(),
        }
    }

    fn from_wire(family: AddressFamily, bytes: [u8; 4]) -> Self {
        match family {
            AddressFamily::Inet => Self::Inet(bytes.into()),
            AddressFamily::Inet6 => Self::Inet6(u32::from_ne_bytes(bytes)),
        }
    }
}

/// Connections of a client go where its earlier ones went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Persistence {
    /// Seconds after the last connection of a client at which it is forgotten.
    pub timeout: u32,
    pub netmask: Netmask,
}

/// The configuration of a virtual service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Service {
    pub key: ServiceKey,
    pub scheduler: KernelName,
    pub flags: ServiceFlags,
    /// `None` when not persistent; the kernel does not use time-out and mask then.
    pub persistence: Option<Persistence>,
    pub persistence_engine: Option<KernelName>,
}

impl Service {
    /// A service without flags and persistence.
    pub const fn new(key: ServiceKey, scheduler: KernelName) -> Self {
        Self {
            key,
            scheduler,
            flags: ServiceFlags::from_bits(0),
            persistence: None,
            persistence_engine: None,
        }
    }

    /// The attributes that add or change the service, in the order of `ipvsadm`.
    pub fn to_attributes(&self) -> Vec<ServiceAttribute> {
        let family = self.key.family();
        let (persistent, persistence) = match self.persistence {
            Some(persistence) => (IP_VS_SVC_F_PERSISTENT, persistence),
            // What ipvsadm sends where it does not matter.
            None => (
                0,
                Persistence {
                    timeout: 0,
                    netmask: Netmask::host(family),
                },
            ),
        };
        let mut attributes = self.key.to_attributes();
        attributes.push(ServiceAttribute::Scheduler(self.scheduler));
        attributes.extend(
            self.persistence_engine
                .map(ServiceAttribute::PersistenceEngine),
        );
        attributes.push(ServiceAttribute::Flags {
            flags: self.flags.bits() | persistent,
            mask: u32::MAX,
        });
        attributes.push(ServiceAttribute::Timeout(persistence.timeout));
        attributes.push(ServiceAttribute::Netmask(persistence.netmask.wire_bytes()));
        attributes
    }

    /// Reads the attributes of a service.
    pub fn from_attributes(attributes: &[ServiceAttribute]) -> Result<Self, DecodeError> {
        let key = ServiceKey::from_attributes(attributes)?;
        let mut scheduler = None;
        let mut persistence_engine = None;
        let mut bits = 0;
        let mut timeout = 0;
        let mut netmask = Netmask::host(key.family());
        for attribute in attributes {
            match attribute {
                ServiceAttribute::Scheduler(value) => scheduler = Some(*value),
                ServiceAttribute::PersistenceEngine(value) => persistence_engine = Some(*value),
                ServiceAttribute::Flags { flags, mask } => bits = flags & mask,
                ServiceAttribute::Timeout(value) => timeout = *value,
                ServiceAttribute::Netmask(value) => {
                    netmask = Netmask::from_wire(key.family(), *value);
                }
                _ => {}
            }
        }
        let persistent = bits & IP_VS_SVC_F_PERSISTENT != 0;
        Ok(Self {
            key,
            scheduler: scheduler.ok_or_else(|| missing("IPVS_SVC_ATTR_SCHED_NAME"))?,
            flags: ServiceFlags::from_bits(bits),
            persistence: persistent.then_some(Persistence { timeout, netmask }),
            persistence_engine,
        })
    }
}

/// One line: `TCP 10.0.0.1:80 rr persistent 300 mask 255.255.255.0 flags 0x10`.
impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.key, self.scheduler)?;
        if let Some(Persistence { timeout, netmask }) = self.persistence {
            write!(f, " persistent {timeout}")?;
            if netmask != Netmask::host(self.key.family()) {
                match netmask {
                    Netmask::Inet(mask) => write!(f, " mask {mask}")?,
                    Netmask::Inet6(prefix_len) => write!(f, " mask {prefix_len}")?,
                }
            }
        }
        if let Some(engine) = self.persistence_engine {
            write!(f, " pe {engine}")?;
        }
        if !self.flags.is_empty() {
            write!(f, " flags {}", self.flags)?;
        }
        Ok(())
    }
}

/// A service as the kernel reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceStatus {
    pub service: Service,
    pub stats: Stats,
}

impl ServiceStatus {
    /// Reads the attributes of a service. 64-bit statistics win over 32-bit ones (Linux 4.1 has both).
    pub fn from_attributes(attributes: &[ServiceAttribute]) -> Result<Self, DecodeError> {
        let narrow = attributes.iter().find_map(|attribute| match attribute {
            ServiceAttribute::Stats(stats) => Some(stats),
            _ => None,
        });
        let wide = attributes.iter().find_map(|attribute| match attribute {
            ServiceAttribute::Stats64(stats) => Some(stats),
            _ => None,
        });
        Ok(Self {
            service: Service::from_attributes(attributes)?,
            stats: wide
                .or(narrow)
                .map(|stats| Stats::from_attributes(stats))
                .unwrap_or_default(),
        })
    }
}

/// An attribute inside `IPVS_CMD_ATTR_SERVICE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceAttribute {
    Family(AddressFamily),
    Protocol(Protocol),
    /// `union nf_inet_addr`; the family tells how many of the bytes count.
    Address([u8; 16]),
    Port(u16),
    Mark(u32),
    Scheduler(KernelName),
    /// `struct ip_vs_flags`: the kernel takes the flags under the mask and keeps the others.
    Flags {
        flags: u32,
        mask: u32,
    },
    /// Seconds.
    Timeout(u32),
    /// As on the wire: see [`Netmask`].
    Netmask([u8; 4]),
    Stats(Vec<StatsAttribute>),
    PersistenceEngine(KernelName),
    Stats64(Vec<StatsAttribute>),
    Other(DefaultNla),
}

impl Nla for ServiceAttribute {
    fn value_len(&self) -> usize {
        match self {
            Self::Family(_) | Self::Protocol(_) | Self::Port(_) => 2,
            Self::Address(_) => 16,
            Self::Mark(_) | Self::Timeout(_) | Self::Netmask(_) => 4,
            Self::Flags { .. } => 8,
            Self::Scheduler(name) | Self::PersistenceEngine(name) => name.wire_len(),
            Self::Stats(stats) | Self::Stats64(stats) => stats.as_slice().buffer_len(),
            Self::Other(other) => other.value_len(),
        }
    }

    fn kind(&self) -> u16 {
        match self {
            Self::Family(_) => IPVS_SVC_ATTR_AF,
            Self::Protocol(_) => IPVS_SVC_ATTR_PROTOCOL,
            Self::Address(_) => IPVS_SVC_ATTR_ADDR,
            Self::Port(_) => IPVS_SVC_ATTR_PORT,
            Self::Mark(_) => IPVS_SVC_ATTR_FWMARK,
            Self::Scheduler(_) => IPVS_SVC_ATTR_SCHED_NAME,
            Self::Flags { .. } => IPVS_SVC_ATTR_FLAGS,
            Self::Timeout(_) => IPVS_SVC_ATTR_TIMEOUT,
            Self::Netmask(_) => IPVS_SVC_ATTR_NETMASK,
            Self::Stats(_) => IPVS_SVC_ATTR_STATS | NLA_F_NESTED,
            Self::PersistenceEngine(_) => IPVS_SVC_ATTR_PE_NAME,
            Self::Stats64(_) => IPVS_SVC_ATTR_STATS64 | NLA_F_NESTED,
            Self::Other(other) => other.kind(),
        }
    }

    fn emit_value(&self, buffer: &mut [u8]) {
        match self {
            Self::Family(family) => put(buffer, &family.number().to_ne_bytes()),
            Self::Protocol(protocol) => put(buffer, &protocol.number().to_ne_bytes()),
            Self::Address(bytes) => put(buffer, bytes),
            Self::Port(port) => put(buffer, &port.to_be_bytes()),
            Self::Mark(value) | Self::Timeout(value) => put(buffer, &value.to_ne_bytes()),
            Self::Netmask(bytes) => put(buffer, bytes),
            Self::Flags { flags, mask } => {
                let [f0, f1, f2, f3] = flags.to_ne_bytes();
                let [m0, m1, m2, m3] = mask.to_ne_bytes();
                put(buffer, &[f0, f1, f2, f3, m0, m1, m2, m3]);
            }
            Self::Scheduler(name) | Self::PersistenceEngine(name) => {
                put(buffer, name.wire_bytes());
            }
            Self::Stats(stats) | Self::Stats64(stats) => stats.as_slice().emit(buffer),
            Self::Other(other) => other.emit_value(buffer),
        }
    }
}

impl<'a> Parseable<NlaBuffer<&'a [u8]>> for ServiceAttribute {
    fn parse(buffer: &NlaBuffer<&'a [u8]>) -> Result<Self, DecodeError> {
        let value = buffer.value();
        Ok(match buffer.kind() {
            IPVS_SVC_ATTR_AF => Self::Family(
                parse_u16(value)
                    .and_then(AddressFamily::from_number)
                    .context("invalid IPVS_SVC_ATTR_AF value")?,
            ),
            IPVS_SVC_ATTR_PROTOCOL => Self::Protocol(Protocol::from_number(
                parse_u16(value).context("invalid IPVS_SVC_ATTR_PROTOCOL value")?,
            )),
            IPVS_SVC_ATTR_ADDR => Self::Address(parse_address(value, "IPVS_SVC_ATTR_ADDR")?),
            IPVS_SVC_ATTR_PORT => Self::Port(parse_port(value, "IPVS_SVC_ATTR_PORT")?),
            IPVS_SVC_ATTR_FWMARK => {
                Self::Mark(parse_u32(value).context("invalid IPVS_SVC_ATTR_FWMARK value")?)
            }
            IPVS_SVC_ATTR_SCHED_NAME => Self::Scheduler(
                KernelName::parse(value).context("invalid IPVS_SVC_ATTR_SCHED_NAME value")?,
            ),
            IPVS_SVC_ATTR_FLAGS => parse_flags(value)?,
            IPVS_SVC_ATTR_TIMEOUT => {
                Self::Timeout(parse_u32(value).context("invalid IPVS_SVC_ATTR_TIMEOUT value")?)
            }
            IPVS_SVC_ATTR_NETMASK => Self::Netmask(
                parse_u32(value)
                    .context("invalid IPVS_SVC_ATTR_NETMASK value")?
                    .to_ne_bytes(),
            ),
            IPVS_SVC_ATTR_STATS => {
                Self::Stats(parse_stats(value).context("invalid IPVS_SVC_ATTR_STATS value")?)
            }
            IPVS_SVC_ATTR_PE_NAME => Self::PersistenceEngine(
                KernelName::parse(value).context("invalid IPVS_SVC_ATTR_PE_NAME value")?,
            ),
            IPVS_SVC_ATTR_STATS64 => {
                Self::Stats64(parse_stats(value).context("invalid IPVS_SVC_ATTR_STATS64 value")?)
            }
            _ => Self::Other(DefaultNla::parse(buffer)?),
        })
    }
}

fn parse_flags(value: &[u8]) -> Result<ServiceAttribute, DecodeError> {
    match *value {
        [f0, f1, f2, f3, m0, m1, m2, m3] => Ok(ServiceAttribute::Flags {
            flags: u32::from_ne_bytes([f0, f1, f2, f3]),
            mask: u32::from_ne_bytes([m0, m1, m2, m3]),
        }),
        _ => Err(DecodeError::invalid_number(8, value.len()))
            .context("invalid IPVS_SVC_ATTR_FLAGS value"),
    }
}

/// Reads a nested list.
pub(super) fn parse_service(value: &[u8]) -> Result<Vec<ServiceAttribute>, DecodeError> {
    NlasIterator::new(value)
        .map(|attribute| attribute.and_then(|attribute| ServiceAttribute::parse(&attribute)))
        .collect::<Result<_, _>>()
        .context("invalid IPVS_CMD_ATTR_SERVICE value")
}
