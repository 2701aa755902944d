// SPDX-License-Identifier: Apache-2.0
//! PURE: which of the dirty objects the next plan compares. Nearly always all of them; of very many
//! so many that others need not wait for long, those of the Services with the least work first. The
//! rest stays dirty.
//!
//! How long a change takes is the kernel's affair: it keeps deleted real servers for two minutes
//! and walks through all of them whenever it adds one (`ip_vs_trash_get_dest`), so that a change
//! may take a hundred times as long as usual. So the number of changes follows the time they took.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Planner;
use crate::model::ServiceName;
use crate::plan::ipvs::desired::Dirty;
use crate::plan::ipvs::object::VirtualServerKey;
use crate::plan::ipvs::set::SetEntry;

/// Most changes of servers in one plan, and the fewest.
const MOST: usize = 5_000;
const FEWEST: usize = 50;

/// What one plan may take.
const TIME: Duration = Duration::from_millis(500);

impl Planner {
    /// All is as desired after a start, which is one plan: until then others served. What follows
    /// is cut.
    pub(super) fn cut_from_now_on(&mut self) {
        self.turn = self.turn.min(MOST);
    }

    /// Applying so many steps took so long.
    pub(super) fn pace(&mut self, steps: usize, time: Duration) {
        // Of few, and of a part of a turn, something else took the time.
        if self.turn <= MOST && steps.saturating_mul(2) >= self.turn.min(2 * FEWEST) {
            let in_time = TIME.as_nanos() * steps as u128 / time.as_nanos().max(1);
            let in_time = usize::try_from(in_time).unwrap_or(usize::MAX);
            let turn = in_time.min(self.turn.saturating_mul(2));
            self.turn = turn.clamp(FEWEST, MOST);
        }
    }

    /// What the next plan compares of all that is to be compared.
    pub(super) fn turn<'a>(&self, dirty: &'a Dirty) -> Cow<'a, Dirty> {
        if self.turn == usize::MAX {
            return Cow::Borrowed(dirty);
        }
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

    /// What is to be compared, now or later.
    pub(super) fn due(&self) -> Cow<'_, Dirty> {
        if !self.is_full {
            return Cow::Borrowed(&self.dirty);
        }
        let mut due = self.dirty.clone();
        due.extend(self.comparison(&|key| self.owns(key)).everything());
        Cow::Owned(due)
    }

    /// A plan has compared its turn of what was due: the rest stays. Returns what it compared.
    pub(super) fn settle(&mut self) -> Dirty {
        let mut dirty = std::mem::take(&mut self.dirty);
        if self.is_full {
            if self.is_one_turn() {
                return dirty;
            }
            dirty.extend(self.comparison(&|key| self.owns(key)).everything());
        }
        let settled = match self.turn(&dirty) {
            Cow::Borrowed(_) => return dirty,
            Cow::Owned(settled) => settled,
        };
        dirty
            .virtual_servers
            .retain(|it| !settled.virtual_servers.contains(it));
        dirty.addresses.retain(|it| !settled.addresses.contains(it));
        dirty.entries.retain(|it| !settled.entries.contains(it));
        self.dirty = dirty;
        settled
    }

    /// Whether one plan may change all servers that differ.
    fn is_one_turn(&self) -> bool {
        let wanted = self.desired.virtual_servers().map(|(key, _)| key);
        let present = self.believed.virtual_servers.keys();
        let unwanted =
            present.filter(|key| self.desired.virtual_server(key).is_none() && self.owns(key));
        let work = wanted.chain(unwanted).map(|key| self.work(key));
        self.turn == usize::MAX || work.sum::<usize>() <= self.turn
    }

    /// Number of steps that a virtual server needs, about.
    fn work(&self, key: &VirtualServerKey) -> usize {
        let wanted = self.desired.virtual_server(key);
        match (wanted, self.believed.virtual_servers.get(key)) {
            (None, None) => 1,
            (Some(wanted), None) => 1 + wanted.real_servers.len(),
            (None, Some(present)) => 1 + present.real_servers.len(),
            (Some(wanted), Some(present)) => {
                let is_other = wanted.server != present.server;
                let (wanted, present) = (&wanted.real_servers, &present.real_servers);
                let changed = wanted
                    .iter()
                    .filter(|(key, it)| present.get(*key) != Some(*it));
                let gone = present.keys().filter(|key| !wanted.contains_key(*key));
                usize::from(is_other) + changed.count() + gone.count()
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
