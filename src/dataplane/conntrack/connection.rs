// SPDX-License-Identifier: Apache-2.0
//! PURE: connections as people ask for them, of any protocol that Services have.

use std::net::{IpAddr, SocketAddr};

use netlink_packet_netfilter::conntrack::Protocol as Number;

use super::codec::{self, CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, EntryFilter, NFGENMSG_LEN};
use kpr_core::model::{IpFamily, Protocol};
use netlink_pipeline::Request;
use netlink_pipeline::attribute::{self, Attribute, AttributeTooLong, DecodeError};

// Attributes of include/uapi/linux/netfilter/nfnetlink_conntrack.h.
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_TIMEOUT: u16 = 7;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_SCTP: u16 = 3;
/// Of either.
const CTA_PROTOINFO_STATE: u16 = 1;

/// `IPS_SEEN_REPLY` of `nf_conntrack_common.h`.
const IPS_SEEN_REPLY: u32 = 1 << 1;

/// `enum tcp_conntrack`, as `conntrack` prints them.
const TCP_STATES: [&str; 10] = [
    "NONE",
    "SYN_SENT",
    "SYN_RECV",
    "ESTABLISHED",
    "FIN_WAIT",
    "CLOSE_WAIT",
    "LAST_ACK",
    "TIME_WAIT",
    "CLOSE",
    "SYN_SENT2",
];
/// `enum sctp_conntrack`.
const SCTP_STATES: [&str; 9] = [
    "NONE",
    "CLOSED",
    "COOKIE_WAIT",
    "COOKIE_ECHOED",
    "ESTABLISHED",
    "SHUTDOWN_SENT",
    "SHUTDOWN_RECD",
    "SHUTDOWN_ACK_SENT",
    "HEARTBEAT_SENT",
];

/// Which connections are asked for: those to a place, before any translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub destination: SocketAddr,
    pub protocol: Protocol,
    /// Of this client only.
    pub client: Option<IpAddr>,
}

impl Wanted {
    pub(super) fn request(&self) -> Result<Request, AttributeTooLong> {
        let number = match self.protocol {
            Protocol::Tcp => Number::Tcp,
            Protocol::Udp => Number::Udp,
            Protocol::Sctp => Number::Sctp,
        };
        let filter = EntryFilter {
            address: Some(self.destination.ip()),
            port: Some(self.destination.port()),
        };
        let family = IpFamily::of(self.destination.ip());
        codec::list_of(family, number, self.client, &filter)
    }

    pub(super) fn matches(&self, connection: &Connection) -> bool {
        connection.protocol == self.protocol
            && connection.destination == self.destination
            && self.client.is_none_or(|ip| connection.client.ip() == ip)
    }
}

/// A connection of the connection tracking table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    pub protocol: Protocol,
    pub client: SocketAddr,
    /// Where the client sends to.
    pub destination: SocketAddr,
    /// Who answers: the source of the reply direction.
    pub answerer: SocketAddr,
    /// Where that sends its answers to: the client, or the address that masquerades it.
    pub reply_to: SocketAddr,
    /// Of TCP and SCTP, in the kernel's words.
    pub state: Option<&'static str>,
    /// Whether an answer was seen.
    pub is_answered: bool,
    pub seconds_left: Option<u32>,
    /// Not the default one.
    pub zone: Option<u16>,
}

/// Reads an answer; `None` for one that is not about a connection of such a protocol.
pub(super) fn read(message: u16, payload: &[u8]) -> Result<Option<Connection>, DecodeError> {
    if message != codec::kind(codec::IPCTNL_MSG_CT_NEW) {
        return Ok(None);
    }
    let attributes = payload.get(NFGENMSG_LEN..).ok_or(DecodeError::Short)?;
    let (mut original, mut reply) = (None, None);
    let (mut states, mut flags) = ((None, None), 0);
    let (mut seconds_left, mut zone) = (None, None);
    for attribute in attribute::list(attributes) {
        let attribute = attribute?;
        match attribute.kind() {
            CTA_TUPLE_ORIG => original = ends(&attribute)?,
            CTA_TUPLE_REPLY => reply = ends(&attribute)?,
            CTA_STATUS => flags = attribute.u32_be("CTA_STATUS")?,
            CTA_PROTOINFO => states = state(&attribute)?,
            CTA_TIMEOUT => seconds_left = Some(attribute.u32_be("CTA_TIMEOUT")?),
            CTA_ZONE => zone = Some(attribute.u16_be("CTA_ZONE")?),
            _ => {}
        }
    }
    let (Some(original), Some(reply)) = (original, reply) else {
        return Ok(None);
    };
    let named = |names: &[&'static str], number: Option<u8>| {
        number.and_then(|number| names.get(usize::from(number)).copied())
    };
    Ok(Some(Connection {
        protocol: original.protocol,
        client: original.from,
        destination: original.to,
        answerer: reply.from,
        reply_to: reply.to,
        state: named(&TCP_STATES, states.0).or_else(|| named(&SCTP_STATES, states.1)),
        is_answered: flags & IPS_SEEN_REPLY != 0,
        seconds_left,
        zone,
    }))
}

/// The two ends of a direction.
struct Ends {
    protocol: Protocol,
    from: SocketAddr,
    to: SocketAddr,
}

fn ends(tuple: &Attribute<'_>) -> Result<Option<Ends>, DecodeError> {
    let (mut from, mut to) = (None, None);
    let (mut number, mut from_port, mut to_port) = (None, None, None);
    for part in attribute::list(tuple.value()) {
        let part = part?;
        match part.kind() {
            CTA_TUPLE_IP => {
                for address in attribute::list(part.value()) {
                    let address = address?;
                    match address.kind() {
                        CTA_IP_V4_SRC | CTA_IP_V6_SRC => from = Some(ip(&address)?),
                        CTA_IP_V4_DST | CTA_IP_V6_DST => to = Some(ip(&address)?),
                        _ => {}
                    }
                }
            }
            CTA_TUPLE_PROTO => {
                for part in attribute::list(part.value()) {
                    let part = part?;
                    match part.kind() {
                        CTA_PROTO_NUM => number = Some(part.u8("CTA_PROTO_NUM")?),
                        CTA_PROTO_SRC_PORT => {
                            from_port = Some(part.u16_be("CTA_PROTO_SRC_PORT")?);
                        }
                        CTA_PROTO_DST_PORT => to_port = Some(part.u16_be("CTA_PROTO_DST_PORT")?),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let protocol = match number.map(i32::from) {
        Some(libc::IPPROTO_TCP) => Protocol::Tcp,
        Some(libc::IPPROTO_UDP) => Protocol::Udp,
        Some(libc::IPPROTO_SCTP) => Protocol::Sctp,
        _ => return Ok(None),
    };
    let (Some(from), Some(from_port)) = (from, from_port) else {
        return Ok(None);
    };
    let (Some(to), Some(to_port)) = (to, to_port) else {
        return Ok(None);
    };
    Ok(Some(Ends {
        protocol,
        from: SocketAddr::new(from, from_port),
        to: SocketAddr::new(to, to_port),
    }))
}

fn ip(address: &Attribute<'_>) -> Result<IpAddr, DecodeError> {
    if address.value().len() == 4 {
        return address.array::<4>("CTA_IP_V4").map(Into::into);
    }
    address.array::<16>("CTA_IP_V6").map(Into::into)
}

/// The states of TCP and of SCTP.
fn state(info: &Attribute<'_>) -> Result<(Option<u8>, Option<u8>), DecodeError> {
    let mut states = (None, None);
    for protocol in attribute::list(info.value()) {
        let protocol = protocol?;
        let slot = match protocol.kind() {
            CTA_PROTOINFO_TCP => &mut states.0,
            CTA_PROTOINFO_SCTP => &mut states.1,
            _ => continue,
        };
        for part in attribute::list(protocol.value()) {
            let part = part?;
            if part.kind() == CTA_PROTOINFO_STATE {
                *slot = Some(part.u8("CTA_PROTOINFO_STATE")?);
            }
        }
    }
    Ok(states)
}
