// SPDX-License-Identifier: Apache-2.0
//! What several fuzz targets need: messages out of a datagram, and a kernel that answers with given
//! bytes.

use std::collections::VecDeque;
use std::io;

use netlink_pipeline::{Socket, Transport};

/// Bytes of `struct nlmsghdr`.
const HEADER_LEN: usize = 16;

/// Type and payload of the messages of a datagram. A broken message ends it.
pub fn messages(datagram: &[u8]) -> Vec<(u16, &[u8])> {
    let mut messages = Vec::new();
    let mut rest = datagram;
    while let Some((header, _)) = rest.split_first_chunk::<HEADER_LEN>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let Some(payload) = rest.get(HEADER_LEN..length) else {
            break;
        };
        messages.push((u16::from_ne_bytes([header[4], header[5]]), payload));
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    messages
}

/// A message of the kernel.
pub fn message(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let length = u32::try_from(HEADER_LEN + payload.len()).expect("inputs are short");
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&[0; 10]);
    bytes.extend_from_slice(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The ACK of a request.
pub fn ack() -> Vec<u8> {
    message(2, &[0; 4])
}

/// The end of a dump.
pub fn done() -> Vec<u8> {
    message(3, &[0; 4])
}

/// A kernel that sends these datagrams, whatever it is asked, then is silent.
#[derive(Debug)]
pub struct Peer {
    datagrams: VecDeque<Vec<u8>>,
    sequence: [u8; 4],
}

impl Peer {
    /// A socket to it.
    pub fn socket(datagrams: impl IntoIterator<Item = Vec<u8>>) -> Socket {
        Socket::over(Box::new(Self {
            datagrams: datagrams.into_iter().collect(),
            sequence: [0; 4],
        }))
    }
}

impl Transport for Peer {
    fn send(&mut self, datagram: &[u8]) -> io::Result<()> {
        if let Some(sequence) = datagram.get(8..12) {
            self.sequence.copy_from_slice(sequence);
        }
        Ok(())
    }

    /// The first message gets the number of the last request, or nothing would come through.
    fn receive(&mut self, buffer: &mut Vec<u8>) -> io::Result<()> {
        *buffer = self
            .datagrams
            .pop_front()
            .ok_or(io::ErrorKind::WouldBlock)?;
        if let Some(sequence) = buffer.get_mut(8..12) {
            sequence.copy_from_slice(&self.sequence);
        }
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn queue_limit(&self) -> usize {
        16 * 1024
    }
}
