// SPDX-License-Identifier: Apache-2.0
//! PURE: which of the dirty objects the next plan compares. Nearly always all of them; of very many
//! so many that others need not wait for long, those of the Services with the least work first. The
//! rest waits in a queue, in which each virtual server has its turn and a large one many: what it
//! gets comes before what it loses. What changes meanwhile does not queue: it has every other plan
//! for itself.
//!
//! How long a change takes is the kernel's affair: it keeps deleted real servers for two minutes
//! and walks through all of them whenever it adds one (`ip_vs_trash_get_dest`), so that an addition
//! may take a hundred times as long as usual, and as any other change. So the number of additions
//! and that of other changes each follow the time they took.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use super::Planner;
use crate::model::{IpFamily, ServiceName};
use crate::plan::ipvs::desired::Dirty;
use crate::plan::ipvs::object::VirtualServerKey;
use crate::plan::ipvs::set::{SetEntry, SetId};
use crate::plan::ipvs::step::Step;

/// Most changes of servers in one plan, if all are of a kind, and the fewest.
const MOST: usize = 5_000;
const FEWEST: usize = 20;

/// Number of real servers deleted from which on adding others may be slow, and the most additions
/// of the plan that finds out.
const MANY: usize = 1_000;
const CAREFUL: usize = 100;

/// What one plan may take, in time and as weight of its changes.
const TIME: Duration = Duration::from_millis(100);
const WEIGHT: usize = 1_000_000;

/// How many changes one plan may have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Additions of real servers, if there is nothing else.
    pub(super) additions: usize,
    /// Other changes, if there are no additions.
    pub(super) others: usize,
}

impl Pace {
    /// All that is due is one plan.
    pub(super) const UNLIMITED: Self = Self::of(usize::MAX);

    /// So many changes, whatever they are.
    pub(super) const fn of(changes: usize) -> Self {
        Self {
            additions: changes,
            others: changes,
        }
    }

    const fn is_unlimited(self) -> bool {
        self.others > MOST
    }

    /// The weight of an addition and of another change.
    const fn weights(self) -> (usize, usize) {
        (WEIGHT / self.additions, WEIGHT / self.others)
    }

    const fn weight(self, step: &Step) -> usize {
        let (addition, other) = self.weights();
        match step {
            Step::AddRealServer { .. } => addition,
            _ => other,
        }
    }

    /// Of few, and of a part of a turn, something else took the time.
    fn is_enough(count: usize, limit: usize) -> bool {
        count.saturating_mul(2) >= limit.min(2 * FEWEST)
    }

    /// These changes took so long together: each kind its part by weight.
    fn follow(&mut self, additions: usize, others: usize, time: Duration) {
        let (addition, other) = self.weights();
        let weight = (additions * addition + others * other).max(1) as u128;
        let time = time.as_nanos().max(1);
        for (count, each, limit) in [
            (additions, addition, &mut self.additions),
            (others, other, &mut self.others),
        ] {
            if count > 0 && Self::is_enough(count, *limit) {
                // TIME over what one takes.
                let in_time = TIME.as_nanos() * weight / (time * each.max(1) as u128);
                let in_time = usize::try_from(in_time).unwrap_or(usize::MAX);
                *limit = in_time.min(limit.saturating_mul(2)).clamp(FEWEST, MOST);
            }
        }
    }
}

/// Dirty objects that wait for their turn.
#[derive(Clone, Debug, Default)]
pub(super) struct Waiting {
    /// Those that are next come first.
    queue: VecDeque<VirtualServerKey>,
    /// The same, each with the entries about its packets.
    entries: BTreeMap<VirtualServerKey, BTreeSet<(SetId, SetEntry)>>,
    /// Their addresses, where these are dirty as well, each with the entries about it.
    addresses: BTreeMap<IpAddr, BTreeSet<(SetId, SetEntry)>>,
    /// The last plan was theirs: what has changed since is next.
    had_turn: bool,
}

impl Waiting {
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    fn contains(&self, key: &VirtualServerKey) -> bool {
        self.entries.contains_key(key)
    }

    fn push(&mut self, key: VirtualServerKey) {
        self.queue.push_back(key);
        self.entries.entry(key).or_default();
    }

    /// An entry waits for all that it is about.
    fn add_entry(&mut self, entry: (SetId, SetEntry), family: IpFamily) {
        if let SetEntry::Ip(address) = entry.1 {
            self.addresses.entry(address).or_default().insert(entry);
        }
        for key in keys_of(&entry.1, family) {
            self.entries.entry(key).and_modify(|of| {
                of.insert(entry);
            });
        }
    }
}

/// What one plan compares if that is not all that is due.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) compared: Dirty,
    /// Of this virtual server, which comes last, so many steps only.
    pub(super) part: Option<(VirtualServerKey, usize)>,
    /// Number of virtual servers that have left the queue, in part or whole.
    taken: usize,
    /// What joins the queue.
    later: Vec<VirtualServerKey>,
}

impl Planner {
    /// All is as desired after a start, which is one plan: until then others served. What follows
    /// is cut.
    pub(super) fn cut_from_now_on(&mut self) {
        if self.pace.is_unlimited() {
            self.pace = Pace::of(MOST);
        }
    }

    /// Applying so many steps took so long.
    pub(super) fn pace(&mut self, steps: usize, time: Duration) {
        let added = std::mem::take(&mut self.added);
        if self.pace.is_unlimited() {
            return;
        }
        self.pace.follow(added, steps.saturating_sub(added), time);
        if added > 0 {
            self.deleted = 0;
        } else if self.deleted > MANY {
            self.pace.additions = self.pace.additions.min(CAREFUL);
        }
    }

    /// Counts the real servers that a step, which is about to be believed, adds or deletes.
    pub(super) fn count(&mut self, step: &Step) {
        match step {
            Step::AddRealServer { .. } => self.added += 1,
            Step::DeleteRealServer { .. } => self.deleted += 1,
            Step::DeleteVirtualServer { key } => {
                let present = self.believed.virtual_servers.get(key);
                self.deleted += present.map_or(0, |present| present.real_servers.len());
            }
            _ => {}
        }
    }

    /// What is to be compared, now or later, besides what waits.
    pub(super) fn due(&self) -> Cow<'_, Dirty> {
        if !self.is_full {
            return Cow::Borrowed(&self.dirty);
        }
        let mut due = self.dirty.clone();
        due.extend(self.comparison(&|key| self.owns(key)).everything());
        Cow::Owned(due)
    }

    /// What the next plan compares of what is due and of what waits; `None` if it is all that is
    /// due, and nothing waits.
    pub(super) fn turn(&self, due: &Dirty) -> Option<Turn> {
        let waiting = &self.waiting;
        if waiting.is_empty() && self.is_within(due.virtual_servers.iter()) {
            return None;
        }
        let owns = |key: &VirtualServerKey| self.owns(key);
        let comparison = self.comparison(&owns);
        // The number of the steps of a virtual server that weigh at most so much, and their weight,
        // which is more if these are not all.
        let steps = |key: &VirtualServerKey, most: usize| {
            let (mut count, mut weight) = (0, 0);
            for (_, step) in comparison.steps_of(*key) {
                weight += self.pace.weight(&step);
                if weight > most {
                    break;
                }
                count += 1;
            }
            (count, weight)
        };
        // Those that wait have half of their plan, however much is new.
        let reserved = if waiting.is_empty() || waiting.had_turn {
            0
        } else {
            WEIGHT / 2
        };
        let room = WEIGHT - reserved;
        let weight = |key: &VirtualServerKey| steps(key, WEIGHT).1;
        let (mut now, mut later, left) = self.divided(&due.virtual_servers, room, weight);
        let mut left = left + reserved;
        later.retain(|key| !waiting.contains(key));
        let is_news = later.is_empty() && !now.is_empty() && waiting.had_turn;
        let (mut taken, mut part) = (0, None);
        let next = waiting.queue.iter().chain(&later);
        for key in next.take_while(|_| !is_news) {
            let (count, weight) = if now.contains(key) {
                (0, 0)
            } else {
                steps(key, left)
            };
            if weight > left {
                part = Some((*key, count)).filter(|(_, count)| *count > 0);
                if part.is_some() {
                    taken += 1;
                    now.insert(*key);
                }
                break;
            }
            left -= weight;
            taken += 1;
            now.insert(*key);
        }
        Some(Turn {
            compared: self.compared(due, now, &later),
            part,
            taken,
            later,
        })
    }

    /// The virtual servers of this turn, with what is about them alone.
    fn compared(
        &self,
        due: &Dirty,
        now: BTreeSet<VirtualServerKey>,
        later: &[VirtualServerKey],
    ) -> Dirty {
        let waiting = &self.waiting;
        let later: BTreeSet<VirtualServerKey> = later.iter().copied().collect();
        let waits = |key: &VirtualServerKey| {
            (waiting.contains(key) || later.contains(key)) && !now.contains(key)
        };
        // An address comes with the first server that wants it, and goes with the last.
        let is_now = |address: &IpAddr| {
            let (first, last) = VirtualServerKey::all_at(*address);
            let is_first = || now.range(first..=last).next().is_some();
            let others = waiting.entries.range(first..=last).map(|(key, _)| key);
            let mut others = others.chain(later.range(first..=last));
            (self.desired.wants_address(address) && is_first()) || !others.any(waits)
        };
        let mut compared = Dirty::default();
        let addresses = due.addresses.iter().copied();
        compared.addresses.extend(addresses.filter(|it| is_now(it)));
        let is_entry_now = |entry: &SetEntry| match entry {
            SetEntry::Ip(address) => is_now(address),
            _ => !keys_of(entry, self.context.family).any(|it| waits(&it)),
        };
        let entries = due.entries.iter().filter(|(_, entry)| is_entry_now(entry));
        compared.entries.extend(entries.copied());
        for key in &now {
            let entries = waiting.entries.get(key).into_iter().flatten();
            let entries = entries.filter(|(_, entry)| is_entry_now(entry));
            compared.entries.extend(entries.copied());
            if let Some(address) = key.address()
                && let Some(entries) = waiting.addresses.get(&address)
                && is_now(&address)
            {
                compared.addresses.insert(address);
                compared.entries.extend(entries);
            }
        }
        compared.virtual_servers = now;
        compared
    }

    /// A plan has compared its turn of what was due: the rest waits. Returns what it compared in
    /// whole.
    pub(super) fn settle(&mut self) -> Dirty {
        let mut due = std::mem::take(&mut self.dirty);
        if self.is_full {
            if self.waiting.is_empty() && self.is_one_turn() {
                return due;
            }
            due.extend(self.comparison(&|key| self.owns(key)).everything());
        }
        let Some(turn) = self.turn(&due) else {
            return due;
        };
        let Turn {
            mut compared,
            part,
            taken,
            later,
        } = turn;
        let (waiting, family) = (&mut self.waiting, self.context.family);
        waiting.had_turn = taken > 0;
        for key in later {
            waiting.push(key);
        }
        for address in due.addresses.difference(&compared.addresses) {
            waiting.addresses.entry(*address).or_default();
        }
        for entry in due.entries.difference(&compared.entries) {
            waiting.add_entry(*entry, family);
        }
        for address in &compared.addresses {
            waiting.addresses.remove(address);
        }
        for key in waiting.queue.drain(..taken).collect::<Vec<_>>() {
            for entry in waiting.entries.remove(&key).unwrap_or_default() {
                // Something else that it is about waits.
                if !compared.entries.contains(&entry) {
                    waiting.add_entry(entry, family);
                }
            }
        }
        if let Some((key, _)) = part {
            compared.virtual_servers.remove(&key);
            waiting.push(key);
        }
        compared
    }

    /// Whether one plan may change all servers that differ.
    fn is_one_turn(&self) -> bool {
        let wanted = self.desired.virtual_servers().map(|(key, _)| key);
        let present = self.believed.virtual_servers.keys();
        let unwanted =
            present.filter(|key| self.desired.virtual_server(key).is_none() && self.owns(key));
        self.is_within(wanted.chain(unwanted))
    }

    /// Whether one plan may have all steps that these virtual servers need at most, which is less
    /// work than to count them exactly.
    fn is_within<'a>(&self, keys: impl Iterator<Item = &'a VirtualServerKey>) -> bool {
        let (addition, other) = self.pace.weights();
        let most = |key: &VirtualServerKey| {
            let wanted = self.desired.virtual_server(key);
            match (wanted, self.believed.virtual_servers.get(key)) {
                (None, None) => 0,
                (Some(wanted), None) => other + wanted.real_servers.len() * addition,
                (None, Some(present)) => (1 + present.real_servers.len()) * other,
                (Some(wanted), Some(present)) => {
                    let is_other = wanted.server != present.server;
                    let (wanted, present) = (&wanted.real_servers, &present.real_servers);
                    let changed = wanted.iter().map(|(key, it)| match present.get(key) {
                        None => addition,
                        Some(present) if present != it => other,
                        Some(_) => 0,
                    });
                    let gone = present.keys().filter(|key| !wanted.contains_key(*key));
                    let others = usize::from(is_other) + gone.count();
                    changed.sum::<usize>() + others * other
                }
            }
        };
        self.pace.is_unlimited() || keys.map(most).sum::<usize>() <= WEIGHT
    }

    /// The virtual servers of this turn and of later ones, and how much more this turn may weigh.
    /// Those that nobody wants come last: what takes their place comes first.
    fn divided(
        &self,
        keys: &BTreeSet<VirtualServerKey>,
        room: usize,
        weight: impl Fn(&VirtualServerKey) -> usize,
    ) -> (BTreeSet<VirtualServerKey>, Vec<VirtualServerKey>, usize) {
        type Group = (usize, Vec<(VirtualServerKey, usize)>);
        let mut groups: BTreeMap<Option<&ServiceName>, Group> = BTreeMap::new();
        for key in keys {
            let owner = self.desired.claims().winner(key).map(|port| &port.service);
            let (sum, keys) = groups.entry(owner).or_default();
            let weight = weight(key);
            *sum += weight;
            keys.push((*key, weight));
        }
        let mut groups: Vec<_> = groups.into_iter().collect();
        groups.sort_by_key(|(owner, (sum, _))| (owner.is_none(), *sum));
        let (mut now, mut later, mut left) = (BTreeSet::new(), Vec::new(), room);
        for (key, weight) in groups.into_iter().flat_map(|(_, (_, keys))| keys) {
            // Nothing overtakes.
            if weight == 0 || later.is_empty() && weight <= left {
                now.insert(key);
                left -= weight;
            } else {
                later.push(key);
            }
        }
        (now, later, left)
    }
}

/// The virtual servers whose packets an entry is about.
fn keys_of(entry: &SetEntry, family: IpFamily) -> impl Iterator<Item = VirtualServerKey> + use<> {
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
