// SPDX-License-Identifier: Apache-2.0
//! Between the planner's sets and entries and the messages of [`crate::dataplane::ipset`].

use crate::dataplane::ipset::{
    Entry, HashType, InvalidSetName, RefusalKind, SetName as WireName, SetShape,
    SetSpec as WireSpec,
};
use crate::model::Protocol;
use crate::plan::FailureKind;
use crate::plan::set::{SetEntry, SetName, SetSpec, SetType};

pub(super) fn name(name: &SetName) -> Result<WireName, InvalidSetName> {
    WireName::new(name.as_str())
}

pub(super) fn spec(spec: &SetSpec) -> Result<WireSpec, InvalidSetName> {
    let name = name(&spec.name)?;
    let hash = |set_type| {
        let mut hash = WireSpec::hash(name.clone(), set_type, spec.family);
        if let SetShape::Hash { maxelem, .. } = &mut hash.shape {
            *maxelem = spec.max_entries;
        }
        hash
    };
    Ok(match spec.set_type {
        SetType::HashIp => hash(HashType::Ip),
        SetType::HashIpPort => hash(HashType::IpPort),
        SetType::HashIpPortIp => hash(HashType::IpPortIp),
        SetType::HashIpPortNet => hash(HashType::IpPortNet),
        SetType::BitmapPort => WireSpec::bitmap_port(name),
    })
}

/// Type and size of an observed set, if its type is one of ours.
pub(super) fn shape(spec: &WireSpec) -> (SetType, u32) {
    match spec.shape {
        SetShape::Hash {
            set_type, maxelem, ..
        } => {
            let set_type = match set_type {
                HashType::Ip => SetType::HashIp,
                HashType::IpPort => SetType::HashIpPort,
                HashType::IpPortIp => SetType::HashIpPortIp,
                HashType::IpPortNet => SetType::HashIpPortNet,
            };
            (set_type, maxelem)
        }
        SetShape::BitmapPort { .. } => (SetType::BitmapPort, u32::from(u16::MAX) + 1),
    }
}

/// The entries for one of the planner's: the kernel does not take a network of length 0, which
/// is two of length 1.
pub(super) fn entries(entry: &SetEntry) -> Vec<Entry> {
    match *entry {
        SetEntry::Ip(ip) => vec![Entry::Ip(ip)],
        SetEntry::Port(port) => vec![Entry::Port(port)],
        SetEntry::IpPort(ip, protocol, port) => {
            vec![Entry::IpPort {
                ip,
                protocol: protocol.number(),
                port,
            }]
        }
        SetEntry::IpPortIp(ip, protocol, port, ip2) => {
            vec![Entry::IpPortIp {
                ip,
                protocol: protocol.number(),
                port,
                ip2,
            }]
        }
        SetEntry::IpPortNet(ip, protocol, port, net) => {
            Entry::ip_port_net(ip, protocol.number(), port, net)
        }
    }
}

/// An observed entry; `None` for one that we never make (another protocol).
pub(super) fn entry(entry: &Entry) -> Option<SetEntry> {
    Some(match *entry {
        Entry::Ip(ip) => SetEntry::Ip(ip),
        Entry::Port(port) => SetEntry::Port(port),
        Entry::IpPort { ip, protocol, port } => {
            SetEntry::IpPort(ip, Protocol::from_number(protocol)?, port)
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
    })
}

pub(super) const fn failure_kind(kind: RefusalKind) -> FailureKind {
    match kind {
        RefusalKind::NotFound => FailureKind::NotFound,
        RefusalKind::AlreadyExists => FailureKind::AlreadyExists,
        RefusalKind::Full => FailureKind::Full,
        RefusalKind::Busy => FailureKind::Busy,
        RefusalKind::UnknownType => FailureKind::Unsupported,
        RefusalKind::Permission => FailureKind::Permission,
        RefusalKind::OutOfRange
        | RefusalKind::TypeMismatch
        | RefusalKind::InvalidEntry
        | RefusalKind::NoRoom
        | RefusalKind::Other => FailureKind::Other,
    }
}
