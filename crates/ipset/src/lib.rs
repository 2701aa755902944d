// SPDX-License-Identifier: Apache-2.0
//! ipset over nfnetlink: messages and client, instead of the `ipset` program.
//!
//! [`Client`] creates, fills, lists and swaps sets of the types that kube-proxy uses. Entries go many per message; a
//! refused entry is reported and does not keep the others from going in. What is wanted in which set is decided in
//! `plan`; this module only asks the kernel.

mod client;
mod constants;
mod entry_attribute;
mod error;
mod family;
mod header;
mod message;
mod set_attribute;
mod types;
mod value;

pub use client::{Client, Protocol};
pub use entry_attribute::EntryAttribute;
pub use error::{Action, EntryFailure, Error, SetError, SetErrorKind};
pub use family::IpFamily;
pub use message::{Attribute, Message};
pub use set_attribute::SetAttribute;
pub use types::{
    Entry, HashType, InvalidSetName, MAX_SET_NAME_LEN, SetEntry, SetInfo, SetName, SetShape,
    SetSpec, SetType, SkbMark,
};

#[cfg(test)]
mod tests;
