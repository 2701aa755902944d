// SPDX-License-Identifier: Apache-2.0
//! Between a set's description and the attributes that the kernel knows it by.

use super::constants as c;
use super::message::{Attribute, Message};
use super::set_attribute::SetAttribute;
use super::types::{HashType, SetInfo, SetName, SetShape, SetSpec, SetType};
use crate::IpFamily;
use netlink_pipeline::attribute::DecodeError;

/// `NFPROTO_*` of `linux/netfilter.h`.
pub(super) const fn nfproto(family: Option<IpFamily>) -> u8 {
    match family {
        None => 0,
        Some(IpFamily::V4) => 2,
        Some(IpFamily::V6) => 10,
    }
}

/// `IPSET_ATTR_DATA` of a creation, in the order in which `ipset` sends it.
pub(super) fn properties(shape: SetShape) -> Vec<SetAttribute> {
    match shape {
        SetShape::Hash {
            hashsize,
            maxelem,
            skbinfo,
            ..
        } => skbinfo
            .then_some(SetAttribute::Flags(c::IPSET_FLAG_WITH_SKBINFO))
            .into_iter()
            .chain([
                SetAttribute::HashSize(hashsize),
                SetAttribute::MaxElem(maxelem),
            ])
            .collect(),
        SetShape::BitmapPort { first, last } => {
            vec![SetAttribute::PortFrom(first), SetAttribute::PortTo(last)]
        }
    }
}

/// What a listing says of a set; `None` for a set whose name is not text.
pub(super) fn info(message: Message) -> Result<Option<SetInfo>, DecodeError> {
    let mut set_name = None;
    let mut type_name = None;
    let mut revision = None;
    let mut family = None;
    let mut data = Vec::new();
    for attribute in message.attributes {
        match attribute {
            Attribute::SetName(value) => set_name = Some(value),
            Attribute::TypeName(value) => type_name = Some(value),
            Attribute::Revision(value) => revision = Some(value),
            Attribute::Family(value) => family = Some(value),
            Attribute::Data(value) => data = value,
            _ => {}
        }
    }
    let missing = |attribute| DecodeError::Missing { attribute };
    let set_name = set_name.ok_or(missing("IPSET_ATTR_SETNAME"))?;
    let type_name = type_name.ok_or(missing("IPSET_ATTR_TYPENAME"))?;
    let Ok(name) = SetName::new(set_name) else {
        return Ok(None);
    };
    let mut info = SetInfo {
        spec: None,
        name,
        revision: revision.ok_or(missing("IPSET_ATTR_REVISION"))?,
        type_name,
        references: 0,
        memsize: 0,
        elements: None,
    };
    for attribute in &data {
        match attribute {
            SetAttribute::References(value) => info.references = *value,
            SetAttribute::MemSize(value) => info.memsize = *value,
            SetAttribute::Elements(value) => info.elements = Some(*value),
            _ => {}
        }
    }
    info.spec = shape(&info.type_name, family, &data).map(|shape| SetSpec {
        name: info.name.clone(),
        shape,
    });
    Ok(Some(info))
}

/// The shape that a set's properties describe; `None` if it has a property that we never ask for.
fn shape(type_name: &str, family: Option<u8>, data: &[SetAttribute]) -> Option<SetShape> {
    let mut hash_size = None;
    let mut max_elem = None;
    let mut first_port = None;
    let mut last_port = None;
    let mut flags = 0;
    for attribute in data {
        match attribute {
            SetAttribute::HashSize(value) => hash_size = Some(*value),
            SetAttribute::MaxElem(value) => max_elem = Some(*value),
            SetAttribute::PortFrom(value) => first_port = Some(*value),
            SetAttribute::PortTo(value) => last_port = Some(*value),
            SetAttribute::Flags(value) => flags = *value,
            // Entries would vanish by themselves.
            SetAttribute::Timeout(_) => return None,
            SetAttribute::InitVal(_)
            | SetAttribute::BucketSize(_)
            | SetAttribute::Elements(_)
            | SetAttribute::References(_)
            | SetAttribute::MemSize(_)
            | SetAttribute::Other(_) => {}
        }
    }
    let set_type = SetType::ALL
        .into_iter()
        .find(|set_type| set_type.as_str() == type_name)?;
    if flags & !c::IPSET_FLAG_WITH_SKBINFO != 0 {
        return None;
    }
    let hash = |set_type| {
        Some(SetShape::Hash {
            set_type,
            family: match family {
                Some(2) => IpFamily::V4,
                Some(10) => IpFamily::V6,
                _ => return None,
            },
            hashsize: hash_size?,
            maxelem: max_elem?,
            skbinfo: flags & c::IPSET_FLAG_WITH_SKBINFO != 0,
        })
    };
    match set_type {
        SetType::HashIp => hash(HashType::Ip),
        SetType::HashIpPort => hash(HashType::IpPort),
        SetType::HashIpPortIp => hash(HashType::IpPortIp),
        SetType::HashIpPortNet => hash(HashType::IpPortNet),
        SetType::BitmapPort => Some(SetShape::BitmapPort {
            first: first_port?,
            last: last_port?,
        }),
    }
}
