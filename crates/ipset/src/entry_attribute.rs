// SPDX-License-Identifier: Apache-2.0
//! What is inside of one `IPSET_ATTR_DATA` of an `IPSET_ATTR_ADT` list: the parts of an entry.

use std::net::IpAddr;

use ipnet::IpNet;

use super::constants::{
    IPSET_ATTR_CADT_LINENO, IPSET_ATTR_CIDR, IPSET_ATTR_CIDR2, IPSET_ATTR_IP, IPSET_ATTR_IP2,
    IPSET_ATTR_PORT, IPSET_ATTR_PROTO, IPSET_ATTR_SKBMARK,
};
use super::types::{Entry, SetEntry, SetType, SkbMark};
use super::value::{read_address, write_address};
use netlink_pipeline::attribute::{Attribute as Raw, DecodeError, Unknown, Writer};

/// A part of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EntryAttribute {
    /// `IPSET_ATTR_IP`: the first address.
    Ip(IpAddr),
    /// `IPSET_ATTR_CIDR`: the first address's prefix length.
    Cidr(u8),
    /// `IPSET_ATTR_PORT`
    Port(u16),
    /// `IPSET_ATTR_PROTO`: IP protocol number.
    Proto(u8),
    /// `IPSET_ATTR_CADT_LINENO`: echoed by the kernel when it refuses this entry.
    LineNo(u32),
    /// `IPSET_ATTR_IP2`: the second address.
    Ip2(IpAddr),
    /// `IPSET_ATTR_CIDR2`: the second address's prefix length.
    Cidr2(u8),
    /// `IPSET_ATTR_SKBMARK`: mark in the upper half, mask in the lower.
    SkbMark(SkbMark),
    /// An attribute that this crate does not know.
    Other(Unknown),
}

impl EntryAttribute {
    pub(super) fn write<'w>(&self, writer: &'w mut Writer) -> &'w mut Writer {
        match self {
            Self::Ip(address) => write_address(writer, IPSET_ATTR_IP, *address),
            Self::Ip2(address) => write_address(writer, IPSET_ATTR_IP2, *address),
            Self::Cidr(length) => writer.u8(IPSET_ATTR_CIDR, *length),
            Self::Cidr2(length) => writer.u8(IPSET_ATTR_CIDR2, *length),
            Self::Port(port) => writer.u16_net(IPSET_ATTR_PORT, *port),
            Self::Proto(protocol) => writer.u8(IPSET_ATTR_PROTO, *protocol),
            Self::LineNo(line) => writer.u32_net(IPSET_ATTR_CADT_LINENO, *line),
            Self::SkbMark(SkbMark { mark, mask }) => {
                let value = (u64::from(*mark) << 32) | u64::from(*mask);
                writer.u64_net(IPSET_ATTR_SKBMARK, value)
            }
            Self::Other(unknown) => unknown.write(writer),
        }
    }

    pub(super) fn read(raw: &Raw<'_>) -> Result<Self, DecodeError> {
        Ok(match raw.kind() {
            IPSET_ATTR_IP => Self::Ip(read_address(raw, "IPSET_ATTR_IP")?),
            IPSET_ATTR_IP2 => Self::Ip2(read_address(raw, "IPSET_ATTR_IP2")?),
            IPSET_ATTR_CIDR => Self::Cidr(raw.u8("IPSET_ATTR_CIDR")?),
            IPSET_ATTR_CIDR2 => Self::Cidr2(raw.u8("IPSET_ATTR_CIDR2")?),
            IPSET_ATTR_PORT => Self::Port(raw.u16_be("IPSET_ATTR_PORT")?),
            IPSET_ATTR_PROTO => Self::Proto(raw.u8("IPSET_ATTR_PROTO")?),
            IPSET_ATTR_CADT_LINENO => Self::LineNo(raw.u32_be("IPSET_ATTR_CADT_LINENO")?),
            IPSET_ATTR_SKBMARK => {
                let value = raw.u64_be("IPSET_ATTR_SKBMARK")?;
                let [m0, m1, m2, m3, k0, k1, k2, k3] = value.to_be_bytes();
                Self::SkbMark(SkbMark {
                    mark: u32::from_be_bytes([m0, m1, m2, m3]),
                    mask: u32::from_be_bytes([k0, k1, k2, k3]),
                })
            }
            _ => Self::Other(raw.to_unknown()),
        })
    }
}

/// The attributes of an entry in the order in which `ipset` sends them.
pub(super) fn attributes_of(entry: &SetEntry, line: u32) -> Vec<EntryAttribute> {
    let mut attributes = Vec::with_capacity(7);
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
    let mut ip = None;
    let mut port = None;
    let mut protocol = None;
    let mut ip2 = None;
    let mut cidr2 = None;
    let mut mark = None;
    for attribute in attributes {
        match attribute {
            EntryAttribute::Ip(value) => ip = Some(*value),
            EntryAttribute::Port(value) => port = Some(*value),
            EntryAttribute::Proto(value) => protocol = Some(*value),
            EntryAttribute::Ip2(value) => ip2 = Some(*value),
            EntryAttribute::Cidr2(value) => cidr2 = Some(*value),
            // Zeros: an entry of a set with `skbinfo` that was added without a mark.
            EntryAttribute::SkbMark(value) => {
                mark = Some(*value).filter(|mark| *mark != SkbMark { mark: 0, mask: 0 });
            }
            EntryAttribute::Cidr(_) | EntryAttribute::LineNo(_) | EntryAttribute::Other(_) => {}
        }
    }
    let entry = match set_type {
        SetType::HashIp => ip.map(Entry::Ip),
        SetType::HashIpPort => ip
            .zip(protocol)
            .zip(port)
            .map(|((ip, protocol), port)| Entry::IpPort { ip, protocol, port }),
        SetType::HashIpPortIp => {
            ip.zip(protocol)
                .zip(port)
                .zip(ip2)
                .map(|(((ip, protocol), port), ip2)| Entry::IpPortIp {
                    ip,
                    protocol,
                    port,
                    ip2,
                })
        }
        SetType::HashIpPortNet => ip
            .zip(protocol)
            .zip(port)
            .zip(ip2.and_then(|ip2| network(ip2, cidr2)))
            .map(|(((ip, protocol), port), net)| Entry::IpPortNet {
                ip,
                protocol,
                port,
                net,
            }),
        SetType::BitmapPort => port.map(Entry::Port),
    };
    match entry {
        Some(entry) => Ok(SetEntry { entry, mark }),
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
