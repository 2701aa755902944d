// SPDX-License-Identifier: Apache-2.0
//! Sets and their entries as values, wanted and observed alike. Knows nothing of netlink.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use crate::IpFamily;

/// Longest name of a set in bytes: `IPSET_MAXNAMELEN` (32) less its NUL.
pub const MAX_SET_NAME_LEN: usize = 31;

/// The name of a set: 1 to [`MAX_SET_NAME_LEN`] bytes, no NUL.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetName(String);

/// Why a text is no name of a set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidSetName {
    /// No bytes.
    #[error("set name is empty")]
    Empty,
    /// More than [`MAX_SET_NAME_LEN`] bytes.
    #[error("set name {0:?} is longer than {MAX_SET_NAME_LEN} bytes")]
    TooLong(String),
    /// A NUL, which would end it.
    #[error("set name {0:?} has a NUL")]
    Nul(String),
}

impl SetName {
    /// Checks and takes a name.
    pub fn new(name: impl Into<String>) -> Result<Self, InvalidSetName> {
        let name = name.into();
        if name.is_empty() {
            Err(InvalidSetName::Empty)
        } else if name.len() > MAX_SET_NAME_LEN {
            Err(InvalidSetName::TooLong(name))
        } else if name.contains('\0') {
            Err(InvalidSetName::Nul(name))
        } else {
            Ok(Self(name))
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for SetName {
    type Err = InvalidSetName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

/// The types of sets that this crate can make and read. The kernel has more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum SetType {
    /// `hash:ip`: addresses.
    HashIp,
    /// `hash:ip,port`: an address with a protocol and port.
    HashIpPort,
    /// `hash:ip,port,ip`: the same and a second address.
    HashIpPortIp,
    /// `hash:ip,port,net`: the same and a network.
    HashIpPortNet,
    /// `bitmap:port`: ports, of any protocol.
    BitmapPort,
}

impl SetType {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::HashIp,
        Self::HashIpPort,
        Self::HashIpPortIp,
        Self::HashIpPortNet,
        Self::BitmapPort,
    ];

    /// The kernel's name, which is `ipset`'s too.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::HashIp => "hash:ip",
            Self::HashIpPort => "hash:ip,port",
            Self::HashIpPortIp => "hash:ip,port,ip",
            Self::HashIpPortNet => "hash:ip,port,net",
            Self::BitmapPort => "bitmap:port",
        }
    }

    /// The kernel module that has it.
    pub const fn module(self) -> &'static str {
        match self {
            Self::HashIp => "ip_set_hash_ip",
            Self::HashIpPort => "ip_set_hash_ipport",
            Self::HashIpPortIp => "ip_set_hash_ipportip",
            Self::HashIpPortNet => "ip_set_hash_ipportnet",
            Self::BitmapPort => "ip_set_bitmap_port",
        }
    }
}

impl fmt::Display for SetType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A set, without its entries.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SetSpec {
    /// Its name, one in a network namespace.
    pub name: SetName,
    /// What is in it.
    pub shape: SetShape,
}

/// The type of a set with that type's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum SetShape {
    /// One of the hash types.
    Hash {
        /// Which.
        set_type: HashType,
        /// The family of the addresses in it.
        family: IpFamily,
        /// Hash buckets at creation. The kernel doubles them as the set fills, so an observed set
        /// may have more.
        hashsize: u32,
        /// The most entries that it takes.
        maxelem: u32,
        /// Whether entries carry a packet mark (`skbinfo`).
        skbinfo: bool,
        /// Entries expire, after so many seconds unless they say otherwise; 0 is never. `None`: the
        /// set has no time-outs.
        timeout: Option<u32>,
    },
    /// `bitmap:port` has no family: one set may serve both.
    BitmapPort {
        /// The lowest port that it can hold.
        first: u16,
        /// The highest port that it can hold.
        last: u16,
    },
}

/// The hash types among [`SetType`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum HashType {
    /// [`SetType::HashIp`]
    Ip,
    /// [`SetType::HashIpPort`]
    IpPort,
    /// [`SetType::HashIpPortIp`]
    IpPortIp,
    /// [`SetType::HashIpPortNet`]
    IpPortNet,
}

impl HashType {
    /// The type of set.
    pub const fn set_type(self) -> SetType {
        match self {
            Self::Ip => SetType::HashIp,
            Self::IpPort => SetType::HashIpPort,
            Self::IpPortIp => SetType::HashIpPortIp,
            Self::IpPortNet => SetType::HashIpPortNet,
        }
    }
}

impl From<HashType> for SetType {
    fn from(hash: HashType) -> Self {
        hash.set_type()
    }
}

impl SetSpec {
    /// Buckets of a new hash set: ipset's own default.
    pub const DEFAULT_HASHSIZE: u32 = 1024;
    /// Most entries of a new hash set: ipset's own default.
    pub const DEFAULT_MAXELEM: u32 = 65_536;

    /// A hash set with ipset's default sizes.
    pub const fn hash(name: SetName, set_type: HashType, family: IpFamily) -> Self {
        Self {
            name,
            shape: SetShape::Hash {
                set_type,
                family,
                hashsize: Self::DEFAULT_HASHSIZE,
                maxelem: Self::DEFAULT_MAXELEM,
                skbinfo: false,
                timeout: None,
            },
        }
    }

    /// A bitmap of all ports.
    pub const fn bitmap_port(name: SetName) -> Self {
        Self {
            name,
            shape: SetShape::BitmapPort {
                first: 0,
                last: u16::MAX,
            },
        }
    }

    /// The same set with room for `entries`: the next power of two of at least 65,536. A bitmap
    /// stays as it is.
    #[must_use]
    pub fn with_room_for(mut self, entries: usize) -> Self {
        if let SetShape::Hash { maxelem, .. } = &mut self.shape {
            let wanted = u32::try_from(entries).unwrap_or(u32::MAX);
            *maxelem = wanted
                .checked_next_power_of_two()
                .unwrap_or(u32::MAX)
                .max(Self::DEFAULT_MAXELEM);
        }
        self
    }

    /// The type of the set.
    pub const fn set_type(&self) -> SetType {
        match self.shape {
            SetShape::Hash { set_type, .. } => set_type.set_type(),
            SetShape::BitmapPort { .. } => SetType::BitmapPort,
        }
    }

    /// The family of the addresses in it; `None` for a bitmap of ports.
    pub const fn family(&self) -> Option<IpFamily> {
        match self.shape {
            SetShape::Hash { family, .. } => Some(family),
            SetShape::BitmapPort { .. } => None,
        }
    }

    /// Whether this set can be used where `wanted` is asked for: the same type, family, time-out
    /// and extensions, and no less room. The number of hash buckets does not matter, the kernel
    /// changes it.
    pub fn can_serve(&self, wanted: &Self) -> bool {
        match (self.shape, wanted.shape) {
            (
                SetShape::Hash {
                    set_type,
                    family,
                    maxelem,
                    skbinfo,
                    timeout,
                    ..
                },
                SetShape::Hash {
                    set_type: wanted_type,
                    family: wanted_family,
                    maxelem: wanted_maxelem,
                    skbinfo: wanted_skbinfo,
                    timeout: wanted_timeout,
                    ..
                },
            ) => {
                set_type == wanted_type
                    && family == wanted_family
                    && skbinfo == wanted_skbinfo
                    && timeout == wanted_timeout
                    && maxelem >= wanted_maxelem
            }
            (
                SetShape::BitmapPort { first, last },
                SetShape::BitmapPort {
                    first: wanted_first,
                    last: wanted_last,
                },
            ) => first <= wanted_first && last >= wanted_last,
            _ => false,
        }
    }
}

/// `hash:ip,port family inet hashsize 1024 maxelem 65536`, as `ipset create` takes it.
impl fmt::Display for SetShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hash {
                set_type,
                family,
                hashsize,
                maxelem,
                skbinfo,
                timeout,
            } => {
                let set_type = SetType::from(*set_type);
                let family = match family {
                    IpFamily::V4 => "inet",
                    IpFamily::V6 => "inet6",
                };
                write!(
                    f,
                    "{set_type} family {family} hashsize {hashsize} maxelem {maxelem}"
                )?;
                if let Some(seconds) = timeout {
                    write!(f, " timeout {seconds}")?;
                }
                if *skbinfo {
                    f.write_str(" skbinfo")
                } else {
                    Ok(())
                }
            }
            Self::BitmapPort { first, last } => write!(f, "bitmap:port range {first}-{last}"),
        }
    }
}

impl fmt::Display for SetSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.shape)
    }
}

/// What the kernel says of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SetInfo {
    /// Its name.
    pub name: SetName,
    /// The kernel's name of its type, which need not be one of [`SetType`].
    pub type_name: String,
    /// The revision of its type.
    pub revision: u8,
    /// What would create it; `None` if this crate does not know its type or its options.
    pub spec: Option<SetSpec>,
    /// How many rules (and list sets) refer to it.
    pub references: u32,
    /// Bytes of kernel memory.
    pub memsize: u32,
    /// Number of entries; kernels before 4.9 do not say.
    pub elements: Option<u32>,
}

/// What an entry of a set matches, which is what identifies it in its set.
///
/// The text form is the member text of `ipset list`. Ports come with an IP protocol number (6 is
/// TCP, 17 UDP, 132 SCTP).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Entry {
    /// Of [`SetType::HashIp`].
    Ip(IpAddr),
    /// Of [`SetType::HashIpPort`].
    IpPort {
        /// The address.
        ip: IpAddr,
        /// IP protocol number of the port.
        protocol: u8,
        /// The port.
        port: u16,
    },
    /// Of [`SetType::HashIpPortIp`].
    IpPortIp {
        /// The first address.
        ip: IpAddr,
        /// IP protocol number of the port.
        protocol: u8,
        /// The port.
        port: u16,
        /// The second address.
        ip2: IpAddr,
    },
    /// Of [`SetType::HashIpPortNet`]. Made by [`Entry::ip_port_net`], so that `net` has no host
    /// bits and a length of at least 1.
    IpPortNet {
        /// The address.
        ip: IpAddr,
        /// IP protocol number of the port.
        protocol: u8,
        /// The port.
        port: u16,
        /// The network.
        net: IpNet,
    },
    /// Of [`SetType::BitmapPort`].
    Port(u16),
}

impl Entry {
    /// Entries that match a source range. Host bits are cleared, as the kernel does. A network of
    /// length zero is refused by the kernel (`IPSET_ERR_INVALID_CIDR`) and becomes its two halves.
    pub fn ip_port_net(ip: IpAddr, protocol: u8, port: u16, net: IpNet) -> Vec<Self> {
        net.subnets(net.prefix_len().max(1))
            .into_iter()
            .flatten()
            .map(|net| Self::IpPortNet {
                ip,
                protocol,
                port,
                net: net.trunc(),
            })
            .collect()
    }

    /// The type of set that takes it.
    pub const fn set_type(&self) -> SetType {
        match self {
            Self::Ip(_) => SetType::HashIp,
            Self::IpPort { .. } => SetType::HashIpPort,
            Self::IpPortIp { .. } => SetType::HashIpPortIp,
            Self::IpPortNet { .. } => SetType::HashIpPortNet,
            Self::Port(_) => SetType::BitmapPort,
        }
    }

    /// The family of its address; `None` for a port.
    pub const fn family(&self) -> Option<IpFamily> {
        match self {
            Self::Ip(ip)
            | Self::IpPort { ip, .. }
            | Self::IpPortIp { ip, .. }
            | Self::IpPortNet { ip, .. } => Some(IpFamily::of(*ip)),
            Self::Port(_) => None,
        }
    }
}

/// `tcp:80`
struct ProtocolPort(u8, u16);

impl fmt::Display for ProtocolPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            6 => write!(f, "tcp:{}", self.1),
            17 => write!(f, "udp:{}", self.1),
            132 => write!(f, "sctp:{}", self.1),
            other => write!(f, "{other}:{}", self.1),
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => write!(f, "{ip}"),
            Self::IpPort { ip, protocol, port } => {
                write!(f, "{ip},{}", ProtocolPort(*protocol, *port))
            }
            Self::IpPortIp {
                ip,
                protocol,
                port,
                ip2,
            } => {
                write!(f, "{ip},{},{ip2}", ProtocolPort(*protocol, *port))
            }
            Self::IpPortNet {
                ip,
                protocol,
                port,
                net,
            } => {
                write!(f, "{ip},{},{}", ProtocolPort(*protocol, *port), net.addr())?;
                // ipset leaves out the length of a host.
                if net.prefix_len() == net.max_prefix_len() {
                    Ok(())
                } else {
                    write!(f, "/{}", net.prefix_len())
                }
            }
            Self::Port(port) => write!(f, "{port}"),
        }
    }
}

/// A packet mark with its mask (`skbmark`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SkbMark {
    /// The bits.
    pub mark: u32,
    /// Those that count.
    pub mask: u32,
}

/// An entry with what it carries. Adding the same entry with another mark or time-out replaces
/// that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetEntry {
    /// What it matches.
    pub entry: Entry,
    /// Only in sets with `skbinfo`.
    pub mark: Option<SkbMark>,
    /// The seconds that are left to it. Only in sets with time-outs; `None` is the set's own when
    /// it is added.
    pub timeout: Option<u32>,
}

impl From<Entry> for SetEntry {
    fn from(entry: Entry) -> Self {
        Self {
            entry,
            mark: None,
            timeout: None,
        }
    }
}

impl fmt::Display for SetEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.entry)?;
        if let Some(seconds) = self.timeout {
            write!(f, " timeout {seconds}")?;
        }
        match self.mark {
            None => Ok(()),
            // ipset leaves out a full mask.
            Some(SkbMark {
                mark,
                mask: u32::MAX,
            }) => write!(f, " skbmark {mark:#x}"),
            Some(SkbMark { mark, mask }) => write!(f, " skbmark {mark:#x}/{mask:#x}"),
        }
    }
}
