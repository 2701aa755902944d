// SPDX-License-Identifier: Apache-2.0
//! PURE: the proxy's modes.

use std::fmt;
use std::str::FromStr;

/// The kernel facility that implements Services, by its name in the configuration and in
/// `/proxyMode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProxyMode(&'static str);

impl ProxyMode {
    /// NAT rules only; the meaning of a blank `mode`.
    pub const IPTABLES: Self = Self("iptables");
    /// Virtual servers on a dummy interface, together with a fixed set of rules.
    pub const IPVS: Self = Self("ipvs");

    /// Modes that users can choose are constants and known to [`Self::from_str`]; tests create
    /// others with this.
    pub const fn named(name: &'static str) -> Self {
        Self(name)
    }

    pub const fn as_str(self) -> &'static str {
        self.0
    }
}

impl fmt::Display for ProxyMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ProxyMode {
    type Err = UnknownProxyMode;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "" | "iptables" => Ok(Self::IPTABLES),
            "ipvs" => Ok(Self::IPVS),
            other => Err(UnknownProxyMode(other.to_owned())),
        }
    }
}

/// The name of a mode that this proxy does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown proxy mode {0:?}")]
pub struct UnknownProxyMode(pub String);
