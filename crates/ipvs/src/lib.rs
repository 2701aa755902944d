// SPDX-License-Identifier: Apache-2.0
#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

mod client;
mod config;
mod connections;
mod constants;
mod daemon;
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
pub use connections::{Connections, ListedConnection};
pub use daemon::{DaemonAttribute, SyncDaemon, SyncRole};
pub use destination::{
    Destination, DestinationAttribute, DestinationKey, DestinationStatus, Forwarding, Tunnel,
    TunnelKind,
};
pub use error::Error;
pub use field::AddressFamily;
pub use flags::{MaskedFlags, ServiceFlags};
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
// What the types above are made of, so that nothing else is needed to use them.
pub use netlink_pipeline::attribute::{AttributeTooLong, DecodeError, Unknown};
pub use netlink_pipeline::{KernelError, KernelErrorKind, NetlinkError, Socket, SocketStats};
pub use stats::{Stats, StatsAttribute, StatsCounter, StatsNumber};
