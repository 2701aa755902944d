// SPDX-License-Identifier: Apache-2.0
//! Connection tracking: its kernel settings, and its table over ctnetlink.
//! `kpr_core::plan::conntrack` decides which values are wanted and which flows must end.

mod client;
mod codec;
mod connection;
pub mod tuning;

pub use client::{Client, Error};
pub use codec::{Entry, EntryFilter, MalformedEntry};
pub use connection::{Connection, Wanted};

/// Decodes what the kernel may send, for `fuzz/`.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub fn fuzz(message: u16, payload: &[u8]) {
    drop(connection::read(message, payload));
    if let Ok(Some(entry)) = codec::entry_of(message, payload) {
        // What was read of a flow is written back to delete it.
        drop(codec::delete(kpr_core::model::IpFamily::V4, &entry));
    }
}

#[cfg(test)]
mod tests;
