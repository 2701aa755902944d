// SPDX-License-Identifier: Apache-2.0
//! The answer to `IPVS_CMD_GET_INFO`.

use std::fmt;

use netlink_pipeline::attribute::DecodeError;
use netlink_pipeline::find_attribute;

use super::field::missing;
use super::message::IpvsAttribute;

/// What IPVS says about itself. `struct ip_vs_getinfo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Info {
    /// `IP_VS_VERSION_CODE`: one byte each for major, minor and patch. 1.2.1 since 2005.
    pub version: u32,
    /// Buckets of the connection table.
    pub connection_table_size: u32,
}

impl Info {
    /// Reads an answer.
    pub fn from_attributes(attributes: &[IpvsAttribute]) -> Result<Self, DecodeError> {
        let version = find_attribute!(attributes, IpvsAttribute::InfoVersion)
            .ok_or_else(|| missing("IPVS_INFO_ATTR_VERSION"))?;
        let size = find_attribute!(attributes, IpvsAttribute::InfoConnectionTableSize)
            .ok_or_else(|| missing("IPVS_INFO_ATTR_CONN_TAB_SIZE"))?;
        Ok(Self {
            version: *version,
            connection_table_size: *size,
        })
    }
}

impl fmt::Display for Info {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [_, major, minor, patch] = self.version.to_be_bytes();
        write!(
            f,
            "{major}.{minor}.{patch} (size={})",
            self.connection_table_size
        )
    }
}
