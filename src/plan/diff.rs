// SPDX-License-Identifier: Apache-2.0
//! PURE: Desired less Believed is the Plan.
//!
//! There is one way to compare; a full plan merely touches everything. So a sequence of small
//! plans cannot lead elsewhere than one full plan.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::context::Context;
use super::desired::{Desired, Touched};
use super::fragment::WantedServer;
use super::object::{RealServer, RealServerKey, VirtualServerKey};
use super::rules::{self, FixedRules};
use super::set::{DEFAULT_MAX_ENTRIES, SetId, SetName, SetSpec};
use super::state::{State, VirtualServerState};
use super::step::{Phase, Plan, RuleEdits, Step};
use super::sysctl;
use crate::model::{IpFamily, Protocol};

/// Everything that is wanted, and everything that the kernel has and that is ours.
/// `owns` says whose an unwanted virtual server is.
pub fn everything(
    desired: &Desired,
    believed: &State,
    owns: impl Fn(&VirtualServerKey) -> bool,
) -> Touched {
    let mut touched = Touched::default();
    touched
        .virtual_servers
        .extend(desired.virtual_servers().map(|(key, _)| key));
    touched
        .virtual_servers
        .extend(believed.virtual_servers.keys().filter(|key| owns(key)));
    touched.addresses.extend(desired.addresses());
    touched.addresses.extend(&believed.addresses);
    for id in SetId::ALL {
        touched
            .entries
            .extend(desired.entries(id).map(|entry| (id, *entry)));
    }
    touched
}

/// What every Service needs before it can be served: sysctls, link, sets, rules. Also the entries
/// that the kernel has and nobody wants (`everything` cannot name them: sets are keyed by name).
pub fn foundation(
    context: &Context,
    rules: &FixedRules,
    desired: &Desired,
    believed: &State,
) -> Plan {
    let mut plan = Plan::default();
    if context.owns_node {
        for (key, value) in sysctl::wanted(context) {
            if believed.node.sysctls.get(key).map(String::as_str) != Some(value) {
                plan.push(Phase::Node, Step::SetSysctl { key, value });
            }
        }
        if !context.timeouts.satisfied_by(believed.node.timeouts) {
            plan.push(Phase::Node, Step::SetTimeouts(context.timeouts));
        }
        if !believed.node.link_exists {
            plan.push(Phase::Node, Step::CreateLink);
        }
    }
    for id in SetId::ALL {
        let name = id.name(context.family);
        // Left over from a replacement that was cut short.
        if believed.sets.contains_key(&name.replacement()) {
            plan.push(
                Phase::Sets,
                Step::DestroySet {
                    set: name.replacement(),
                },
            );
        }
        if let Some(set) = believed.sets.get(&name) {
            for entry in &set.entries {
                if !desired.wants_entry(id, entry) {
                    push_entry_removal(&mut plan, id, &name, *entry);
                }
            }
        } else {
            let max_entries = wanted_size(desired.entries(id).len());
            let spec = SetSpec::new(id, context.family, max_entries);
            plan.push(Phase::Sets, Step::CreateSet(spec));
        }
    }
    let edits = rules::edits(rules, &believed.rules);
    if !edits.is_empty() {
        let edits = RuleEdits {
            family: context.family,
            edits,
        };
        plan.push(Phase::Rules, Step::EditRules(edits));
    }
    plan
}

/// Adds to a plan what the touched objects need. `drains` says whether a real server that is not
/// wanted any more still has to be waited for.
pub fn compare(
    plan: &mut Plan,
    family: IpFamily,
    desired: &Desired,
    believed: &State,
    touched: &Touched,
) {
    compare_entries(plan, family, desired, believed, touched);
    for key in &touched.virtual_servers {
        let wanted = desired.virtual_server(key);
        compare_virtual_server(plan, *key, wanted, believed.virtual_servers.get(key));
    }
    compare_addresses(plan, desired, believed, &touched.addresses);
}

fn compare_entries(
    plan: &mut Plan,
    family: IpFamily,
    desired: &Desired,
    believed: &State,
    touched: &Touched,
) {
    let ids: BTreeSet<SetId> = touched.entries.iter().map(|(id, _)| *id).collect();
    for id in ids {
        let name = id.name(family);
        let wanted_entries = desired.entries(id).len();
        let present = believed.sets.get(&name);
        if let Some(present) = present
            && id.set_type().is_hash()
            && wanted_size(wanted_entries) > present.max_entries
        {
            replace_set(plan, id, family, desired);
            continue;
        }
        let has = |entry| present.is_some_and(|set| set.entries.contains(entry));
        for (_, entry) in touched.entries.iter().filter(|(of, _)| *of == id) {
            match (desired.wants_entry(id, entry), has(entry)) {
                (true, false) => {
                    plan.push(
                        Phase::Entries,
                        Step::AddEntry {
                            set: name.clone(),
                            entry: *entry,
                        },
                    );
                }
                (false, true) => push_entry_removal(plan, id, &name, *entry),
                (true, true) | (false, false) => {}
            }
        }
    }
}

/// A set's size cannot be changed: a larger one is filled and takes its place in one step.
fn replace_set(plan: &mut Plan, id: SetId, family: IpFamily, desired: &Desired) {
    let name = id.name(family);
    let replacement = name.replacement();
    let spec = SetSpec {
        name: replacement.clone(),
        ..SetSpec::new(id, family, wanted_size(desired.entries(id).len()))
    };
    plan.push(Phase::Sets, Step::CreateSet(spec));
    for entry in desired.entries(id) {
        let set = replacement.clone();
        plan.push(Phase::Sets, Step::AddEntry { set, entry: *entry });
    }
    plan.push(
        Phase::Sets,
        Step::SwapSets {
            a: replacement.clone(),
            b: name,
        },
    );
    plan.push(Phase::Sets, Step::DestroySet { set: replacement });
}

/// The `maxelem` for a number of entries.
fn wanted_size(entries: usize) -> u32 {
    let entries = u32::try_from(entries).unwrap_or(u32::MAX);
    entries
        .checked_next_power_of_two()
        .unwrap_or(u32::MAX)
        .max(DEFAULT_MAX_ENTRIES)
}

fn push_entry_removal(plan: &mut Plan, id: SetId, set: &SetName, entry: super::set::SetEntry) {
    let phase = if id == SetId::IpvsIps {
        Phase::OldAddressEntries
    } else {
        Phase::OldEntries
    };
    plan.push(
        phase,
        Step::DeleteEntry {
            set: set.clone(),
            entry,
        },
    );
}

fn compare_virtual_server(
    plan: &mut Plan,
    key: VirtualServerKey,
    wanted: Option<&WantedServer>,
    present: Option<&VirtualServerState>,
) {
    let Some(wanted) = wanted else {
        if present.is_some() {
            plan.push(Phase::OldServers, Step::DeleteVirtualServer { key });
        }
        return;
    };
    match present {
        None => plan.push(
            Phase::Servers,
            Step::AddVirtualServer {
                key,
                server: wanted.server.clone(),
            },
        ),
        Some(present) if present.server != wanted.server => plan.push(
            Phase::Servers,
            Step::SetVirtualServer {
                key,
                server: wanted.server.clone(),
            },
        ),
        Some(_) => {}
    }
    for (server_key, server) in wanted.real_servers.iter() {
        let present = present.and_then(|present| present.real_servers.get(server_key));
        let (vs, server_key, server) = (key, *server_key, *server);
        match present {
            None => {
                plan.push(
                    Phase::Servers,
                    Step::AddRealServer {
                        vs,
                        key: server_key,
                        server,
                    },
                );
            }
            Some(present) if *present != server => {
                plan.push(
                    Phase::Servers,
                    Step::SetRealServer {
                        vs,
                        key: server_key,
                        server,
                    },
                );
            }
            Some(_) => {}
        }
    }
    let unwanted = present
        .into_iter()
        .flat_map(|present| &present.real_servers)
        .filter(|(server_key, _)| !wanted.real_servers.contains_key(*server_key));
    for (server_key, server) in unwanted {
        remove_real_server(plan, key, *server_key, *server);
    }
}

/// A server with connections gets no new ones and is deleted when they have ended; a server of
/// weight 0 that nobody wants is one that is waiting for that.
fn remove_real_server(
    plan: &mut Plan,
    vs: VirtualServerKey,
    key: RealServerKey,
    server: RealServer,
) {
    if !drains(&vs) {
        plan.push(Phase::OldServers, Step::DeleteRealServer { vs, key });
    } else if server.weight > 0 {
        let server = RealServer {
            weight: 0,
            ..server
        };
        plan.push(Phase::OldServers, Step::SetRealServer { vs, key, server });
    }
}

/// Only TCP has connections whose end can be seen.
pub fn drains(vs: &VirtualServerKey) -> bool {
    vs.protocol() == Some(Protocol::Tcp)
}

fn compare_addresses(
    plan: &mut Plan,
    desired: &Desired,
    believed: &State,
    touched: &BTreeSet<IpAddr>,
) {
    for address in touched {
        let address = *address;
        match (
            desired.wants_address(&address),
            believed.addresses.contains(&address),
        ) {
            (true, false) => plan.push(Phase::Addresses, Step::AddAddress { address }),
            (false, true) => plan.push(Phase::OldAddresses, Step::DeleteAddress { address }),
            (true, true) | (false, false) => {}
        }
    }
}
