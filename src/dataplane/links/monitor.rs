// SPDX-License-Identifier: Apache-2.0
//! Notifications of changed links and addresses, so that they need not be polled.

use std::collections::BTreeSet;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_ROUTE;
use socket2::SockRef;
use tracing::trace;

use super::LinkError;
use super::codec::{RTM_DELADDR, RTM_DELLINK, RTM_NEWADDR, RTM_NEWLINK};
use crate::dataplane::notifications::{Notifications, Received, each_message};

// enum rtnetlink_groups of include/uapi/linux/rtnetlink.h.
const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV6_IFADDR: u32 = 9;

/// Something changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// The links of which addresses or properties changed, by index.
    pub links: BTreeSet<u32>,
    /// Notifications were lost: anything may have changed.
    pub lost: bool,
}

impl Change {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.links.is_empty() && !self.lost
    }

    /// Whether anything but the link `index` may have changed. We are notified of our own changes
    /// to our link, too.
    pub fn concerns_others_than(&self, index: u32) -> bool {
        self.lost || self.links.iter().any(|link| *link != index)
    }

    /// Takes in the notifications of a datagram.
    fn note(&mut self, datagram: &[u8]) {
        each_message(datagram, |kind, payload| {
            if matches!(kind, RTM_NEWLINK | RTM_DELLINK | RTM_NEWADDR | RTM_DELADDR)
                && let Some(index) = payload.get(4..8).and_then(|bytes| bytes.try_into().ok())
            {
                // Both struct ifinfomsg and struct ifaddrmsg have the link's index there.
                self.links.insert(u32::from_ne_bytes(index));
            }
        });
    }
}

/// Notifications of this network namespace's links and addresses. Blocking: needs its own thread.
#[derive(Debug)]
pub struct Monitor {
    notifications: Notifications,
}

impl Monitor {
    /// Subscribes. No later change is missed.
    pub fn open() -> Result<Self, LinkError> {
        let groups = [RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR];
        let notifications =
            Notifications::join(NETLINK_ROUTE, &groups).map_err(LinkError::Watch)?;
        Ok(Self { notifications })
    }

    /// Waits for a change, then takes all that have arrived as one. `None` if nothing changed
    /// within `patience`, so that the caller can check whether to stop.
    pub fn wait(&mut self, patience: Duration) -> Result<Option<Change>, LinkError> {
        let mut change = Change::default();
        // A time-out of zero would mean to wait for ever.
        let patience = patience.max(Duration::from_millis(1));
        SockRef::from(&self.notifications.socket)
            .set_read_timeout(Some(patience))
            .map_err(LinkError::Watch)?;
        if !self.receive(0, &mut change)? {
            return Ok(None);
        }
        while self.receive(libc::MSG_DONTWAIT, &mut change)? {}
        Ok(Some(change).filter(|change| !change.is_empty()))
    }

    /// Receives one datagram; `false` if there is none.
    fn receive(&mut self, flags: libc::c_int, change: &mut Change) -> Result<bool, LinkError> {
        match self
            .notifications
            .receive(flags)
            .map_err(LinkError::Watch)?
        {
            Received::Nothing => return Ok(false),
            Received::Lost => change.lost = true,
            Received::Datagram(bytes) => change.note(bytes),
        }
        trace!(links = ?change.links, "links or addresses changed");
        Ok(true)
    }
}

/// Decodes notifications, for `fuzz/`.
#[cfg(feature = "fuzzing")]
pub(super) fn fuzz(datagram: &[u8]) {
    Change::default().note(datagram);
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
