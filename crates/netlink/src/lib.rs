// SPDX-License-Identifier: Apache-2.0
#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

pub mod attribute;
mod error;
mod listener;
mod message;
mod numbered;
#[cfg(any(test, feature = "scripted"))]
pub mod scripted;
mod socket;
mod transport;

pub use error::{BatchRefusal, KernelError, KernelErrorKind, NetlinkError};
pub use listener::{Heard, Listener};
pub use message::{Reply, Request};
pub use socket::{Socket, SocketStats};
pub use transport::Transport;
