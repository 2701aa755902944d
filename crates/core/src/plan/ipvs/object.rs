// SPDX-License-Identifier: Apache-2.0
//! PURE: the objects of the IPVS dataplane, in one form for both desired and observed state.
//! Statistics are excluded.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::{Serialize, Serializer};

use crate::model::ipvs_options::{Thresholds, Tunnel};
use crate::model::{IpFamily, Protocol};
use crate::plan::compact::CompactMap;
use crate::plan::ipvs::mark;

/// The identity of a virtual server (kernel: `ip_vs_svc_hashkey`).
///
/// Displays in the notation of `ipvsadm`: `TCP 10.96.0.10:53`, `FWM 7 IPv4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VirtualServerKey {
    Address {
        address: IpAddr,
        port: u16,
        protocol: Protocol,
    },
    /// Packets with a firewall mark. The mark is never 0.
    Mark { mark: u32, family: IpFamily },
}

impl VirtualServerKey {
    /// The smallest and the largest key with an address.
    pub fn all_at(address: IpAddr) -> (Self, Self) {
        let at = |port, protocol| Self::Address {
            address,
            port,
            protocol,
        };
        (at(0, Protocol::Tcp), at(u16::MAX, Protocol::Sctp))
    }

    pub const fn family(&self) -> IpFamily {
        match self {
            Self::Address { address, .. } => IpFamily::of(*address),
            Self::Mark { family, .. } => *family,
        }
    }

    /// The protocol; `None` for a firewall mark that is not ours, which can stand for several.
    pub fn protocol(&self) -> Option<Protocol> {
        match self {
            Self::Address { protocol, .. } => Some(*protocol),
            Self::Mark { mark, .. } => mark::protocol(*mark),
        }
    }

    pub const fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Address { address, .. } => Some(*address),
            Self::Mark { .. } => None,
        }
    }
}

impl fmt::Display for VirtualServerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address {
                address,
                port,
                protocol,
            } => {
                write!(f, "{protocol} {}", SocketAddr::new(*address, *port))
            }
            Self::Mark { mark, family } => write!(f, "FWM {mark} {family}"),
        }
    }
}

impl Serialize for VirtualServerKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How a virtual server distributes connections (kernel: `ip_vs_service_user_kern`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct VirtualServer {
    /// The kernel's name of the scheduler: `rr`, `mh`, …
    #[serde(serialize_with = "as_str")]
    pub scheduler: Arc<str>,
    /// `IP_VS_SVC_F_*` without `IP_VS_SVC_F_HASHED`, which is the kernel's own.
    pub flags: u32,
    /// Persistence in seconds; meaningless without [`flags::PERSISTENT`].
    pub timeout: u32,
    /// Clients in the same network of this prefix length share a persistence template.
    pub netmask: u8,
}

impl VirtualServer {
    /// Whether other real servers get the connections that one of weight 0 does not. `dh` has no
    /// such fallback: it rejects connections that hash to such a server.
    pub fn passes_over_weight_0(&self) -> bool {
        &*self.scheduler != "dh"
    }
}

fn as_str<S: Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

/// Flags of a virtual server (`include/uapi/linux/ip_vs.h`).
pub mod flags {
    /// `IP_VS_SVC_F_PERSISTENT`: a client stays with its real server.
    pub const PERSISTENT: u32 = 0x1;
    /// `IP_VS_SVC_F_ONEPACKET`: each UDP packet is scheduled by itself.
    pub const ONE_PACKET: u32 = 0x4;
    /// `IP_VS_SVC_F_SCHED1`: `sh-fallback` and `mh-fallback`: skip servers of weight 0.
    pub const SCHED_FALLBACK: u32 = 0x8;
    /// `IP_VS_SVC_F_SCHED2`: `sh-port` and `mh-port`: the source port is hashed too.
    pub const SCHED_PORT: u32 = 0x10;
}

/// Address and port of a real server: its identity within a virtual server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RealServerKey {
    pub address: IpAddr,
    pub port: u16,
}

impl fmt::Display for RealServerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.address, self.port).fmt(f)
    }
}

impl Serialize for RealServerKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How packets reach a real server (kernel: `IP_VS_CONN_F_FWD_MASK`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Forwarding {
    /// Network address translation, IPVS's "masquerading".
    #[default]
    Masquerade,
    /// The server is on this host.
    Local,
    /// Through a tunnel.
    Tunnel(Tunnel),
    /// Direct routing: only the link-layer address changes.
    Route,
    /// `IP_VS_CONN_F_BYPASS`, used by cache clusters, or any unknown method. Never ours.
    Bypass,
}

impl fmt::Display for Forwarding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Masquerade => f.write_str("masquerade"),
            Self::Local => f.write_str("local"),
            Self::Tunnel(Tunnel::IpIp) => f.write_str("ipip"),
            Self::Tunnel(Tunnel::Gre) => f.write_str("gre"),
            Self::Tunnel(Tunnel::Gue(port)) => write!(f, "gue to port {port}"),
            Self::Route => f.write_str("route"),
            Self::Bypass => f.write_str("bypass"),
        }
    }
}

impl Serialize for Forwarding {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A real server's settings, without its key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct RealServer {
    /// 0: no new connections.
    pub weight: u32,
    pub forwarding: Forwarding,
    #[serde(skip_serializing_if = "Thresholds::is_unlimited")]
    pub thresholds: Thresholds,
}

/// The real servers of a virtual server.
pub type RealServers = CompactMap<RealServerKey, RealServer>;

/// Timeouts of IPVS connections in seconds; 0 keeps the kernel's (kernel: `ip_vs_timeout_user`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Timeouts {
    pub tcp: u32,
    pub tcp_fin: u32,
    pub udp: u32,
}

/// What a sync daemon does. The kernel has at most one of each role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SyncRole {
    /// Sends the connections of this node.
    Master,
    /// Takes in those of other nodes.
    Backup,
}

impl SyncRole {
    pub const ALL: [Self; 2] = [Self::Master, Self::Backup];

    /// As `ipvsadm` names it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::Backup => "backup",
        }
    }
}

impl fmt::Display for SyncRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How connections are exchanged with other nodes (kernel: `ipvs_sync_daemon_cfg`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SyncDaemon {
    /// The interface of the multicast group.
    #[serde(serialize_with = "as_str")]
    pub interface: Arc<str>,
    /// Its index, by which the kernel goes: a daemon whose interface was deleted runs on, and knows
    /// nothing of a new one of the same name. `None` in settings, and if another program started
    /// the daemon.
    pub link: Option<u32>,
    /// Backups take in what masters of the same number send; with 0 of all.
    pub sync_id: u32,
    pub group: IpAddr,
    pub port: u16,
    pub ttl: u8,
    /// Bytes of a message; 0: the kernel's choice.
    pub max_length: u16,
}

impl SyncDaemon {
    /// Whether a running daemon is as this one wants it.
    pub fn is_met_by(&self, running: &Self) -> bool {
        let max_length = match self.max_length {
            0 => running.max_length,
            length => length,
        };
        let wanted = Self {
            max_length,
            ..self.clone()
        };
        wanted == *running
    }
}

impl fmt::Display for SyncDaemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let group = SocketAddr::new(self.group, self.port);
        write!(
            f,
            "on {} to {group} id {} ttl {}",
            self.interface, self.sync_id, self.ttl
        )?;
        if self.max_length != 0 {
            write!(f, " length {}", self.max_length)?;
        }
        Ok(())
    }
}

impl fmt::Display for VirtualServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "scheduler {}", self.scheduler)?;
        if self.flags & flags::PERSISTENT != 0 {
            write!(f, " persistent {} s", self.timeout)?;
        }
        let others = self.flags & !flags::PERSISTENT;
        if others != 0 {
            write!(f, " flags {others:#x}")?;
        }
        Ok(())
    }
}

impl fmt::Display for RealServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "weight {} {}", self.weight, self.forwarding)?;
        let Thresholds { upper, lower } = self.thresholds;
        if upper != 0 {
            write!(f, " upper threshold {upper}")?;
        }
        if lower != 0 {
            write!(f, " lower threshold {lower}")?;
        }
        Ok(())
    }
}
