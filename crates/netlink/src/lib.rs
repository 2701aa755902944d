// SPDX-License-Identifier: Apache-2.0
//! A pipelined netlink socket, independent of the netlink family.
//!
//! The kernel handles every message of one `sendmsg` before that call returns and leaves one ACK
//! per message in the receive queue. Many messages per call therefore cost one system call to send,
//! and the answers are waiting when we read them. What bounds a call is the receive queue: an ACK
//! that finds no room is lost, so a [`Socket`] sends in windows that fit.
//!
//! This module knows headers, sequence numbers, ACKs, dumps and attributes. It knows no family:
//! payloads are made and read by `ipvs`, `ipset` and `links`. It must not decide what to do about a
//! kernel's refusal.

pub mod attribute;
mod error;
mod message;
#[cfg(any(test, feature = "scripted"))]
pub mod scripted;
mod socket;
mod transport;

pub use error::{KernelError, KernelErrorKind, NetlinkError};
pub use message::{Reply, Request};
pub use socket::{Socket, SocketStats};
pub use transport::Transport;
