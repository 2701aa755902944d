// SPDX-License-Identifier: Apache-2.0
//! Families of tables.

use std::fmt;

netlink_pipeline::numbered! {
    /// The family of a table: which packets its chains see (`NFPROTO_*` of `linux/netfilter.h`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub enum Family: u8 {
        /// All families, when asking.
        Unspecified = 0,
        /// IPv4 and IPv6.
        Inet = 1,
        /// IPv4
        Ipv4 = 2,
        /// ARP
        Arp = 3,
        /// Packets of one device, as they come in.
        Netdev = 5,
        /// Packets that a bridge forwards.
        Bridge = 7,
        /// IPv6
        Ipv6 = 10,
    }
}

/// As `nft` names it.
impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Unspecified => "any",
            Self::Inet => "inet",
            Self::Ipv4 => "ip",
            Self::Arp => "arp",
            Self::Netdev => "netdev",
            Self::Bridge => "bridge",
            Self::Ipv6 => "ip6",
            Self::Other(number) => return write!(f, "family-{number}"),
        })
    }
}
