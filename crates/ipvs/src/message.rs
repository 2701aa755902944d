// SPDX-License-Identifier: Apache-2.0
//! A command of the IPVS family and its attributes.

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, ErrorContext, NLA_F_NESTED, Nla, NlaBuffer, NlasIterator,
    Parseable, ParseableParametrized, parse_u32,
};
use netlink_packet_generic::{GenlFamily, GenlHeader};

use super::constants::{
    IPVS_CMD_ATTR_DAEMON, IPVS_CMD_ATTR_DEST, IPVS_CMD_ATTR_SERVICE, IPVS_CMD_ATTR_TIMEOUT_TCP,
    IPVS_CMD_ATTR_TIMEOUT_TCP_FIN, IPVS_CMD_ATTR_TIMEOUT_UDP, IPVS_CMD_DEL_DAEMON,
    IPVS_CMD_DEL_DEST, IPVS_CMD_DEL_SERVICE, IPVS_CMD_FLUSH, IPVS_CMD_GET_CONFIG,
    IPVS_CMD_GET_DAEMON, IPVS_CMD_GET_DEST, IPVS_CMD_GET_INFO, IPVS_CMD_GET_SERVICE,
    IPVS_CMD_NEW_DAEMON, IPVS_CMD_NEW_DEST, IPVS_CMD_NEW_SERVICE, IPVS_CMD_SET_CONFIG,
    IPVS_CMD_SET_DEST, IPVS_CMD_SET_INFO, IPVS_CMD_SET_SERVICE, IPVS_CMD_ZERO, IPVS_GENL_NAME,
    IPVS_GENL_VERSION, IPVS_INFO_ATTR_CONN_TAB_SIZE, IPVS_INFO_ATTR_VERSION,
};
use super::destination::{DestinationAttribute, parse_destination};
use super::field::put;
use super::service::{ServiceAttribute, parse_service};

/// Bytes of `struct genlmsghdr`.
pub(super) const GENL_HEADER_LEN: usize = 4;

/// A command. The kernel answers a GET with the NEW (services, destinations) or the SET (configuration,
/// information) of the same object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IpvsCommand {
    NewService,
    SetService,
    DelService,
    GetService,
    NewDestination,
    SetDestination,
    DelDestination,
    GetDestination,
    NewDaemon,
    DelDaemon,
    GetDaemon,
    SetConfig,
    GetConfig,
    SetInfo,
    GetInfo,
    Zero,
    Flush,
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

/// An attribute of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IpvsAttribute {
    Service(Vec<ServiceAttribute>),
    Destination(Vec<DestinationAttribute>),
    /// A sync daemon, not decoded.
    Daemon(DefaultNla),
    /// Seconds.
    TimeoutTcp(u32),
    /// Seconds.
    TimeoutTcpFin(u32),
    /// Seconds.
    TimeoutUdp(u32),
    /// `IPVS_INFO_ATTR_VERSION`, in `IPVS_CMD_SET_INFO` only.
    InfoVersion(u32),
    /// `IPVS_INFO_ATTR_CONN_TAB_SIZE`, in `IPVS_CMD_SET_INFO` only.
    InfoConnectionTableSize(u32),
    Other(DefaultNla),
}

impl IpvsAttribute {
    /// Attributes are numbered anew in `IPVS_CMD_SET_INFO`.
    fn parse(buffer: &NlaBuffer<&[u8]>, command: IpvsCommand) -> Result<Self, DecodeError> {
        let value = buffer.value();
        let number =
            |name: &'static str| parse_u32(value).with_context(|| format!("invalid {name} value"));
        Ok(match (command, buffer.kind()) {
            (IpvsCommand::SetInfo, IPVS_INFO_ATTR_VERSION) => {
                Self::InfoVersion(number("IPVS_INFO_ATTR_VERSION")?)
            }
            (IpvsCommand::SetInfo, IPVS_INFO_ATTR_CONN_TAB_SIZE) => {
                Self::InfoConnectionTableSize(number("IPVS_INFO_ATTR_CONN_TAB_SIZE")?)
            }
            (IpvsCommand::SetInfo, _) => Self::Other(DefaultNla::parse(buffer)?),
            (_, IPVS_CMD_ATTR_SERVICE) => Self::Service(parse_service(value)?),
            (_, IPVS_CMD_ATTR_DEST) => Self::Destination(parse_destination(value)?),
            (_, IPVS_CMD_ATTR_DAEMON) => Self::Daemon(DefaultNla::parse(buffer)?),
            (_, IPVS_CMD_ATTR_TIMEOUT_TCP) => {
                Self::TimeoutTcp(number("IPVS_CMD_ATTR_TIMEOUT_TCP")?)
            }
            (_, IPVS_CMD_ATTR_TIMEOUT_TCP_FIN) => {
                Self::TimeoutTcpFin(number("IPVS_CMD_ATTR_TIMEOUT_TCP_FIN")?)
            }
            (_, IPVS_CMD_ATTR_TIMEOUT_UDP) => {
                Self::TimeoutUdp(number("IPVS_CMD_ATTR_TIMEOUT_UDP")?)
            }
            _ => Self::Other(DefaultNla::parse(buffer)?),
        })
    }
}

impl Nla for IpvsAttribute {
    fn value_len(&self) -> usize {
        match self {
            Self::Service(attributes) => attributes.as_slice().buffer_len(),
            Self::Destination(attributes) => attributes.as_slice().buffer_len(),
            Self::TimeoutTcp(_)
            | Self::TimeoutTcpFin(_)
            | Self::TimeoutUdp(_)
            | Self::InfoVersion(_)
            | Self::InfoConnectionTableSize(_) => 4,
            Self::Daemon(other) | Self::Other(other) => other.value_len(),
        }
    }

    fn kind(&self) -> u16 {
        match self {
            Self::Service(_) => IPVS_CMD_ATTR_SERVICE | NLA_F_NESTED,
            Self::Destination(_) => IPVS_CMD_ATTR_DEST | NLA_F_NESTED,
            Self::TimeoutTcp(_) => IPVS_CMD_ATTR_TIMEOUT_TCP,
            Self::TimeoutTcpFin(_) => IPVS_CMD_ATTR_TIMEOUT_TCP_FIN,
            Self::TimeoutUdp(_) => IPVS_CMD_ATTR_TIMEOUT_UDP,
            Self::InfoVersion(_) => IPVS_INFO_ATTR_VERSION,
            Self::InfoConnectionTableSize(_) => IPVS_INFO_ATTR_CONN_TAB_SIZE,
            Self::Daemon(other) | Self::Other(other) => other.kind(),
        }
    }

    fn emit_value(&self, buffer: &mut [u8]) {
        match self {
            Self::Service(attributes) => attributes.as_slice().emit(buffer),
            Self::Destination(attributes) => attributes.as_slice().emit(buffer),
            Self::TimeoutTcp(value)
            | Self::TimeoutTcpFin(value)
            | Self::TimeoutUdp(value)
            | Self::InfoVersion(value)
            | Self::InfoConnectionTableSize(value) => put(buffer, &value.to_ne_bytes()),
            Self::Daemon(other) | Self::Other(other) => other.emit_value(buffer),
        }
    }
}

/// A message of the family, behind `struct genlmsghdr`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpvsMessage {
    pub command: IpvsCommand,
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

impl GenlFamily for IpvsMessage {
    fn family_name() -> &'static str {
        IPVS_GENL_NAME
    }

    fn command(&self) -> u8 {
        self.command.number()
    }

    fn version(&self) -> u8 {
        IPVS_GENL_VERSION
    }
}

impl Emitable for IpvsMessage {
    fn buffer_len(&self) -> usize {
        self.attributes.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.attributes.as_slice().emit(buffer);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for IpvsMessage {
    fn parse_with_param(buffer: &[u8], header: GenlHeader) -> Result<Self, DecodeError> {
        let command = IpvsCommand::from_number(header.cmd);
        let attributes = NlasIterator::new(buffer)
            .map(|attribute| {
                attribute.and_then(|attribute| IpvsAttribute::parse(&attribute, command))
            })
            .collect::<Result<_, _>>()
            .with_context(|| format!("invalid IPVS message {}", header.cmd))?;
        Ok(Self {
            command,
            attributes,
        })
    }
}

/// `struct genlmsghdr` and the attributes. Like `GenlMessage::from_payload`, which would want the
/// message by value.
pub(super) fn genl_payload<M: GenlFamily + Emitable>(message: &M) -> Vec<u8> {
    let mut payload = vec![0; GENL_HEADER_LEN + message.buffer_len()];
    if let Some((header, attributes)) = payload.split_first_chunk_mut::<GENL_HEADER_LEN>() {
        *header = [message.command(), message.version(), 0, 0];
        message.emit(attributes);
    }
    payload
}
