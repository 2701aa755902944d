// SPDX-License-Identifier: Apache-2.0
//! PURE: a map keyed by Service port, and a set of Service ports that counts their Services.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{ServiceName, ServicePortName};

/// A map keyed by Service port that finds the ports of one Service. In tests it counts lookups and
/// visited entries, which proves that the cost of a round depends on the change alone.
#[derive(Clone, Debug)]
pub struct ByPort<V> {
    ports: BTreeMap<ServicePortName, V>,
    #[cfg(any(test, feature = "testing"))]
    visits: std::cell::Cell<u64>,
}

impl<V> Default for ByPort<V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<V: PartialEq> PartialEq for ByPort<V> {
    fn eq(&self, other: &Self) -> bool {
        self.ports == other.ports
    }
}

impl<V: Eq> Eq for ByPort<V> {}

impl<V> ByPort<V> {
    pub const fn new() -> Self {
        Self {
            ports: BTreeMap::new(),
            #[cfg(any(test, feature = "testing"))]
            visits: std::cell::Cell::new(0),
        }
    }

    #[cfg(any(test, feature = "testing"))]
    fn visit(&self) {
        self.visits.set(self.visits.get() + 1);
    }

    #[cfg(not(any(test, feature = "testing")))]
    #[expect(clippy::unused_self, reason = "tests count")]
    const fn visit(&self) {}

    /// Service ports looked up or visited so far.
    #[cfg(any(test, feature = "testing"))]
    pub fn visits(&self) -> u64 {
        self.visits.get()
    }

    pub fn get(&self, name: &ServicePortName) -> Option<&V> {
        self.visit();
        self.ports.get(name)
    }

    pub fn insert(&mut self, name: ServicePortName, value: V) -> Option<V> {
        self.visit();
        self.ports.insert(name, value)
    }

    pub fn remove(&mut self, name: &ServicePortName) -> Option<V> {
        self.visit();
        self.ports.remove(name)
    }

    pub fn contains_key(&self, name: &ServicePortName) -> bool {
        self.visit();
        self.ports.contains_key(name)
    }

    pub fn len(&self) -> usize {
        self.ports.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ports.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&ServicePortName, &V)> {
        self.ports.iter().inspect(|_| self.visit())
    }

    /// The ports of a Service, with their values.
    pub fn of<'a>(
        &'a self,
        service: &'a ServiceName,
    ) -> impl Iterator<Item = (&'a ServicePortName, &'a V)> + use<'a, V> {
        self.ports
            .range(ServicePortName::first_of(service)..)
            .take_while(move |(name, _)| name.service == *service)
            .inspect(|_| self.visit())
    }

    /// The ports of a Service that are in the map but not among its present ports.
    pub fn gone(
        &self,
        service: &ServiceName,
        now: &BTreeMap<ServicePortName, V>,
    ) -> Vec<ServicePortName> {
        let names = self.of(service).map(|(name, _)| name);
        names
            .filter(|name| !now.contains_key(*name))
            .cloned()
            .collect()
    }
}

/// The smallest possible name of a port of a Service.
pub(super) fn first_of(service: &ServiceName) -> ServicePortName {
    ServicePortName::first_of(service)
}

/// A revision counter. It says nothing about the present value, so any two compare as equal.
#[derive(Clone, Copy, Debug, Default)]
pub struct Revision(u64);

impl PartialEq for Revision {
    fn eq(&self, _other: &Self) -> bool {
        true
    }
}

impl Eq for Revision {}

impl Revision {
    pub const fn bump(&mut self) {
        self.0 += 1;
    }

    pub const fn get(self) -> u64 {
        self.0
    }
}

/// Service ports with some property, and the number of their Services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortSet {
    ports: BTreeSet<ServicePortName>,
    services: usize,
}

impl PortSet {
    /// Adds or removes a port.
    pub fn set(&mut self, name: &ServicePortName, is_member: bool) {
        if self.ports.contains(name) == is_member {
            return;
        }
        if !is_member {
            self.ports.remove(name);
        }
        let is_alone = self.of(&name.service).next().is_none();
        if is_member {
            self.ports.insert(name.clone());
            self.services += usize::from(is_alone);
        } else {
            self.services -= usize::from(is_alone);
        }
    }

    fn of(&self, service: &ServiceName) -> impl Iterator<Item = &ServicePortName> {
        let from = self.ports.range(ServicePortName::first_of(service)..);
        from.take_while(move |name| name.service == *service)
    }

    pub fn contains(&self, name: &ServicePortName) -> bool {
        self.ports.contains(name)
    }

    pub fn iter(&self) -> impl Iterator<Item = &ServicePortName> {
        self.ports.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.ports.is_empty()
    }

    /// Number of Services with a port in the set.
    pub const fn services(&self) -> usize {
        self.services
    }
}
