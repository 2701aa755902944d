// SPDX-License-Identifier: Apache-2.0
//! PURE: requests of route netlink as bytes, and the answers.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{Emitable, NLM_F_CREATE, NLM_F_EXCL, NlasIterator, Parseable};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkHeader, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType, RouteVia,
};

use super::{Address, Link, Scope};
use kpr_core::model::net::IpFamily;
use netlink_pipeline::{Reply, Request};

// Message types of include/uapi/linux/rtnetlink.h.
pub(super) const RTM_NEWLINK: u16 = 16;
pub(super) const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
pub(super) const RTM_NEWADDR: u16 = 20;
pub(super) const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
pub(super) const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;

// Attributes of include/uapi/linux/if_link.h that are read without the crate, see `link_of`.
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_INFO_KIND: u16 = 1;

// Attributes of include/uapi/linux/if_addr.h and rtnetlink.h.
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RT_TABLE_LOCAL: u8 = 255;
const RTN_LOCAL: u8 = 2;

/// Bytes of `struct ifaddrmsg` and `struct rtmsg`.
const IFADDRMSG_LEN: usize = 8;
const RTMSG_LEN: usize = 12;

/// Bytes of `struct ifinfomsg`.
const IFINFOMSG_LEN: usize = 16;

/// A message of route netlink that cannot be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed {of}: {reason}")]
pub struct MalformedMessage {
    /// `link`, `address` or `route`.
    of: &'static str,
    reason: String,
}

fn malformed(of: &'static str) -> impl Fn(netlink_packet_core::DecodeError) -> MalformedMessage {
    move |error| MalformedMessage {
        of,
        reason: error.to_string(),
    }
}

fn request(kind: u16, flags: u16, message: &impl Emitable) -> Request {
    let mut payload = vec![0; message.buffer_len()];
    message.emit(&mut payload);
    Request {
        kind,
        flags,
        payload,
    }
}

/// Asks for one link by its name.
pub(super) fn find_link(name: &str) -> Request {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
    request(RTM_GETLINK, 0, &message)
}

/// Asks for one link by its index.
pub(super) fn link_at(index: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    request(RTM_GETLINK, 0, &message)
}

/// Creates a dummy link, which stays down.
pub(super) fn create_dummy(name: &str) -> Request {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Dummy)]),
    ];
    request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &message)
}

/// Gives a link an alias.
pub(super) fn set_alias(index: u32, alias: &str) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![LinkAttribute::IfAlias(alias.to_owned())];
    request(RTM_NEWLINK, 0, &message)
}

pub(super) fn delete_link(index: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    request(RTM_DELLINK, 0, &message)
}

/// Asks for the addresses of one link, or of all, and of one family, or of both. Kernels before
/// 4.20 ignore the link.
pub(super) fn list_addresses(link: Option<u32>, of: Option<IpFamily>) -> Request {
    let mut message = AddressMessage::default();
    message.header.index = link.unwrap_or(0);
    message.header.family = of.map_or(AddressFamily::Unspec, family);
    request(RTM_GETADDR, 0, &message)
}

/// Adds a host address. The kernel answers `EEXIST` to one that exists.
pub(super) fn add_address(link: u32, ip: IpAddr) -> Request {
    let mut message = host_address(link, ip);
    if ip.is_ipv6() {
        // No duplicate address detection: other nodes have the same address, as they should. No
        // prefix route: it would be one for the address itself on a link that leads nowhere.
        let flags = AddressFlags::Nodad | AddressFlags::Noprefixroute;
        message.attributes.push(AddressAttribute::Flags(flags));
    }
    request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &message)
}

pub(super) fn delete_address(link: u32, ip: IpAddr) -> Request {
    request(RTM_DELADDR, 0, &host_address(link, ip))
}

fn host_address(link: u32, ip: IpAddr) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(IpFamily::of(ip));
    message.header.prefix_len = IpFamily::of(ip).host_prefix_len();
    message.header.index = link;
    message.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
    message
}

/// Asks for the routes of the main table.
pub(super) fn list_routes(of: IpFamily) -> Request {
    list_table(of, RouteHeader::RT_TABLE_MAIN)
}

/// Asks for the routes of the table `local`, which deliver packets to this node.
pub(super) fn list_local_routes(of: IpFamily) -> Request {
    list_table(of, RT_TABLE_LOCAL)
}

fn list_table(of: IpFamily, table: u8) -> Request {
    let mut message = RouteMessage::default();
    message.header.address_family = family(of);
    message.attributes = vec![RouteAttribute::Table(u32::from(table))];
    request(RTM_GETROUTE, 0, &message)
}

const fn family(family: IpFamily) -> AddressFamily {
    match family {
        IpFamily::V4 => AddressFamily::Inet,
        IpFamily::V6 => AddressFamily::Inet6,
    }
}

/// Decodes a link; `None` for another message.
///
/// Name and kind are read without the crate: a link has dozens of attributes, and one that the
/// crate cannot decode, of some unrelated driver, must not hide the link.
pub(super) fn link_of(reply: &Reply) -> Result<Option<Link>, MalformedMessage> {
    if reply.kind != RTM_NEWLINK {
        return Ok(None);
    }
    let header = LinkHeader::parse(&reply.payload).map_err(malformed("link"))?;
    let attributes = reply.payload.get(IFINFOMSG_LEN..).unwrap_or_default();
    let name = attribute(attributes, IFLA_IFNAME)
        .map(text)
        .ok_or_else(|| malformed("link")("it has no name".into()))?;
    let kind = attribute(attributes, IFLA_LINKINFO)
        .and_then(|info| attribute(info, IFLA_INFO_KIND))
        .map(text);
    Ok(Some(Link {
        index: header.index,
        name,
        kind,
        is_up: header.flags.contains(LinkFlags::Up),
        alias: attribute(attributes, IFLA_IFALIAS).map(text),
    }))
}

/// The value of the first attribute of a kind.
fn attribute(list: &[u8], kind: u16) -> Option<&[u8]> {
    NlasIterator::new(list)
        .map_while(Result::ok)
        .find(|attribute| attribute.kind() == kind)
        .and_then(|attribute| {
            let length = usize::from(attribute.length());
            attribute.into_inner().get(4..length)
        })
}

fn text(bytes: &[u8]) -> String {
    let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(bytes).into_owned()
}

/// Decodes an address; `None` for another message or a family that is not IP.
pub(super) fn address_of(reply: &Reply) -> Result<Option<Address>, MalformedMessage> {
    if reply.kind != RTM_NEWADDR {
        return Ok(None);
    }
    let message = AddressMessage::parse(reply.payload.as_slice()).map_err(malformed("address"))?;
    if !matches!(
        message.header.family,
        AddressFamily::Inet | AddressFamily::Inet6
    ) {
        return Ok(None);
    }
    let mut local = None;
    let mut address = None;
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    for attribute in message.attributes {
        match attribute {
            // On a point-to-point link this is ours and IFA_ADDRESS the peer's.
            AddressAttribute::Local(ip) => local = Some(ip),
            AddressAttribute::Address(ip) => address = Some(ip),
            AddressAttribute::Flags(all) => flags = all,
            _ => {}
        }
    }
    let ip = local
        .or(address)
        .ok_or_else(|| malformed("address")("it has no address".into()))?;
    Ok(Some(Address {
        ip,
        prefix_len: message.header.prefix_len,
        link: message.header.index,
        scope: match message.header.scope {
            AddressScope::Link => Scope::Link,
            AddressScope::Host | AddressScope::Nowhere => Scope::Host,
            _ => Scope::Global,
        },
        is_tentative: flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed),
    }))
}

/// The gateways of a route, if it is a default route of the main table; none for another message.
pub(super) fn gateways_of(reply: &Reply) -> Result<Vec<IpAddr>, MalformedMessage> {
    if reply.kind != RTM_NEWROUTE {
        return Ok(Vec::new());
    }
    // The header first: only default routes need to be decoded.
    let header = RouteHeader::parse(&reply.payload).map_err(malformed("route"))?;
    if header.destination_prefix_length != 0
        || header.kind != RouteType::Unicast
        || header.table != RouteHeader::RT_TABLE_MAIN
    {
        return Ok(Vec::new());
    }
    let message = RouteMessage::parse(reply.payload.as_slice()).map_err(malformed("route"))?;
    let mut gateways = Vec::from_iter(gateway(&message.attributes));
    for attribute in &message.attributes {
        if let RouteAttribute::MultiPath(hops) = attribute {
            gateways.extend(hops.iter().filter_map(|hop| gateway(&hop.attributes)));
        }
    }
    Ok(gateways)
}

/// The destination of a route that delivers packets to this node; `None` for another route or
/// message. There may be many thousands, so only what is needed is read.
pub(super) fn local_route_of(kind: u16, payload: &[u8]) -> Option<IpNet> {
    if !matches!(kind, RTM_NEWROUTE | RTM_DELROUTE) {
        return None;
    }
    // struct rtmsg of include/uapi/linux/rtnetlink.h.
    let [_, prefix_len, _, _, table, _, _, route_type, ..] = *payload.first_chunk::<RTMSG_LEN>()?;
    if table != RT_TABLE_LOCAL || route_type != RTN_LOCAL {
        return None;
    }
    let address = ip(attribute(payload.get(RTMSG_LEN..)?, RTA_DST)?)?;
    IpNet::new(address, prefix_len).ok()
}

/// The address that a link lost; `None` for another message.
pub(super) fn deleted_address_of(kind: u16, payload: &[u8]) -> Option<IpAddr> {
    let attributes = payload.get(IFADDRMSG_LEN..)?;
    let value = attribute(attributes, IFA_LOCAL).or_else(|| attribute(attributes, IFA_ADDRESS));
    (kind == RTM_DELADDR).then(|| value.and_then(ip)).flatten()
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    }
}

fn gateway(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(ip))
        | RouteAttribute::Via(RouteVia::Inet(ip)) => Some(IpAddr::V4(*ip)),
        RouteAttribute::Gateway(RouteAddress::Inet6(ip))
        | RouteAttribute::Via(RouteVia::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    })
}
