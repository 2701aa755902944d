// SPDX-License-Identifier: Apache-2.0
//! Notifications of changed links and addresses, so that they need not be polled.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_ROUTE;
use socket2::SockRef;
use tracing::trace;

use super::LinkError;
use super::codec::{
    RTM_DELADDR, RTM_DELLINK, RTM_DELROUTE, RTM_NEWADDR, RTM_NEWLINK, deleted_address_of,
    local_route_of,
};
use crate::dataplane::notifications::{Notifications, Received, each_message};

// enum rtnetlink_groups of include/uapi/linux/rtnetlink.h.
const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV4_ROUTE: u32 = 7;
const RTNLGRP_IPV6_IFADDR: u32 = 9;
const RTNLGRP_IPV6_ROUTE: u32 = 11;

/// Something changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// The links of which addresses or properties changed, by index.
    pub links: BTreeSet<u32>,
    /// Those of them that were deleted.
    pub deleted: BTreeSet<u32>,
    /// Addresses that some link lost, or that lost their route in the table `local`: it is one for
    /// all links, and may have gone with another link than it came with.
    pub gone: BTreeSet<IpAddr>,
    /// Notifications were lost: anything may have changed.
    pub lost: bool,
}

impl Change {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.links.is_empty() && self.gone.is_empty() && !self.lost
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
                let index = u32::from_ne_bytes(index);
                self.links.insert(index);
                if kind == RTM_DELLINK {
                    self.deleted.insert(index);
                }
                self.gone.extend(deleted_address_of(kind, payload));
            } else if kind == RTM_DELROUTE {
                self.gone
                    .extend(local_route_of(kind, payload).map(|route| route.addr()));
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

    /// Also notifies of routes that are deleted.
    pub fn watch_routes(&mut self) -> Result<(), LinkError> {
        for group in [RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE] {
            let joined = self.notifications.socket.add_membership(group);
            joined.map_err(LinkError::Watch)?;
        }
        Ok(())
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
                ..Change::default()
            }
        );
        assert!(change.concerns_others_than(3));
        let own = Change {
            links: [3].into(),
            ..Change::default()
        };
        assert!(!own.concerns_others_than(3));
    }

    /// A message with a header of this length and one attribute.
    fn about(kind: u16, header: &[u8], attribute: u16, value: &[u8]) -> Vec<u8> {
        let length = |bytes: usize| u16::try_from(bytes).unwrap().to_ne_bytes();
        let mut payload = header.to_vec();
        payload.extend(length(4 + value.len()));
        payload.extend(attribute.to_ne_bytes());
        payload.extend(value);
        let mut bytes = u32::try_from(16 + payload.len())
            .unwrap()
            .to_ne_bytes()
            .to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn lost_addresses_and_local_routes_are_named() {
        let mut change = Change::default();
        let address = about(RTM_DELADDR, &[2, 32, 0, 0, 3, 0, 0, 0], 2, &[10, 96, 0, 1]);
        change.note(&address);
        let route = |table, kind| {
            let header = [2, 32, 0, 0, table, 2, 254, kind, 0, 0, 0, 0];
            about(RTM_DELROUTE, &header, 1, &[10, 96, 0, 2])
        };
        change.note(&[route(254, 1), route(255, 3)].concat());
        assert_eq!(change.gone, ["10.96.0.1".parse().unwrap()].into());
        change.note(&route(255, 2));
        let both = ["10.96.0.1", "10.96.0.2"].map(|ip| ip.parse().unwrap());
        assert_eq!(change.gone, both.into());
        change.note(&message(RTM_DELLINK, 9));
        assert_eq!(change.deleted, [9].into());
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
                lost: true,
                ..Change::default()
            }
            .concerns_others_than(1)
        );
    }
}
