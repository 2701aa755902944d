// SPDX-License-Identifier: Apache-2.0
//! Converts between the planner's sets and entries and the messages of [`ipset_netlink`].

use ipset_netlink::{
    Entry, HashType, InvalidSetName, SetEntry as WireEntry, SetName as WireName, SetShape,
    SetSpec as WireSpec, SkbMark,
};
use kpr_core::model::Protocol;
use kpr_core::plan::ipvs::mark::bits_of;
use kpr_core::plan::ipvs::set::{SetEntry, SetName, SetSpec, SetType};

use crate::dataplane::client_sets::wire_family;

pub(super) fn name(name: &SetName) -> Result<WireName, InvalidSetName> {
    WireName::new(name.as_str())
}

pub(super) fn spec(spec: &SetSpec) -> Result<WireSpec, InvalidSetName> {
    let name = name(&spec.name)?;
    let hash = |set_type| {
        let mut hash = WireSpec::hash(name.clone(), set_type, wire_family(spec.family));
        if let SetShape::Hash {
            maxelem, skbinfo, ..
        } = &mut hash.shape
        {
            *maxelem = spec.max_entries;
            *skbinfo = spec.set_type == SetType::HashIpPortMark;
        }
        hash
    };
    Ok(match spec.set_type {
        SetType::HashIp => hash(HashType::Ip),
        SetType::HashIpPort | SetType::HashIpPortMark => hash(HashType::IpPort),
        SetType::HashIpPortIp => hash(HashType::IpPortIp),
        SetType::HashIpPortNet => hash(HashType::IpPortNet),
        SetType::BitmapPort => WireSpec::bitmap_port(name),
    })
}

/// Type and size of an observed set, if it has one of our types.
pub(super) fn shape(spec: &WireSpec) -> Option<(SetType, u32)> {
    Some(match spec.shape {
        SetShape::Hash {
            set_type,
            maxelem,
            skbinfo,
            timeout: None,
            ..
        } => {
            let set_type = match set_type {
                HashType::Ip => SetType::HashIp,
                HashType::IpPort if skbinfo => SetType::HashIpPortMark,
                HashType::IpPort => SetType::HashIpPort,
                HashType::IpPortIp => SetType::HashIpPortIp,
                HashType::IpPortNet => SetType::HashIpPortNet,
                _ => return None,
            };
            (set_type, maxelem)
        }
        SetShape::BitmapPort { .. } => (SetType::BitmapPort, u32::from(u16::MAX) + 1),
        _ => return None,
    })
}

/// The kernel's entries for one of the planner's: the kernel does not accept a network of length 0,
/// which becomes two of length 1.
pub(super) fn entries(entry: &SetEntry) -> Vec<WireEntry> {
    let ip_port = |ip, protocol: Protocol, port| Entry::IpPort {
        ip,
        protocol: protocol.number(),
        port,
    };
    match *entry {
        SetEntry::Ip(ip) => vec![Entry::Ip(ip).into()],
        SetEntry::Port(port) => vec![Entry::Port(port).into()],
        SetEntry::IpPort(ip, protocol, port) => vec![ip_port(ip, protocol, port).into()],
        SetEntry::IpPortMark(ip, protocol, port, mark) => vec![WireEntry {
            entry: ip_port(ip, protocol, port),
            mark: Some(SkbMark {
                mark,
                mask: bits_of(mark),
            }),
            timeout: None,
        }],
        SetEntry::IpPortIp(ip, protocol, port, ip2) => vec![
            Entry::IpPortIp {
                ip,
                protocol: protocol.number(),
                port,
                ip2,
            }
            .into(),
        ],
        SetEntry::IpPortNet(ip, protocol, port, net) => {
            Entry::ip_port_net(ip, protocol.number(), port, net)
                .into_iter()
                .map(WireEntry::from)
                .collect()
        }
    }
}

/// An observed entry of a set of this type; `None` for one that we never create (another protocol).
pub(super) fn entry(set_type: SetType, observed: &WireEntry) -> Option<SetEntry> {
    Some(match observed.entry {
        Entry::Ip(ip) => SetEntry::Ip(ip),
        Entry::Port(port) => SetEntry::Port(port),
        Entry::IpPort { ip, protocol, port } => {
            let protocol = Protocol::from_number(protocol)?;
            if set_type == SetType::HashIpPortMark {
                // We set no other mask and always a mark, so this differs from every wanted entry.
                let ours = |mark: &SkbMark| mark.mask == bits_of(mark.mark);
                let mark = observed.mark.filter(ours);
                SetEntry::IpPortMark(ip, protocol, port, mark.map_or(0, |mark| mark.mark))
            } else {
                SetEntry::IpPort(ip, protocol, port)
            }
        }
        Entry::IpPortIp {
            ip,
            protocol,
            port,
            ip2,
        } => SetEntry::IpPortIp(ip, Protocol::from_number(protocol)?, port, ip2),
        Entry::IpPortNet {
            ip,
            protocol,
            port,
            net,
        } => SetEntry::IpPortNet(ip, Protocol::from_number(protocol)?, port, net),
        _ => return None,
    })
}
