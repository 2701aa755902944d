// SPDX-License-Identifier: Apache-2.0
//! A tracker, a planner and a kernel: iptables mode without its loop.

use crate::model::{Event, ServiceView, Tracker};
use crate::plan::Context;
use crate::plan::iptables::Planner;
use crate::plan::iptables::{Plan, State, Step};
use crate::plan::mode::{Isolation as _, Planner as _};
use crate::plan::ruleset::{ChainName, Rule, Ruleset, Table};
use crate::plan::testing::fake::{FakeKernel, Fault};

#[derive(Debug)]
pub(super) struct Proxy {
    pub(super) tracker: Tracker,
    pub(super) planner: Planner,
    pub(super) kernel: FakeKernel<State>,
}

impl Proxy {
    /// Starts with the objects of a tracker and a kernel with `rules`; programs nothing.
    pub(super) fn start(context: Context, tracker: Tracker, rules: Ruleset) -> Self {
        let state = State {
            rules,
            ..State::default()
        };
        Self::over(context, tracker, state)
    }

    /// The same with a kernel in this state.
    pub(super) fn over(context: Context, tracker: Tracker, state: State) -> Self {
        let mut proxy = Self {
            tracker,
            planner: Planner::new(context),
            kernel: FakeKernel::new(state),
        };
        proxy.planner.observed(proxy.kernel.state.clone());
        proxy.planner.update_all(&proxy.tracker);
        proxy.tracker.take();
        proxy
    }

    /// Takes in events; programs nothing.
    pub(super) fn take_in(&mut self, events: impl IntoIterator<Item = Event>) {
        for event in events {
            self.tracker.apply(event);
        }
        for name in self.tracker.take().services {
            let Context { family, budget, .. } = *self.planner.context();
            let changed = ServiceView::within(&self.tracker, &name, family, &budget);
            self.planner.update(&changed, &self.tracker);
        }
    }

    /// One round in which all steps succeed.
    pub(super) fn sync(&mut self) -> Plan {
        let plan = self.planner.plan();
        let report = self.kernel.apply(&plan);
        assert!(report.is_success(), "{report:?}\n{plan}");
        self.planner.report(&plan, &report);
        assert!(!self.planner.is_pending());
        assert!(!self.planner.is_isolating());
        assert!(self.planner.plan().is_empty(), "{}", self.planner.plan());
        plan
    }

    /// One round in which some steps fail.
    pub(super) fn try_sync(&mut self, fault: impl FnMut(&Step) -> Option<Fault>) -> Plan {
        let plan = self.planner.plan();
        let report = self.kernel.apply_with(&plan, fault);
        self.planner.report(&plan, &report);
        if self.planner.needs_observation() {
            self.planner.observed(self.kernel.state.clone());
        }
        plan
    }

    pub(super) fn rules(&self, table: Table, chain: &str) -> Vec<&str> {
        let rules = self.kernel.state.rules.rules(table, &name(chain));
        rules.map_or_else(Vec::new, |rules| rules.iter().map(Rule::as_str).collect())
    }
}

pub(super) fn name(chain: &str) -> ChainName {
    ChainName::new(chain).unwrap()
}
