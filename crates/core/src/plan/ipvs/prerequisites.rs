// SPDX-License-Identifier: Apache-2.0
//! PURE: which steps of IPVS mode must be skipped after others have failed.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::model::IpFamily;
use crate::plan::ipvs::object::VirtualServerKey;
use crate::plan::ipvs::set::{SetEntry, SetId, SetName};
use crate::plan::ipvs::step::{Phase, Step};
use crate::plan::leftovers::stale_rules::is_dispatch;
use crate::plan::prerequisites;

/// The failures of one plan so far.
#[derive(Clone, Debug, Default)]
pub struct Prerequisites {
    has_no_link: bool,
    has_no_rules: bool,
    /// A sync daemon could not be stopped.
    has_daemons: bool,
    missing_sets: BTreeSet<SetName>,
    /// Sets that lack an entry which a step should have added.
    incomplete_sets: BTreeSet<SetName>,
    missing_reject_entries: BTreeSet<IpAddr>,
    bound_addresses: BTreeSet<IpAddr>,
    missing_servers: BTreeSet<VirtualServerKey>,
    /// Addresses with a virtual server that could not be deleted.
    serving_addresses: BTreeSet<IpAddr>,
}

impl prerequisites::Prerequisites for Prerequisites {
    type Step = Step;

    fn lack(&mut self, _phase: Phase, step: &Step) {
        match step {
            Step::CreateLink => self.has_no_link = true,
            Step::EditRules(_) => self.has_no_rules = true,
            Step::StopSyncDaemon { .. } => self.has_daemons = true,
            Step::CreateSet(spec) => {
                self.missing_sets.insert(spec.name.clone());
            }
            Step::AddEntry { set, entry }
            | Step::ReplaceEntries {
                set, new: entry, ..
            } => {
                self.incomplete_sets.insert(set.clone());
                self.missing_reject_entries.extend(rejected(set, entry));
            }
            // The entries of all new addresses are in the set that could not be swapped in.
            Step::SwapSets { b, .. } => {
                self.has_no_rules |= IpFamily::ALL
                    .into_iter()
                    .any(|family| *b == SetId::IpvsIps.name(family));
            }
            Step::AddVirtualServer { key, .. } => {
                self.missing_servers.insert(*key);
            }
            Step::DeleteVirtualServer { key } => self.serving_addresses.extend(key.address()),
            Step::DeleteAddress { address } => {
                self.bound_addresses.insert(*address);
            }
            _ => {}
        }
    }

    fn forbid(&self, step: &Step) -> bool {
        match step {
            // Rules that name a missing set are rejected, so starting the program is pointless.
            Step::EditRules(rules) => {
                !self.missing_sets.is_empty()
                    || (self.has_no_rules && rules.edits.iter().any(is_dispatch))
            }
            Step::AddEntry { set, .. }
            | Step::ReplaceEntries { set, .. }
            | Step::DestroySet { set } => self.missing_sets.contains(set),
            // Only a complete set may replace another.
            Step::SwapSets { a, .. } => {
                self.missing_sets.contains(a) || self.incomplete_sets.contains(a)
            }
            Step::AddRealServer { vs, .. } | Step::SetRealServer { vs, .. } => {
                self.missing_servers.contains(vs)
            }
            // Without the rule and its entry all ports of the host would be reachable there.
            Step::AddAddress { address } => {
                self.has_no_link
                    || self.has_no_rules
                    || self.missing_reject_entries.contains(address)
            }
            // The address identifies the virtual server as ours.
            Step::DeleteAddress { address } => self.serving_addresses.contains(address),
            Step::DeleteEntry { set, entry } => {
                rejected(set, entry).is_some_and(|address| self.bound_addresses.contains(&address))
            }
            // The link says whose daemons they are.
            Step::StartSyncDaemon { .. } => self.has_no_link,
            Step::DeleteLink => self.has_daemons,
            // Until our objects serve, the old rules do.
            Step::DeleteNftablesTable { .. } | Step::DeleteOwnTable { .. } => {
                self.has_no_rules || self.has_no_link || !self.missing_servers.is_empty()
            }
            // Rules that could not be removed use it.
            Step::DestroyOtherSet { .. } => self.has_no_rules,
            _ => false,
        }
    }
}

/// The address whose unknown ports an entry rejects.
fn rejected(set: &SetName, entry: &SetEntry) -> Option<IpAddr> {
    match entry {
        SetEntry::Ip(address) if *set == SetId::IpvsIps.name(IpFamily::of(*address)) => {
            Some(*address)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
