// SPDX-License-Identifier: Apache-2.0
//! Links and addresses over route netlink: the dummy link that carries the addresses of virtual
//! servers, and the node's own addresses.
//!
//! Messages are those of `netlink-packet-route`, pipelined over `netlink_pipeline::Socket`. `plan`
//! decides which addresses the link should have.

mod client;
mod codec;
mod monitor;

use std::net::IpAddr;

pub use client::Links;
pub use codec::MalformedMessage;
pub use monitor::{Change, Monitor};

use kpr_core::model::net::IpFamily;
use netlink_pipeline::{KernelError, NetlinkError};

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number, which is never reused in a network namespace.
    pub index: u32,
    pub name: String,
    /// `dummy`, `veth`, ...; `None` for physical links and the loopback.
    pub kind: Option<String>,
    /// `IFF_UP`: the administrative state.
    pub is_up: bool,
    /// `ip link set NAME alias TEXT`.
    pub alias: Option<String>,
}

/// How far an address is valid (`rtnetlink(7)`, `rtm_scope`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Everywhere; also site-local and unknown ones.
    Global,
    /// On the link only, such as IPv6's `fe80::/10`.
    Link,
    /// On this host only, such as loopback addresses.
    Host,
}

/// An address of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    pub ip: IpAddr,
    pub prefix_len: u8,
    /// The index of the link that has it.
    pub link: u32,
    pub scope: Scope,
    /// `IFA_F_TENTATIVE` or `IFA_F_DADFAILED`: not usable (yet); another host may have it.
    pub is_tentative: bool,
}

/// A call failed as a whole.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("netlink exchange about links failed")]
    Netlink(#[source] NetlinkError),
    #[error("cannot {what}")]
    Refused {
        what: String,
        #[source]
        source: KernelError,
    },
    /// Another link has the name. Adding addresses to it might cut off the node.
    #[error("link {name} is of kind {kind}, not dummy")]
    NotDummy { name: String, kind: String },
    #[error("link {name} disappeared after it was created")]
    Vanished { name: String },
    #[error("cannot decode the kernel's answer about links")]
    Malformed(#[from] MalformedMessage),
    #[error("cannot watch links")]
    Watch(#[source] NetlinkError),
}

/// One address that the kernel rejected; the others of the call were changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("address {address}")]
pub struct AddressFailure {
    pub address: IpAddr,
    #[source]
    pub refusal: KernelError,
}

impl Address {
    pub const fn family(&self) -> IpFamily {
        IpFamily::of(self.ip)
    }

    /// Whether the prefix is the whole address, as in those that we add.
    pub const fn is_host(&self) -> bool {
        self.prefix_len == self.family().host_prefix_len()
    }
}

/// Decodes what the kernel may send, for `fuzz/`.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub fn fuzz(kind: u16, payload: &[u8]) {
    let reply = netlink_pipeline::Reply {
        kind,
        payload: payload.to_vec(),
    };
    drop(codec::link_of(&reply));
    drop(codec::address_of(&reply));
    drop(codec::gateways_of(&reply));
    monitor::fuzz(kind, payload);
}

#[cfg(test)]
mod tests;
