// SPDX-License-Identifier: Apache-2.0
//! What is inside of one `IPSET_ATTR_DATA` of an `IPSET_ATTR_ADT` list: the parts of an entry.

use std::net::IpAddr;

use ipnet::IpNet;

use super::address::Nested;
use super::types::{Entry, SetEntry, SetType, SkbMark};
use netlink_pipeline::attribute::{Attribute, Codec, DecodeError, NetOrder, Plain, Writer};
use netlink_pipeline::find_attribute;

netlink_pipeline::attributes! {
    /// A part of an entry.
    pub enum EntryAttribute {
        /// `IPSET_ATTR_IP`: the first address.
        Ip(IpAddr) = 1 IPSET_ATTR_IP as Nested,
        /// `IPSET_ATTR_CIDR`: the first address's prefix length.
        Cidr(u8) = 3 IPSET_ATTR_CIDR,
        /// `IPSET_ATTR_PORT`
        Port(u16) = 4 IPSET_ATTR_PORT as NetOrder,
        /// `IPSET_ATTR_TIMEOUT`: seconds until it expires.
        Timeout(u32) = 6 IPSET_ATTR_TIMEOUT as NetOrder,
        /// `IPSET_ATTR_PROTO`: IP protocol number.
        Proto(u8) = 7 IPSET_ATTR_PROTO,
        /// `IPSET_ATTR_CADT_LINENO`: echoed by the kernel when it refuses this entry.
        LineNo(u32) = 9 IPSET_ATTR_CADT_LINENO as NetOrder,
        /// `IPSET_ATTR_IP2`: the second address.
        Ip2(IpAddr) = 20 IPSET_ATTR_IP2 as Nested,
        /// `IPSET_ATTR_CIDR2`: the second address's prefix length.
        Cidr2(u8) = 21 IPSET_ATTR_CIDR2,
        /// `IPSET_ATTR_SKBMARK`: mark in the upper half, mask in the lower.
        SkbMark(SkbMark) = 27 IPSET_ATTR_SKBMARK,
    }
}

impl Codec<SkbMark> for Plain {
    fn read(raw: &Attribute<'_>, name: &'static str) -> Result<SkbMark, DecodeError> {
        let [m0, m1, m2, m3, k0, k1, k2, k3] = raw.array(name)?;
        Ok(SkbMark {
            mark: u32::from_be_bytes([m0, m1, m2, m3]),
            mask: u32::from_be_bytes([k0, k1, k2, k3]),
        })
    }

    fn write(SkbMark { mark, mask }: &SkbMark, kind: u16, writer: &mut Writer) {
        writer.u64_net(kind, (u64::from(*mark) << 32) | u64::from(*mask));
    }
}

/// The attributes of an entry in the order in which `ipset` sends them.
pub(super) fn attributes_of(entry: &SetEntry, line: u32) -> Vec<EntryAttribute> {
    let mut attributes = Vec::with_capacity(8);
    match entry.entry {
        Entry::Ip(ip) => attributes.push(EntryAttribute::Ip(ip)),
        Entry::IpPort { ip, protocol, port } => {
            attributes.extend(ip_port(ip, protocol, port));
        }
        Entry::IpPortIp {
            ip,
            protocol,
            port,
            ip2,
        } => {
            attributes.extend(ip_port(ip, protocol, port));
            attributes.push(EntryAttribute::Ip2(ip2));
        }
        Entry::IpPortNet {
            ip,
            protocol,
            port,
            net,
        } => {
            attributes.extend(ip_port(ip, protocol, port));
            attributes.push(EntryAttribute::Ip2(net.addr()));
            attributes.push(EntryAttribute::Cidr2(net.prefix_len()));
        }
        Entry::Port(port) => attributes.push(EntryAttribute::Port(port)),
    }
    attributes.extend(entry.timeout.map(EntryAttribute::Timeout));
    attributes.extend(entry.mark.map(EntryAttribute::SkbMark));
    attributes.push(EntryAttribute::LineNo(line));
    attributes
}

fn ip_port(ip: IpAddr, protocol: u8, port: u16) -> [EntryAttribute; 3] {
    [
        EntryAttribute::Ip(ip),
        EntryAttribute::Port(port),
        EntryAttribute::Proto(protocol),
    ]
}

/// The entry of a set of `set_type` that has these attributes.
pub(super) fn entry_of(
    set_type: SetType,
    attributes: &[EntryAttribute],
) -> Result<SetEntry, DecodeError> {
    let ip = find_attribute!(attributes, EntryAttribute::Ip).copied();
    let port = find_attribute!(attributes, EntryAttribute::Port).copied();
    let protocol = find_attribute!(attributes, EntryAttribute::Proto).copied();
    let ip2 = find_attribute!(attributes, EntryAttribute::Ip2).copied();
    let cidr2 = find_attribute!(attributes, EntryAttribute::Cidr2).copied();
    let mark = find_attribute!(attributes, EntryAttribute::SkbMark).copied();
    let timeout = find_attribute!(attributes, EntryAttribute::Timeout).copied();
    let mark = mark.filter(|mark| *mark != SkbMark { mark: 0, mask: 0 });
    let ip_port = ip.zip(protocol).zip(port);
    let entry = match set_type {
        SetType::HashIp => ip.map(Entry::Ip),
        SetType::HashIpPort => {
            ip_port.map(|((ip, protocol), port)| Entry::IpPort { ip, protocol, port })
        }
        SetType::HashIpPortIp => {
            ip_port
                .zip(ip2)
                .map(|(((ip, protocol), port), ip2)| Entry::IpPortIp {
                    ip,
                    protocol,
                    port,
                    ip2,
                })
        }
        SetType::HashIpPortNet => ip_port.zip(ip2.and_then(|ip2| network(ip2, cidr2))).map(
            |(((ip, protocol), port), net)| Entry::IpPortNet {
                ip,
                protocol,
                port,
                net,
            },
        ),
        SetType::BitmapPort => port.map(Entry::Port),
    };
    match entry {
        Some(entry) => Ok(SetEntry {
            entry,
            mark,
            timeout,
        }),
        None => Err(DecodeError::Value {
            attribute: "IPSET_ATTR_DATA",
            reason: format!("no entry of a set of type {set_type}"),
        }),
    }
}

/// A network, of one host if no length is given.
fn network(address: IpAddr, length: Option<u8>) -> Option<IpNet> {
    match length {
        Some(length) => IpNet::new(address, length).ok().map(|net| net.trunc()),
        None => Some(IpNet::from(address)),
    }
}
