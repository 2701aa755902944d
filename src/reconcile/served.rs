// SPDX-License-Identifier: Apache-2.0
//! One family, and what is derived from its Services besides its plans.

use std::collections::BTreeSet;

use super::context::NodeView;
use super::family::Family;
use super::health_checks::HealthChecks;
use super::loopback_ports::LoopbackPorts;
use super::observer::Observer;
use kpr_core::model::{Changes, ServiceName, ServiceView, Tracker};
use kpr_core::plan::{Context, Planner};

/// See the module.
#[derive(Debug)]
pub(super) struct Served<P: Planner> {
    pub(super) family: Family<P>,
    pub(super) health_checks: HealthChecks,
    /// The health checks changed since they were last published.
    pub(super) has_new_checks: bool,
    pub(super) loopback_ports: LoopbackPorts,
}

impl<P: Planner> Served<P> {
    pub(super) fn set_node(&mut self, node: NodeView<'_>) {
        self.has_new_checks |= self.health_checks.set_node(node);
        self.loopback_ports.set_node(node);
    }

    /// Resolves each changed Service once for all consumers. Returns the large ones.
    pub(super) fn update(&mut self, tracker: &Tracker, changes: &Changes) -> BTreeSet<ServiceName> {
        let mut large = BTreeSet::new();
        for name in &changes.services {
            let Context { family, budget, .. } = *self.family.context();
            let service = ServiceView::within(tracker, name, family, &budget);
            self.family.update(&service, tracker);
            self.has_new_checks |= self.health_checks.update(&service);
            self.loopback_ports.update(&service);
            if super::turns::is_large(&service) {
                large.insert(name.clone());
            }
        }
        large
    }

    pub(super) fn publish(&mut self, observer: &dyn Observer) {
        if std::mem::take(&mut self.has_new_checks) {
            observer.health_checks(&self.health_checks);
        }
        if self.loopback_ports.take_news() {
            observer.loopback_ports(self.loopback_ports.wanted());
        }
    }
}
