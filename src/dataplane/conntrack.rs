// SPDX-License-Identifier: Apache-2.0
//! Connection tracking: its kernel settings, and its table over ctnetlink. Which values are wanted and which flows must end is
//! the planner's business.

mod client;
mod codec;
pub mod tuning;

pub use client::{Client, Error};
pub use codec::DecodeError;

#[cfg(test)]
mod tests;
