// SPDX-License-Identifier: Apache-2.0
//! PURE: assigns firewall marks to Service ports.
//!
//! A virtual server has one set of real servers for all clients. A Service port with the external
//! traffic policy Local needs two: the local ones for clients outside, all of them for pods and the
//! node itself. Packets of the latter get a mark, and a virtual server of that mark has all
//! endpoints.
//!
//! Each Service port gets a mark hashed from its name; on collision the older Service keeps it and
//! the younger one takes the next free mark. So the marks depend on the set of Service ports alone,
//! not on the order in which they appeared: a restart finds the same marks, and a new Service port
//! never takes the mark of an older one. ("Ordered hash tables", Amble and Knuth, 1974.)

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use crate::model::{IpFamily, Protocol, ServiceName, ServicePortName};
use crate::plan::by_port::first_of;
use crate::plan::ipvs::mark::{MarkRange, protocol, slots_of};
use crate::plan::ipvs::object::VirtualServerKey;
use crate::plan::ipvs::pass;
use crate::plan::ipvs::set::{SetEntry, SetId};
use crate::plan::ipvs::state::State;

/// The marks that only we can have set: our set assigns them to packets, or they are in our range
/// and their virtual server only drains, or leads to the node itself.
pub fn in_use(observed: &State, family: IpFamily) -> BTreeSet<u32> {
    let name = SetId::LocalPolicyMark.name(family);
    let given = observed.all_sets(&name).flat_map(|set| &set.entries);
    let given = given.filter_map(|entry| match entry {
        SetEntry::IpPortMark(.., mark) => Some(*mark),
        _ => None,
    });
    let draining = observed.virtual_servers.iter().filter_map(|(key, state)| {
        let mut servers = state.real_servers.values();
        let drains = !state.real_servers.is_empty() && servers.all(|server| server.weight == 0);
        match key {
            VirtualServerKey::Mark { mark, family: of }
                if *of == family && (drains || pass::is(key, state)) =>
            {
                Some(*mark)
            }
            _ => None,
        }
    });
    given
        .chain(draining)
        .filter(|mark| protocol(*mark).is_some())
        .collect()
}

/// Age, then name: decides which Service port gets a mark.
type Claim = (i64, ServicePortName);

/// Maximum number of marks of a Service. One that wants more counts as younger than all that do
/// not, so that it never moves the mark of another.
pub const SHARE: usize = 64;

/// If the Services of a namespace want more marks than this, they all count as younger than those
/// of others: they have what others leave. An eighth of the marks of TCP.
pub const NAMESPACE_SHARE: usize = 256;

/// Makes a Service younger than those of namespaces that are not crowded, in the order of age, and
/// still older than one that wants more than its share.
const CROWDED: i64 = i64::MAX / 2;

/// The assignment of marks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marks {
    range: MarkRange,
    tables: BTreeMap<Protocol, Table>,
    /// Service ports without a mark because the other ports of their Service have all of its share.
    beyond_share: BTreeSet<ServicePortName>,
    /// The Services that claim marks, with their age.
    created: BTreeMap<ServiceName, i64>,
    /// Number of claims by namespace.
    claimed: BTreeMap<Arc<str>, usize>,
}

impl Marks {
    pub fn new(range: MarkRange) -> Self {
        let table = |protocol| {
            let (first, size) = slots_of(protocol);
            (protocol, Table::new(first, size))
        };
        Self {
            range,
            tables: Protocol::ALL.into_iter().map(table).collect(),
            beyond_share: BTreeSet::new(),
            created: BTreeMap::new(),
            claimed: BTreeMap::new(),
        }
    }

    /// The mark of a Service port; `None` if it claims none, or if older ones hold all of them.
    pub fn of(&self, name: &ServicePortName) -> Option<u32> {
        let table = self.tables.get(&name.protocol)?;
        let (_, slot) = table.claims.get(name)?;
        slot.map(|slot| self.range.mark(slot))
    }

    /// Service ports that claim a mark and have none.
    pub fn without(&self) -> impl Iterator<Item = &ServicePortName> {
        let waiting = self.tables.values().flat_map(|table| &table.waiting);
        waiting.map(|(_, name)| name)
    }

    /// Whether a Service port has no mark although it wants one.
    pub fn lacks_any(&self) -> bool {
        self.without().chain(self.beyond_share()).next().is_some()
    }

    /// Service ports whose Service wants more marks than its share.
    pub fn beyond_share(&self) -> impl Iterator<Item = &ServicePortName> {
        self.beyond_share.iter()
    }

    /// Replaces the claims of a Service of this age. Returns the other Services whose marks
    /// changed.
    pub fn replace_service(
        &mut self,
        service: &ServiceName,
        created: i64,
        ports: &BTreeSet<ServicePortName>,
    ) -> BTreeSet<ServiceName> {
        let mut moved = BTreeSet::new();
        let first_of_service = first_of(service);
        while let Some(port) = self.beyond_share.range(&first_of_service..).next()
            && port.service == *service
        {
            let port = port.clone();
            self.beyond_share.remove(&port);
        }
        self.beyond_share.extend(ports.iter().skip(SHARE).cloned());
        let created = if ports.len() > SHARE {
            i64::MAX
        } else {
            created
        };
        let ports: BTreeSet<ServicePortName> = ports.iter().take(SHARE).cloned().collect();
        let was_crowded = self.is_crowded(service);
        self.count(service, created, ports.len());
        self.place(service, &ports, &mut moved);
        if was_crowded != self.is_crowded(service) {
            let neighbours = self.created.range(first_in(service)..);
            let neighbours = neighbours.map(|(name, _)| name.clone());
            let neighbours = neighbours.take_while(|name| name.namespace == service.namespace);
            for neighbour in neighbours.collect::<Vec<_>>() {
                let ports = self.claims_of(&neighbour);
                self.place(&neighbour, &ports, &mut moved);
                moved.insert(neighbour);
            }
        }
        moved.remove(service);
        moved
    }

    /// Whether the Services of its namespace want more marks than those of one may have.
    fn is_crowded(&self, service: &ServiceName) -> bool {
        let claimed = self.claimed.get(&service.namespace);
        claimed.is_some_and(|claims| *claims > NAMESPACE_SHARE)
    }

    /// Takes in the age of a Service and how many marks it claims.
    fn count(&mut self, service: &ServiceName, created: i64, claims: usize) {
        let before = self.claims_of(service).len();
        if before + claims == 0 {
            return;
        }
        let claimed = self.claimed.entry(service.namespace.clone()).or_default();
        *claimed = *claimed + claims - before;
        if *claimed == 0 {
            self.claimed.remove(&service.namespace);
        }
        if claims == 0 {
            self.created.remove(service);
        } else {
            self.created.insert(service.clone(), created);
        }
    }

    fn claims_of(&self, service: &ServiceName) -> BTreeSet<ServicePortName> {
        let of_all = self.tables.values().flat_map(|it| it.claims_of(service));
        of_all.map(|(name, _)| name.clone()).collect()
    }

    /// Replaces the claims of a Service by those of these ports.
    fn place(
        &mut self,
        service: &ServiceName,
        ports: &BTreeSet<ServicePortName>,
        moved: &mut BTreeSet<ServiceName>,
    ) {
        let mut created = self.created.get(service).copied().unwrap_or_default();
        if self.is_crowded(service) {
            created = created.saturating_add(CROWDED);
        }
        for table in self.tables.values_mut() {
            let gone: Vec<ServicePortName> = table
                .claims_of(service)
                .filter(|(name, claimed)| !ports.contains(*name) || *claimed != created)
                .map(|(name, _)| name.clone())
                .collect();
            for name in gone {
                table.withdraw(&name, moved);
            }
        }
        for name in ports {
            if let Some(table) = self.tables.get_mut(&name.protocol)
                && !table.claims.contains_key(name)
            {
                table.claim((created, name.clone()), moved);
            }
        }
    }
}

/// The smallest possible name of a Service of its namespace.
fn first_in(service: &ServiceName) -> ServiceName {
    ServiceName {
        namespace: service.namespace.clone(),
        name: "".into(),
    }
}

/// The marks of one protocol: a hash table with linear probing in which older claims take
/// precedence. From the slot that a claim's name hashes to up to the claim's own slot, all slots
/// hold older claims.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Table {
    first: u16,
    size: u16,
    places: BTreeMap<u16, Claim>,
    claims: BTreeMap<ServicePortName, (i64, Option<u16>)>,
    /// The youngest claims, if there are more claims than slots.
    waiting: BTreeSet<Claim>,
}

impl Table {
    const fn new(first: u16, size: u16) -> Self {
        Self {
            first,
            size,
            places: BTreeMap::new(),
            claims: BTreeMap::new(),
            waiting: BTreeSet::new(),
        }
    }

    fn claims_of<'a>(
        &'a self,
        service: &'a ServiceName,
    ) -> impl Iterator<Item = (&'a ServicePortName, i64)> {
        self.claims
            .range(first_of(service)..)
            .take_while(move |(name, _)| name.service == *service)
            .map(|(name, (created, _))| (name, *created))
    }

    fn home(&self, name: &ServicePortName) -> u16 {
        let mut digest = Sha256::new();
        digest.update(name.to_string().as_bytes());
        let bytes = digest.finalize();
        let number = bytes
            .iter()
            .take(2)
            .fold(0, |number, byte| (number << 8) | u16::from(*byte));
        self.first + number % self.size
    }

    const fn next(&self, place: u16) -> u16 {
        let last = self.first + (self.size - 1);
        if place == last { self.first } else { place + 1 }
    }

    fn claim(&mut self, claim: Claim, moved: &mut BTreeSet<ServiceName>) {
        let mut claim = claim;
        let mut place = self.home(&claim.1);
        let mut passed = 0;
        while passed < self.size {
            match self.places.get_mut(&place) {
                None => {
                    self.places.insert(place, claim.clone());
                    self.claims.insert(claim.1, (claim.0, Some(place)));
                    return;
                }
                Some(there) if *there < claim => passed += 1,
                Some(there) => {
                    // The younger claim looks for a slot after this one.
                    let younger = std::mem::replace(there, claim.clone());
                    self.claims.insert(claim.1, (claim.0, Some(place)));
                    moved.insert(younger.1.service.clone());
                    claim = younger;
                    passed = 0;
                }
            }
            place = self.next(place);
        }
        self.claims.insert(claim.1.clone(), (claim.0, None));
        self.waiting.insert(claim);
    }

    fn withdraw(&mut self, name: &ServicePortName, moved: &mut BTreeSet<ServiceName>) {
        let Some((created, place)) = self.claims.remove(name) else {
            return;
        };
        let Some(freed) = place else {
            self.waiting.remove(&(created, name.clone()));
            return;
        };
        self.places.remove(&freed);
        // The claims right after it may prefer its slot: they are placed again, the oldest first.
        let mut behind = BTreeMap::new();
        let mut place = self.next(freed);
        while let Some(claim) = self.places.remove(&place) {
            behind.insert(claim, place);
            place = self.next(place);
        }
        for (claim, old_place) in behind {
            let name = claim.1.clone();
            self.claim(claim, &mut BTreeSet::new());
            let is_moved = self
                .claims
                .get(&name)
                .is_none_or(|(_, place)| *place != Some(old_place));
            if is_moved {
                moved.insert(name.service);
            }
        }
        if let Some(claim) = self.waiting.pop_first() {
            moved.insert(claim.1.service.clone());
            self.claim(claim, moved);
        }
    }
}

#[cfg(test)]
mod tests;
