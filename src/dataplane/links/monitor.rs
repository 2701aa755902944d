// SPDX-License-Identifier: Apache-2.0
//! Notifications of changed links and addresses, so that they need not be polled.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_ROUTE;
use tracing::trace;

use super::LinkError;
use super::codec::{
    RTM_DELADDR, RTM_DELLINK, RTM_DELROUTE, RTM_NEWADDR, RTM_NEWLINK, deleted_address_of,
    local_route_of,
};
use netlink_pipeline::{Heard, Listener};

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

    /// Takes in a notification.
    fn note(&mut self, kind: u16, payload: &[u8]) {
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
    }
}

/// Notifications of this network namespace's links and addresses. Blocking: needs its own thread.
#[derive(Debug)]
pub struct Monitor(Listener);

impl Monitor {
    /// Subscribes. No later change is missed.
    pub fn open() -> Result<Self, LinkError> {
        let groups = [RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR];
        let joined = Listener::join(NETLINK_ROUTE, &groups);
        joined.map(Self).map_err(LinkError::Watch)
    }

    /// Also notifies of routes that are deleted.
    pub fn watch_routes(&mut self) -> Result<(), LinkError> {
        for group in [RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE] {
            self.0.join_group(group).map_err(LinkError::Watch)?;
        }
        Ok(())
    }

    /// Waits for a change, then takes all that have arrived as one. `None` if nothing changed
    /// within `patience`, so that the caller can check whether to stop.
    pub fn wait(&mut self, patience: Duration) -> Result<Option<Change>, LinkError> {
        let mut change = Change::default();
        if !self.receive(Some(patience), &mut change)? {
            return Ok(None);
        }
        while self.receive(None, &mut change)? {}
        Ok(Some(change).filter(|change| !change.is_empty()))
    }

    /// Receives one datagram; `false` if there is none.
    fn receive(
        &mut self,
        patience: Option<Duration>,
        change: &mut Change,
    ) -> Result<bool, LinkError> {
        let heard = self
            .0
            .receive(patience, |kind, data| change.note(kind, data));
        let heard = heard.map_err(LinkError::Watch)?;
        change.lost |= heard == Heard::Lost;
        trace!(links = ?change.links, "links or addresses changed");
        Ok(heard != Heard::Nothing)
    }
}

/// Decodes notifications, for `fuzz/`.
#[cfg(feature = "fuzzing")]
pub(super) fn fuzz(kind: u16, payload: &[u8]) {
    Change::default().note(kind, payload);
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_pipeline::attribute::Writer;

    fn about_link(index: u32) -> Vec<u8> {
        [[2, 32, 0, 0], index.to_ne_bytes()].concat()
    }

    #[test]
    fn notifications_are_one_change_with_the_links_they_name() {
        let mut change = Change::default();
        assert!(change.is_empty());
        change.note(RTM_NEWADDR, &about_link(3));
        change.note(RTM_DELADDR, &about_link(7));
        change.note(RTM_NEWLINK, &about_link(3));
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

    /// A header and one attribute.
    fn about(header: &[u8], attribute: u16, value: &[u8]) -> Vec<u8> {
        let mut payload = Writer::after(header);
        payload.bytes(attribute, value);
        payload.finish().unwrap()
    }

    #[test]
    fn lost_addresses_and_local_routes_are_named() {
        let mut change = Change::default();
        let address = about(&[2, 32, 0, 0, 3, 0, 0, 0], 2, &[10, 96, 0, 1]);
        change.note(RTM_DELADDR, &address);
        let route = |table, kind| {
            let header = [2, 32, 0, 0, table, 2, 254, kind, 0, 0, 0, 0];
            about(&header, 1, &[10, 96, 0, 2])
        };
        change.note(RTM_DELROUTE, &route(254, 1));
        change.note(RTM_DELROUTE, &route(255, 3));
        assert_eq!(change.gone, ["10.96.0.1".parse().unwrap()].into());
        change.note(RTM_DELROUTE, &route(255, 2));
        let both = ["10.96.0.1", "10.96.0.2"].map(|ip| ip.parse().unwrap());
        assert_eq!(change.gone, both.into());
        change.note(RTM_DELLINK, &about_link(9));
        assert_eq!(change.deleted, [9].into());
    }

    #[test]
    fn other_messages_and_broken_ones_say_nothing() {
        let mut change = Change::default();
        change.note(24, &about_link(3));
        change.note(RTM_NEWADDR, &about_link(1)[..4]);
        change.note(RTM_DELROUTE, &[]);
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
