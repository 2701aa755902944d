// SPDX-License-Identifier: Apache-2.0
//! IPVS over generic netlink: messages and client.
//!
//! The codec follows the house rules of the rust-netlink crates and stands on `netlink-packet-core`
//! and `netlink-packet-generic`; it knows nothing of Kubernetes or of this program, so that it could
//! be a crate of its own. Kernel interface: `include/uapi/linux/ip_vs.h`, `net/netfilter/ipvs/ip_vs_ctl.c`.
//!
//! - [`constants`]: the numbers, under their kernel names.
//! - [`IpvsMessage`], [`IpvsAttribute`]: a command and its attributes as they are on the wire, both ways.
//!   [`ServiceAttribute`], [`DestinationAttribute`] and [`StatsAttribute`] are the nested lists.
//!   Attributes that are not known are kept as `Other`.
//! - [`Service`], [`Destination`], [`Timeouts`]: configuration, in one canonical form that compares
//!   equal exactly when the kernel would behave alike. [`ServiceKey`] and [`DestinationKey`] are what
//!   the kernel looks them up by.
//! - [`ServiceStatus`], [`DestinationStatus`], [`Info`]: what the kernel reports, counters included.
//! - [`Client`]: sends [`Operation`]s, many per system call.
//! - [`Listing`]: reads `/proc/net/ip_vs`, which says less and costs less.
//!
//! On the wire ports, addresses and IPv4 masks are in network order, everything else in host order;
//! addresses take 16 bytes whatever their family; flags come with a mask of those that count.
//!
//! It applies what it is told and decides nothing.

mod client;
mod config;
mod constants;
mod destination;
mod error;
mod field;
mod flags;
mod info;
mod listing;
mod message;
mod name;
mod operation;
mod service;
mod stats;
#[cfg(test)]
mod tests;

pub use client::Client;
pub use config::Timeouts;
pub use destination::{
    Destination, DestinationAttribute, DestinationKey, DestinationStatus, Forwarding, Tunnel,
    TunnelKind,
};
pub use error::Error;
pub use field::AddressFamily;
pub use flags::ServiceFlags;
pub use info::Info;
pub use listing::{
    ListedDestination, ListedForwarding, ListedKey, ListedService, Listing, ListingError,
};
pub use message::{IpvsAttribute, IpvsCommand, IpvsMessage};
pub use name::{InvalidName, KernelName};
pub use operation::Operation;
pub use service::{
    Netmask, Persistence, Protocol, Service, ServiceAttribute, ServiceKey, ServiceStatus,
};
pub use stats::{Stats, StatsAttribute, StatsCounter, StatsNumber};
