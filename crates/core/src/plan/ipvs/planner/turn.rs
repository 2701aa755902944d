// SPDX-License-Identifier: Apache-2.0
//! PURE: which of the dirty objects the next plan compares. Nearly always all of them; of very many
//! so many that others wait for tens of milliseconds at most, those of the Services with the least
//! work first. The rest stays dirty.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use super::Planner;
use crate::model::ServiceName;
use crate::plan::ipvs::desired::Dirty;
use crate::plan::ipvs::object::VirtualServerKey;
use crate::plan::ipvs::set::SetEntry;

/// Number of changes of servers in one plan.
pub(super) const TURN: usize = 5_000;

impl Planner {
    /// What the next plan compares, unless it compares everything.
    pub(super) fn turn(&self) -> Cow<'_, Dirty> {
        let dirty = &self.dirty;
        let work: BTreeMap<_, _> = dirty
            .virtual_servers
            .iter()
            .map(|key| (*key, self.work(key)))
            .collect();
        if work.values().sum::<usize>() <= self.turn {
            return Cow::Borrowed(dirty);
        }
        let (now, later) = self.divided(&work);
        let is_later =
            |entry: &SetEntry| keys_of(entry, self.context.family).any(|it| later.contains(&it));
        let is_now = |address: std::net::IpAddr| {
            let (first, last) = VirtualServerKey::all_at(address);
            let has = |keys: &BTreeSet<_>| keys.range(first..=last).next().is_some();
            has(&now) || !has(&later)
        };
        let entries = dirty.entries.iter().filter(|(_, entry)| match entry {
            SetEntry::Ip(address) => is_now(*address),
            _ => !is_later(entry),
        });
        Cow::Owned(Dirty {
            addresses: dirty
                .addresses
                .iter()
                .copied()
                .filter(|it| is_now(*it))
                .collect(),
            entries: entries.copied().collect(),
            virtual_servers: now,
        })
    }

    /// Takes out of the dirty objects what a plan of [`Self::turn`] has compared.
    pub(super) fn settle(&mut self) -> Dirty {
        match self.turn() {
            Cow::Borrowed(_) => std::mem::take(&mut self.dirty),
            Cow::Owned(settled) => {
                let dirty = &mut self.dirty;
                dirty
                    .virtual_servers
                    .retain(|it| !settled.virtual_servers.contains(it));
                dirty.addresses.retain(|it| !settled.addresses.contains(it));
                dirty.entries.retain(|it| !settled.entries.contains(it));
                settled
            }
        }
    }

    /// Number of steps that a virtual server needs, about.
    fn work(&self, key: &VirtualServerKey) -> usize {
        let wanted = self
            .desired
            .virtual_server(key)
            .map(|wanted| &*wanted.real_servers);
        let present = self.believed.virtual_servers.get(key);
        match (wanted, present.map(|present| &present.real_servers)) {
            (None, None) => 1,
            (Some(servers), None) | (None, Some(servers)) => 1 + servers.len(),
            (Some(wanted), Some(present)) => {
                let changed = wanted
                    .iter()
                    .filter(|(key, it)| present.get(*key) != Some(*it));
                let gone = present.keys().filter(|key| !wanted.contains_key(*key));
                1 + changed.count() + gone.count()
            }
        }
    }

    /// The virtual servers of this turn and of later ones. Those that nobody wants come last: what
    /// takes their place comes first.
    fn divided(
        &self,
        work: &BTreeMap<VirtualServerKey, usize>,
    ) -> (BTreeSet<VirtualServerKey>, BTreeSet<VirtualServerKey>) {
        type Group = (usize, Vec<VirtualServerKey>);
        let mut groups: BTreeMap<Option<&ServiceName>, Group> = BTreeMap::new();
        for (key, work) in work {
            let owner = self.desired.claims().winner(key).map(|port| &port.service);
            let (sum, keys) = groups.entry(owner).or_default();
            *sum += work;
            keys.push(*key);
        }
        let mut groups: Vec<_> = groups.into_iter().collect();
        groups.sort_by_key(|(owner, (sum, _))| (owner.is_none(), *sum));
        let (mut now, mut later, mut left) = (BTreeSet::new(), BTreeSet::new(), self.turn);
        for key in groups.into_iter().flat_map(|(_, (_, keys))| keys) {
            let work = work.get(&key).copied().unwrap_or(1);
            if now.is_empty() || work <= left {
                now.insert(key);
                left = left.saturating_sub(work);
            } else {
                later.insert(key);
                // Nothing overtakes.
                left = 0;
            }
        }
        (now, later)
    }
}

/// The virtual servers whose packets an entry is about.
fn keys_of(
    entry: &SetEntry,
    family: crate::model::IpFamily,
) -> impl Iterator<Item = VirtualServerKey> + use<> {
    let at = |address, protocol, port| VirtualServerKey::Address {
        address,
        port,
        protocol,
    };
    let (of_address, of_mark) = match *entry {
        SetEntry::Ip(_) | SetEntry::Port(_) => (None, None),
        SetEntry::IpPort(ip, protocol, port)
        | SetEntry::IpPortIp(ip, protocol, port, _)
        | SetEntry::IpPortNet(ip, protocol, port, _) => (Some(at(ip, protocol, port)), None),
        SetEntry::IpPortMark(ip, protocol, port, mark) => {
            let of_mark = VirtualServerKey::Mark { mark, family };
            (Some(at(ip, protocol, port)), Some(of_mark))
        }
    };
    of_address.into_iter().chain(of_mark)
}
