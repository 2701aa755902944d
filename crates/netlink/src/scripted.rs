// SPDX-License-Identifier: Apache-2.0
//! A scripted peer in the kernel's place, for tests of clients (feature `scripted`).
//!
//! It panics where a test should fail: when more is sent than the script expects.
//!
//! ```
//! use netlink_pipeline::Request;
//! use netlink_pipeline::scripted::{Scripted, verdict};
//!
//! const EEXIST: i32 = 17;
//!
//! let kernel = Scripted::default()
//!     .then(|sent| sent.iter().map(|header| Ok(verdict(header.sequence, EEXIST))).collect());
//! let results = kernel.socket().transact(&[Request::default()])?;
//! assert_eq!(results[0].as_ref().unwrap_err().errno, EEXIST);
//! assert_eq!(kernel.sent().len(), 1);
//! # Ok::<(), netlink_pipeline::NetlinkError>(())
//! ```
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::must_use_candidate,
    clippy::return_self_not_must_use,
    reason = "for tests, which may fail loudly"
)]

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};

use super::message::Request;
use super::{Socket, Transport};

/// One message that was sent to the peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`, with those that the socket adds.
    pub flags: u16,
    /// `nlmsg_seq`, which answers must repeat.
    pub sequence: u32,
    /// What follows the header.
    pub payload: Vec<u8>,
}

/// What the peer answers to the messages of one `send`: datagrams or receive errors.
pub type Script = fn(&[Header]) -> Vec<io::Result<Vec<u8>>>;

#[derive(Debug, Default)]
struct Peer {
    sent: Vec<Vec<Header>>,
    scripts: VecDeque<Script>,
    queue: VecDeque<io::Result<Vec<u8>>>,
    resets: usize,
}

/// The peer. Each `send` plays the next script; clones are the same peer.
#[derive(Clone, Debug, Default)]
pub struct Scripted(Arc<Mutex<Peer>>);

impl Scripted {
    /// Adds what it answers to the next `send`.
    pub fn then(self, script: Script) -> Self {
        self.0.lock().unwrap().scripts.push_back(script);
        self
    }

    /// A socket to it.
    pub fn socket(&self) -> Socket {
        Socket::over(Box::new(self.clone()))
    }

    /// The messages of each `send`.
    pub fn sent(&self) -> Vec<Vec<Header>> {
        self.0.lock().unwrap().sent.clone()
    }

    /// Kind, flags and sequence number of the messages of each `send`.
    pub fn headers(&self) -> Vec<Vec<(u16, u16, u32)>> {
        self.sent()
            .iter()
            .map(|sent| sent.iter().map(|h| (h.kind, h.flags, h.sequence)).collect())
            .collect()
    }

    /// How often the socket was opened anew.
    pub fn resets(&self) -> usize {
        self.0.lock().unwrap().resets
    }
}

impl Transport for Scripted {
    fn send(&mut self, datagram: &[u8]) -> io::Result<()> {
        let mut peer = self.0.lock().unwrap();
        let mut headers = Vec::new();
        let mut rest = datagram;
        while !rest.is_empty() {
            let length = u32::from_ne_bytes(rest[0..4].try_into().unwrap()) as usize;
            headers.push(Header {
                kind: u16::from_ne_bytes(rest[4..6].try_into().unwrap()),
                flags: u16::from_ne_bytes(rest[6..8].try_into().unwrap()),
                sequence: u32::from_ne_bytes(rest[8..12].try_into().unwrap()),
                payload: rest[16..length].to_vec(),
            });
            rest = &rest[length.next_multiple_of(4)..];
        }
        let script = peer
            .scripts
            .pop_front()
            .expect("a send that the script does not expect");
        peer.queue.extend(script(&headers));
        peer.sent.push(headers);
        Ok(())
    }

    fn receive(&mut self, buffer: &mut Vec<u8>) -> io::Result<()> {
        let next = self.0.lock().unwrap().queue.pop_front();
        *buffer = next.unwrap_or_else(|| Err(io::ErrorKind::WouldBlock.into()))?;
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        // The queue is kept: late answers must be recognised even without a fresh socket.
        self.0.lock().unwrap().resets += 1;
        Ok(())
    }

    fn queue_limit(&self) -> usize {
        16 * 1024
    }
}

/// Any message of the kernel.
pub fn message(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let request = Request {
        kind,
        flags,
        payload: payload.to_vec(),
    };
    request.emit(0, sequence, &mut bytes).unwrap();
    bytes
}

/// A verdict as `netlink_ack` writes it; errno 0 is an ACK.
pub fn verdict(sequence: u32, errno: i32) -> Vec<u8> {
    let mut payload = (-errno).to_ne_bytes().to_vec();
    payload.extend_from_slice(&message(0x10, 0, sequence, b"echo"));
    message(2, 0, sequence, &payload)
}

/// The end of a dump.
pub fn done(sequence: u32, flags: u16) -> Vec<u8> {
    message(3, flags, sequence, &0_i32.to_ne_bytes())
}
