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

use sha2::{Digest as _, Sha256};

use crate::model::{IpFamily, Protocol, ServiceName, ServicePortName};
use crate::plan::by_port::first_of;
use crate::plan::ipvs::mark::{MarkRange, protocol, slots_of};
use crate::plan::ipvs::object::VirtualServerKey;
use crate::plan::ipvs::set::{SetEntry, SetId};
use crate::plan::ipvs::state::State;

/// The marks that only we can have set: our set assigns them to packets, or they are in our range
/// and their virtual server only drains.
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
            VirtualServerKey::Mark { mark, family: of } if *of == family && drains => Some(*mark),
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

/// The assignment of marks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marks {
    range: MarkRange,
    tables: BTreeMap<Protocol, Table>,
    /// Service ports without a mark because the other ports of their Service have all of its share.
    beyond_share: BTreeSet<ServicePortName>,
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
        let created = if ports.len() > SHARE {
            i64::MAX
        } else {
            created
        };
        let first_of_service = first_of(service);
        while let Some(port) = self.beyond_share.range(&first_of_service..).next()
            && port.service == *service
        {
            let port = port.clone();
            self.beyond_share.remove(&port);
        }
        self.beyond_share.extend(ports.iter().skip(SHARE).cloned());
        let ports: BTreeSet<&ServicePortName> = ports.iter().take(SHARE).collect();
        for table in self.tables.values_mut() {
            let gone: Vec<ServicePortName> = table
                .claims_of(service)
                .filter(|(name, claimed)| !ports.contains(name) || *claimed != created)
                .map(|(name, _)| name.clone())
                .collect();
            for name in gone {
                table.withdraw(&name, &mut moved);
            }
        }
        for name in ports {
            if let Some(table) = self.tables.get_mut(&name.protocol)
                && !table.claims.contains_key(name)
            {
                table.claim((created, name.clone()), &mut moved);
            }
        }
        moved.remove(service);
        moved
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
