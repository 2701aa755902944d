// SPDX-License-Identifier: Apache-2.0
//! Links and addresses over route netlink: the dummy link that carries the addresses of virtual servers, and what the
//! node's own addresses are.
//!
//! Messages are those of `netlink-packet-route`, sent many at once over `netlink::Socket`. Which addresses the link
//! should have is decided in `plan`.

mod client;
mod codec;
mod monitor;

use std::net::IpAddr;

pub use client::Links;
pub use codec::DecodeError;
pub use monitor::{Change, Monitor};

use kpr_core::model::net::IpFamily;
use netlink_pipeline::{KernelError, NetlinkError};

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number of it, which is never used twice while the namespace lives.
    pub index: u32,
    pub name: String,
    /// `dummy`, `veth`, ...; none for physical ones and the loopback.
    pub kind: Option<String>,
    /// `IFF_UP`: switched on by the administrator.
    pub is_up: bool,
    /// `IFF_LOOPBACK`
    pub is_loopback: bool,
}

/// How far an address is valid (`rtnetlink(7)`, `rtm_scope`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Everywhere; also site-local and unknown ones.
    Global,
    /// On the link only, as IPv6's `fe80::/10`.
    Link,
    /// On this host only, as loopback addresses.
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
    /// `IFA_F_TENTATIVE` or `IFA_F_DADFAILED`: not usable (yet), another host may have it.
    pub is_tentative: bool,
}

/// A router that a default route leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gateway {
    pub ip: IpAddr,
    /// The link to reach it through, where the route names one.
    pub link: Option<u32>,
}

/// What was to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    FindLink,
    CreateLink,
    DeleteLink,
    ListLinks,
    ListAddresses,
    ListRoutes,
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::FindLink => "find link",
            Self::CreateLink => "create link",
            Self::DeleteLink => "delete link",
            Self::ListLinks => "list links",
            Self::ListAddresses => "list addresses of link",
            Self::ListRoutes => "list routes",
        })
    }
}

/// An operation on links or addresses failed as a whole.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("cannot talk to the kernel about links")]
    Netlink(#[source] NetlinkError),
    #[error("cannot {operation} {object}")]
    Refused {
        operation: Operation,
        /// The link's name or number, empty for all.
        object: String,
        #[source]
        source: KernelError,
    },
    /// Something else has the name. Adding addresses to it might cut the node off.
    #[error("link {name} is of kind {kind}, not dummy")]
    NotDummy { name: String, kind: String },
    #[error("link {name} was created and is not there")]
    Vanished { name: String },
    #[error("cannot read the kernel's answer about links")]
    Malformed(#[from] DecodeError),
    #[error("cannot listen for changes of links")]
    Listen(#[source] std::io::Error),
}

/// One address that the kernel refused; the others of the same call are done.
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

    /// Whether it has the whole length of its family, as the addresses that we add.
    pub const fn is_host(&self) -> bool {
        self.prefix_len == self.family().host_prefix_len()
    }
}

#[cfg(test)]
mod tests;
