// SPDX-License-Identifier: Apache-2.0
//! Opens what serving needs: IP families, IPVS, the scheduler, iptables. A proxy that cannot work
//! here fails with the reason.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, bail};
use prometheus::Registry;
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use super::instrumentation::Metrics;
use crate::clock::Clock;
use crate::config::settings::{IptablesBackend, Settings};
use crate::dataplane::conntrack;
use crate::dataplane::conntrack::tuning::{ConntrackSysctls, Unwritable};
use crate::dataplane::exec::Exec;
use crate::dataplane::iptables::{Backend, Backends, Iptables};
use crate::dataplane::kernel::Kernel;
use crate::dataplane::links::Links;
use crate::dataplane::linux::{Linux, Netfilter};
use crate::dataplane::nfacct::PacketCounters;
use crate::dataplane::sysctl::Sysctls;
use crate::events::{Events, Reporter, publish};
use crate::metrics::{DataplaneMetrics, register_packet_counters};
use crate::telemetry::ErrorChain;
use ipset_netlink as ipset;
use ipvs_netlink as ipvs;
use kpr_core::model::IpFamily;
use kpr_core::model::ProxyMode;
use kpr_core::plan::KernelVersion;
use kpr_core::plan::iptables::{static_rules, syntax};
use kpr_core::plan::ruleset::{Rule, Table};
use kpr_core::plan::step::LINK;

/// A kernel that can be programmed, and for which families.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) kernel: Box<dyn Kernel>,
    /// The kernel as ipvs mode uses it, where iptables mode finds something of that.
    pub(super) former: Option<Box<dyn Kernel>>,
    pub(super) families: Vec<IpFamily>,
    pub(super) version: KernelVersion,
    pub(super) backends: Backends,
    /// Families in which one rule can compare source and destination; only iptables mode asks.
    pub(super) comparing: BTreeSet<IpFamily>,
    pub(super) counts_packets: bool,
    /// What was looked for, by the names of modules, and whether it is there.
    pub(super) capabilities: BTreeMap<String, bool>,
}

/// Opens the kernel of this network namespace for a mode.
pub(super) fn open(settings: &Settings, exec: &Arc<dyn Exec>) -> anyhow::Result<Opened> {
    // Opened first: without it the mode is wrong, whatever else is there.
    let ipvs = match settings.mode {
        ProxyMode::Ipvs => Some(open_ipvs(settings)?),
        ProxyMode::Iptables => None,
    };
    let (backends, iptables) = iptables(settings.iptables_backend, exec)?;
    let families: Vec<IpFamily> = iptables.keys().copied().collect();
    let comparing = match settings.mode {
        ProxyMode::Ipvs => BTreeSet::new(),
        ProxyMode::Iptables => comparing(&iptables)?,
    };
    let counts_packets = match settings.mode {
        ProxyMode::Ipvs => false,
        ProxyMode::Iptables => counts_packets(&iptables)?,
    };
    let capabilities = match settings.mode {
        // Without these there would have been no start.
        ProxyMode::Ipvs => BTreeMap::from([
            ("ip_vs".to_owned(), true),
            (format!("ip_vs_{}", settings.ipvs.scheduler), true),
        ]),
        ProxyMode::Iptables => BTreeMap::from([
            ("xt_bpf".to_owned(), comparing.len() == families.len()),
            ("xt_nfacct".to_owned(), counts_packets),
        ]),
    };
    let sysctls = Sysctls::new("/proc/sys");
    let version = sysctls
        .read("kernel/osrelease")
        .ok()
        .and_then(|release| KernelVersion::parse(&release))
        .context("cannot read the kernel's version")?;
    let links = Links::open().context("cannot use route netlink")?;
    let conntrack = conntrack::Client::open()
        .inspect_err(|error| {
            warn!(error = %ErrorChain(error), "cannot use conntrack, stale UDP flows will not be deleted");
        })
        .ok();
    let former = match settings.mode {
        ProxyMode::Ipvs => None,
        ProxyMode::Iptables => former_ipvs(&iptables, exec).unwrap_or_else(|error| {
            warn!(
                error = format!("{error:#}"),
                "cannot clean up leftover IPVS objects, leaving them in place"
            );
            None
        }),
    };
    let exec = exec.clone();
    let netfilter = Netfilter::new(links, sysctls, iptables, exec).with_conntrack(conntrack);
    let kernel: Box<dyn Kernel> = if let Some(ipvs) = ipvs {
        let ipset = ipset::Client::open().context("cannot use ipset")?;
        Box::new(Linux::new(ipvs, ipset, netfilter))
    } else {
        Box::new(netfilter)
    };
    Ok(Opened {
        kernel,
        former: former.map(|kernel| Box::new(kernel) as Box<dyn Kernel>),
        families,
        version,
        backends,
        comparing,
        counts_packets,
        capabilities,
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
pub(super) fn count_packets(registry: &Registry) -> anyhow::Result<bool> {
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

/// A kernel handle for leftovers of ipvs mode, if there are any. Does not load the IPVS module.
pub(super) fn former_ipvs(
    iptables: &BTreeMap<IpFamily, Iptables>,
    exec: &Arc<dyn Exec>,
) -> anyhow::Result<Option<Linux>> {
    let mut links = Links::open().context("cannot use route netlink")?;
    let has_link = links.find(LINK)?.is_some();
    let ipset = ipset::Client::open().and_then(|mut ipset| Ok((ipset.names()?, ipset)));
    let has_sets = ipset.as_ref().is_ok_and(|(names, _)| {
        let mut names = names.iter();
        names.any(|name| name.as_str().starts_with("KUBE-"))
    });
    if !has_link && !has_sets && !Path::new("/proc/net/ip_vs").exists() {
        debug!("no leftover IPVS state");
        return Ok(None);
    }
    let (_, ipset) = ipset.context("cannot use ipset")?;
    let ipvs = ipvs::Client::open().context("cannot use IPVS")?;
    let sysctls = Sysctls::new("/proc/sys");
    let netfilter = Netfilter::new(links, sysctls, iptables.clone(), exec.clone());
    Ok(Some(Linux::new(ipvs, ipset, netfilter)))
}

pub(super) fn open_ipvs(settings: &Settings) -> anyhow::Result<ipvs::Client> {
    let mut ipvs = ipvs::Client::open().context("cannot use IPVS")?;
    let scheduler = settings
        .ipvs
        .scheduler
        .parse()
        .context("invalid IPVS scheduler")?;
    ipvs.probe_scheduler(scheduler).context("cannot use IPVS")?;
    Ok(ipvs)
}

/// The families that this machine can serve: those whose `nat` table can be read, and IPv6 only
/// where the kernel has it switched on.
fn iptables(
    wanted: IptablesBackend,
    exec: &Arc<dyn Exec>,
) -> anyhow::Result<(Backends, BTreeMap<IpFamily, Iptables>)> {
    let wanted = match wanted {
        IptablesBackend::Auto => None,
        IptablesBackend::Legacy => Some(Backend::Legacy),
        IptablesBackend::Nft => Some(Backend::Nft),
    };
    let backends = Backends::detect(&**exec, wanted).context("cannot use iptables")?;
    let Backends {
        backend,
        reason,
        version,
        ..
    } = &backends;
    info!(%backend, %reason, %version, "selected iptables backend");
    let mut usable = BTreeMap::new();
    let mut last_error = None;
    for family in IpFamily::ALL {
        if family == IpFamily::V6 && !ipv6_is_enabled() {
            info!("IPv6 is disabled in this kernel, serving IPv4 only");
            continue;
        }
        let iptables = Iptables::new(exec.clone(), backends.programs(family));
        match iptables.save(&[Table::Nat]) {
            Ok(_) => {
                usable.insert(family, iptables);
            }
            Err(error) => {
                warn!(%family, error = %ErrorChain(&error), "cannot use iptables, not serving this family");
                last_error = Some(error);
            }
        }
    }
    match last_error {
        Some(error) if usable.is_empty() => {
            Err(error).context("iptables is not available on this host")
        }
        _ => Ok((backends, usable)),
    }
}

fn ipv6_is_enabled() -> bool {
    let disabled = Sysctls::new("/proc/sys").read("net/ipv6/conf/all/disable_ipv6");
    Path::new("/proc/net/if_inet6").exists() && disabled.is_ok_and(|value| value != "1")
}

/// Writes the conntrack settings. One that cannot be written (in a container without permission, or
/// outside the initial network namespace) is logged and does not prevent serving.
pub(super) fn tune_conntrack(settings: &Settings, metrics: &DataplaneMetrics) {
    let (met, unwritable) = ConntrackSysctls::default().apply(&settings.conntrack);
    for setting in met {
        metrics.sysctl_written(setting.path, true);
    }
    for Unwritable { setting, error } in unwritable {
        metrics.sysctl_written(setting.path, false);
        warn!(setting = setting.path, error = %ErrorChain(&error), "failed to write kernel setting");
    }
}

/// The queue of Events, and the task that writes them to the API server.
pub(super) async fn events(
    settings: &Settings,
    metrics: &Metrics,
    clock: &Clock,
) -> anyhow::Result<(Events, JoinHandle<()>)> {
    let observer = Arc::new(metrics.source.clone());
    let Some(client) = settings.source.client(observer).await? else {
        let nothing = tokio::spawn(async {});
        return Ok((Events::nowhere(metrics.events.clone()), nothing));
    };
    let reporter = Reporter {
        node: node_name(settings)?,
        host: host_name()?.into(),
    };
    let (events, queue) = Events::queue(metrics.events.clone());
    let (clock, metrics) = (clock.clone(), metrics.events.clone());
    let writing = publish::run(client, reporter, clock, metrics, queue);
    Ok((events, tokio::spawn(writing)))
}

/// Sets `oom_score_adj`. Without permission, logs a warning, as kube-proxy does.
pub(super) fn set_oom_score(settings: &Settings) {
    const PATH: &str = "/proc/self/oom_score_adj";
    let score = settings.oom_score_adj.to_string();
    if std::fs::read_to_string(PATH).is_ok_and(|current| current.trim() == score) {
        return;
    }
    if let Err(error) = std::fs::write(PATH, &score) {
        warn!(score, %error, "failed to set oomScoreAdj");
    }
}

fn host_name() -> anyhow::Result<String> {
    Sysctls::new("/proc/sys")
        .read("kernel/hostname")
        .context("cannot read the host's name")
}

/// The name of our Node object: the override, else the host's name.
pub(super) fn node_name(settings: &Settings) -> anyhow::Result<Arc<str>> {
    let name = match &settings.hostname_override {
        Some(name) => name.clone(),
        None => host_name()?,
    };
    let name = name.trim().to_lowercase();
    if name.is_empty() {
        bail!("the host has no name: use --hostname-override");
    }
    Ok(name.into())
}
