// SPDX-License-Identifier: Apache-2.0
//! PURE: the proxy's modes.

use std::fmt;
use std::str::FromStr;

/// Which kernel machinery carries Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyMode {
    /// NAT rules only; what a blank `mode` means.
    Iptables,
    /// Virtual servers on a dummy interface, with a fixed set of rules beside them.
    Ipvs,
}

impl ProxyMode {
    /// The spelling of the configuration and of `/proxyMode`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Ipvs => "ipvs",
        }
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
            "" | "iptables" => Ok(Self::Iptables),
            "ipvs" => Ok(Self::Ipvs),
            other => Err(UnknownProxyMode(other.to_owned())),
        }
    }
}

/// A mode that this proxy does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown proxy mode {0:?}")]
pub struct UnknownProxyMode(pub String);
