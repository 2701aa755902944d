// SPDX-License-Identifier: Apache-2.0
//! The same manifests in iptables mode.

use kpr_core::model::{Event, IpFamily, ServiceView, Tracker};
use kpr_core::plan::Planner as _;
use kpr_core::plan::iptables::{Plan, Planner, State};
use kpr_core::plan::testing::fake::FakeKernel;

/// One family of a node, with a kernel that is new.
pub(super) struct Family {
    tracker: Tracker,
    planner: Planner,
    kernel: FakeKernel<State>,
}

impl Family {
    pub(super) fn new(family: IpFamily) -> Self {
        let mut planner = Planner::new(super::context(family));
        planner.observed(State::default());
        Self {
            tracker: Tracker::default(),
            planner,
            kernel: FakeKernel::default(),
        }
    }

    /// Takes in events, and does what they lead to.
    pub(super) fn step(&mut self, events: &[Event]) -> Plan {
        for event in events {
            self.tracker.apply(event.clone());
        }
        for service in self.tracker.take().services {
            let family = self.planner.context().family;
            let changed = ServiceView::of(&self.tracker, &service, family);
            self.planner.update(&changed, &self.tracker);
        }
        let plan = self.planner.plan();
        let report = self.kernel.apply(&plan);
        assert!(report.is_success(), "{report:?}");
        self.planner.report(&plan, &report);
        self.is_settled();
        plan
    }

    /// Neither we nor a new process would do anything more.
    fn is_settled(&self) {
        assert_eq!(self.planner.plan().to_string(), "");
        let mut next = Planner::new(self.planner.context().clone());
        next.observed(self.kernel.state.clone());
        next.update_all(&self.tracker);
        assert_eq!(next.plan().to_string(), "");
    }
}
