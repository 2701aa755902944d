// SPDX-License-Identifier: Apache-2.0
//! Address families of sets (`NFPROTO_IPV4`, `NFPROTO_IPV6`).

use std::net::IpAddr;

/// The address family of a hash set: one set holds addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IpFamily {
    /// `NFPROTO_IPV4`
    V4,
    /// `NFPROTO_IPV6`
    V6,
}

impl IpFamily {
    /// The family of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}
