// SPDX-License-Identifier: Apache-2.0
//! Virtual services: `struct ip_vs_service_user_kern` and its attributes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use netlink_pipeline::attribute::{Attribute, BigEndian, Codec, DecodeError, Plain, Writer};
use netlink_pipeline::{attributes, find_attribute};

use super::constants::IP_VS_SVC_F_PERSISTENT;
use super::field::{AddressFamily, address_bytes, missing};
use super::flags::{MaskedFlags, ServiceFlags};
use super::name::KernelName;
use super::stats::{Stats, StatsAttribute};

netlink_pipeline::numbered! {
    /// A transport protocol that IPVS can balance, by its IANA number. Today's kernels refuse all
    /// others.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub enum Protocol: u16 {
        /// TCP
        Tcp = 6,
        /// UDP
        Udp = 17,
        /// SCTP
        Sctp = 132,
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
        /// The transport protocol.
        protocol: Protocol,
        /// The virtual address.
        address: IpAddr,
        /// Zero is any port, for services with [`Persistence`] only.
        port: u16,
    },
    /// Packets of a family that carry a firewall mark.
    Mark {
        /// The family of the packets.
        family: AddressFamily,
        /// Not zero.
        mark: u32,
    },
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
        let family = *find_attribute!(attributes, ServiceAttribute::Family)
            .ok_or_else(|| missing("IPVS_SVC_ATTR_AF"))?;
        let mark = find_attribute!(attributes, ServiceAttribute::Mark);
        if let Some(&mark) = mark.filter(|mark| **mark != 0) {
            return Ok(Self::Mark { family, mark });
        }
        let protocol = find_attribute!(attributes, ServiceAttribute::Protocol)
            .ok_or_else(|| missing("IPVS_SVC_ATTR_PROTOCOL"))?;
        let address = find_attribute!(attributes, ServiceAttribute::Address)
            .ok_or_else(|| missing("IPVS_SVC_ATTR_ADDR"))?;
        let port = find_attribute!(attributes, ServiceAttribute::Port)
            .ok_or_else(|| missing("IPVS_SVC_ATTR_PORT"))?;
        Ok(Self::new(*protocol, family.address(*address), *port))
    }
}

/// As `ipvsadm -Ln` prints it: `TCP 10.0.0.1:80`, `FWM 7`.
impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address {
                protocol,
                address,
                port,
            } => write!(f, "{protocol} {}", SocketAddr::new(*address, *port)),
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
    /// Clients whose addresses are equal under it are one.
    pub netmask: Netmask,
}

/// The configuration of a virtual service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Service {
    /// Which packets it is for.
    pub key: ServiceKey,
    /// `rr`, `wrr`, `lc`, `mh`, ...: the kernel module `ip_vs_NAME`.
    pub scheduler: KernelName,
    /// How the scheduler works.
    pub flags: ServiceFlags,
    /// `None` when not persistent; the kernel does not use time-out and mask then.
    pub persistence: Option<Persistence>,
    /// What else than its address identifies a client: `sip`, kernel module `ip_vs_pe_NAME`.
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
        attributes.push(ServiceAttribute::Flags(MaskedFlags {
            flags: self.flags.bits() | persistent,
            mask: u32::MAX,
        }));
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
                ServiceAttribute::Flags(MaskedFlags { flags, mask }) => bits = flags & mask,
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
#[non_exhaustive]
pub struct ServiceStatus {
    /// Its configuration.
    pub service: Service,
    /// Counters and rates, of all its destinations together.
    pub stats: Stats,
}

impl ServiceStatus {
    /// Reads the attributes of a service. 64-bit statistics win over 32-bit ones (Linux 4.1 has
    /// both).
    pub fn from_attributes(attributes: &[ServiceAttribute]) -> Result<Self, DecodeError> {
        let stats = find_attribute!(attributes, ServiceAttribute::Stats64)
            .or_else(|| find_attribute!(attributes, ServiceAttribute::Stats));
        Ok(Self {
            service: Service::from_attributes(attributes)?,
            stats: stats
                .map(|stats| Stats::from_attributes(stats))
                .unwrap_or_default(),
        })
    }
}

attributes! {
    /// An attribute inside `IPVS_CMD_ATTR_SERVICE`.
    pub enum ServiceAttribute {
        /// `IPVS_SVC_ATTR_AF`
        Family(AddressFamily) = 1 IPVS_SVC_ATTR_AF,
        /// `IPVS_SVC_ATTR_PROTOCOL`
        Protocol(Protocol) = 2 IPVS_SVC_ATTR_PROTOCOL,
        /// `IPVS_SVC_ATTR_ADDR`, `union nf_inet_addr`: the family says how many of the bytes count.
        Address([u8; 16]) = 3 IPVS_SVC_ATTR_ADDR,
        /// `IPVS_SVC_ATTR_PORT`
        Port(u16) = 4 IPVS_SVC_ATTR_PORT as BigEndian,
        /// `IPVS_SVC_ATTR_FWMARK`
        Mark(u32) = 5 IPVS_SVC_ATTR_FWMARK,
        /// `IPVS_SVC_ATTR_SCHED_NAME`
        Scheduler(KernelName) = 6 IPVS_SVC_ATTR_SCHED_NAME,
        /// `IPVS_SVC_ATTR_FLAGS`
        Flags(MaskedFlags) = 7 IPVS_SVC_ATTR_FLAGS,
        /// `IPVS_SVC_ATTR_TIMEOUT`: seconds.
        Timeout(u32) = 8 IPVS_SVC_ATTR_TIMEOUT,
        /// `IPVS_SVC_ATTR_NETMASK`, as on the wire: see [`Netmask`].
        Netmask([u8; 4]) = 9 IPVS_SVC_ATTR_NETMASK,
        /// `IPVS_SVC_ATTR_STATS`: 32-bit, but for bytes.
        Stats(Vec<StatsAttribute>) = 10 IPVS_SVC_ATTR_STATS,
        /// `IPVS_SVC_ATTR_PE_NAME`
        PersistenceEngine(KernelName) = 11 IPVS_SVC_ATTR_PE_NAME,
        /// `IPVS_SVC_ATTR_STATS64` (Linux 4.1).
        Stats64(Vec<StatsAttribute>) = 12 IPVS_SVC_ATTR_STATS64,
    }
}

impl Codec<Protocol> for Plain {
    fn read(raw: &Attribute<'_>, name: &'static str) -> Result<Protocol, DecodeError> {
        raw.u16(name).map(Protocol::from_number)
    }

    fn write(value: &Protocol, kind: u16, writer: &mut Writer) {
        writer.u16(kind, value.number());
    }
}
