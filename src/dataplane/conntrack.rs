// SPDX-License-Identifier: Apache-2.0
//! Connection tracking: its kernel settings, and its table over ctnetlink.
//! `kpr_core::plan::conntrack` decides which values are wanted and which flows must end.

mod client;
mod codec;
pub mod tuning;

pub use client::{Client, Error};
pub use codec::{Entry, EntryFilter, MalformedEntry};

#[cfg(test)]
mod tests;
