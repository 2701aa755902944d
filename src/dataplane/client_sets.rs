// SPDX-License-Identifier: Apache-2.0
//! The ipsets that remember clients with session affinity, and what `xt_recent` remembered before
//! there were any.

mod recent;

use ipset_netlink::{Client, Error, HashType, SetEntry, SetName, SetShape, SetSpec, SetType};
use kpr_core::model::IpFamily;
use kpr_core::plan::Outcome;
use kpr_core::plan::iptables::affinity::{AffinitySet, MAX_CLIENTS, SetState, chain_of, name_of};
use kpr_core::plan::iptables::{Sets, Step};
use netlink_pipeline::SocketStats;
use tracing::{debug, info};

use super::failure::{failed, outcome};

/// See the module.
#[derive(Debug)]
pub struct ClientSets {
    ipset: Client,
}

impl ClientSets {
    /// Fails where the kernel has no ipsets of addresses. Creates none.
    pub fn open() -> Result<Self, Error> {
        let mut ipset = Client::open()?;
        ipset.supports(SetType::HashIp)?;
        Ok(Self { ipset })
    }

    pub(super) const fn stats(&self) -> SocketStats {
        self.ipset.stats()
    }

    /// Those of a family, by their names.
    pub fn observe(&mut self, family: IpFamily) -> Result<Sets, Error> {
        let mut sets = Sets::new();
        for info in self.ipset.sets()? {
            let Some((of, chain)) = chain_of(info.name.as_str()) else {
                continue;
            };
            if of != family {
                continue;
            }
            let (timeout, buckets) = match info.spec.map(|spec| spec.shape) {
                Some(SetShape::Hash {
                    set_type: HashType::Ip,
                    timeout,
                    hashsize,
                    family: found,
                    ..
                }) if found == wire_family(family) => (timeout, hashsize),
                _ => (None, 0),
            };
            let state = SetState {
                timeout,
                buckets,
                is_used: info.references > 0,
            };
            sets.insert(name_of(&chain, family), state);
        }
        Ok(sets)
    }

    /// Makes a step about sets.
    pub fn make(&mut self, step: &Step) -> Outcome {
        let name = match step {
            Step::CreateSet { set, .. } | Step::RemakeSet(set) => &set.set,
            Step::DestroySet { set } => set,
            _ => return Outcome::NotTried,
        };
        let name = match SetName::new(name.as_str()) {
            Ok(name) => name,
            Err(error) => return failed(&error),
        };
        outcome(&match step {
            Step::CreateSet { set, .. } => self.create(set, name),
            Step::RemakeSet(set) => self.remake(set, name),
            _ => self.ipset.destroy(&name),
        })
    }

    /// A new set with the clients that the endpoint has by `xt_recent`.
    fn create(&mut self, set: &AffinitySet, name: SetName) -> Result<(), Error> {
        let spec = spec(set, name);
        // What no rule uses is out of date.
        self.ipset.destroy(&spec.name)?;
        self.ipset.create(&spec)?;
        let clients = recent::clients(set);
        if !clients.is_empty() {
            let known = clients.len();
            let (set, chain) = (&spec.name, &set.chain);
            info!(%set, known, "clients of an endpoint taken over from xt_recent");
            // A set that refuses some has the others.
            let refused = self.ipset.add(set, &clients)?.len();
            debug!(%chain, refused, "clients added");
        }
        Ok(())
    }

    /// Another set in the place of one, with its clients: what they have left counts from the same
    /// connection. One that connects meanwhile counts from its last one before.
    fn remake(&mut self, set: &AffinitySet, name: SetName) -> Result<(), Error> {
        let Some((info, old)) = self.ipset.entries(&name)? else {
            return self.create(set, name);
        };
        let before = match info.spec.map(|spec| spec.shape) {
            Some(SetShape::Hash {
                timeout: Some(seconds),
                ..
            }) => seconds,
            _ => set.timeout,
        };
        let entries: Vec<SetEntry> = old
            .into_iter()
            .filter_map(|entry| counted_anew(entry, before, set.timeout))
            .collect();
        let Ok(beside) = SetName::new(replacement(set.family)) else {
            return Ok(());
        };
        self.ipset.destroy(&beside)?;
        self.ipset.create(&spec(set, beside.clone()))?;
        self.ipset.add(&beside, &entries)?;
        self.ipset.swap(&beside, &name)?;
        self.ipset.destroy(&beside)
    }
}

/// The name of the set that takes the place of another for a moment. No endpoint's hash has these
/// digits; one that was left is destroyed like any that nobody wants.
const fn replacement(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "KUBE-SEP-REPLACEMENT00000",
        IpFamily::V6 => "KUBE-6-SEP-REPLACEMENT00000",
    }
}

fn spec(set: &AffinitySet, name: SetName) -> SetSpec {
    let mut spec = SetSpec::hash(name, HashType::Ip, wire_family(set.family));
    if let SetShape::Hash {
        hashsize,
        maxelem,
        timeout,
        ..
    } = &mut spec.shape
    {
        *hashsize = set.buckets;
        *maxelem = MAX_CLIENTS;
        *timeout = Some(set.timeout);
    }
    spec
}

/// An entry whose time-out was `before` and is `after`; `None` if it has expired by that.
fn counted_anew(entry: SetEntry, before: u32, after: u32) -> Option<SetEntry> {
    let age = before.saturating_sub(entry.timeout?);
    let left = after.checked_sub(age).filter(|left| *left > 0);
    left.map(|left| SetEntry {
        timeout: Some(left),
        ..entry
    })
}

/// A family as ipset has it.
pub(super) const fn wire_family(family: IpFamily) -> ipset_netlink::IpFamily {
    match family {
        IpFamily::V4 => ipset_netlink::IpFamily::V4,
        IpFamily::V6 => ipset_netlink::IpFamily::V6,
    }
}

#[cfg(test)]
mod tests {
    use ipset_netlink::Entry;

    use super::*;

    #[test]
    fn another_timeout_counts_from_the_same_connection() {
        let entry = |left| SetEntry {
            timeout: Some(left),
            ..Entry::Ip("10.0.0.1".parse().unwrap()).into()
        };
        assert_eq!(counted_anew(entry(90), 100, 200), Some(entry(190)));
        assert_eq!(counted_anew(entry(90), 100, 11), Some(entry(1)));
        assert_eq!(counted_anew(entry(90), 100, 10), None);
        assert_eq!(counted_anew(entry(90), 100, 5), None);
        assert_eq!(counted_anew(entry(110), 100, 5), Some(entry(5)));
    }

    #[test]
    fn a_replacement_that_was_left_is_known_as_ours() {
        for family in IpFamily::ALL {
            let (of, _) = chain_of(replacement(family)).unwrap();
            assert_eq!(of, family);
        }
    }
}
