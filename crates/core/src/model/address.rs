// SPDX-License-Identifier: Apache-2.0
//! Addresses and CIDRs as Kubernetes parses them: IPv4 octets may have leading zeros, which are
//! decimal.
//!
//! All text from the API or from a configuration file is parsed here, so that every part of the
//! proxy accepts the same spellings and prints the canonical one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Text that is not an IP address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a valid IP address: {0:?}")]
pub struct InvalidIp(pub String);

/// Text that is not a CIDR.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a valid CIDR: {0:?}")]
pub struct InvalidCidr(pub String);

/// Parses an address. An IPv4-mapped IPv6 address is the IPv4 address, as everywhere in Kubernetes.
pub fn parse_ip(text: &str) -> Result<IpAddr, InvalidIp> {
    let parsed = if text.contains(':') {
        text.parse::<Ipv6Addr>()
            .ok()
            .map(|v6| v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4))
    } else {
        parse_ipv4(text).map(IpAddr::V4)
    };
    parsed.ok_or_else(|| InvalidIp(text.to_owned()))
}

/// Parses a CIDR and clears its host bits. A bare address is not a CIDR.
pub fn parse_cidr(text: &str) -> Result<IpNet, InvalidCidr> {
    let invalid = || InvalidCidr(text.to_owned());
    let (address, length) = text.split_once('/').ok_or_else(invalid)?;
    if length.is_empty() || length.len() > 3 || !length.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(invalid());
    }
    let mut length: u8 = length.parse().ok().ok_or_else(invalid)?;
    let ip = parse_ip(address).ok().ok_or_else(invalid)?;
    if ip.is_ipv4() && address.contains(':') {
        length = length.checked_sub(96).ok_or_else(invalid)?;
    }
    IpNet::new(ip, length)
        .ok()
        .map(|net| net.trunc())
        .ok_or_else(invalid)
}

/// Why no Service and no endpoint can have an address, whoever asks; `None`: it is a host's.
pub fn unusable(address: IpAddr) -> Option<&'static str> {
    /// Metadata servers of clouds outside the link-local ranges: anybody who reaches one gets
    /// credentials of the node. AWS, Google and Azure document them.
    const METADATA: [IpAddr; 3] = [
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254)),
        IpAddr::V6(Ipv6Addr::new(0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x0254)),
        IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    ];
    let (is_link_local, is_reserved) = match address {
        // RFC 1122: hosts of "this" network; RFC 1112: class E, with the broadcast address.
        IpAddr::V4(v4) => (
            v4.is_link_local(),
            v4.octets()[0] == 0 || v4.octets()[0] >= 240,
        ),
        // RFC 4291: `::/96` was for IPv4 addresses.
        IpAddr::V6(v6) => (
            v6.is_unicast_link_local(),
            v6.to_bits() >> 32 == 0 && !v6.is_loopback(),
        ),
    };
    if address.is_unspecified() {
        Some("an unspecified address")
    } else if address.is_loopback() {
        Some("a loopback address")
    } else if address.is_multicast() {
        Some("a multicast address")
    } else if METADATA.contains(&address) || address == IpAddr::from([169, 254, 169, 254]) {
        Some("the address of a cloud's metadata server")
    } else if is_link_local {
        Some("a link-local address")
    } else if is_reserved {
        Some("a reserved or broadcast address")
    } else {
        None
    }
}

/// The standard library rejects leading zeros, which old Services and configurations contain.
fn parse_ipv4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let digits = part.trim_start_matches('0');
        *octet = if digits.is_empty() {
            0
        } else {
            digits.parse().ok()?
        };
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_no_host_are_unusable() {
        for text in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.0.1",
            "169.254.169.254",
            "168.63.129.16",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::10.0.0.1",
            "fe80::1",
            "febf::1",
            "ff02::1",
            "fd00:ec2::254",
            "fd20:ce::254",
        ] {
            assert!(unusable(parse_ip(text).unwrap()).is_some(), "{text}");
        }
        for text in [
            "1.0.0.1",
            "10.0.0.1",
            "100.64.0.1",
            "126.255.255.255",
            "128.0.0.1",
            "169.253.255.255",
            "169.255.0.1",
            "172.16.0.1",
            "192.0.2.1",
            "223.255.255.255",
            "64:ff9b::1",
            "2001:db8::1",
            "fc00::1",
            "fd00::1",
            "fec0::1",
        ] {
            assert_eq!(unusable(parse_ip(text).unwrap()), None, "{text}");
        }
    }

    #[test]
    fn leading_zeros_are_decimal() {
        assert_eq!(parse_ip("172.30.0.041").unwrap().to_string(), "172.30.0.41");
        assert_eq!(
            parse_ip("010.000.00.0255").unwrap().to_string(),
            "10.0.0.255"
        );
        assert_eq!(
            parse_cidr("010.010.00.0/016").unwrap().to_string(),
            "10.10.0.0/16"
        );
    }

    #[test]
    fn mapped_addresses_are_ipv4() {
        assert_eq!(parse_ip("::ffff:10.0.0.1").unwrap().to_string(), "10.0.0.1");
        assert_eq!(
            parse_cidr("::ffff:10.1.2.3/104").unwrap().to_string(),
            "10.0.0.0/8"
        );
    }

    #[test]
    fn ipv6_addresses_are_canonical_text() {
        assert_eq!(parse_ip("FD00:0:0::01").unwrap().to_string(), "fd00::1");
    }

    #[test]
    fn host_bits_are_cleared() {
        assert_eq!(parse_cidr("10.1.2.3/8").unwrap().to_string(), "10.0.0.0/8");
        assert_eq!(parse_cidr("fd00::1/64").unwrap().to_string(), "fd00::/64");
    }

    #[test]
    fn invalid_addresses_are_rejected() {
        for text in [
            "",
            "1.2.3",
            "1.2.3.4.5",
            "1.2.3.256",
            "1.2.3.",
            "a.b.c.d",
            "1.2.3.-4",
            "+1.2.3.4",
            "1.2..4",
            "0x1.2.3.4",
            "web",
            "fe80::1%eth0",
            "::g",
            " 1.2.3.4",
            "1.2.3.4/8",
        ] {
            assert_eq!(parse_ip(text), Err(InvalidIp(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn invalid_cidrs_are_rejected() {
        for text in [
            "",
            "10.0.0.0",
            "10.0.0.0/",
            "10.0.0.0/33",
            "fd00::/129",
            "10.0.0.0/+8",
            "10.0.0.0/-1",
            "10.0.0.0/8/8",
            "::ffff:10.0.0.0/90",
            "/8",
            " 10.0.0.0/8",
        ] {
            assert_eq!(
                parse_cidr(text),
                Err(InvalidCidr(text.to_owned())),
                "{text}"
            );
        }
    }
}
