// SPDX-License-Identifier: Apache-2.0
//! The two ways in which IPVS mode holds its sets: as ipsets that rules of iptables match, or in
//! our nftables table. The other way is known only to remove what is left of it.

use std::collections::BTreeMap;

use ipset_netlink::{self as ipset, Client as IpsetClient};
use kpr_core::model::IpFamily;
use kpr_core::plan::Outcome;
use kpr_core::plan::iptables::Sets as ClientSets;
use kpr_core::plan::iptables::affinity::{self, chain_of, name_of};
use kpr_core::plan::ipvs::set::{SetEntry, SetId, SetName, retired};
use kpr_core::plan::ipvs::state::SetState;
use kpr_core::plan::ipvs::step::Step;
use netlink_pipeline::SocketStats;

use super::sets;
use crate::dataplane::failure::{failed, outcome};
use crate::dataplane::kernel::ObserveError;
use crate::dataplane::own_table::OwnTable;

/// See the module.
#[derive(Debug)]
pub enum Held {
    /// As ipsets; with the kernel's nftables, if it has any.
    Ipsets(IpsetClient, Option<OwnTable>),
    /// In our table; with ipset, if it is loaded.
    Table(OwnTable, Option<IpsetClient>),
}

type Sets = BTreeMap<SetName, SetState>;

impl Held {
    pub(super) const fn is_table(&self) -> bool {
        matches!(self, Self::Table(..))
    }

    /// Our table, if it holds the rules.
    pub(super) const fn table(&mut self) -> Option<&mut OwnTable> {
        match self {
            Self::Table(table, _) => Some(table),
            Self::Ipsets(..) => None,
        }
    }

    const fn any_table(&mut self) -> Option<&mut OwnTable> {
        match self {
            Self::Table(table, _) | Self::Ipsets(_, Some(table)) => Some(table),
            Self::Ipsets(_, None) => None,
        }
    }

    /// What was sent so far.
    pub(super) fn stats(&self) -> impl Iterator<Item = SocketStats> {
        let (ipset, table) = match self {
            Self::Ipsets(ipset, table) => (Some(ipset), table.as_ref()),
            Self::Table(table, ipset) => (ipset.as_ref(), Some(table)),
        };
        let ipset = ipset.map(IpsetClient::stats);
        ipset.into_iter().chain(table.map(OwnTable::stats))
    }

    /// Our sets.
    pub(super) fn observe(&mut self, family: IpFamily) -> Result<Sets, ObserveError> {
        match self {
            Self::Ipsets(ipset, _) => ipsets(ipset, family),
            Self::Table(table, _) => of_table(table, family),
        }
    }

    /// What was left of the other way.
    pub(super) fn observe_other(&mut self, family: IpFamily) -> Result<Sets, ObserveError> {
        match self {
            Self::Ipsets(_, Some(table)) => of_table(table, family),
            Self::Table(_, Some(ipset)) => ipsets(ipset, family),
            _ => Ok(Sets::new()),
        }
    }

    /// Whether our table exists.
    pub(super) fn has_table(&mut self, family: IpFamily) -> Result<bool, ObserveError> {
        let exists = self.any_table().map(|table| table.exists(family));
        exists
            .unwrap_or(Ok(false))
            .map_err(|error| ObserveError::new("our nftables table", error))
    }

    /// Applies steps about our sets.
    pub(super) fn apply(&mut self, steps: &[&Step]) -> Vec<Outcome> {
        match self {
            Self::Table(table, _) => table.apply_sets(steps),
            Self::Ipsets(ipset, _) => apply_ipsets(ipset, steps),
        }
    }

    const fn ipset(&mut self) -> Option<&mut IpsetClient> {
        match self {
            Self::Ipsets(ipset, _) | Self::Table(_, Some(ipset)) => Some(ipset),
            Self::Table(_, None) => None,
        }
    }

    /// The sets of clients that iptables mode left, by name.
    pub(super) fn observe_client_sets(
        &mut self,
        family: IpFamily,
    ) -> Result<ClientSets, ObserveError> {
        let Some(ipset) = self.ipset() else {
            return Ok(ClientSets::new());
        };
        let names = ipset.names();
        let names = names.map_err(|error| ObserveError::new("ipsets of clients", error))?;
        let ours = names.iter().filter_map(|name| chain_of(name.as_str()));
        let ours = ours.filter(|(of, _)| *of == family);
        Ok(ours
            .map(|(_, chain)| (name_of(&chain, family), affinity::SetState::unknown()))
            .collect())
    }

    /// Destroys an ipset that another way or mode left. One that does not exist is success.
    pub(super) fn destroy_other(&mut self, set: &SetName) -> Outcome {
        match (self.ipset(), sets::name(set)) {
            (Some(ipset), Ok(name)) => outcome(&ipset.destroy(&name)),
            (_, Err(error)) => failed(&error),
            _ => Outcome::Done,
        }
    }

    /// Deletes our table.
    pub(super) fn delete_table(&mut self, family: IpFamily) -> Outcome {
        match self.any_table() {
            Some(table) => outcome(&table.delete(family)),
            None => Outcome::Done,
        }
    }
}

fn of_table(table: &mut OwnTable, family: IpFamily) -> Result<Sets, ObserveError> {
    let sets = table.observe_sets(family);
    sets.map_err(|error| ObserveError::new("sets of nftables", error))
}

fn ipsets(ipset: &mut IpsetClient, family: IpFamily) -> Result<Sets, ObserveError> {
    let sets = observe_ipsets(ipset, family);
    sets.map_err(|error| ObserveError::new("ipsets", error))
}

fn observe_ipsets(ipset: &mut IpsetClient, family: IpFamily) -> Result<Sets, ipset::Error> {
    let present = ipset.names()?;
    let mut states = BTreeMap::new();
    let ours = SetId::ALL.map(|id| id.name(family));
    let beside = SetId::ALL.map(|id| id.name(family).replacement());
    for name in ours.into_iter().chain(beside).chain(retired(family)) {
        let Ok(wire_name) = sets::name(&name) else {
            continue;
        };
        if !present.contains(&wire_name) {
            continue;
        }
        let Some((info, entries)) = ipset.entries(&wire_name)? else {
            continue;
        };
        // A set with one of our names that we did not create: creating ours will report it.
        let Some((set_type, max_entries)) = info.spec.as_ref().and_then(sets::shape) else {
            continue;
        };
        let entries = entries
            .iter()
            .filter_map(|entry| sets::entry(set_type, entry))
            .collect();
        states.insert(
            name,
            SetState {
                set_type,
                max_entries,
                entries,
            },
        );
    }
    Ok(states)
}

/// Runs are entries of one set, or single steps.
fn apply_ipsets(ipset: &mut IpsetClient, steps: &[&Step]) -> Vec<Outcome> {
    if let [
        Step::AddEntry { set, .. } | Step::DeleteEntry { set, .. },
        ..,
    ] = steps
    {
        return apply_entries(ipset, set, steps);
    }
    steps.iter().map(|step| apply_one(ipset, step)).collect()
}

fn apply_one(ipset: &mut IpsetClient, step: &Step) -> Outcome {
    match step {
        Step::CreateSet(spec) => match sets::spec(spec) {
            Ok(spec) => outcome(&ipset.create(&spec)),
            Err(error) => failed(&error),
        },
        Step::SwapSets { a, b } => match (sets::name(a), sets::name(b)) {
            (Ok(a), Ok(b)) => outcome(&ipset.swap(&a, &b)),
            (Err(error), _) | (_, Err(error)) => failed(&error),
        },
        Step::DestroySet { set } => match sets::name(set) {
            Ok(name) => outcome(&ipset.destroy(&name)),
            Err(error) => failed(&error),
        },
        _ => Outcome::NotTried,
    }
}

fn apply_entries(ipset: &mut IpsetClient, set: &SetName, steps: &[&Step]) -> Vec<Outcome> {
    let name = match sets::name(set) {
        Ok(name) => name,
        Err(error) => return vec![failed(&error); steps.len()],
    };
    let is_removal = matches!(steps.first(), Some(Step::DeleteEntry { .. }));
    let entries: Vec<ipset::SetEntry> = steps
        .iter()
        .filter_map(|step| entry_of(step))
        .flat_map(sets::entries)
        .collect();
    let result = if is_removal {
        let entries: Vec<ipset::Entry> = entries.iter().map(|entry| entry.entry).collect();
        ipset.delete(&name, &entries)
    } else {
        ipset.add(&name, &entries)
    };
    let failures = match result {
        Ok(failures) => failures,
        Err(error) => return vec![failed(&error); steps.len()],
    };
    let failures: BTreeMap<ipset::Entry, _> = failures
        .into_iter()
        .map(|failure| (failure.entry.entry, failure))
        .collect();
    steps
        .iter()
        .map(|step| {
            let mut parts = entry_of(step).into_iter().flat_map(sets::entries);
            match parts.find_map(|part| failures.get(&part.entry)) {
                Some(failure) => failed(failure),
                None => Outcome::Done,
            }
        })
        .collect()
}

const fn entry_of(step: &Step) -> Option<&SetEntry> {
    match step {
        Step::AddEntry { entry, .. } | Step::DeleteEntry { entry, .. } => Some(entry),
        _ => None,
    }
}
