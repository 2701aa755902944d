// SPDX-License-Identifier: Apache-2.0
//! Opens IPVS mode, and what an earlier IPVS mode left.

mod sysctls;
mod way;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use tracing::debug;

use super::{Opened, Opening};
use crate::config::settings::Settings;
use crate::dataplane::exec::Exec;
use crate::dataplane::iptables::Iptables;
use crate::dataplane::links::Links;
use crate::dataplane::modes::ipvs::{Dataplane, Held};
use crate::dataplane::nftables::publishes_ports;
use crate::dataplane::node::NodeKernel;
use crate::dataplane::own_table::OwnTable;
use crate::dataplane::sysctl::Sysctls;
use crate::reconcile::context::NodeFacts;
use crate::reconcile::runner::Pace;
use crate::reconcile::{Parts, Reconciler};
use crate::telemetry::ErrorChain;
use ipset_netlink as ipset;
use ipvs_netlink as ipvs;
use kpr_core::model::{IpFamily, ProxyMode};
use kpr_core::plan::iptables::affinity::chain_of;
use kpr_core::plan::ipvs::Planner;
use kpr_core::plan::ipvs::step::LINK;
use way::Way;

pub(super) const MODE: ProxyMode = ProxyMode::IPVS;

pub(super) fn open(opening: Opening<'_>) -> anyhow::Result<Opened> {
    // First: without it the mode is wrong, whatever else is there.
    let mut ipvs = client(&**opening.exec)?;
    probe_scheduler(&mut ipvs, &opening.settings)?;
    let is_published = publishes_ports();
    let Way {
        rules,
        mut common,
        held,
        families,
        missing_matches,
        security_tables,
    } = Way::open(&opening, is_published)?;
    let mut facts = NodeFacts {
        sysctls: sysctls::possible(&opening),
        ipvs_rules: rules,
        missing_matches,
        security_tables,
        ..common.facts(&opening)?
    };
    // What begins after the choice is news.
    facts.around.network.publishes_ports = is_published;
    // Without these there would be no start.
    let scheduler = format!("ip_vs_{}", opening.settings.ipvs.scheduler);
    for module in ["ip_vs", &scheduler] {
        opening.observer.kernel_capability(module, true);
    }
    let sync = Reconciler::new(Parts {
        settings: opening.settings,
        families: families.clone(),
        facts,
        planner: Planner::new,
        kernel: Dataplane::new(ipvs, held, common.node),
        pace: Pace::Cost,
        previous: None,
        clock: opening.clock,
        observer: opening.observer,
    })?;
    Ok(Opened {
        sync: Box::new(sync),
        families,
    })
}

/// Connects to IPVS. Kernels before 5.11 do not load its module when its netlink family is asked
/// for (`MODULE_ALIAS_GENL_FAMILY` of `net/netfilter/ipvs/ip_vs_ctl.c`).
fn client(exec: &dyn Exec) -> anyhow::Result<ipvs::Client> {
    let opened = match ipvs::Client::open() {
        Err(ipvs::Error::NotAvailable(_)) => {
            match exec.run("modprobe", &["ip_vs"], &[]) {
                Ok(output) if output.ended.succeeded() => {}
                Ok(output) => debug!(stderr = output.ended.stderr_text(), "cannot load ip_vs"),
                Err(error) => debug!(error = %ErrorChain(&error), "cannot load ip_vs"),
            }
            ipvs::Client::open()
        }
        opened => opened,
    };
    opened.context("cannot use IPVS")
}

/// Fails if the kernel lacks the scheduler of the settings. The module `ip_vs` must be loaded.
pub(in crate::app) fn has_scheduler(settings: &Settings) -> anyhow::Result<()> {
    let mut ipvs = ipvs::Client::open().context("cannot use IPVS")?;
    probe_scheduler(&mut ipvs, settings)
}

fn probe_scheduler(ipvs: &mut ipvs::Client, settings: &Settings) -> anyhow::Result<()> {
    let scheduler = settings
        .ipvs
        .scheduler
        .parse()
        .context("invalid IPVS scheduler")?;
    ipvs.probe_scheduler(scheduler).context("cannot use IPVS")
}

/// A kernel handle for leftovers of ipvs mode, if there are any. Does not load the IPVS module.
pub(in crate::app) fn leftovers(
    iptables: &BTreeMap<IpFamily, Iptables>,
    exec: &Arc<dyn Exec>,
) -> anyhow::Result<Option<Dataplane>> {
    let mut links = Links::open().context("cannot use route netlink")?;
    let has_link = links.find(LINK)?.is_some();
    let mut table = OwnTable::open().ok();
    let mut has_table = |family: IpFamily| {
        let table = table.as_mut();
        table.is_some_and(|table| table.exists(family).unwrap_or(false))
    };
    let has_table = IpFamily::ALL.into_iter().any(&mut has_table);
    let ipset = ipset::Client::open().and_then(|mut ipset| Ok((ipset.names()?, ipset)));
    let has_sets = ipset.as_ref().is_ok_and(|(names, _)| has_ours(names));
    if !has_link && !has_sets && !has_table && !Path::new("/proc/net/ip_vs").exists() {
        debug!("no leftover IPVS state");
        return Ok(None);
    }
    let held = match (table, ipset) {
        (Some(table), ipset) if has_table => {
            Held::Table(table, ipset.ok().map(|(_, ipset)| ipset))
        }
        (table, ipset) => Held::Ipsets(ipset.context("cannot use ipset")?.1, table),
    };
    let ipvs = client(&**exec)?;
    let sysctls = Sysctls::new("/proc/sys");
    let node = NodeKernel::new(links, sysctls, iptables.clone(), exec.clone());
    Ok(Some(Dataplane::new(ipvs, held, node)))
}

/// Whether one of these ipsets is kube-proxy's or ours.
fn has_ours(names: &BTreeSet<ipset::SetName>) -> bool {
    let mut names = names.iter();
    // Those of clients are iptables mode's.
    let is_ours = |name: &str| name.starts_with("KUBE-") && chain_of(name).is_none();
    names.any(|name| is_ours(name.as_str()))
}
