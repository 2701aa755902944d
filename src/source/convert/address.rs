// SPDX-License-Identifier: Apache-2.0
//! Addresses in objects: read as [`kpr_core::model::address`] does, and such that traffic can go there.

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

    #[test]
    fn leading_zeros_are_decimal() {
        assert_eq!(parse_ip("010.000.0.08").unwrap().to_string(), "10.0.0.8");
        assert_eq!(
            parse_cidr("010.1.2.3/08").unwrap().to_string(),
            "10.0.0.0/8"
        );
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_address() {
        assert_eq!(parse_ip("::ffff:1.2.3.4").unwrap().to_string(), "1.2.3.4");
        assert_eq!(
            parse_cidr("::ffff:10.1.2.3/104").unwrap().to_string(),
            "10.0.0.0/8"
        );
    }

    #[test]
    fn other_ipv6_addresses_are_canonical_text() {
        assert_eq!(parse_ip("FD00:0:0::01").unwrap().to_string(), "fd00::1");
        assert_eq!(parse_cidr("fd00::1/64").unwrap().to_string(), "fd00::/64");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "1.2.3",
            "1.2.3.4.5",
            "1.2.3.256",
            "+1.2.3.4",
            "1.2.3.-4",
            "1.2..4",
            " 1.2.3.4",
            "web",
            "fe80::1%eth0",
            "0x1.2.3.4",
            "1.2.3.4/32",
        ] {
            let refused = Err(AddressError::Address(text.to_owned()));
            assert_eq!(parse_ip(text), refused, "{text}");
        }
        for text in ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "::ffff:0.0.0.0"] {
            let refused = Err(AddressError::Unusable(text.to_owned()));
            assert_eq!(parse_ip(text), refused, "{text}");
        }
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for text in [
            "",
            "10.0.0.0",
            "10.0.0.0/33",
            "fd00::/129",
            "10.0.0.0/",
            "10.0.0.0/-1",
            "/8",
        ] {
            let refused = Err(AddressError::Range(text.to_owned()));
            assert_eq!(parse_cidr(text), refused, "{text}");
        }
    }
}
