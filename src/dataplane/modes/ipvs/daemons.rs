// SPDX-License-Identifier: Apache-2.0
//! Sync daemons. The kernel does not say who started one, and other programs (keepalived) may have,
//! so the alias of our link says what we have started.

use super::{Dataplane, wire};
use crate::dataplane::failure::{failed, outcome};
use crate::dataplane::kernel::ObserveError;
use ipvs_netlink::Error as IpvsError;
use kpr_core::plan::Outcome;
use kpr_core::plan::ipvs::object::{SyncDaemon, SyncRole};
use std::collections::BTreeMap;

/// What our alias begins with. The kernel takes up to 255 bytes.
const ALIAS: &str = "IPVS sync daemons of kube-proxy-rs";

/// Between a daemon and the index of its interface.
const LINK: &str = " link ";

/// The same for both roles. The length of messages is the kernel's choice, and differs.
fn alias(daemon: &SyncDaemon, link: u32) -> String {
    let daemon = SyncDaemon {
        max_length: 0,
        ..daemon.clone()
    };
    format!("{ALIAS} {daemon}{LINK}{link}")
}

/// The index of the interface on which we started a daemon; `None` if another program started it.
fn started_on(daemon: &SyncDaemon, found: &str) -> Option<u32> {
    let (_, link) = found.rsplit_once(LINK)?;
    let link = link.parse().ok()?;
    (alias(daemon, link) == found).then_some(link)
}

impl Dataplane {
    /// The daemons that run. `found`: the alias of our link.
    pub(super) fn observe_daemons(
        &mut self,
        found: Option<&str>,
    ) -> Result<BTreeMap<SyncRole, SyncDaemon>, ObserveError> {
        let running = self.ipvs.daemons();
        let running = running.map_err(|error| ObserveError::new("IPVS sync daemons", error))?;
        let running = running.iter().filter_map(wire::sync_daemon);
        Ok(running
            .map(|(role, daemon)| {
                let link = found.and_then(|found| started_on(&daemon, found));
                (role, SyncDaemon { link, ..daemon })
            })
            .collect())
    }

    pub(super) fn start_daemon(&mut self, role: SyncRole, daemon: &SyncDaemon) -> Outcome {
        // First: one that nobody knows to be ours would stay for ever.
        if let (Some(ours), Some(link)) = (self.link, daemon.link) {
            let written = self.node.links.set_alias(ours, &alias(daemon, link));
            if let Err(error) = written {
                return failed(&error);
            }
        }
        outcome(&self.ipvs.start_daemon(&wire::wire_daemon(role, daemon)))
    }

    /// One that does not run is success.
    pub(super) fn stop_daemon(&mut self, role: SyncRole) -> Outcome {
        match self.ipvs.stop_daemon(wire::wire_role(role)) {
            Err(IpvsError::Command { source, .. }) if source.errno == libc::ESRCH => Outcome::Done,
            result => outcome(&result),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alias_tells_ours_from_others() {
        let daemon = SyncDaemon {
            interface: "fifteen-letters".into(),
            link: Some(u32::MAX),
            sync_id: 255,
            group: "ff02:1111:2222:3333:4444:5555:6666:7777".parse().unwrap(),
            port: 65_535,
            ttl: 255,
            max_length: 65_487,
        };
        let found = alias(&daemon, u32::MAX);
        assert!(found.len() < 256, "{}", found.len());
        let of_kernel = |sync_id| SyncDaemon {
            link: None,
            max_length: 1_472,
            sync_id,
            ..daemon.clone()
        };
        assert_eq!(started_on(&of_kernel(255), &found), Some(u32::MAX));
        assert_eq!(started_on(&of_kernel(254), &found), None);
        assert_eq!(started_on(&of_kernel(255), "uplink of rack 3 link 7"), None);
    }
}
