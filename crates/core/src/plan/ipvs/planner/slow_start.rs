// SPDX-License-Identifier: Apache-2.0
//! PURE: which real servers get their weight in steps.

use std::collections::BTreeMap;

use super::Planner;
use crate::model::ServiceName;
use crate::plan::ipvs::object::{RealServerKey, RealServers, VirtualServerKey};
use crate::plan::ipvs::state::VirtualServerState;

impl Planner {
    /// The kernel has a real server with this weight now.
    pub(super) fn find_ramp(&mut self, vs: VirtualServerKey, key: RealServerKey, weight: u32) {
        let Some(length) = self.desired.slow_start(&vs) else {
            return;
        };
        let wanted = self.desired.virtual_server(&vs);
        let wanted = wanted.and_then(|wanted| wanted.real_servers.get(&key));
        if let Some(wanted) = wanted {
            self.ramps.found((vs, key), *wanted, weight, length);
        }
    }

    /// Ends the ramps of what a virtual server no longer wants.
    pub(super) fn end_ramps(&mut self, vs: &VirtualServerKey) {
        let wanted = self.desired.virtual_server(vs);
        let length = self.desired.slow_start(vs);
        let wanted = wanted.filter(|_| length.is_some());
        let still = |key: &RealServerKey| {
            let server = wanted.and_then(|wanted| wanted.real_servers.get(key));
            server.is_some_and(|server| server.weight > 0)
        };
        self.ramps.retain(vs, length.unwrap_or_default(), still);
    }

    /// A change of the time alone leaves servers as they are.
    pub(super) fn pace_ramps(&mut self, service: &ServiceName) {
        if !self.desired.has_slow_start() {
            return;
        }
        let ports = self.desired.by_port().of(service);
        let keys = ports.flat_map(|(_, objects)| objects.virtual_servers.keys());
        let keys: Vec<VirtualServerKey> = keys.copied().collect();
        for key in &keys {
            self.end_ramps(key);
        }
    }

    /// Continues ramps of an earlier process, and of real servers that were added although the
    /// answer was lost. What was known before with another weight has been changed by others.
    pub(super) fn find_ramps(&mut self, before: &BTreeMap<VirtualServerKey, VirtualServerState>) {
        if !self.desired.has_slow_start() {
            return;
        }
        let mut found = Vec::new();
        for (vs, present) in &self.believed.virtual_servers {
            if self.desired.slow_start(vs).is_some() {
                let before = before.get(vs).map(|before| &*before.real_servers);
                let new = new_since(before, &present.real_servers);
                found.extend(new.map(|(key, weight)| (*vs, key, weight)));
            }
        }
        for (vs, key, weight) in found {
            self.find_ramp(vs, key, weight);
        }
    }

    /// The same for one virtual server.
    pub(super) fn find_ramps_of(&mut self, vs: &VirtualServerKey, before: Option<&RealServers>) {
        let present = self.believed.virtual_servers.get(vs);
        let Some(present) = present.filter(|_| self.desired.slow_start(vs).is_some()) else {
            return;
        };
        let found: Vec<_> = new_since(before, &present.real_servers).collect();
        for (key, weight) in found {
            self.find_ramp(*vs, key, weight);
        }
    }
}

/// The real servers that had no share of the connections, and their weights.
fn new_since(
    before: Option<&RealServers>,
    now: &RealServers,
) -> impl Iterator<Item = (RealServerKey, u32)> {
    let had = move |key: &RealServerKey| {
        before.is_some_and(|before| before.get(key).is_some_and(|server| server.weight > 0))
    };
    let new = now.iter().filter(move |(key, _)| !had(key));
    new.map(|(key, server)| (*key, server.weight))
}
