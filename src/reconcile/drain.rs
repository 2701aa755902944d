// SPDX-License-Identifier: Apache-2.0
//! Draining of removed real servers: their start times and limits, and which to poll next.
//!
//! The kernel does not notify when a connection ends, so it is polled: newly removed servers at
//! once, unless their virtual server was polled just now; all draining servers once per period, a
//! few at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kpr_core::plan::Step;
use kpr_core::plan::ipvs::object::VirtualServerKey;
use kpr_core::plan::ipvs::planner::RealServerOf;
use kpr_core::plan::mode::Drains;

/// Maximum number of draining real servers of a virtual server. The kernel lists and searches all
/// of them, and endpoints that come and go would add up for as long as the drain limit.
pub(super) const MAX_DRAINING: usize = 1_000;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct DrainQueue {
    since: BTreeMap<RealServerOf, Duration>,
    /// The virtual servers still to be read in the present poll.
    unseen: BTreeSet<VirtualServerKey>,
    /// Those already read. The kernel shows a virtual server only as a whole, so a burst of
    /// removals must not read one of a thousand endpoints a thousand times.
    seen: BTreeSet<VirtualServerKey>,
}

impl DrainQueue {
    /// A plan was applied and reported to the planner.
    pub(super) fn follow<'a, S: Step>(
        &mut self,
        planner: &dyn Drains<Step = S>,
        steps: impl Iterator<Item = &'a S>,
        now: Duration,
    ) {
        for server in steps.filter_map(|step| planner.real_server_of(step)) {
            if planner.draining().contains(&server) {
                self.since.entry(server).or_insert(now);
                if !self.seen.contains(&server.0) {
                    self.unseen.insert(server.0);
                }
            } else {
                self.since.remove(&server);
            }
        }
    }

    /// Starts to poll all draining servers. For those left by an earlier process the time starts
    /// now.
    pub(super) fn look_at_all<S: Step>(&mut self, planner: &dyn Drains<Step = S>, now: Duration) {
        let draining = planner.draining();
        self.since.retain(|server, _| draining.contains(server));
        for server in draining {
            self.since.entry(*server).or_insert(now);
        }
        self.seen.clear();
        self.unseen.extend(draining.iter().map(|(vs, _)| *vs));
    }

    pub(super) fn is_looking(&self) -> bool {
        !self.unseen.is_empty()
    }

    pub(super) fn stop_looking(&mut self) {
        self.unseen.clear();
    }

    /// The real servers to poll next: those of a few virtual servers.
    pub(super) fn next<S: Step>(
        &mut self,
        planner: &dyn Drains<Step = S>,
        virtual_servers: usize,
    ) -> BTreeSet<RealServerOf> {
        let next = std::iter::from_fn(|| self.unseen.pop_first());
        next.take(virtual_servers)
            .inspect(|vs| _ = self.seen.insert(*vs))
            .flat_map(|vs| planner.draining_of(&vs))
            .collect()
    }

    /// Those whose limit is over, and the oldest of a virtual server that has too many.
    pub(super) fn overdue<S: Step>(
        &self,
        planner: &dyn Drains<Step = S>,
        servers: &BTreeSet<RealServerOf>,
        now: Duration,
    ) -> BTreeSet<RealServerOf> {
        let is_over = |server: &&RealServerOf| {
            let since = self.since.get(*server).copied().unwrap_or(now);
            now.saturating_sub(since) >= planner.drain_limit(&server.0)
        };
        let mut overdue: BTreeSet<RealServerOf> = servers.iter().filter(is_over).copied().collect();
        let mut rest: BTreeMap<VirtualServerKey, Vec<(Duration, RealServerOf)>> = BTreeMap::new();
        for server in servers.difference(&overdue) {
            let since = self.since.get(server).copied().unwrap_or(now);
            rest.entry(server.0).or_default().push((since, *server));
        }
        for mut servers in rest.into_values() {
            let too_many = servers.len().saturating_sub(MAX_DRAINING);
            servers.sort_unstable();
            overdue.extend(servers.into_iter().take(too_many).map(|(_, server)| server));
        }
        overdue
    }
}
