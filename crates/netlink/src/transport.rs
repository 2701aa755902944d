// SPDX-License-Identifier: Apache-2.0
//! The way to the kernel: datagrams out and in, nothing about their content.
//!
//! A trait, so that the exchange can be tested against a scripted peer.

use std::fmt;
use std::io;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::SndBufForce;
use socket2::SockRef;

use super::message::MAX_REQUEST;

/// How long the kernel may be silent while we wait for an answer. It handles a request inside our
/// `sendmsg`, so that answers are there when we read; ten seconds of silence mean they never come.
const PATIENCE: Duration = Duration::from_secs(10);

/// The receive buffer that we ask for, in bytes. `net.core.rmem_max` caps it (208 KiB by default).
const RECEIVE_BUFFER: u32 = 2 * 1024 * 1024;

/// The longest datagram that we expect: dumps come in 32 KiB at most, the refusal of a request
/// echoes it.
const LONGEST_DATAGRAM: usize = MAX_REQUEST + 64 * 1024;

/// A datagram that fits into any send buffer: no less than one request may take.
const SEND_ROOM: usize = MAX_REQUEST;

/// Datagrams to and from a netlink family.
pub trait Transport: fmt::Debug + Send {
    /// Sends one datagram, whole.
    fn send(&mut self, datagram: &[u8]) -> io::Result<()>;

    /// Replaces the content of `buffer` by the next datagram. `WouldBlock` or `TimedOut` when none
    /// came in time.
    fn receive(&mut self, buffer: &mut Vec<u8>) -> io::Result<()>;

    /// Drops all that is under way, so that no old answer can meet a new question.
    fn reset(&mut self) -> io::Result<()>;

    /// Sees to it that a datagram of so many bytes can be sent.
    fn make_room(&mut self, _bytes: usize) -> io::Result<()> {
        Ok(())
    }

    /// How many bytes of answers, as the kernel counts them, may wait in the receive queue.
    fn queue_limit(&self) -> usize;
}

/// How much of a request its refusal repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Echo {
    Whole,
    /// The header (`NETLINK_CAP_ACK`).
    Capped,
}

/// A transport to this network namespace's kernel.
#[derive(Debug)]
pub(super) struct Kernel {
    protocol: isize,
    echo: Echo,
    socket: Socket,
    /// The longest datagram that the send buffer is known to take.
    room: usize,
    queue_limit: usize,
}

impl Kernel {
    pub(super) fn open(protocol: isize, echo: Echo) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        // Errors explain themselves, and echo the request: ipset's line number is in the echo.
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(echo == Echo::Capped)?;
        if protocol == NETLINK_ROUTE {
            // Without it the kernel ignores a dump's filters. Linux 4.20 has it; before, dumps are
            // longer than asked for, so readers check what they get.
            ignore_unknown_option(socket.set_netlink_get_strict_chk(true))?;
        }
        socket.set_rx_buf_sz(RECEIVE_BUFFER)?;
        let queue_limit = socket.get_rx_buf_sz()?;
        SockRef::from(&socket).set_read_timeout(Some(PATIENCE))?;
        Ok(Self {
            protocol,
            echo,
            socket,
            room: SEND_ROOM,
            queue_limit,
        })
    }
}

fn ignore_unknown_option(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(()),
        other => other,
    }
}

impl Transport for Kernel {
    fn send(&mut self, datagram: &[u8]) -> io::Result<()> {
        loop {
            match self.socket.send_to(datagram, &SocketAddr::new(0, 0), 0) {
                Ok(sent) if sent == datagram.len() => return Ok(()),
                Ok(_) => return Err(io::ErrorKind::WriteZero.into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn receive(&mut self, buffer: &mut Vec<u8>) -> io::Result<()> {
        loop {
            buffer.clear();
            buffer.reserve(LONGEST_DATAGRAM);
            match self.socket.recv_from(buffer, libc::MSG_TRUNC) {
                // Any process may send to our port; only port 0 is the kernel.
                Ok((_, sender)) if sender.port_number() != 0 => {}
                Ok((length, _)) if length > buffer.len() => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("a datagram of {length} bytes does not fit"),
                    ));
                }
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn reset(&mut self) -> io::Result<()> {
        *self = Self::open(self.protocol, self.echo)?;
        Ok(())
    }

    fn make_room(&mut self, bytes: usize) -> io::Result<()> {
        if bytes > self.room {
            // The kernel doubles what it is given, for its own overhead. Not `SO_SNDBUF`, which
            // ends at `net.core.wmem_max`.
            setsockopt(&self.socket, SndBufForce, &bytes)?;
            self.room = bytes;
        }
        Ok(())
    }

    fn queue_limit(&self) -> usize {
        self.queue_limit
    }
}
