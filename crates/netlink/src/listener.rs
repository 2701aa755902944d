// SPDX-License-Identifier: Apache-2.0
//! Multicast notifications: the kernel sends them, nothing is asked.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use netlink_sys::{Socket, SocketAddr};
use socket2::SockRef;

use super::error::NetlinkError;
use super::message::{Answer, Messages};

/// Bytes for one datagram. The kernel sends 8 KiB at most unless one message is longer.
const DATAGRAM: usize = 128 * 1024;

/// A socket that receives the notifications of multicast groups.
///
/// ```no_run
/// use std::time::Duration;
/// use netlink_pipeline::{Heard, Listener};
///
/// const NETLINK_ROUTE: isize = 0;
/// const RTNLGRP_LINK: u32 = 1;
///
/// let mut links = Listener::join(NETLINK_ROUTE, &[RTNLGRP_LINK])?;
/// match links.receive(Some(Duration::from_secs(60)), |kind, _| println!("message {kind}"))? {
///     Heard::Messages => {}
///     Heard::Lost => println!("some notifications are lost: read all links"),
///     Heard::Nothing => println!("a quiet minute"),
/// }
/// # Ok::<(), netlink_pipeline::NetlinkError>(())
/// ```
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    buffer: Vec<u8>,
    patience: Option<Duration>,
}

/// What a call of [`Listener::receive`] got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A datagram, whose messages were handed over.
    Messages,
    /// The queue was full, or a datagram was too long or malformed: something is missing.
    Lost,
    /// Nothing came in time.
    Nothing,
}

impl Listener {
    /// Joins multicast groups of a netlink protocol in this network namespace. From then on no
    /// notification is missed unnoticed.
    pub fn join(protocol: isize, groups: &[u32]) -> Result<Self, NetlinkError> {
        let join = || -> io::Result<Socket> {
            let mut socket = Socket::new(protocol)?;
            socket.bind_auto()?;
            for group in groups {
                socket.add_membership(*group)?;
            }
            Ok(socket)
        };
        Ok(Self {
            socket: join().map_err(|source| NetlinkError::Open { protocol, source })?,
            buffer: Vec::new(),
            patience: None,
        })
    }

    /// Joins one more group.
    pub fn join_group(&mut self, group: u32) -> Result<(), NetlinkError> {
        let joined = self.socket.add_membership(group);
        joined.map_err(NetlinkError::Receive)
    }

    /// Leaves a group: its notifications do not come any more.
    pub fn leave_group(&mut self, group: u32) -> Result<(), NetlinkError> {
        let left = self.socket.drop_membership(group);
        left.map_err(NetlinkError::Receive)
    }

    /// Receives one datagram and hands over type and payload of each message in it. Waits for as
    /// long as `patience` says, or not at all.
    pub fn receive(
        &mut self,
        patience: Option<Duration>,
        mut each: impl FnMut(u16, &[u8]),
    ) -> Result<Heard, NetlinkError> {
        let flags = match patience {
            None => libc::MSG_DONTWAIT,
            Some(patience) => {
                if self.patience != Some(patience) {
                    // Zero would be for ever.
                    let patience = patience.max(Duration::from_millis(1));
                    SockRef::from(&self.socket)
                        .set_read_timeout(Some(patience))
                        .map_err(NetlinkError::Receive)?;
                }
                self.patience = Some(patience);
                0
            }
        };
        let heard = self.datagram(flags).map_err(NetlinkError::Receive)?;
        if heard == Heard::Messages {
            for message in Messages::new(&self.buffer) {
                match message.map(|message| message.answer) {
                    Ok(Answer::Data { kind, payload }) => each(kind, payload),
                    Ok(Answer::Overrun) | Err(_) => return Ok(Heard::Lost),
                    Ok(_) => {}
                }
            }
        }
        Ok(heard)
    }

    fn datagram(&mut self, flags: libc::c_int) -> io::Result<Heard> {
        use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
        loop {
            self.buffer.clear();
            self.buffer.reserve(DATAGRAM);
            let received = self
                .socket
                .recv_from(&mut self.buffer, flags | libc::MSG_TRUNC);
            match received {
                // Any process may send to our port; only port 0 is the kernel.
                Ok((_, sender)) if sender != SocketAddr::new(0, sender.multicast_groups()) => {}
                Ok((length, _)) if length > self.buffer.len() => return Ok(Heard::Lost),
                Ok(_) => return Ok(Heard::Messages),
                Err(error) => match error.kind() {
                    WouldBlock | TimedOut => return Ok(Heard::Nothing),
                    Interrupted => {}
                    _ if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(Heard::Lost),
                    _ => return Err(error),
                },
            }
        }
    }
}

/// To wait for notifications together with other things.
impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
