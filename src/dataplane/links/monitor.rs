// SPDX-License-Identifier: Apache-2.0
//! Listens for changes of links and addresses, so that nobody has to ask for them all the time.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use netlink_packet_core::NetlinkBuffer;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use socket2::SockRef;
use tracing::trace;

use super::LinkError;
use super::codec::{RTM_DELADDR, RTM_DELLINK, RTM_NEWADDR, RTM_NEWLINK};

// enum rtnetlink_groups of include/uapi/linux/rtnetlink.h.
const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV6_IFADDR: u32 = 9;

/// Bytes for one datagram. A notification is a link's description at most (some KiB); one that is longer is cut, and its
/// beginning is all that we need.
const DATAGRAM: usize = 32 * 1024;

/// Something changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// The links of which addresses or properties changed, by index.
    pub links: BTreeSet<u32>,
    /// More changed than the kernel could tell: ask for everything.
    pub lost: bool,
}

impl Change {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.links.is_empty() && !self.lost
    }

    /// Whether anything but the link `index` may have changed. Our own additions to our link are notified to us too.
    pub fn concerns_others_than(&self, index: u32) -> bool {
        self.lost || self.links.iter().any(|link| *link != index)
    }

    /// Notes what a datagram tells.
    fn note(&mut self, datagram: &[u8]) {
        let mut rest = datagram;
        while let Ok(message) = NetlinkBuffer::new_checked(rest) {
            if matches!(
                message.message_type(),
                RTM_NEWLINK | RTM_DELLINK | RTM_NEWADDR | RTM_DELADDR
            ) && let Some(index) = message
                .payload()
                .get(4..8)
                .and_then(|bytes| bytes.try_into().ok())
            {
                // Both struct ifinfomsg and struct ifaddrmsg have the link's index there.
                self.links.insert(u32::from_ne_bytes(index));
            }
            let length = usize::try_from(message.length()).unwrap_or(usize::MAX);
            match rest.get(length.saturating_add(3) & !3..) {
                Some(next) if length > 0 => rest = next,
                _ => return,
            }
        }
    }
}

/// Notifications of this network namespace's links and addresses, for a thread of its own.
#[derive(Debug)]
pub struct Monitor {
    socket: Socket,
}

impl Monitor {
    /// From here on no change is missed.
    pub fn open() -> Result<Self, LinkError> {
        Self::subscribe().map_err(LinkError::Listen)
    }

    fn subscribe() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        for group in [RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR] {
            socket.add_membership(group)?;
        }
        Ok(Self { socket })
    }

    /// Waits for a change, then takes all that are there, as one. `None` when nothing changed for as long as `patience`,
    /// so that the caller can look whether it should end.
    pub fn wait(&mut self, patience: Duration) -> Result<Option<Change>, LinkError> {
        let mut change = Change::default();
        // A time-out of zero would mean to wait for ever.
        let patience = patience.max(Duration::from_millis(1));
        SockRef::from(&self.socket)
            .set_read_timeout(Some(patience))
            .map_err(LinkError::Listen)?;
        if !self.receive(0, &mut change)? {
            return Ok(None);
        }
        while self.receive(libc::MSG_DONTWAIT, &mut change)? {}
        Ok(Some(change).filter(|change| !change.is_empty()))
    }

    /// Receives one datagram; `false` if there is none.
    fn receive(&self, flags: i32, change: &mut Change) -> Result<bool, LinkError> {
        let mut buffer = Vec::with_capacity(DATAGRAM);
        loop {
            buffer.clear();
            match self.socket.recv_from(&mut buffer, flags) {
                // Any process may send to our port; only port 0 is the kernel.
                Ok((_, sender)) if sender != SocketAddr::new(0, sender.multicast_groups()) => {}
                Ok(_) => {
                    change.note(&buffer);
                    trace!(links = ?change.links, "links or addresses changed");
                    return Ok(true);
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => return Ok(false),
                    io::ErrorKind::Interrupted => {}
                    _ if error.raw_os_error() == Some(libc::ENOBUFS) => {
                        change.lost = true;
                        return Ok(true);
                    }
                    _ => return Err(LinkError::Listen(error)),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, index: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&24_u32.to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&[0; 10]);
        bytes.extend_from_slice(&[2, 32, 0, 0]);
        bytes.extend_from_slice(&index.to_ne_bytes());
        bytes
    }

    #[test]
    fn notifications_are_one_change_with_the_links_they_name() {
        let mut change = Change::default();
        assert!(change.is_empty());
        change.note(&[message(RTM_NEWADDR, 3), message(RTM_DELADDR, 7)].concat());
        change.note(&message(RTM_NEWLINK, 3));
        assert_eq!(
            change,
            Change {
                links: [3, 7].into(),
                lost: false
            }
        );
        assert!(change.concerns_others_than(3));
        let own = Change {
            links: [3].into(),
            lost: false,
        };
        assert!(!own.concerns_others_than(3));
    }

    #[test]
    fn other_messages_and_broken_ones_say_nothing() {
        let mut change = Change::default();
        change.note(&message(24, 3));
        change.note(&[0; 15]);
        let mut endless = message(RTM_NEWADDR, 1);
        endless[0] = 0;
        change.note(&endless);
        change.note(&message(RTM_NEWADDR, 1)[..20]);
        assert!(change.is_empty());
    }

    #[test]
    fn what_was_lost_concerns_everybody() {
        assert!(
            Change {
                links: BTreeSet::new(),
                lost: true
            }
            .concerns_others_than(1)
        );
    }
}
