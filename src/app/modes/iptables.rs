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
use crate::dataplane::iptables::Iptables;
use crate::dataplane::kernel::IpvsKernel;
use crate::dataplane::nfacct::PacketCounters;
use crate::metrics::register_packet_counters;
use crate::reconcile::context::NodeFacts;
use crate::reconcile::runner::Pace;
use crate::reconcile::{Parts, Reconciler};
use crate::telemetry::ErrorChain;
use kpr_core::model::{IpFamily, ProxyMode};
use kpr_core::plan::iptables::{Planner, static_rules, syntax};
use kpr_core::plan::ruleset::{Rule, Table};

pub(super) const MODE: ProxyMode = ProxyMode::IPTABLES;

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
    let missing_matches = matches::missing(&common.iptables, needed, &**observer);
    let previous = leftovers(&common.iptables, opening.exec).unwrap_or_else(|error| {
        warn!(
            error = format!("{error:#}"),
            "cannot clean up leftover IPVS objects, leaving them in place"
        );
        None
    });
    let facts = NodeFacts {
        comparing,
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
