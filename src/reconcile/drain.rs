// SPDX-License-Identifier: Apache-2.0
//! Waiting for the connections of removed real servers: since when, until when, and which to look at next.
//!
//! The kernel tells nobody when a connection ends, so it is asked: about servers that were removed just now at once, if
//! their virtual server was not looked at just now; about all that are waited for once in a while, a few at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kpr_core::plan::ipvs::object::VirtualServerKey;
use kpr_core::plan::ipvs::planner::RealServerOf;
use kpr_core::plan::mode::ModePlanner;
use kpr_core::plan::{Plan, Step};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    since: BTreeMap<RealServerOf, Duration>,
    /// The virtual servers that the present look has yet to come to.
    unseen: BTreeSet<VirtualServerKey>,
    /// Those that it came to. The kernel shows a virtual server only as a whole, so a burst of removals must not read one of a
    /// thousand endpoints a thousand times.
    seen: BTreeSet<VirtualServerKey>,
}

impl Waiting {
    /// A plan was made and taken in by the planner.
    pub(super) fn follow(&mut self, planner: &ModePlanner, plan: &Plan, now: Duration) {
        for step in plan.steps() {
            let (Step::AddRealServer { vs, key, .. }
            | Step::SetRealServer { vs, key, .. }
            | Step::DeleteRealServer { vs, key }) = step
            else {
                continue;
            };
            let server = (*vs, *key);
            if planner.draining().contains(&server) {
                self.since.entry(server).or_insert(now);
                if !self.seen.contains(vs) {
                    self.unseen.insert(*vs);
                }
            } else {
                self.since.remove(&server);
            }
        }
    }

    /// All that are waited for are to be looked at. Those that an earlier process left wait from now on.
    pub(super) fn look_at_all(&mut self, planner: &ModePlanner, now: Duration) {
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

    /// The real servers to look at next: those of a few virtual servers.
    pub(super) fn next(
        &mut self,
        planner: &ModePlanner,
        virtual_servers: usize,
    ) -> BTreeSet<RealServerOf> {
        let next = std::iter::from_fn(|| self.unseen.pop_first());
        next.take(virtual_servers)
            .inspect(|vs| _ = self.seen.insert(*vs))
            .flat_map(|vs| planner.draining_of(&vs))
            .collect()
    }

    /// Those whose time is over.
    pub(super) fn overdue(
        &self,
        planner: &ModePlanner,
        servers: &BTreeSet<RealServerOf>,
        now: Duration,
    ) -> BTreeSet<RealServerOf> {
        let is_over = |server: &&RealServerOf| {
            let since = self.since.get(*server).copied().unwrap_or(now);
            now.saturating_sub(since) >= planner.drain_limit(&server.0)
        };
        servers.iter().filter(is_over).copied().collect()
    }
}
