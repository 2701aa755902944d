// SPDX-License-Identifier: Apache-2.0
//! Addresses in objects: parsed by [`kpr_core::model::address`], and valid as destinations.

use std::net::IpAddr;

use ipnet::IpNet;

use kpr_core::model::address::{self, InvalidCidr};

/// Why a text is no usable address or range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum AddressError {
    #[error("{0:?} is not an IP address")]
    Address(String),
    #[error("{0:?} is not an address that traffic can be sent to")]
    Unusable(String),
    #[error("{0:?} is not an address range (address/prefix length)")]
    Range(String),
}

/// The address of something that packets are sent to.
pub(super) fn parse_ip(text: &str) -> Result<IpAddr, AddressError> {
    let Ok(address) = address::parse_ip(text) else {
        return Err(AddressError::Address(text.to_owned()));
    };
    if address.is_unspecified() || address.is_multicast() {
        return Err(AddressError::Unusable(text.to_owned()));
    }
    Ok(address)
}

/// A range with its host bits cleared.
pub(super) fn parse_cidr(text: &str) -> Result<IpNet, AddressError> {
    address::parse_cidr(text).map_err(|InvalidCidr(text)| AddressError::Range(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is an address or a range, `kpr_core::model::address` tests.
    #[test]
    fn refusals_say_why() {
        let refused = Err(AddressError::Address("1.2.3".to_owned()));
        assert_eq!(parse_ip("1.2.3"), refused);
        for text in ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "::ffff:0.0.0.0"] {
            let refused = Err(AddressError::Unusable(text.to_owned()));
            assert_eq!(parse_ip(text), refused, "{text}");
        }
        let refused = Err(AddressError::Range("10.0.0.0".to_owned()));
        assert_eq!(parse_cidr("10.0.0.0"), refused);
    }
}
