// SPDX-License-Identifier: Apache-2.0
//! Addresses in objects: parsed by [`kpr_core::model::address`], and valid as destinations.

use std::net::IpAddr;

use ipnet::IpNet;

use kpr_core::model::address::{self, InvalidCidr};

/// The address of something that packets are sent to.
pub(super) fn parse_ip(text: &str) -> Result<IpAddr, String> {
    match address::parse_ip(text) {
        Err(_) => Err(format!("{text:?} is not an IP address")),
        Ok(address) if address.is_unspecified() || address.is_multicast() => Err(format!(
            "{text:?} is not an address that traffic can be sent to"
        )),
        Ok(address) => Ok(address),
    }
}

/// The range that a text in CIDR notation means.
pub(super) fn parse_cidr(text: &str) -> Result<IpNet, String> {
    address::parse_cidr(text).map_err(|InvalidCidr(text)| {
        format!("{text:?} is not an address range (address/prefix length)")
    })
}
