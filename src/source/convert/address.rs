// SPDX-License-Identifier: Apache-2.0
//! Addresses as Kubernetes reads them: leading zeros in IPv4 are decimal, and an IPv4-mapped IPv6
//! address is the IPv4 address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

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
    let address = parse(text).ok_or_else(|| AddressError::Address(text.to_owned()))?;
    if address.is_unspecified() || address.is_multicast() {
        return Err(AddressError::Unusable(text.to_owned()));
    }
    Ok(address)
}

/// A range with its host bits cleared.
pub(super) fn parse_cidr(text: &str) -> Result<IpNet, AddressError> {
    cidr(text).ok_or_else(|| AddressError::Range(text.to_owned()))
}

fn parse(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        text.parse::<Ipv6Addr>()
            .ok()
            .map(|ip| IpAddr::V6(ip).to_canonical())
    } else {
        parse_v4(text).map(IpAddr::V4)
    }
}

/// Four decimal numbers; as many leading zeros as one likes.
fn parse_v4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        *octet = decimal(parts.next()?)?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}

/// A number without sign.
fn decimal(text: &str) -> Option<u8> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

fn cidr(text: &str) -> Option<IpNet> {
    let (address, prefix) = text.split_once('/')?;
    let prefix = decimal(prefix)?;
    let net = if address.contains(':') {
        let address: Ipv6Addr = address.parse().ok()?;
        match address.to_ipv4_mapped() {
            Some(mapped) if prefix >= 96 => {
                IpNet::V4(Ipv4Net::new(mapped, prefix.checked_sub(96)?).ok()?)
            }
            _ => IpNet::V6(Ipv6Net::new(address, prefix).ok()?),
        }
    } else {
        IpNet::V4(Ipv4Net::new(parse_v4(address)?, prefix).ok()?)
    };
    Some(net.trunc())
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
