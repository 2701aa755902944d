// SPDX-License-Identifier: Apache-2.0
//! PURE: Services take turns. Where a batch costs what it changes, a change that is worth more than
//! one batch is made in several rounds, one Service port after the other, and what changes
//! meanwhile has its share of each: a Service of thousands of ports delays others by one batch.

use std::collections::BTreeMap;

use crate::model::{ServiceName, ServicePortName};
use crate::plan::iptables::port_rules::PortRules;

/// What a Service port is to become.
pub type Waiting = (ServicePortName, Option<PortRules>);

/// See the module. Sizes are numbers of rules, more or less.
#[derive(Clone, Debug, Default)]
pub struct Turns {
    /// The size of the changes that the next plan has taken.
    taken: usize,
    /// It has changes that waited.
    goes_on: bool,
    waiting: BTreeMap<ServiceName, BTreeMap<ServicePortName, Option<PortRules>>>,
}

impl Turns {
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether the next plan makes changes that had to wait for the last one.
    pub const fn goes_on(&self) -> bool {
        self.goes_on
    }

    /// Whether a new change is part of the next plan. Those that waited leave room for it.
    pub const fn takes(&mut self, size: usize, limit: usize) -> bool {
        let taken = self.taken.saturating_add(size);
        if self.taken > 0 && taken > limit.saturating_mul(2) {
            return false;
        }
        self.taken = taken;
        true
    }

    pub fn wait(&mut self, port: ServicePortName, rules: Option<PortRules>) {
        let of_service = self.waiting.entry(port.service.clone()).or_default();
        of_service.insert(port, rules);
    }

    /// Forgets what waits of a Service.
    pub fn forget(&mut self, service: &ServiceName) {
        self.waiting.remove(service);
    }

    /// What waits of a Service.
    pub fn of(
        &self,
        service: &ServiceName,
    ) -> impl Iterator<Item = (&ServicePortName, Option<&PortRules>)> {
        let waiting = self.waiting.get(service).into_iter().flatten();
        waiting.map(|(port, rules)| (port, rules.as_ref()))
    }

    /// Begins the next plan with changes that wait: a port of each Service, and another one of
    /// each, until they make a batch.
    pub fn next(
        &mut self,
        size: impl Fn(&ServicePortName, Option<&PortRules>) -> usize,
        limit: usize,
    ) -> Vec<Waiting> {
        self.taken = 0;
        self.goes_on = !self.waiting.is_empty();
        let mut next = Vec::new();
        while !self.waiting.is_empty() {
            let services: Vec<ServiceName> = self.waiting.keys().cloned().collect();
            for service in services {
                let Some(ports) = self.waiting.get_mut(&service) else {
                    continue;
                };
                if let Some((port, rules)) = ports.pop_first() {
                    let size = size(&port, rules.as_ref());
                    if self.taken > 0 && self.taken.saturating_add(size) > limit {
                        ports.insert(port, rules);
                        return next;
                    }
                    self.taken = self.taken.saturating_add(size);
                    next.push((port, rules));
                }
                if ports.is_empty() {
                    self.waiting.remove(&service);
                }
            }
        }
        next
    }
}
