// SPDX-License-Identifier: Apache-2.0
//! Sync daemons: `IPVS_CMD_{NEW,DEL,GET}_DAEMON`. They send the connections of this network
//! namespace to other directors, and take in theirs, by multicast.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_pipeline::attribute::DecodeError;
use netlink_pipeline::{attributes, find_attribute};

use super::field::missing;

netlink_pipeline::numbered! {
    /// What a daemon does (`IP_VS_STATE_*`). There is at most one of each role, and both may run.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub enum SyncRole: u32 {
        /// `IP_VS_STATE_MASTER`: sends.
        Master = 1,
        /// `IP_VS_STATE_BACKUP`: receives.
        Backup = 2,
    }
}

/// As `ipvsadm` names it.
impl fmt::Display for SyncRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Master => f.write_str("master"),
            Self::Backup => f.write_str("backup"),
            Self::Other(number) => write!(f, "role {number}"),
        }
    }
}

/// A sync daemon.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SyncDaemon {
    /// Master or backup.
    pub role: SyncRole,
    /// The interface of the multicast group, at most 15 bytes; `ENODEV` if there is none.
    pub interface: String,
    /// A backup takes in what masters of the same number send; with 0 of all.
    pub sync_id: u32,
    /// Bytes of the UDP payload (Linux 4.3). 0 when starting: what fits the interface (backup) or
    /// 1,500 bytes (master). The kernel raises less than 1,024 of a backup.
    pub max_length: u16,
    /// The multicast group (Linux 4.3).
    pub group: IpAddr,
    /// UDP port (Linux 4.3).
    pub port: u16,
    /// Time to live, or hop limit (Linux 4.3).
    pub ttl: u8,
}

impl SyncDaemon {
    /// `IP_VS_SYNC_GROUP`, which the kernel uses unless told otherwise.
    pub const GROUP: IpAddr = IpAddr::V4(Ipv4Addr::new(224, 0, 0, 81));
    /// `IP_VS_SYNC_PORT`
    pub const PORT: u16 = 8848;

    /// One with the kernel's defaults.
    pub const fn new(role: SyncRole, interface: String, sync_id: u32) -> Self {
        Self {
            role,
            interface,
            sync_id,
            max_length: 0,
            group: Self::GROUP,
            port: Self::PORT,
            ttl: 1,
        }
    }

    /// The attributes that start it, in the order of `ipvsadm`; the kernel's defaults are left out.
    pub fn to_attributes(&self) -> Vec<DaemonAttribute> {
        let mut attributes = vec![
            DaemonAttribute::Role(self.role.number()),
            DaemonAttribute::Interface(self.interface.clone()),
            DaemonAttribute::SyncId(self.sync_id),
        ];
        let mut add = |is_default: bool, attribute| {
            if !is_default {
                attributes.push(attribute);
            }
        };
        let length = DaemonAttribute::MaxLength(self.max_length);
        add(self.max_length == 0, length);
        add(self.port == Self::PORT, DaemonAttribute::Port(self.port));
        add(self.ttl == 1, DaemonAttribute::Ttl(self.ttl));
        let group = match self.group {
            IpAddr::V4(group) => DaemonAttribute::Group(group.octets()),
            IpAddr::V6(group) => DaemonAttribute::Group6(group.octets()),
        };
        add(self.group == Self::GROUP, group);
        attributes
    }

    /// Reads the attributes of a running daemon. What an old kernel does not tell is its default.
    pub fn from_attributes(attributes: &[DaemonAttribute]) -> Result<Self, DecodeError> {
        let role = find_attribute!(attributes, DaemonAttribute::Role)
            .ok_or_else(|| missing("IPVS_DAEMON_ATTR_STATE"))?;
        let interface = find_attribute!(attributes, DaemonAttribute::Interface)
            .ok_or_else(|| missing("IPVS_DAEMON_ATTR_MCAST_IFN"))?;
        let sync_id = find_attribute!(attributes, DaemonAttribute::SyncId)
            .ok_or_else(|| missing("IPVS_DAEMON_ATTR_SYNC_ID"))?;
        let mut daemon = Self::new(SyncRole::from_number(*role), interface.clone(), *sync_id);
        for attribute in attributes {
            match attribute {
                DaemonAttribute::MaxLength(value) => daemon.max_length = *value,
                DaemonAttribute::Group(value) => daemon.group = Ipv4Addr::from(*value).into(),
                DaemonAttribute::Group6(value) => daemon.group = Ipv6Addr::from(*value).into(),
                DaemonAttribute::Port(value) => daemon.port = *value,
                DaemonAttribute::Ttl(value) => daemon.ttl = *value,
                _ => {}
            }
        }
        Ok(daemon)
    }

    /// The attributes that name a daemon to stop. The kernel reads the role; `ipvsadm` sends the
    /// others, too.
    pub fn stop_attributes(role: SyncRole) -> Vec<DaemonAttribute> {
        vec![
            DaemonAttribute::Role(role.number()),
            DaemonAttribute::Interface(String::new()),
            DaemonAttribute::SyncId(0),
        ]
    }
}

/// As `ipvsadm -L --daemon` prints it.
impl fmt::Display for SyncDaemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} sync daemon (mcast={}, syncid={}, maxlen={}, group={}, port={}, ttl={})",
            self.role,
            self.interface,
            self.sync_id,
            self.max_length,
            self.group,
            self.port,
            self.ttl
        )
    }
}

attributes! {
    /// An attribute inside `IPVS_CMD_ATTR_DAEMON`.
    pub enum DaemonAttribute {
        /// `IPVS_DAEMON_ATTR_STATE`, see [`SyncRole`].
        Role(u32) = 1 IPVS_DAEMON_ATTR_STATE,
        /// `IPVS_DAEMON_ATTR_MCAST_IFN`
        Interface(String) = 2 IPVS_DAEMON_ATTR_MCAST_IFN,
        /// `IPVS_DAEMON_ATTR_SYNC_ID`
        SyncId(u32) = 3 IPVS_DAEMON_ATTR_SYNC_ID,
        /// `IPVS_DAEMON_ATTR_SYNC_MAXLEN`: bytes.
        MaxLength(u16) = 4 IPVS_DAEMON_ATTR_SYNC_MAXLEN,
        /// `IPVS_DAEMON_ATTR_MCAST_GROUP`
        Group([u8; 4]) = 5 IPVS_DAEMON_ATTR_MCAST_GROUP,
        /// `IPVS_DAEMON_ATTR_MCAST_GROUP6`
        Group6([u8; 16]) = 6 IPVS_DAEMON_ATTR_MCAST_GROUP6,
        /// `IPVS_DAEMON_ATTR_MCAST_PORT`, in host order.
        Port(u16) = 7 IPVS_DAEMON_ATTR_MCAST_PORT,
        /// `IPVS_DAEMON_ATTR_MCAST_TTL`
        Ttl(u8) = 8 IPVS_DAEMON_ATTR_MCAST_TTL,
    }
}
