// SPDX-License-Identifier: Apache-2.0
//! PURE: the reference-counted union of what all Service ports of one family want.
//!
//! Replacing the objects of one Service port costs what those objects cost, however many others
//! there are, and marks what changed as dirty. The union does not depend on the order of changes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::model::{ServiceName, ServicePortName};
use crate::plan::by_port::{ByPort, PortSet, Revision};
use crate::plan::claim::Claims;
use crate::plan::ipvs::object::{RealServers, VirtualServerKey};
use crate::plan::ipvs::port_objects::{PortObjects, WantedServer};
use crate::plan::ipvs::ramps;
use crate::plan::ipvs::set::{SetEntry, SetId};
use crate::plan::unmet::{Holder, Unmet};

/// Objects whose wanted form may differ from the believed one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    pub virtual_servers: BTreeSet<VirtualServerKey>,
    pub addresses: BTreeSet<IpAddr>,
    pub entries: BTreeSet<(SetId, SetEntry)>,
}

impl Dirty {
    pub fn is_empty(&self) -> bool {
        self.virtual_servers.is_empty() && self.addresses.is_empty() && self.entries.is_empty()
    }

    pub fn extend(&mut self, other: Self) {
        self.virtual_servers.extend(other.virtual_servers);
        self.addresses.extend(other.addresses);
        self.entries.extend(other.entries);
    }
}

/// An entry of a set.
type EntryOf = (SetId, SetEntry);

/// The desired state of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    by_port: ByPort<PortObjects>,
    virtual_servers: Claims<VirtualServerKey>,
    addresses: BTreeMap<IpAddr, u32>,
    /// How many claimants of an address claim it as an external IP alone.
    lendable: BTreeMap<IpAddr, u32>,
    /// Addresses of real servers.
    real_addresses: AddressCounts,
    /// Those of `addresses` that are real servers' and that nobody claims by a better right: not
    /// bound, or this node could not reach the server. Whoever may write slices must not take what
    /// the cluster or a load balancer gave.
    held: BTreeSet<IpAddr>,
    entries: BTreeMap<SetId, BTreeMap<SetEntry, u32>>,
    no_local_internal: PortSet,
    no_local_external: PortSet,
    /// Service ports with a request that cannot be met.
    with_unmet: PortSet,
    /// Service ports whose new real servers get their weight in steps.
    with_slow_start: PortSet,
    /// What leaves answers to the node's own clients alone: wanted where there are node ports.
    pass: Option<(VirtualServerKey, WantedServer)>,
    /// Revision of `with_unmet`.
    unmet_revision: Revision,
}

impl Desired {
    /// Takes another virtual server for what IPVS is to leave alone.
    pub fn set_pass(&mut self, pass: (VirtualServerKey, WantedServer)) {
        self.pass = Some(pass);
    }

    /// Replaces the objects of all ports of a Service; ports that it no longer has are removed.
    pub fn replace_service(
        &mut self,
        service: &ServiceName,
        by_port: BTreeMap<ServicePortName, PortObjects>,
        dirty: &mut Dirty,
    ) {
        for name in self.by_port.gone(service, &by_port) {
            self.replace(name, None, dirty);
        }
        for (name, port_objects) in by_port {
            self.replace(name, Some(port_objects), dirty);
        }
    }

    fn replace(&mut self, name: ServicePortName, new: Option<PortObjects>, dirty: &mut Dirty) {
        if self.by_port.get(&name) == new.as_ref() {
            return;
        }
        let old = self.by_port.remove(&name);
        self.exchange_real_addresses(old.as_ref(), new.as_ref(), dirty);
        let changed = changed_servers(old.as_ref(), new.as_ref());
        // What the winners of the virtual servers want in addition, before the change.
        let mut released: Vec<EntryOf> = Vec::new();
        for key in &changed {
            let wanted = match self.virtual_servers.winner(key) {
                Some(winner) if *winner == name => {
                    old.as_ref().and_then(|old| old.virtual_servers.get(key))
                }
                _ => self.virtual_server(key),
            };
            released.extend(wanted.into_iter().flat_map(|wanted| &wanted.entries));
            if let Some(old) = &old {
                self.virtual_servers.withdraw(*key, &old.claim(key, &name));
            }
            if let Some(new) = &new
                && new.virtual_servers.contains_key(key)
            {
                self.virtual_servers.claim(*key, new.claim(key, &name));
            }
        }
        let has = |what: fn(&PortObjects) -> bool| new.as_ref().is_some_and(what);
        self.no_local_internal
            .set(&name, has(|new| new.no_local_internal));
        self.no_local_external
            .set(&name, has(|new| new.no_local_external));
        self.with_slow_start.set(
            &name,
            has(|new| {
                new.extras
                    .as_ref()
                    .is_some_and(|it| it.slow_start.is_some())
            }),
        );
        let had_unmet = self.with_unmet.contains(&name);
        self.with_unmet
            .set(&name, has(|new| new.unmet().next().is_some()));
        if had_unmet || self.with_unmet.contains(&name) {
            self.unmet_revision.bump();
        }
        let mut acquired: Vec<EntryOf> = Vec::new();
        let mut touched: BTreeSet<IpAddr> = BTreeSet::new();
        if let Some(new) = new {
            acquired.extend(&new.entries);
            // New references come before releases: what both want is never counted down to 0.
            for address in &new.lendable {
                count_up(&mut self.lendable, *address);
            }
            for address in &new.addresses {
                if count_up(&mut self.addresses, *address) {
                    dirty.addresses.insert(*address);
                }
                touched.insert(*address);
            }
            self.by_port.insert(name, new);
        }
        if let Some(old) = &old {
            released.extend(&old.entries);
            for address in &old.lendable {
                count_down(&mut self.lendable, address);
            }
            for address in &old.addresses {
                if count_down(&mut self.addresses, address) {
                    dirty.addresses.insert(*address);
                }
                touched.insert(*address);
            }
        }
        for address in touched {
            self.find_holder(address, dirty);
        }
        for key in &changed {
            if let Some(wanted) = self.virtual_server(key) {
                acquired.extend(&wanted.entries);
            }
        }
        self.exchange_entries(released, acquired, dirty);
        dirty.virtual_servers.extend(changed);
    }

    fn exchange_real_addresses(
        &mut self,
        old: Option<&PortObjects>,
        new: Option<&PortObjects>,
        dirty: &mut Dirty,
    ) {
        let (released, acquired) = (real_addresses(old), real_addresses(new));
        for address in acquired.difference(&released) {
            if self.real_addresses.count_up(*address) {
                self.find_holder(*address, dirty);
            }
        }
        for address in released.difference(&acquired) {
            if self.real_addresses.count_down(*address) {
                self.find_holder(*address, dirty);
            }
        }
    }

    /// Updates whether an address that Services claim is a real server's.
    fn find_holder(&mut self, address: IpAddr, dirty: &mut Dirty) {
        let claimed = self.addresses.get(&address);
        let is_held = claimed.is_some()
            && claimed == self.lendable.get(&address)
            && self.real_addresses.contains(address);
        let is_news = if is_held {
            self.held.insert(address)
        } else {
            self.held.remove(&address)
        };
        if is_news {
            self.unmet_revision.bump();
            dirty.addresses.insert(address);
            let entry = (SetId::IpvsIps, SetEntry::Ip(address));
            dirty.entries.insert(entry);
        }
    }

    /// Marks the entries whose count reaches or leaves 0 as dirty.
    fn exchange_entries(
        &mut self,
        released: Vec<EntryOf>,
        acquired: Vec<EntryOf>,
        dirty: &mut Dirty,
    ) {
        let had_pass = self.needs_pass();
        for (set, entry) in acquired {
            if count_up(self.entries.entry(set).or_default(), entry) {
                dirty.entries.insert((set, entry));
            }
        }
        for (set, entry) in released {
            let Some(entries) = self.entries.get_mut(&set) else {
                continue;
            };
            if count_down(entries, &entry) {
                dirty.entries.insert((set, entry));
            }
            if entries.is_empty() {
                self.entries.remove(&set);
            }
        }
        if self.needs_pass() != had_pass {
            let pass = self.pass.iter().map(|(key, _)| *key);
            dirty.virtual_servers.extend(pass);
        }
    }

    fn needs_pass(&self) -> bool {
        self.entries.contains_key(&SetId::NodePort)
    }

    fn pass(&self) -> Option<(&VirtualServerKey, &WantedServer)> {
        let (key, wanted) = self.pass.as_ref().filter(|_| self.needs_pass())?;
        Some((key, wanted))
    }

    /// The virtual server wanted at a key, if any.
    pub fn virtual_server(&self, key: &VirtualServerKey) -> Option<&WantedServer> {
        let Some(winner) = self.virtual_servers.winner(key) else {
            let (_, wanted) = self.pass().filter(|(pass, _)| *pass == key)?;
            return Some(wanted);
        };
        self.by_port.get(winner)?.virtual_servers.get(key)
    }

    pub fn virtual_servers(&self) -> impl Iterator<Item = (&VirtualServerKey, &WantedServer)> {
        let of_ports = self.virtual_servers.places();
        of_ports
            .filter_map(|key| self.virtual_server(key).map(|wanted| (key, wanted)))
            .chain(self.pass())
    }

    pub fn wants_address(&self, address: &IpAddr) -> bool {
        self.addresses.contains_key(address) && !self.held.contains(address)
    }

    pub fn addresses(&self) -> impl Iterator<Item = &IpAddr> {
        self.addresses.keys()
    }

    pub fn wants_entry(&self, set: SetId, entry: &SetEntry) -> bool {
        if let (SetId::IpvsIps, SetEntry::Ip(address)) = (set, entry) {
            return self.wants_address(address);
        }
        self.entries
            .get(&set)
            .is_some_and(|entries| entries.contains_key(entry))
    }

    /// Whether the entry is wanted, or another one in its place.
    pub fn wants_alternative(&self, set: SetId, entry: &SetEntry) -> bool {
        let (first, last) = entry.alternatives();
        if first == last {
            return self.wants_entry(set, entry);
        }
        self.entries
            .get(&set)
            .is_some_and(|entries| entries.range(first..=last).next().is_some())
    }

    pub fn entries(&self, set: SetId) -> impl ExactSizeIterator<Item = &SetEntry> {
        static NONE: BTreeMap<SetEntry, u32> = BTreeMap::new();
        self.entries.get(&set).unwrap_or(&NONE).keys()
    }

    /// The entries of a set from the first to the last of these.
    pub fn entries_within(
        &self,
        set: SetId,
        first: SetEntry,
        last: SetEntry,
    ) -> impl Iterator<Item = &SetEntry> {
        let entries = self.entries.get(&set).into_iter();
        entries.flat_map(move |entries| entries.range(first..=last).map(|(entry, _)| entry))
    }

    /// What one Service wants, to plan it before others.
    pub fn dirty_of(&self, service: &ServiceName) -> Dirty {
        let mut dirty = Dirty::default();
        for (_, port_objects) in self.by_port.of(service) {
            let keys = port_objects.virtual_servers.keys();
            dirty.virtual_servers.extend(keys);
            dirty.addresses.extend(&port_objects.addresses);
            dirty.entries.extend(&port_objects.entries);
            for key in port_objects.virtual_servers.keys() {
                let wanted = self.virtual_server(key).into_iter();
                dirty
                    .entries
                    .extend(wanted.flat_map(|wanted| &wanted.entries));
            }
        }
        dirty
    }

    /// Claims on virtual servers.
    pub fn claims(&self) -> &Claims<VirtualServerKey> {
        &self.virtual_servers
    }

    /// What Services request and do not get. Costs the length of the result.
    pub fn unmet(&self) -> BTreeSet<(ServicePortName, Unmet)> {
        let mut unmet = BTreeSet::new();
        for name in self.with_unmet.iter() {
            let of_port = self
                .by_port
                .get(name)
                .into_iter()
                .flat_map(PortObjects::unmet);
            unmet.extend(of_port.map(|unmet| (name.clone(), unmet.clone())));
        }
        for address in &self.held {
            let (address, holder) = (*address, Holder::Endpoint);
            let (first, last) = VirtualServerKey::all_at(address);
            let claimants = self.virtual_servers.claimants_within(first, last);
            let bound = |name: &&ServicePortName| {
                let objects = self.by_port.get(name);
                objects.is_some_and(|objects| objects.addresses.contains(&address))
            };
            let unbound = claimants.filter(bound).cloned();
            unmet.extend(unbound.map(|name| (name, Unmet::NotBound { address, holder })));
        }
        unmet
    }

    /// Changes whenever the result of [`Self::unmet`] may have changed.
    pub const fn unmet_revision(&self) -> u64 {
        self.unmet_revision.get()
    }

    /// The drain limit that the Service with this virtual server sets for removed endpoints.
    pub fn drain_limit(&self, key: &VirtualServerKey) -> Option<Duration> {
        let port_objects = self.by_port.get(self.virtual_servers.winner(key)?)?;
        port_objects.extras.as_ref()?.drain_limit
    }

    /// The time in which a new real server of the virtual server gets its whole weight. Costs
    /// nothing where no Service has it.
    pub fn slow_start(&self, key: &VirtualServerKey) -> Option<Duration> {
        if self.with_slow_start.is_empty() {
            return None;
        }
        let port_objects = self.by_port.get(self.virtual_servers.winner(key)?)?;
        let length = port_objects.extras.as_ref()?.slow_start?;
        let wanted = port_objects.virtual_servers.get(key)?;
        ramps::suits(&wanted.server.scheduler).then_some(length)
    }

    pub fn has_slow_start(&self) -> bool {
        !self.with_slow_start.is_empty()
    }

    /// The virtual servers of a Service that sets a drain limit of its own.
    pub fn drain_limits(&self, service: &ServiceName) -> Vec<(VirtualServerKey, Duration)> {
        let limited = self.by_port.of(service).filter_map(|(_, port_objects)| {
            let limit = port_objects.extras.as_ref()?.drain_limit?;
            Some(
                port_objects
                    .virtual_servers
                    .keys()
                    .map(move |key| (*key, limit)),
            )
        });
        limited.flatten().collect()
    }

    /// Number of Services with a port that has a Local policy and no endpoint on this node, by
    /// policy: internal, external.
    pub fn no_local_endpoints(&self) -> (usize, usize) {
        (
            self.no_local_internal.services(),
            self.no_local_external.services(),
        )
    }

    pub fn by_port(&self) -> &ByPort<PortObjects> {
        &self.by_port
    }
}

/// The addresses of all real servers of a Service port. Most of its virtual servers share them.
fn real_addresses(port_objects: Option<&PortObjects>) -> BTreeSet<IpAddr> {
    let mut seen: Vec<*const RealServers> = Vec::new();
    let mut addresses = BTreeSet::new();
    for wanted in port_objects
        .into_iter()
        .flat_map(|f| f.virtual_servers.values())
    {
        let shared = Arc::as_ptr(&wanted.real_servers);
        if !seen.contains(&shared) {
            seen.push(shared);
            addresses.extend(wanted.real_servers.keys().map(|key| key.address));
        }
    }
    addresses
}

/// How often each address occurs. There are as many as endpoints, and one takes less than half of
/// what it would as a key that says its family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct AddressCounts {
    v4: BTreeMap<u32, u32>,
    v6: BTreeMap<u128, u32>,
}

impl AddressCounts {
    fn count_up(&mut self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => count_up(&mut self.v4, address.to_bits()),
            IpAddr::V6(address) => count_up(&mut self.v6, address.to_bits()),
        }
    }

    fn count_down(&mut self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => count_down(&mut self.v4, &address.to_bits()),
            IpAddr::V6(address) => count_down(&mut self.v6, &address.to_bits()),
        }
    }

    fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.v4.contains_key(&address.to_bits()),
            IpAddr::V6(address) => self.v6.contains_key(&address.to_bits()),
        }
    }
}

/// Returns whether this is the first reference.
fn count_up<K: Ord>(counts: &mut BTreeMap<K, u32>, key: K) -> bool {
    let count = counts.entry(key).or_default();
    *count += 1;
    *count == 1
}

/// Returns whether this was the last reference.
fn count_down<K: Ord>(counts: &mut BTreeMap<K, u32>, key: &K) -> bool {
    let Some(count) = counts.get_mut(key) else {
        return false;
    };
    *count -= 1;
    let is_last = *count == 0;
    if is_last {
        counts.remove(key);
    }
    is_last
}

/// The virtual servers that a Service port wants differently than before. A change of age affects
/// all of them: a contested one may pass to another claimant.
fn changed_servers(
    old: Option<&PortObjects>,
    new: Option<&PortObjects>,
) -> BTreeSet<VirtualServerKey> {
    fn wanted<'a>(of: Option<&'a PortObjects>, key: &VirtualServerKey) -> Option<&'a WantedServer> {
        of?.virtual_servers.get(key)
    }
    let same_claims = match (old, new) {
        (Some(old), Some(new)) => old.created == new.created,
        _ => false,
    };
    old.into_iter()
        .chain(new)
        .flat_map(|port_objects| port_objects.virtual_servers.keys())
        .filter(|key| !same_claims || wanted(old, key) != wanted(new, key))
        .copied()
        .collect()
}

#[cfg(test)]
mod tests;
