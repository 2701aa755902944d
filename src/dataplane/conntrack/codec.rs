// SPDX-License-Identifier: Apache-2.0
//! PURE: requests about flows as bytes, and the answers.
//!
//! `netlink-packet-netfilter` has headers and tuples. It lacks filters, flow ids and zones, which
//! are encoded here.

use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::{Emitable, NlasIterator, Parseable};
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol, Tuple,
};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};

use kpr_core::model::IpFamily;
use netlink_pipeline::Request;
use netlink_pipeline::attribute::{AttributeTooLong, Writer};

/// `NFNL_SUBSYS_CTNETLINK` of include/uapi/linux/netfilter/nfnetlink.h.
const NFNL_SUBSYS_CTNETLINK: u8 = 1;

// Messages and attributes of include/uapi/linux/netfilter/nfnetlink_conntrack.h.
pub(super) const IPCTNL_MSG_CT_NEW: u8 = 0;
const IPCTNL_MSG_CT_GET: u8 = 1;
const IPCTNL_MSG_CT_DELETE: u8 = 2;
const IPCTNL_MSG_CT_GET_STATS: u8 = 5;
pub(super) const CTA_TUPLE_ORIG: u16 = 1;
pub(super) const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;

// Which parts of `CTA_TUPLE_ORIG` a flow must match. Of net/netfilter/nf_internals.h; no UAPI
// header has them.
const CTA_FILTER_F_CTA_IP_SRC: u32 = 1 << 0;
const CTA_FILTER_F_CTA_IP_DST: u32 = 1 << 1;
const CTA_FILTER_F_CTA_PROTO_NUM: u32 = 1 << 3;
const CTA_FILTER_F_CTA_PROTO_DST_PORT: u32 = 1 << 5;

/// Bytes of `struct nfgenmsg`.
pub(super) const NFGENMSG_LEN: usize = 4;

/// Bytes that describe no flow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed flow entry: {reason}")]
pub struct MalformedEntry {
    reason: String,
}

fn malformed(reason: &dyn std::fmt::Display) -> MalformedEntry {
    MalformedEntry {
        reason: reason.to_string(),
    }
}

/// Which UDP flows to list: all, or those with a destination before any translation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EntryFilter {
    pub address: Option<IpAddr>,
    pub port: Option<u16>,
}

impl EntryFilter {
    /// What of it the kernel is asked for. Its filters of IPv6 addresses list all other addresses
    /// (`findings/conntrack-ipv6-filter-inverted.sh`), so only the port is left of them.
    pub(super) fn asked(&self, family: IpFamily) -> Self {
        Self {
            address: self.address.filter(|_| family == IpFamily::V4),
            ..*self
        }
    }

    pub(super) fn matches(&self, entry: &Entry) -> bool {
        self.address.is_none_or(|ip| entry.destination.ip() == ip)
            && self
                .port
                .is_none_or(|port| entry.destination.port() == port)
    }
}

/// A UDP flow of the connection tracking table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The destination of the original direction.
    pub destination: SocketAddr,
    /// The source of the reply direction.
    pub reply_source: SocketAddr,
    original: Vec<Tuple>,
    /// Tells apart flows that reuse the same addresses and ports.
    id: Option<u32>,
    /// Flows in different zones may have the same addresses and ports.
    zone: Option<u16>,
}

pub(super) const fn kind(message: u8) -> u16 {
    u16::from_be_bytes([NFNL_SUBSYS_CTNETLINK, message])
}

const fn family_of(family: IpFamily) -> NetfilterProtoFamily {
    match family {
        IpFamily::V4 => NetfilterProtoFamily::IPv4,
        IpFamily::V6 => NetfilterProtoFamily::IPv6,
    }
}

/// A request, with attributes behind those that the crate knows.
fn request(
    family: NetfilterProtoFamily,
    command: u8,
    message: ConntrackMessage,
    more: impl FnOnce(&mut Writer),
) -> Result<Request, AttributeTooLong> {
    let message = NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message);
    let mut begin = vec![0; Emitable::buffer_len(&message)];
    message.emit(&mut begin);
    let mut writer = Writer::after(&begin);
    more(&mut writer);
    Ok(Request {
        kind: kind(command),
        flags: 0,
        payload: writer.finish()?,
    })
}

/// Asks how many flows there are. Loads what the kernel needs for all other questions.
pub(super) fn count() -> Result<Request, AttributeTooLong> {
    let message = ConntrackMessage::Get(Vec::new());
    let family = NetfilterProtoFamily::Unspec;
    request(family, IPCTNL_MSG_CT_GET_STATS, message, |_| {})
}

/// Asks for UDP flows. Kernels before 5.8 ignore the filter and list every flow of the family.
pub(super) fn list(family: IpFamily, filter: &EntryFilter) -> Result<Request, AttributeTooLong> {
    list_of(family, Protocol::Udp, None, filter)
}

/// The same for any protocol, and of one client if it is given.
pub(super) fn list_of(
    family: IpFamily,
    protocol: Protocol,
    client: Option<IpAddr>,
    filter: &EntryFilter,
) -> Result<Request, AttributeTooLong> {
    let filter = filter.asked(family);
    let mut flags = CTA_FILTER_F_CTA_PROTO_NUM;
    let mut tuple = Vec::new();
    let mut addresses = Vec::new();
    if let Some(client) = client.filter(|_| family == IpFamily::V4) {
        flags |= CTA_FILTER_F_CTA_IP_SRC;
        addresses.push(IPTuple::SourceAddress(client));
    }
    if let Some(address) = filter.address {
        flags |= CTA_FILTER_F_CTA_IP_DST;
        addresses.push(IPTuple::DestinationAddress(address));
    }
    if !addresses.is_empty() {
        tuple.push(Tuple::Ip(addresses));
    }
    let mut protocol = vec![ProtoTuple::Protocol(protocol)];
    if let Some(port) = filter.port {
        flags |= CTA_FILTER_F_CTA_PROTO_DST_PORT;
        protocol.push(ProtoTuple::DestinationPort(port));
    }
    tuple.push(Tuple::Proto(protocol));
    let message = ConntrackMessage::Get(vec![ConntrackAttribute::CtaTupleOrig(tuple)]);
    request(family_of(family), IPCTNL_MSG_CT_GET, message, |more| {
        more.nested(CTA_FILTER, |filter| {
            filter.u32(CTA_FILTER_ORIG_FLAGS, flags);
        });
    })
}

/// Deletes one flow, unless another one has taken its place.
pub(super) fn delete(family: IpFamily, entry: &Entry) -> Result<Request, AttributeTooLong> {
    let tuple = ConntrackAttribute::CtaTupleOrig(entry.original.clone());
    let message = ConntrackMessage::Delete(vec![tuple]);
    request(family_of(family), IPCTNL_MSG_CT_DELETE, message, |more| {
        if let Some(id) = entry.id {
            more.u32_be(CTA_ID, id);
        }
        if let Some(zone) = entry.zone {
            more.u16_be(CTA_ZONE, zone);
        }
    })
}

/// Reads an answer of [`list`]; `None` for one that is not about a UDP flow.
pub(super) fn entry_of(message: u16, payload: &[u8]) -> Result<Option<Entry>, MalformedEntry> {
    if message != kind(IPCTNL_MSG_CT_NEW) {
        return Ok(None);
    }
    let attributes = payload
        .get(NFGENMSG_LEN..)
        .ok_or_else(|| malformed(&"it is shorter than its header"))?;
    let (mut original, mut reply, mut id, mut zone) = (Vec::new(), Vec::new(), None, None);
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute.map_err(|error| malformed(&error))?;
        match attribute.kind() {
            CTA_TUPLE_ORIG | CTA_TUPLE_REPLY => {
                match ConntrackAttribute::parse(&attribute).map_err(|error| malformed(&error))? {
                    ConntrackAttribute::CtaTupleOrig(tuple) => original = tuple,
                    ConntrackAttribute::CtaTupleReply(tuple) => reply = tuple,
                    _ => {}
                }
            }
            CTA_ID => id = attribute.value().try_into().ok().map(u32::from_be_bytes),
            CTA_ZONE => zone = attribute.value().try_into().ok().map(u16::from_be_bytes),
            _ => {}
        }
    }
    let (Some((destination, _)), Some((_, reply_source))) = (ends(&original), ends(&reply)) else {
        return Ok(None);
    };
    Ok(Some(Entry {
        destination,
        reply_source,
        original,
        id,
        zone,
    }))
}

/// Destination and source of a direction, if its protocol is UDP.
fn ends(tuple: &[Tuple]) -> Option<(SocketAddr, SocketAddr)> {
    let (mut to, mut from) = (None, None);
    let (mut to_port, mut from_port) = (None, None);
    let mut is_udp = false;
    for part in tuple {
        match part {
            Tuple::Ip(addresses) => {
                for address in addresses {
                    match address {
                        IPTuple::DestinationAddress(address) => to = Some(*address),
                        IPTuple::SourceAddress(address) => from = Some(*address),
                        _ => {}
                    }
                }
            }
            Tuple::Proto(parts) => {
                for part in parts {
                    match part {
                        ProtoTuple::Protocol(protocol) => is_udp = *protocol == Protocol::Udp,
                        ProtoTuple::DestinationPort(port) => to_port = Some(*port),
                        ProtoTuple::SourcePort(port) => from_port = Some(*port),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    is_udp.then_some(())?;
    Some((
        SocketAddr::new(to?, to_port?),
        SocketAddr::new(from?, from_port?),
    ))
}
