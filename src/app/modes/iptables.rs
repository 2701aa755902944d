// SPDX-License-Identifier: Apache-2.0
//! Opens iptables mode.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use prometheus::Registry;
use tracing::{debug, info, warn};

use super::{Opened, Opening, leftovers};
use crate::app::bootstrap::Common;
use crate::app::matches;
use crate::dataplane::client_sets::ClientSets;
use crate::dataplane::iptables::{Iptables, extension};
use crate::dataplane::kernel::IpvsKernel;
use crate::dataplane::nfacct::PacketCounters;
use crate::metrics::register_packet_counters;
use crate::reconcile::context::NodeFacts;
use crate::reconcile::runner::Pace;
use crate::reconcile::{Parts, Reconciler};
use crate::telemetry::ErrorChain;
use kpr_core::model::{IpFamily, ProxyMode};
use kpr_core::plan::iptables::affinity::ClientMemory;
use kpr_core::plan::iptables::{Planner, static_rules, syntax};
use kpr_core::plan::ruleset::{Rule, Table};

pub(super) const MODE: ProxyMode = ProxyMode::IPTABLES;

/// How many clients `xt_recent` remembers of each endpoint.
const RECENT_LIMIT: &str = "/sys/module/xt_recent/parameters/ip_list_tot";

pub(super) fn open(opening: Opening<'_>) -> anyhow::Result<Opened> {
    let (mut common, backend) = Common::open(&opening)?;
    let families = common.families();
    let comparing = comparing(&common.iptables)?;
    let can_count = counts_packets(&common.iptables)?;
    let observer = &opening.observer;
    observer.kernel_capability("xt_bpf", comparing.len() == families.len());
    observer.kernel_capability("xt_nfacct", can_count);
    let counts_packets = match opening.registry {
        Some(registry) => can_count && count_packets(registry)?,
        None => can_count,
    };
    let needed = matches::COMMON.iter().chain(matches::OF_IPTABLES_MODE);
    let mut missing_matches = matches::missing(&common.iptables, needed, &**observer);
    // Services do without affinity, and are told.
    let has_recent = !missing_matches.remove(matches::RECENT);
    let sets = ClientSets::open().inspect_err(|error| {
        info!(error = %ErrorChain(error), "kernel has no ipsets of addresses");
    });
    observer.kernel_capability("ip_set_hash_ip", sets.is_ok());
    let memory = memory(&common.iptables, sets.is_ok(), has_recent)?;
    let has_sets = memory.values().all(|memory| memory.has_sets);
    observer.kernel_capability("xt_set", has_sets);
    common.node = common.node.with_client_sets(sets.ok());
    let previous = leftovers(&common.iptables, opening.exec).unwrap_or_else(|error| {
        warn!(
            error = format!("{error:#}"),
            "cannot clean up leftover IPVS objects, leaving them in place"
        );
        None
    });
    let facts = NodeFacts {
        comparing,
        memory,
        counts_packets,
        leaves_ipvs: previous.is_some(),
        missing_matches,
        batch_limit: backend.batch_limit(),
        ..common.facts(&opening)?
    };
    let sync = Reconciler::new(Parts {
        settings: opening.settings,
        families: families.clone(),
        facts,
        planner: |context| Ok(Planner::new(context)),
        kernel: common.node,
        // A batch costs as much as the table is long.
        pace: Pace::GrowingCost,
        previous: previous.map(|kernel| Box::new(kernel) as Box<dyn IpvsKernel>),
        clock: opening.clock,
        observer: opening.observer,
    })?;
    Ok(Opened {
        sync: Box::new(sync),
        families,
    })
}

/// How each family can remember clients with session affinity.
fn memory(
    iptables: &BTreeMap<IpFamily, Iptables>,
    has_ipset: bool,
    has_recent: bool,
) -> anyhow::Result<BTreeMap<IpFamily, ClientMemory>> {
    let recent = has_recent.then(|| {
        let limit = std::fs::read_to_string(RECENT_LIMIT).ok();
        let limit = limit.and_then(|limit| limit.trim().parse().ok());
        limit.unwrap_or(ClientMemory::RECENT_CLIENTS)
    });
    let has_ipset = has_ipset && !extension::is_missing("set");
    let mut memory = BTreeMap::new();
    for (family, iptables) in iptables {
        let has_sets = has_ipset && iptables.matches_sets().context("cannot use iptables")?;
        memory.insert(*family, ClientMemory { has_sets, recent });
        if !has_sets {
            info!(%family, ?recent, "rules cannot match ipsets, session affinity is limited");
        }
    }
    Ok(memory)
}

/// Whether rules of all families can use nfacct counters. Creates none.
fn counts_packets(iptables: &BTreeMap<IpFamily, Iptables>) -> anyhow::Result<bool> {
    let counter = static_rules::INVALID_DROPPED;
    let available = PacketCounters::open().and_then(|mut counters| counters.is_available(counter));
    if let Err(error) = available {
        info!(error = %ErrorChain(&error), "kernel has no nfacct counters, packet metrics disabled");
        return Ok(false);
    }
    let matches = Rule::new(syntax::counted(counter));
    for iptables in iptables.values() {
        if !iptables
            .knows(Table::Filter, &matches)
            .context("cannot use iptables")?
        {
            info!("iptables has no nfacct match, packet metrics disabled");
            return Ok(false);
        }
    }
    Ok(true)
}

/// Creates the nfacct counters of rules, and their metrics. Returns whether that worked.
fn count_packets(registry: &Registry) -> anyhow::Result<bool> {
    let made = PacketCounters::open().and_then(|mut counters| {
        counters.ensure(static_rules::INVALID_DROPPED)?;
        counters.ensure(static_rules::LOCALHOST_ACCEPTED)?;
        Ok(counters)
    });
    let counters = match made {
        Ok(counters) => Arc::new(Mutex::new(counters)),
        Err(error) => {
            warn!(error = %ErrorChain(&error), "failed to create nfacct counters, packet metrics disabled");
            return Ok(false);
        }
    };
    let read = |name| {
        let counters = counters.clone();
        Box::new(move || {
            let mut counters = counters.lock().unwrap_or_else(PoisonError::into_inner);
            let packets = counters.packets(name);
            packets
                .inspect_err(
                    |error| debug!(error = %ErrorChain(error), "failed to read nfacct counter"),
                )
                .ok()
        })
    };
    register_packet_counters(
        registry,
        read(static_rules::INVALID_DROPPED),
        read(static_rules::LOCALHOST_ACCEPTED),
    )?;
    Ok(true)
}

/// The families whose iptables can compare source and destination in one rule.
fn comparing(iptables: &BTreeMap<IpFamily, Iptables>) -> anyhow::Result<BTreeSet<IpFamily>> {
    let mut comparing = BTreeSet::new();
    for (family, iptables) in iptables {
        let matches = Rule::new(syntax::reaches_itself(*family));
        if iptables
            .knows(Table::Nat, &matches)
            .context("cannot use iptables")?
        {
            comparing.insert(*family);
        } else {
            info!(%family, "iptables has no bpf match, using one hairpin rule per local endpoint");
        }
    }
    Ok(comparing)
}
