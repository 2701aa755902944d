// SPDX-License-Identifier: Apache-2.0
//! The nftables table of our own in which IPVS mode holds its fixed rules and sets
//! (`kpr_core::plan::ipvs::nft_rules`), one for each family. Starts no program.

mod decode;
pub mod encode;
mod heard;
mod probe;
mod transaction;

use std::collections::{BTreeMap, BTreeSet};

use kpr_core::model::IpFamily;
use kpr_core::plan::IpvsRules;
use kpr_core::plan::ipvs::nft_rules::{EQUAL_BYTES, Line, Match};
use kpr_core::plan::ipvs::set::{SetId, SetName};
use kpr_core::plan::ipvs::state::SetState;
use kpr_core::plan::ipvs::step::Step;
use kpr_core::plan::leftovers::modes::Modes;
use kpr_core::plan::ruleset::{self, ChainName, Edit, Ruleset, Table};
use kpr_core::plan::{FailureKind, Outcome};
use nft_netlink as nft;
use nft_netlink::{Client, Generation, Operation, Place, SocketStats, TableKey};
use tracing::{debug, warn};

use super::failure::Failed;
use crate::telemetry::ErrorChain;
use heard::Heard;
pub use probe::{Missing, probe};
use transaction::Transaction;

/// How often a transaction is tried while others make theirs.
const ATTEMPTS: u32 = 10;

/// `NFT_TABLE_F_DORMANT`
const DORMANT: u32 = 1;

/// Our table could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    #[error(transparent)]
    Nft(#[from] nft::Error),
    #[error("cannot name an object of our nftables table")]
    Name(#[from] nft::InvalidName),
    #[error("{0:?} is no line of our nftables table")]
    Line(String),
}

impl Failed for TableError {
    fn failure_kind(&self) -> FailureKind {
        match self {
            Self::Nft(error) => error.failure_kind(),
            Self::Name(_) | Self::Line(_) => FailureKind::Other,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct OwnTable {
    client: Client,
    /// Whether others change our tables, if we hear of it.
    heard: Option<Heard>,
    /// The last generation that is known; the next transaction is for it.
    generation: Option<Generation>,
    /// Others may have made generations since notifications were last heard.
    is_interrupted: bool,
}

impl OwnTable {
    /// Opens the tables of this network namespace, which loads nftables.
    pub fn open() -> Result<Self, nft::Error> {
        Ok(Self {
            client: Client::open()?,
            heard: None,
            generation: None,
            is_interrupted: false,
        })
    }

    /// The same, and hears of what others change.
    #[must_use]
    pub fn watched(mut self) -> Self {
        let heard = Heard::open().inspect_err(|error| {
            let error = ErrorChain(error);
            warn!(%error, "cannot watch nftables, only audits will find changes");
        });
        self.heard = heard.ok();
        self.generation = self.client.generation().ok();
        self
    }

    /// What was sent so far.
    pub const fn stats(&self) -> SocketStats {
        self.client.socket_stats()
    }

    /// Whether our table exists.
    pub fn exists(&mut self, family: IpFamily) -> Result<bool, TableError> {
        Ok(self.client.table(&encode::table(family)?)?.is_some())
    }

    /// Whether `iptables-nft` has chains of kube-proxy, ours or not, for a family.
    pub fn has_iptables_chains(&mut self, family: IpFamily) -> Result<bool, TableError> {
        for table in Table::ALL {
            let key = TableKey::new(encode::wire_family(family), table.as_str().parse()?);
            for status in self.client.chains(&key)? {
                let name = status.chain.key.name.as_str();
                let name = ChainName::new(name).ok();
                if name.is_some_and(|name| Modes::of(&(table, name)).is_some()) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Reads our sets. One of another type than ours is passed over.
    pub fn observe_sets(
        &mut self,
        family: IpFamily,
    ) -> Result<BTreeMap<SetName, SetState>, TableError> {
        let mut states = BTreeMap::new();
        let present = self.client.sets(&encode::table(family)?)?;
        let present: BTreeMap<&str, &nft::Set> = present
            .iter()
            .map(|status| (status.set.key.name.as_str(), &status.set))
            .collect();
        for id in SetId::of(IpvsRules::Nftables) {
            let (name, set_type) = (id.name(family), id.set_type());
            let set = encode::set(family, &name, set_type)?;
            let Some(found) = present.get(name.as_str()) else {
                continue;
            };
            if (found.key_type, found.contents, found.flags)
                != (set.key_type, set.contents, set.flags)
            {
                continue;
            }
            let elements = self.client.elements(&set)?;
            let entries = elements
                .iter()
                .filter_map(|status| decode::entry(family, set_type, &status.element));
            let state = SetState {
                set_type,
                max_entries: u32::MAX,
                entries: entries.collect(),
            };
            states.insert(name, state);
        }
        Ok(states)
    }

    /// Reads our chains and rules.
    pub fn observe_rules(&mut self, family: IpFamily) -> Result<Ruleset, TableError> {
        self.before_look(family);
        let key = encode::table(family)?;
        let mut rules = Ruleset::new();
        let Some(table) = self.client.table(&key)? else {
            return Ok(rules);
        };
        let is_dormant = table.table.flags & DORMANT != 0;
        let mut lines: BTreeMap<String, Vec<ruleset::Rule>> = BTreeMap::new();
        for status in self.client.chains(&key)? {
            let base = status.chain.base.as_ref();
            let base = base.map(|base| {
                if is_dormant {
                    ruleset::Rule::new("dormant")
                } else {
                    decode::base(base, family)
                }
            });
            let name = status.chain.key.name.as_str().to_owned();
            lines.insert(name, base.into_iter().collect());
        }
        for status in self.client.rules(&key)? {
            if let Some(lines) = lines.get_mut(status.rule.chain.name.as_str()) {
                lines.push(decode::rule(family, &status));
            }
        }
        let compares = |line: &ruleset::Rule| line.as_str().contains(EQUAL_BYTES);
        let comparing = lines.values_mut().flatten().filter(|line| compares(line));
        let mut comparing = comparing.peekable();
        if comparing.peek().is_some() && !self.has_equal_bytes(family)? {
            comparing.for_each(|line| *line = ruleset::Rule::new("some pairs of equal bytes"));
        }
        for (name, lines) in lines {
            if let Ok(name) = ChainName::new(name) {
                rules.set(Table::Own, name, lines);
            }
        }
        Ok(rules)
    }

    /// Whether the set of pairs of equal bytes is as we made it.
    fn has_equal_bytes(&mut self, family: IpFamily) -> Result<bool, TableError> {
        let found = self.client.elements(&encode::equal_bytes(family)?)?;
        let found: BTreeSet<_> = found.into_iter().map(|it| it.element.key).collect();
        let wanted: BTreeSet<_> = encode::pairs().map(|it| it.key).collect();
        Ok(found == wanted)
    }

    /// Whether others may have changed our table since it was last read. Reads nothing of it.
    pub fn has_changed(&mut self, family: IpFamily) -> bool {
        self.listen();
        let heard = self.heard.as_ref();
        heard.is_some_and(|heard| heard.suspects(family))
    }

    fn before_look(&mut self, family: IpFamily) {
        self.listen();
        if let Some(heard) = &mut self.heard {
            heard.forget(family);
        }
    }

    fn listen(&mut self) {
        let Some(heard) = &mut self.heard else {
            return;
        };
        let is_lost = heard.listen().unwrap_or_else(|error| {
            debug!(error = %ErrorChain(&error), "failed to hear of changes of nftables");
            true
        });
        if is_lost {
            // If all generations were ours, nothing else happened.
            let now = self.client.generation().ok().map(|now| now.id);
            let last = self.generation.as_ref().map(|last| last.id);
            if self.is_interrupted || now.is_none() || now != last {
                heard.doubt();
            }
        }
        self.is_interrupted = false;
        // So that the next transaction is for it, at once.
        if let Some(last) = heard.take_last()
            && let Some(generation) = &mut self.generation
            && !is_lost
        {
            generation.id = last;
        }
    }

    /// Makes changes in one transaction.
    fn transact(&mut self, operations: &[Operation]) -> Result<(), nft::Error> {
        self.listen();
        for _ in 0..ATTEMPTS {
            let generation = if let Some(generation) = self.generation.take() {
                generation
            } else {
                self.is_interrupted = true;
                self.client.generation()?
            };
            match self.client.apply_at(&generation, operations) {
                Ok(()) => {
                    self.made(&generation);
                    return Ok(());
                }
                Err(nft::Error::Changed(_)) => {}
                Err(error) => {
                    self.generation = Some(generation);
                    return Err(error);
                }
            }
        }
        // Others do nothing else. This may be taken for one of theirs.
        let result = self.client.apply(operations);
        if let Some(heard) = &mut self.heard {
            heard.doubt();
        }
        result
    }

    /// A transaction for a generation was made.
    fn made(&mut self, last: &Generation) {
        let mut generation = last.clone();
        // The kernel passes over 0.
        generation.id = generation.id.wrapping_add(1).max(1);
        if let Some(heard) = &mut self.heard {
            heard.made(generation.id);
        }
        self.generation = Some(generation);
    }

    /// Applies steps about sets and their entries in one transaction, or in several without those
    /// that the kernel refuses.
    pub fn apply_sets(&mut self, steps: &[&Step]) -> Vec<Outcome> {
        Transaction::new(steps).run(|operations| self.transact(operations))
    }

    /// Rewrites chains in one transaction.
    pub fn edit(&mut self, family: IpFamily, edits: &[Edit]) -> Result<(), TableError> {
        let key = encode::table(family)?;
        let add = Operation::AddTable(nft::Table::new(key.clone()));
        let table = self.client.table(&key)?;
        if table.is_some_and(|table| table.table.flags & DORMANT != 0) {
            // By itself: chains cannot be changed with it.
            self.transact(std::slice::from_ref(&add))?;
        }
        let present = self.client.chains(&key)?;
        let present: BTreeMap<&str, Option<&nft::Base>> = present
            .iter()
            .map(|status| (status.chain.key.name.as_str(), status.chain.base.as_ref()))
            .collect();
        let mut operations = vec![add];
        let mut compares = false;
        let (mut deletions, mut additions, mut rules) = (Vec::new(), Vec::new(), Vec::new());
        for edit in edits {
            let name = edit.chain().as_str();
            let chain = key.chain(name.parse()?);
            let found = present.get(name);
            if found.is_some() {
                operations.push(Operation::FlushChain(chain.clone()));
            }
            let Edit::Replace { rules: lines, .. } = edit else {
                deletions.extend(found.map(|_| Operation::DeleteChain(chain)));
                continue;
            };
            let mut base = None;
            for line in lines {
                let line = line.as_str();
                match Line::parse(line, family) {
                    Some(Line::Base(found)) => base = Some(encode::base(found)),
                    Some(Line::Rule(rule)) => {
                        compares |= rule.matches.contains(&Match::ToItself);
                        let steps = encode::steps(family, &rule)?;
                        let mut written = nft::Rule::new(chain.clone(), steps);
                        written.comment = rule.comment;
                        rules.push(Operation::AddRule(written, Place::Last));
                    }
                    None => return Err(TableError::Line(line.to_owned())),
                }
            }
            if found.is_some_and(|found| *found != base.as_ref()) {
                deletions.push(Operation::DeleteChain(chain.clone()));
            }
            if found.is_none_or(|found| *found != base.as_ref()) {
                additions.push(Operation::AddChain(nft::Chain { key: chain, base }));
            }
        }
        if compares {
            let set = encode::equal_bytes(family)?;
            let key = set.key.clone();
            let pairs = Operation::AddElements(key.clone(), encode::pairs().collect());
            additions.extend([Operation::AddSet(set), Operation::FlushSet(key), pairs]);
        }
        operations.extend(deletions.into_iter().chain(additions).chain(rules));
        Ok(self.transact(&operations)?)
    }

    /// Deletes our table with all that is in it. One that does not exist is success.
    pub fn delete(&mut self, family: IpFamily) -> Result<(), TableError> {
        let key = encode::table(family)?;
        let add = Operation::AddTable(nft::Table::new(key.clone()));
        Ok(self.transact(&[add, Operation::DeleteTable(key)])?)
    }
}

#[cfg(test)]
mod tests;
