// SPDX-License-Identifier: Apache-2.0
//! Multicast notifications of netlink families: the kernel sends them, nothing is asked.

use std::io;

use netlink_packet_core::NetlinkBuffer;
use netlink_sys::{Socket, SocketAddr};

/// Bytes for one datagram. The kernel sends 8 KiB at most unless one message is longer.
const DATAGRAM: usize = 64 * 1024;

/// A socket that receives notifications.
#[derive(Debug)]
pub(super) struct Notifications {
    pub(super) socket: Socket,
    buffer: Vec<u8>,
}

/// What a call of [`Notifications::receive`] got.
pub(super) enum Received<'a> {
    Datagram(&'a [u8]),
    /// The queue was full, or a datagram was too long.
    Lost,
    /// None came in time.
    Nothing,
}

impl Notifications {
    /// Joins multicast groups of a netlink protocol. No later notification is missed unnoticed.
    pub(super) fn join(protocol: isize, groups: &[u32]) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        for group in groups {
            socket.add_membership(*group)?;
        }
        Ok(Self {
            socket,
            buffer: Vec::with_capacity(DATAGRAM),
        })
    }

    /// Receives one datagram. `flags` are those of `recvfrom(2)`, such as `MSG_DONTWAIT`.
    pub(super) fn receive(&mut self, flags: libc::c_int) -> io::Result<Received<'_>> {
        loop {
            self.buffer.clear();
            let received = self
                .socket
                .recv_from(&mut self.buffer, flags | libc::MSG_TRUNC);
            match received {
                // Any process may send to our port; only port 0 is the kernel.
                Ok((_, sender)) if sender != SocketAddr::new(0, sender.multicast_groups()) => {}
                Ok((length, _)) if length > self.buffer.len() => return Ok(Received::Lost),
                Ok(_) => return Ok(Received::Datagram(&self.buffer)),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                        return Ok(Received::Nothing);
                    }
                    io::ErrorKind::Interrupted => {}
                    _ if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(Received::Lost),
                    _ => return Err(error),
                },
            }
        }
    }
}

/// Passes type and payload of each message of a datagram to `each`, up to the first malformed one.
pub(super) fn each_message(datagram: &[u8], mut each: impl FnMut(u16, &[u8])) {
    let mut rest = datagram;
    while let Ok(message) = NetlinkBuffer::new_checked(rest) {
        each(message.message_type(), message.payload());
        let length = usize::try_from(message.length()).unwrap_or(usize::MAX);
        match rest.get(length.saturating_add(3) & !3..) {
            Some(next) if length > 0 => rest = next,
            _ => return,
        }
    }
}
