// SPDX-License-Identifier: Apache-2.0
#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

mod address;
mod client;
mod constants;
mod entry_attribute;
mod error;
mod family;
mod header;
mod message;
mod set_attribute;
mod types;

pub use client::{Client, Protocol};
pub use entry_attribute::EntryAttribute;
pub use error::{Action, EntryFailure, Error, SetError, SetErrorKind};
pub use family::IpFamily;
pub use message::{Attribute, Message};
// What the types above are made of, so that nothing else is needed to use them.
pub use ipnet::{self, IpNet};
pub use netlink_pipeline::attribute::{AttributeTooLong, DecodeError, Unknown};
pub use netlink_pipeline::{KernelError, KernelErrorKind, NetlinkError, Socket, SocketStats};
pub use set_attribute::SetAttribute;
pub use types::{
    Entry, HashType, InvalidSetName, MAX_SET_NAME_LEN, SetEntry, SetInfo, SetName, SetShape,
    SetSpec, SetType, SkbMark,
};

#[cfg(test)]
mod tests;
