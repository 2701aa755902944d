// SPDX-License-Identifier: Apache-2.0
//! Between a set's description and the attributes that the kernel knows it by.

use super::constants as c;
use super::message::{Attribute, Message};
use super::set_attribute::SetAttribute;
use super::types::{HashType, SetInfo, SetName, SetShape, SetSpec, SetType};
use crate::IpFamily;
use netlink_pipeline::attribute::DecodeError;
use netlink_pipeline::find_attribute;

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
            timeout,
            ..
        } => timeout
            .map(SetAttribute::Timeout)
            .into_iter()
            .chain(skbinfo.then_some(SetAttribute::Flags(c::IPSET_FLAG_WITH_SKBINFO)))
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
pub(super) fn info(message: &Message) -> Result<Option<SetInfo>, DecodeError> {
    let missing = |attribute| DecodeError::Missing { attribute };
    let attributes = &message.attributes;
    let set_name =
        find_attribute!(attributes, Attribute::SetName).ok_or(missing("IPSET_ATTR_SETNAME"))?;
    let type_name =
        find_attribute!(attributes, Attribute::TypeName).ok_or(missing("IPSET_ATTR_TYPENAME"))?;
    let Ok(name) = SetName::new(set_name.as_str()) else {
        return Ok(None);
    };
    let revision =
        find_attribute!(attributes, Attribute::Revision).ok_or(missing("IPSET_ATTR_REVISION"))?;
    let family = find_attribute!(attributes, Attribute::Family).copied();
    let data = find_attribute!(attributes, Attribute::Data).map_or(&[][..], Vec::as_slice);
    Ok(Some(SetInfo {
        spec: shape(type_name, family, data).map(|shape| SetSpec {
            name: name.clone(),
            shape,
        }),
        name,
        revision: *revision,
        type_name: type_name.clone(),
        references: find_attribute!(data, SetAttribute::References)
            .copied()
            .unwrap_or(0),
        memsize: find_attribute!(data, SetAttribute::MemSize)
            .copied()
            .unwrap_or(0),
        elements: find_attribute!(data, SetAttribute::Elements).copied(),
    }))
}

/// The shape that a set's properties describe; `None` if it has a property that we never ask for.
fn shape(type_name: &str, family: Option<u8>, data: &[SetAttribute]) -> Option<SetShape> {
    let flags = find_attribute!(data, SetAttribute::Flags)
        .copied()
        .unwrap_or(0);
    let set_type = SetType::ALL
        .into_iter()
        .find(|set_type| set_type.as_str() == type_name)?;
    let timeout = find_attribute!(data, SetAttribute::Timeout).copied();
    let is_timed_bitmap = set_type == SetType::BitmapPort && timeout.is_some();
    let is_masked = find_attribute!(data, SetAttribute::NetMask).is_some();
    if flags & !c::IPSET_FLAG_WITH_SKBINFO != 0 || is_timed_bitmap || is_masked {
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
            hashsize: *find_attribute!(data, SetAttribute::HashSize)?,
            maxelem: *find_attribute!(data, SetAttribute::MaxElem)?,
            skbinfo: flags & c::IPSET_FLAG_WITH_SKBINFO != 0,
            timeout,
        })
    };
    match set_type {
        SetType::HashIp => hash(HashType::Ip),
        SetType::HashIpPort => hash(HashType::IpPort),
        SetType::HashIpPortIp => hash(HashType::IpPortIp),
        SetType::HashIpPortNet => hash(HashType::IpPortNet),
        SetType::BitmapPort => Some(SetShape::BitmapPort {
            first: *find_attribute!(data, SetAttribute::PortFrom)?,
            last: *find_attribute!(data, SetAttribute::PortTo)?,
        }),
    }
}
