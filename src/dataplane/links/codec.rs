// SPDX-License-Identifier: Apache-2.0
//! PURE: requests of route netlink as bytes, answers as our types.

use std::net::IpAddr;

use netlink_packet_core::{Emitable, NLM_F_CREATE, NLM_F_EXCL, NlasIterator, Parseable};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkHeader, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType, RouteVia,
};

use super::{Address, Gateway, Link, Scope};
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
const RTM_GETROUTE: u16 = 26;

// Attributes of include/uapi/linux/if_link.h that are read without the crate, see `link_of`.
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;

/// Bytes of `struct ifinfomsg`.
const IFINFOMSG_LEN: usize = 16;

/// Bytes that are no answer of route netlink.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("malformed description of a link: {reason}")]
    Link { reason: String },
    #[error("malformed description of an address: {reason}")]
    Address { reason: String },
    #[error("malformed description of a route: {reason}")]
    Route { reason: String },
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
    message
        .attributes
        .push(LinkAttribute::IfName(name.to_owned()));
    request(RTM_GETLINK, 0, &message)
}

/// Asks for all links.
pub(super) fn list_links() -> Request {
    request(RTM_GETLINK, 0, &LinkMessage::default())
}

/// Makes a dummy link, which stays switched off.
pub(super) fn create_dummy(name: &str) -> Request {
    let mut message = LinkMessage::default();
    message
        .attributes
        .push(LinkAttribute::IfName(name.to_owned()));
    message
        .attributes
        .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(
            InfoKind::Dummy,
        )]));
    request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &message)
}

pub(super) fn delete_link(index: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    request(RTM_DELLINK, 0, &message)
}

/// Asks for the addresses of one link, or of all. Kernels before 4.20 do not know the filter and list all.
pub(super) fn list_addresses(link: Option<u32>) -> Request {
    let mut message = AddressMessage::default();
    message.header.index = link.unwrap_or(0);
    request(RTM_GETADDR, 0, &message)
}

/// Adds a host address. The kernel answers `EEXIST` to one that is there.
pub(super) fn add_address(link: u32, ip: IpAddr) -> Request {
    let mut message = host_address(link, ip);
    if ip.is_ipv6() {
        // No duplicate address detection: other nodes have the same address, and that is right. No route for the
        // prefix: it would be one for the address itself on a link that leads nowhere.
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
    let mut message = RouteMessage::default();
    message.header.address_family = family(of);
    message
        .attributes
        .push(RouteAttribute::Table(u32::from(RouteHeader::RT_TABLE_MAIN)));
    request(RTM_GETROUTE, 0, &message)
}

const fn family(family: IpFamily) -> AddressFamily {
    match family {
        IpFamily::V4 => AddressFamily::Inet,
        IpFamily::V6 => AddressFamily::Inet6,
    }
}

/// Reads a description of a link; `None` for another message.
///
/// Name and kind are taken from the bytes: a link has dozens of attributes, and one that the crate cannot read, of a
/// driver that has nothing to do with us, must not hide it.
pub(super) fn link_of(reply: &Reply) -> Result<Option<Link>, DecodeError> {
    if reply.kind != RTM_NEWLINK {
        return Ok(None);
    }
    let malformed = |reason: String| DecodeError::Link { reason };
    let header = LinkHeader::parse(&reply.payload).map_err(|error| malformed(error.to_string()))?;
    let attributes = reply.payload.get(IFINFOMSG_LEN..).unwrap_or_default();
    let name = attribute(attributes, IFLA_IFNAME)
        .map(text)
        .ok_or_else(|| malformed("it has no name".to_owned()))?;
    let kind = attribute(attributes, IFLA_LINKINFO)
        .and_then(|info| attribute(info, IFLA_INFO_KIND))
        .map(text);
    Ok(Some(Link {
        index: header.index,
        name,
        kind,
        is_up: header.flags.contains(LinkFlags::Up),
        is_loopback: header.flags.contains(LinkFlags::Loopback),
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

/// Reads a description of an address; `None` for another message or a family that is not IP.
pub(super) fn address_of(reply: &Reply) -> Result<Option<Address>, DecodeError> {
    if reply.kind != RTM_NEWADDR {
        return Ok(None);
    }
    let message =
        AddressMessage::parse(reply.payload.as_slice()).map_err(|error| DecodeError::Address {
            reason: error.to_string(),
        })?;
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
            // On a point-to-point link this one is ours and IFA_ADDRESS the peer's.
            AddressAttribute::Local(ip) => local = Some(ip),
            AddressAttribute::Address(ip) => address = Some(ip),
            AddressAttribute::Flags(all) => flags = all,
            _ => {}
        }
    }
    let ip = local.or(address).ok_or_else(|| DecodeError::Address {
        reason: "it has no address".to_owned(),
    })?;
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
pub(super) fn gateways_of(reply: &Reply) -> Result<Vec<Gateway>, DecodeError> {
    if reply.kind != RTM_NEWROUTE {
        return Ok(Vec::new());
    }
    let malformed = |reason: String| DecodeError::Route { reason };
    // The header alone first: only default routes need to be readable.
    let header =
        RouteHeader::parse(&reply.payload).map_err(|error| malformed(error.to_string()))?;
    if header.destination_prefix_length != 0
        || header.kind != RouteType::Unicast
        || header.table != RouteHeader::RT_TABLE_MAIN
    {
        return Ok(Vec::new());
    }
    let message = RouteMessage::parse(reply.payload.as_slice())
        .map_err(|error| malformed(error.to_string()))?;
    let mut gateways = Vec::new();
    let link = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        });
    gateways.extend(gateway(&message.attributes, link));
    for attribute in &message.attributes {
        if let RouteAttribute::MultiPath(hops) = attribute {
            gateways.extend(
                hops.iter()
                    .filter_map(|hop| gateway(&hop.attributes, Some(hop.interface_index))),
            );
        }
    }
    Ok(gateways)
}

fn gateway(attributes: &[RouteAttribute], link: Option<u32>) -> Option<Gateway> {
    let ip = attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(ip))
        | RouteAttribute::Via(RouteVia::Inet(ip)) => Some(IpAddr::V4(*ip)),
        RouteAttribute::Gateway(RouteAddress::Inet6(ip))
        | RouteAttribute::Via(RouteVia::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    })?;
    Some(Gateway { ip, link })
}
