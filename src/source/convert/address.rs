// SPDX-License-Identifier: Apache-2.0
//! Addresses in objects: parsed by [`kpr_core::model::address`], and valid as destinations.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::shortened::quoted;
use kpr_core::model::address::{self, InvalidCidr};

/// An address that an object claims or a Node has. Whether it can be had is decided later, where
/// operators are told: see [`kpr_core::model::holders`].
pub(super) fn parse_ip(text: &str) -> Result<IpAddr, String> {
    match address::parse_ip(text) {
        Err(_) => Err(format!("{} is not an IP address", quoted(text))),
        Ok(address) if address.is_unspecified() => Err(format!(
            "{} is not an address that traffic can be sent to",
            quoted(text)
        )),
        Ok(address) => Ok(address),
    }
}

/// The address of an endpoint, or a cluster IP: a host's.
pub(super) fn parse_host(text: &str) -> Result<IpAddr, String> {
    let address = parse_ip(text)?;
    match address::unusable(address) {
        Some(what) => Err(format!(
            "{} is {what}, which no Service can send to",
            quoted(text)
        )),
        None => Ok(address),
    }
}

/// The range that a text in CIDR notation means.
pub(super) fn parse_cidr(text: &str) -> Result<IpNet, String> {
    address::parse_cidr(text).map_err(|InvalidCidr(text)| {
        let text = quoted(&text);
        format!("{text} is not an address range (address/prefix length)")
    })
}
