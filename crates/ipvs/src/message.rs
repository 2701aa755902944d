// SPDX-License-Identifier: Apache-2.0
//! A command of the IPVS family and its attributes.

use netlink_pipeline::attribute::{
    self, Attribute, AttributeTooLong, DecodeError, Unknown, Writer,
};

use super::constants::{
    IPVS_CMD_ATTR_DAEMON, IPVS_CMD_ATTR_DEST, IPVS_CMD_ATTR_SERVICE, IPVS_CMD_ATTR_TIMEOUT_TCP,
    IPVS_CMD_ATTR_TIMEOUT_TCP_FIN, IPVS_CMD_ATTR_TIMEOUT_UDP, IPVS_CMD_DEL_DAEMON,
    IPVS_CMD_DEL_DEST, IPVS_CMD_DEL_SERVICE, IPVS_CMD_FLUSH, IPVS_CMD_GET_CONFIG,
    IPVS_CMD_GET_DAEMON, IPVS_CMD_GET_DEST, IPVS_CMD_GET_INFO, IPVS_CMD_GET_SERVICE,
    IPVS_CMD_NEW_DAEMON, IPVS_CMD_NEW_DEST, IPVS_CMD_NEW_SERVICE, IPVS_CMD_SET_CONFIG,
    IPVS_CMD_SET_DEST, IPVS_CMD_SET_INFO, IPVS_CMD_SET_SERVICE, IPVS_CMD_ZERO, IPVS_GENL_VERSION,
    IPVS_INFO_ATTR_CONN_TAB_SIZE, IPVS_INFO_ATTR_VERSION,
};
use super::destination::DestinationAttribute;
use super::service::ServiceAttribute;

/// Bytes of `struct genlmsghdr`.
pub(super) const GENL_HEADER_LEN: usize = 4;

/// A command. The kernel answers a GET with the NEW (services, destinations) or the SET
/// (configuration, information) of the same object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum IpvsCommand {
    /// `IPVS_CMD_NEW_SERVICE`
    NewService,
    /// `IPVS_CMD_SET_SERVICE`
    SetService,
    /// `IPVS_CMD_DEL_SERVICE`
    DelService,
    /// `IPVS_CMD_GET_SERVICE`: one, or as a dump all.
    GetService,
    /// `IPVS_CMD_NEW_DEST`
    NewDestination,
    /// `IPVS_CMD_SET_DEST`
    SetDestination,
    /// `IPVS_CMD_DEL_DEST`
    DelDestination,
    /// `IPVS_CMD_GET_DEST`: a dump of the destinations of one service.
    GetDestination,
    /// `IPVS_CMD_NEW_DAEMON`: starts a sync daemon.
    NewDaemon,
    /// `IPVS_CMD_DEL_DAEMON`
    DelDaemon,
    /// `IPVS_CMD_GET_DAEMON`
    GetDaemon,
    /// `IPVS_CMD_SET_CONFIG`: time-outs.
    SetConfig,
    /// `IPVS_CMD_GET_CONFIG`
    GetConfig,
    /// `IPVS_CMD_SET_INFO`: only an answer, to [`Self::GetInfo`].
    SetInfo,
    /// `IPVS_CMD_GET_INFO`: version and table size.
    GetInfo,
    /// `IPVS_CMD_ZERO`: zeroes counters.
    Zero,
    /// `IPVS_CMD_FLUSH`: deletes every service.
    Flush,
    /// A command that this crate does not know.
    Other(u8),
}

impl IpvsCommand {
    /// The number in `struct genlmsghdr`.
    pub const fn number(self) -> u8 {
        match self {
            Self::NewService => IPVS_CMD_NEW_SERVICE,
            Self::SetService => IPVS_CMD_SET_SERVICE,
            Self::DelService => IPVS_CMD_DEL_SERVICE,
            Self::GetService => IPVS_CMD_GET_SERVICE,
            Self::NewDestination => IPVS_CMD_NEW_DEST,
            Self::SetDestination => IPVS_CMD_SET_DEST,
            Self::DelDestination => IPVS_CMD_DEL_DEST,
            Self::GetDestination => IPVS_CMD_GET_DEST,
            Self::NewDaemon => IPVS_CMD_NEW_DAEMON,
            Self::DelDaemon => IPVS_CMD_DEL_DAEMON,
            Self::GetDaemon => IPVS_CMD_GET_DAEMON,
            Self::SetConfig => IPVS_CMD_SET_CONFIG,
            Self::GetConfig => IPVS_CMD_GET_CONFIG,
            Self::SetInfo => IPVS_CMD_SET_INFO,
            Self::GetInfo => IPVS_CMD_GET_INFO,
            Self::Zero => IPVS_CMD_ZERO,
            Self::Flush => IPVS_CMD_FLUSH,
            Self::Other(number) => number,
        }
    }

    /// The command with a number.
    pub const fn from_number(number: u8) -> Self {
        match number {
            IPVS_CMD_NEW_SERVICE => Self::NewService,
            IPVS_CMD_SET_SERVICE => Self::SetService,
            IPVS_CMD_DEL_SERVICE => Self::DelService,
            IPVS_CMD_GET_SERVICE => Self::GetService,
            IPVS_CMD_NEW_DEST => Self::NewDestination,
            IPVS_CMD_SET_DEST => Self::SetDestination,
            IPVS_CMD_DEL_DEST => Self::DelDestination,
            IPVS_CMD_GET_DEST => Self::GetDestination,
            IPVS_CMD_NEW_DAEMON => Self::NewDaemon,
            IPVS_CMD_DEL_DAEMON => Self::DelDaemon,
            IPVS_CMD_GET_DAEMON => Self::GetDaemon,
            IPVS_CMD_SET_CONFIG => Self::SetConfig,
            IPVS_CMD_GET_CONFIG => Self::GetConfig,
            IPVS_CMD_SET_INFO => Self::SetInfo,
            IPVS_CMD_GET_INFO => Self::GetInfo,
            IPVS_CMD_ZERO => Self::Zero,
            IPVS_CMD_FLUSH => Self::Flush,
            number => Self::Other(number),
        }
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
    /// `IPVS_CMD_ATTR_DAEMON`: a sync daemon, not decoded.
    Daemon(Unknown),
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
            (_, IPVS_CMD_ATTR_SERVICE) => Self::Service(ServiceAttribute::read_list(raw)?),
            (_, IPVS_CMD_ATTR_DEST) => Self::Destination(DestinationAttribute::read_list(raw)?),
            (_, IPVS_CMD_ATTR_DAEMON) => Self::Daemon(raw.to_unknown()),
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
            Self::Service(attributes) => writer.nested(IPVS_CMD_ATTR_SERVICE, |inner| {
                for attribute in attributes {
                    attribute.write(inner);
                }
            }),
            Self::Destination(attributes) => writer.nested(IPVS_CMD_ATTR_DEST, |inner| {
                for attribute in attributes {
                    attribute.write(inner);
                }
            }),
            Self::TimeoutTcp(value) => writer.u32(IPVS_CMD_ATTR_TIMEOUT_TCP, *value),
            Self::TimeoutTcpFin(value) => writer.u32(IPVS_CMD_ATTR_TIMEOUT_TCP_FIN, *value),
            Self::TimeoutUdp(value) => writer.u32(IPVS_CMD_ATTR_TIMEOUT_UDP, *value),
            Self::InfoVersion(value) => writer.u32(IPVS_INFO_ATTR_VERSION, *value),
            Self::InfoConnectionTableSize(value) => {
                writer.u32(IPVS_INFO_ATTR_CONN_TAB_SIZE, *value)
            }
            Self::Daemon(unknown) | Self::Other(unknown) => unknown.write(writer),
        };
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
        self.attributes
            .iter()
            .find_map(|attribute| match attribute {
                IpvsAttribute::Service(attributes) => Some(attributes.as_slice()),
                _ => None,
            })
    }

    /// The first nested destination.
    pub fn destination(&self) -> Option<&[DestinationAttribute]> {
        self.attributes
            .iter()
            .find_map(|attribute| match attribute {
                IpvsAttribute::Destination(attributes) => Some(attributes.as_slice()),
                _ => None,
            })
    }
}
