// SPDX-License-Identifier: Apache-2.0
//! PURE: entries that cannot be in a set together, in sets of nftables: marks of one address and
//! port, and networks that overlap. ipset replaces the former and takes the latter.
//!
//! Of overlapping networks the larger one says all, so the others are left out.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::iter;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Comparison;
use crate::plan::context::IpvsRules;
use crate::plan::ipvs::set::{SetEntry, SetId};
use crate::plan::ipvs::state::SetState;

impl Comparison<'_> {
    fn is_in_nftables(&self) -> bool {
        self.context.ipvs_rules == IpvsRules::Nftables
    }

    /// Adds the entries whose place depends on one of these.
    pub(super) fn with_related<'a>(
        &self,
        dirty: &'a BTreeSet<(SetId, SetEntry)>,
    ) -> Cow<'a, BTreeSet<(SetId, SetEntry)>> {
        let id = SetId::LoadBalancerSourceCidr;
        let first = (id, SetEntry::FIRST);
        let networks = dirty.range(first..).take_while(|(of, _)| *of == id);
        let frontends: BTreeSet<(SetEntry, SetEntry)> = networks
            .filter(|_| self.is_in_nftables())
            .filter_map(|(_, entry)| entry.of_same_frontend())
            .collect();
        if frontends.is_empty() {
            return Cow::Borrowed(dirty);
        }
        let mut all = dirty.clone();
        let present = self.believed.sets.get(&id.name(self.context.family));
        for (first, last) in frontends {
            let wanted = self.desired.entries_within(id, first, last);
            let present = present.into_iter();
            let present = present.flat_map(|set| set.entries.range(first..=last));
            all.extend(wanted.chain(present).map(|entry| (id, *entry)));
        }
        Cow::Owned(all)
    }

    /// Whether an entry belongs into its set.
    pub(super) fn wants_entry(&self, id: SetId, entry: &SetEntry) -> bool {
        self.desired.wants_entry(id, entry) && !self.is_covered(id, entry)
    }

    /// The same of any entry that takes the place of this one.
    pub(super) fn wants_alternative(&self, id: SetId, entry: &SetEntry) -> bool {
        self.desired.wants_alternative(id, entry) && !self.is_covered(id, entry)
    }

    /// Whether a wanted entry says the same and more.
    fn is_covered(&self, id: SetId, entry: &SetEntry) -> bool {
        let SetEntry::IpPortNet(address, protocol, port, network) = *entry else {
            return false;
        };
        self.is_in_nftables()
            && iter::successors(network.supernet(), IpNet::supernet).any(|network| {
                let larger = SetEntry::IpPortNet(address, protocol, port, network);
                self.desired.wants_entry(id, &larger)
            })
    }

    /// The present entries that must go for a new one.
    pub(super) fn clashing(&self, present: &SetState, new: &SetEntry) -> Vec<SetEntry> {
        if !self.is_in_nftables() {
            return Vec::new();
        }
        let (first, last) = match new {
            SetEntry::IpPortNet(..) => new.of_same_frontend().unwrap_or((*new, *new)),
            _ => new.alternatives(),
        };
        let clashes = |old: &&SetEntry| match (new, old) {
            (SetEntry::IpPortNet(.., a), SetEntry::IpPortNet(.., b)) => {
                a.contains(b) || b.contains(a)
            }
            _ => true,
        };
        let of_place = present.entries.range(first..=last);
        of_place.filter(clashes).copied().collect()
    }
}

impl SetEntry {
    /// The first and the last entry with a network that have the address and port of this one.
    fn of_same_frontend(self) -> Option<(Self, Self)> {
        let Self::IpPortNet(address, protocol, port, _) = self else {
            return None;
        };
        let (first, last) = match address {
            IpAddr::V4(_) => (
                IpNet::V4(Ipv4Net::default()),
                IpAddr::V4(Ipv4Addr::BROADCAST),
            ),
            IpAddr::V6(_) => (
                IpNet::V6(Ipv6Net::default()),
                IpAddr::V6(Ipv6Addr::from_bits(u128::MAX)),
            ),
        };
        let of = |network| Self::IpPortNet(address, protocol, port, network);
        Some((of(first), of(last.into())))
    }
}
