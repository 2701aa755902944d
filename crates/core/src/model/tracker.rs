// SPDX-License-Identifier: Apache-2.0
//! The current Services and EndpointSlices, and which Services changed since the last sync.
//!
//! Every source sends [`Event`]s here. A relist arrives as one event that replaces the whole kind,
//! so that no sync ever sees half of it. Slices that arrive before their Service are kept for it.

use std::collections::{BTreeMap, BTreeSet};

use super::holders::Holders;
use super::slices::{self, EndpointsByPort};
use super::{EndpointSlice, IpFamily, Service, ServiceName, SliceName};

#[cfg(test)]
mod tests;

/// A change of the objects that the proxy serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    ServiceApplied(Service),
    ServiceDeleted(ServiceName),
    /// The complete list of Services: all others are deleted.
    ServicesReplaced(Vec<Service>),
    SliceApplied(EndpointSlice),
    SliceDeleted(SliceName),
    /// The complete list of EndpointSlices.
    SlicesReplaced(Vec<EndpointSlice>),
}

/// What changed since the last [`Tracker::take`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub services: BTreeSet<ServiceName>,
    /// Accepted changes of Services and slices, for the metrics.
    pub service_changes: usize,
    pub endpoint_changes: usize,
    /// Trigger times of the endpoint changes (Unix nanoseconds), for the latency metric.
    pub triggers: Vec<(IpFamily, i64)>,
}

impl Changes {
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }
}

/// Slices of a Service up to this number take no more room than they need.
const FEW: usize = 8;

/// The relevant objects of the cluster, by Service.
#[derive(Clone, Debug, Default)]
pub struct Tracker {
    /// Boxed, because a B-tree reserves room for more values than it contains.
    services: BTreeMap<ServiceName, Box<Service>>,
    /// Slices by Service, in name order, even if the Service does not exist. Most Services have one
    /// or two, and a B-tree of one element has the size of eleven.
    slices: BTreeMap<ServiceName, Vec<EndpointSlice>>,
    /// The Service of each slice: deletions name only the slice.
    slice_owners: BTreeMap<SliceName, ServiceName>,
    services_listed: bool,
    slices_listed: bool,
    /// Who has addresses that Services may claim.
    holders: Holders,
    changes: Changes,
    /// Trigger times of pending changes by Service. When a slice is deleted, those of its Service
    /// are dropped, as in kube-proxy: what they measured no longer exists.
    triggers: BTreeMap<ServiceName, Vec<(IpFamily, i64)>>,
}

impl Tracker {
    /// Whether both kinds were listed completely. Nothing may be programmed before: a Service
    /// without its endpoints would reject connections that work now.
    pub fn is_complete(&self) -> bool {
        self.services_listed && self.slices_listed
    }

    /// Takes in a change; returns whether anything differs from before.
    pub fn apply(&mut self, event: Event) -> bool {
        let before = self.changes.service_changes + self.changes.endpoint_changes;
        let was_complete = self.is_complete();
        match event {
            Event::ServiceApplied(service) => self.apply_service(service),
            Event::ServiceDeleted(name) => self.delete_service(&name),
            Event::ServicesReplaced(services) => {
                let listed: BTreeSet<_> = services.iter().map(|s| s.name.clone()).collect();
                let gone: Vec<_> = self
                    .services
                    .keys()
                    .filter(|name| !listed.contains(name))
                    .cloned()
                    .collect();
                for name in &gone {
                    self.delete_service(name);
                }
                for service in services {
                    self.apply_service(service);
                }
                self.services_listed = true;
            }
            Event::SliceApplied(slice) => self.apply_slice(slice),
            Event::SliceDeleted(name) => self.delete_slice(&name),
            Event::SlicesReplaced(slices) => {
                let listed: BTreeSet<_> = slices.iter().map(|s| s.name.clone()).collect();
                let gone: Vec<_> = self
                    .slice_owners
                    .keys()
                    .filter(|name| !listed.contains(name))
                    .cloned()
                    .collect();
                // From the end: nothing has to close a gap.
                for name in gone.iter().rev() {
                    self.delete_slice(name);
                }
                for slice in slices {
                    self.apply_slice(slice);
                }
                self.slices_listed = true;
            }
        }
        let after = self.changes.service_changes + self.changes.endpoint_changes;
        before != after || was_complete != self.is_complete()
    }

    /// Who has addresses that Services may claim.
    pub const fn holders(&self) -> &Holders {
        &self.holders
    }

    /// Replaces them; the Services that get other addresses because of it count as changed. Returns
    /// whether there are such. A Service with cluster IPs and node ports alone costs next to
    /// nothing.
    pub fn set_holders(&mut self, holders: Holders) -> bool {
        if self.holders == holders {
            return false;
        }
        let services = self.services.values();
        let affected: Vec<ServiceName> = services
            .filter(|service| holders.differ_about(&self.holders, service))
            .map(|service| service.name.clone())
            .collect();
        self.holders = holders;
        let is_news = !affected.is_empty();
        self.changes.services.extend(affected);
        is_news
    }

    /// What changed since the last [`Self::take`].
    pub fn pending(&self) -> &Changes {
        &self.changes
    }

    /// Returns what changed and resets it.
    pub fn take(&mut self) -> Changes {
        let triggers = std::mem::take(&mut self.triggers);
        Changes {
            triggers: triggers.into_values().flatten().collect(),
            ..std::mem::take(&mut self.changes)
        }
    }

    pub fn service(&self, name: &ServiceName) -> Option<&Service> {
        self.services.get(name).map(Box::as_ref)
    }

    /// All Services, in the order of their names.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values().map(Box::as_ref)
    }

    /// Number of Services and of EndpointSlices.
    pub fn counts(&self) -> (usize, usize) {
        (self.services.len(), self.slice_owners.len())
    }

    /// All EndpointSlices, in the order of their Services.
    pub fn slices(&self) -> impl Iterator<Item = &EndpointSlice> {
        self.slices.values().flatten()
    }

    /// The EndpointSlices of a Service.
    pub fn slices_of(&self, service: &ServiceName) -> impl Iterator<Item = &EndpointSlice> + Clone {
        self.slices.get(service).into_iter().flatten()
    }

    /// The endpoints of a Service in a family, by the port that they serve.
    pub fn endpoints(&self, service: &ServiceName, family: IpFamily) -> EndpointsByPort {
        slices::merge(self.slices_of(service), family)
    }

    fn apply_service(&mut self, service: Service) {
        if self.service(&service.name) == Some(&service) {
            return;
        }
        self.changes.services.insert(service.name.clone());
        self.changes.service_changes += 1;
        self.services
            .insert(service.name.clone(), Box::new(service));
    }

    fn delete_service(&mut self, name: &ServiceName) {
        if self.services.remove(name).is_some() {
            self.changes.services.insert(name.clone());
            self.changes.service_changes += 1;
        }
    }

    fn apply_slice(&mut self, slice: EndpointSlice) {
        if let Some(owner) = self.slice_owners.get(&slice.name) {
            if *owner != slice.service {
                // The label was changed: the slice leaves its old Service.
                let name = slice.name.clone();
                self.delete_slice(&name);
            } else if self.slices.get(owner).and_then(|slices| {
                let index = find(slices, &slice.name).ok()?;
                slices.get(index)
            }) == Some(&slice)
            {
                return;
            }
        }
        self.changes.services.insert(slice.service.clone());
        self.changes.endpoint_changes += 1;
        if let Some(trigger) = slice.last_change_trigger {
            let triggers = self.triggers.entry(slice.service.clone()).or_default();
            triggers.push((slice.family, trigger));
        }
        self.slice_owners
            .insert(slice.name.clone(), slice.service.clone());
        let slices = self.slices.entry(slice.service.clone()).or_default();
        match find(slices, &slice.name) {
            Ok(index) => {
                if let Some(old) = slices.get_mut(index) {
                    *old = slice;
                }
            }
            Err(index) => {
                if slices.len() < FEW {
                    slices.reserve_exact(1);
                }
                slices.insert(index, slice);
            }
        }
    }

    fn delete_slice(&mut self, name: &SliceName) {
        let Some(owner) = self.slice_owners.remove(name) else {
            return;
        };
        if let Some(slices) = self.slices.get_mut(&owner) {
            if let Ok(index) = find(slices, name) {
                slices.remove(index);
            }
            if slices.is_empty() {
                self.slices.remove(&owner);
            }
        }
        self.triggers.remove(&owner);
        self.changes.services.insert(owner);
        self.changes.endpoint_changes += 1;
    }
}

/// Where a slice of that name is, or would be.
fn find(slices: &[EndpointSlice], name: &SliceName) -> Result<usize, usize> {
    slices.binary_search_by(|slice| slice.name.cmp(name))
}
