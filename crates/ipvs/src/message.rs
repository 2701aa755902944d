// SPDX-License-Identifier: Apache-2.0
//! A command of the IPVS family and its attributes.

use netlink_pipeline::attribute::{
    self, Attribute, AttributeTooLong, Codec, DecodeError, ListAttribute as _, Plain, Unknown,
    Writer,
};
use netlink_pipeline::find_attribute;

use super::constants::{
    IPVS_CMD_ATTR_DAEMON, IPVS_CMD_ATTR_DEST, IPVS_CMD_ATTR_SERVICE, IPVS_CMD_ATTR_TIMEOUT_TCP,
    IPVS_CMD_ATTR_TIMEOUT_TCP_FIN, IPVS_CMD_ATTR_TIMEOUT_UDP, IPVS_GENL_VERSION,
    IPVS_INFO_ATTR_CONN_TAB_SIZE, IPVS_INFO_ATTR_VERSION,
};
use super::daemon::DaemonAttribute;
use super::destination::DestinationAttribute;
use super::service::ServiceAttribute;

/// Bytes of `struct genlmsghdr`.
pub(super) const GENL_HEADER_LEN: usize = 4;

netlink_pipeline::numbered! {
    /// A command. The kernel answers a GET with the NEW (services, destinations) or the SET
    /// (configuration, information) of the same object.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub enum IpvsCommand: u8 {
        /// `IPVS_CMD_NEW_SERVICE`
        NewService = 1,
        /// `IPVS_CMD_SET_SERVICE`
        SetService = 2,
        /// `IPVS_CMD_DEL_SERVICE`
        DelService = 3,
        /// `IPVS_CMD_GET_SERVICE`: one, or as a dump all.
        GetService = 4,
        /// `IPVS_CMD_NEW_DEST`
        NewDestination = 5,
        /// `IPVS_CMD_SET_DEST`
        SetDestination = 6,
        /// `IPVS_CMD_DEL_DEST`
        DelDestination = 7,
        /// `IPVS_CMD_GET_DEST`: a dump of the destinations of one service.
        GetDestination = 8,
        /// `IPVS_CMD_NEW_DAEMON`: starts a sync daemon.
        NewDaemon = 9,
        /// `IPVS_CMD_DEL_DAEMON`
        DelDaemon = 10,
        /// `IPVS_CMD_GET_DAEMON`
        GetDaemon = 11,
        /// `IPVS_CMD_SET_CONFIG`: time-outs.
        SetConfig = 12,
        /// `IPVS_CMD_GET_CONFIG`
        GetConfig = 13,
        /// `IPVS_CMD_SET_INFO`: only an answer, to [`Self::GetInfo`].
        SetInfo = 14,
        /// `IPVS_CMD_GET_INFO`: version and table size.
        GetInfo = 15,
        /// `IPVS_CMD_ZERO`: zeroes counters.
        Zero = 16,
        /// `IPVS_CMD_FLUSH`: deletes every service.
        Flush = 17,
    }
}

/// An attribute of a command (`IPVS_CMD_ATTR_*`).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum IpvsAttribute {
    /// `IPVS_CMD_ATTR_SERVICE`
    Service(Vec<ServiceAttribute>),
    /// `IPVS_CMD_ATTR_DEST`
    Destination(Vec<DestinationAttribute>),
    /// `IPVS_CMD_ATTR_DAEMON`
    Daemon(Vec<DaemonAttribute>),
    /// `IPVS_CMD_ATTR_TIMEOUT_TCP`: seconds.
    TimeoutTcp(u32),
    /// `IPVS_CMD_ATTR_TIMEOUT_TCP_FIN`: seconds.
    TimeoutTcpFin(u32),
    /// `IPVS_CMD_ATTR_TIMEOUT_UDP`: seconds.
    TimeoutUdp(u32),
    /// `IPVS_INFO_ATTR_VERSION`, in `IPVS_CMD_SET_INFO` only.
    InfoVersion(u32),
    /// `IPVS_INFO_ATTR_CONN_TAB_SIZE`, in `IPVS_CMD_SET_INFO` only.
    InfoConnectionTableSize(u32),
    /// An attribute that this crate does not know.
    Other(Unknown),
}

impl IpvsAttribute {
    /// Attributes are numbered anew in `IPVS_CMD_SET_INFO`.
    fn read(raw: &Attribute<'_>, command: IpvsCommand) -> Result<Self, DecodeError> {
        Ok(match (command, raw.kind()) {
            (IpvsCommand::SetInfo, IPVS_INFO_ATTR_VERSION) => {
                Self::InfoVersion(raw.u32("IPVS_INFO_ATTR_VERSION")?)
            }
            (IpvsCommand::SetInfo, IPVS_INFO_ATTR_CONN_TAB_SIZE) => {
                Self::InfoConnectionTableSize(raw.u32("IPVS_INFO_ATTR_CONN_TAB_SIZE")?)
            }
            (IpvsCommand::SetInfo, _) => Self::Other(raw.to_unknown()),
            (_, IPVS_CMD_ATTR_SERVICE) => Self::Service(ServiceAttribute::read_all(raw.value())?),
            (_, IPVS_CMD_ATTR_DEST) => {
                Self::Destination(DestinationAttribute::read_all(raw.value())?)
            }
            (_, IPVS_CMD_ATTR_DAEMON) => Self::Daemon(DaemonAttribute::read_all(raw.value())?),
            (_, IPVS_CMD_ATTR_TIMEOUT_TCP) => {
                Self::TimeoutTcp(raw.u32("IPVS_CMD_ATTR_TIMEOUT_TCP")?)
            }
            (_, IPVS_CMD_ATTR_TIMEOUT_TCP_FIN) => {
                Self::TimeoutTcpFin(raw.u32("IPVS_CMD_ATTR_TIMEOUT_TCP_FIN")?)
            }
            (_, IPVS_CMD_ATTR_TIMEOUT_UDP) => {
                Self::TimeoutUdp(raw.u32("IPVS_CMD_ATTR_TIMEOUT_UDP")?)
            }
            _ => Self::Other(raw.to_unknown()),
        })
    }

    fn write(&self, writer: &mut Writer) {
        match self {
            Self::Service(attributes) => Plain::write(attributes, IPVS_CMD_ATTR_SERVICE, writer),
            Self::Destination(attributes) => Plain::write(attributes, IPVS_CMD_ATTR_DEST, writer),
            Self::TimeoutTcp(value) => Plain::write(value, IPVS_CMD_ATTR_TIMEOUT_TCP, writer),
            Self::TimeoutTcpFin(value) => {
                Plain::write(value, IPVS_CMD_ATTR_TIMEOUT_TCP_FIN, writer);
            }
            Self::TimeoutUdp(value) => Plain::write(value, IPVS_CMD_ATTR_TIMEOUT_UDP, writer),
            Self::InfoVersion(value) => Plain::write(value, IPVS_INFO_ATTR_VERSION, writer),
            Self::InfoConnectionTableSize(value) => {
                Plain::write(value, IPVS_INFO_ATTR_CONN_TAB_SIZE, writer);
            }
            Self::Daemon(attributes) => Plain::write(attributes, IPVS_CMD_ATTR_DAEMON, writer),
            Self::Other(unknown) => Plain::write(unknown, 0, writer),
        }
    }
}

/// A message of the family, behind `struct genlmsghdr`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpvsMessage {
    /// What is asked for or answered.
    pub command: IpvsCommand,
    /// In the order of the message.
    pub attributes: Vec<IpvsAttribute>,
}

impl IpvsMessage {
    /// A message.
    pub const fn new(command: IpvsCommand, attributes: Vec<IpvsAttribute>) -> Self {
        Self {
            command,
            attributes,
        }
    }

    /// Reads what follows the netlink header: `struct genlmsghdr` and the attributes.
    pub fn parse(payload: &[u8]) -> Result<Self, DecodeError> {
        let ([command, ..], attributes) = payload
            .split_first_chunk::<GENL_HEADER_LEN>()
            .ok_or(DecodeError::Short)?;
        let command = IpvsCommand::from_number(*command);
        let attributes = attribute::list(attributes)
            .map(|attribute| IpvsAttribute::read(&attribute?, command))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            command,
            attributes,
        })
    }

    /// What follows the netlink header.
    pub fn payload(&self) -> Result<Vec<u8>, AttributeTooLong> {
        let mut writer = Writer::after(&[self.command.number(), IPVS_GENL_VERSION, 0, 0]);
        for attribute in &self.attributes {
            attribute.write(&mut writer);
        }
        writer.finish()
    }

    /// The first nested service.
    pub fn service(&self) -> Option<&[ServiceAttribute]> {
        find_attribute!(self.attributes, IpvsAttribute::Service).map(Vec::as_slice)
    }

    /// The first nested sync daemon.
    pub fn daemon(&self) -> Option<&[DaemonAttribute]> {
        find_attribute!(self.attributes, IpvsAttribute::Daemon).map(Vec::as_slice)
    }

    /// The first nested destination.
    pub fn destination(&self) -> Option<&[DestinationAttribute]> {
        find_attribute!(self.attributes, IpvsAttribute::Destination).map(Vec::as_slice)
    }
}
