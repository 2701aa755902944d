// SPDX-License-Identifier: Apache-2.0
//! What must be there before anything is served: IP families, IPVS, the scheduler, iptables. A proxy
//! that cannot work here says why and does not start.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, bail};
use prometheus::Registry;
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use super::observe::Metrics;
use crate::clock::Clock;
use crate::config::settings::{IptablesBackend, Settings};
use crate::dataplane::conntrack;
use crate::dataplane::conntrack::tuning::{ConntrackSettings, Unwritable};
use crate::dataplane::exec::Exec;
use crate::dataplane::iptables::{Backend, Backends, Iptables};
use crate::dataplane::kernel::Kernel;
use crate::dataplane::links::Links;
use crate::dataplane::linux::{Linux, Netfilter};
use crate::dataplane::nfacct::PacketCounters;
use crate::dataplane::sysctl::Sysctls;
use crate::events::{Events, Reporter, publish};
use crate::metrics::{DataplaneMetrics, register_packet_counters};
use crate::source::{Source, kubernetes};
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
            warn!(error = %ErrorChain(error), "UDP clients of removed endpoints will not be moved");
        })
        .ok();
    let former = match settings.mode {
        ProxyMode::Ipvs => None,
        ProxyMode::Iptables => former_ipvs(&iptables, exec).unwrap_or_else(|error| {
            warn!(error = format!("{error:#}"), "what ipvs mode left stays");
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

/// Whether rules of all families can count packets by name. Makes no counter.
fn counts_packets(iptables: &BTreeMap<IpFamily, Iptables>) -> anyhow::Result<bool> {
    let counter = static_rules::INVALID_DROPPED;
    let available = PacketCounters::open().and_then(|mut counters| counters.is_available(counter));
    if let Err(error) = available {
        info!(error = %ErrorChain(&error), "kernel counts no packets by name, metrics of them are absent");
        return Ok(false);
    }
    let matches = Rule::new(syntax::counted(counter));
    for iptables in iptables.values() {
        if !iptables
            .knows(Table::Filter, &matches)
            .context("cannot use iptables")?
        {
            info!("no match nfacct, metrics of it are absent");
            return Ok(false);
        }
    }
    Ok(true)
}

/// Makes the packet counters that rules count in, and their metrics. Says whether that worked.
pub(super) fn count_packets(registry: &Registry) -> anyhow::Result<bool> {
    let made = PacketCounters::open().and_then(|mut counters| {
        counters.ensure(static_rules::INVALID_DROPPED)?;
        counters.ensure(static_rules::LOCALHOST_ACCEPTED)?;
        Ok(counters)
    });
    let counters = match made {
        Ok(counters) => Arc::new(Mutex::new(counters)),
        Err(error) => {
            warn!(error = %ErrorChain(&error), "packets are not counted by name");
            return Ok(false);
        }
    };
    let read = |name| {
        let counters = counters.clone();
        Box::new(move || {
            let mut counters = counters.lock().unwrap_or_else(PoisonError::into_inner);
            let packets = counters.packets(name);
            packets
                .inspect_err(|error| debug!(error = %ErrorChain(error), "packets not read"))
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

/// Those of the families whose kernel compares source and destination for us.
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
            info!(%family, "no match bpf: each endpoint on this node has a rule for reaching itself");
        }
    }
    Ok(comparing)
}

/// What IPVS mode uses, if there is anything of it: asking for IPVS would load its module.
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
        debug!("nothing of ipvs mode here");
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
    info!(%backend, %reason, %version, "iptables backend chosen");
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
                warn!(%family, error = %ErrorChain(&error), "no iptables, family not served");
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

/// Makes the settings of connection tracking as wanted. One that cannot be written (in a container without the right
/// to, or because only the first network namespace may) is told, and is no reason not to serve.
pub(super) fn tune_conntrack(settings: &Settings, metrics: &DataplaneMetrics) {
    let (met, unwritable) = ConntrackSettings::default().apply(&settings.conntrack);
    for setting in met {
        metrics.sysctl_written(setting.path, true);
    }
    for Unwritable { setting, error } in unwritable {
        metrics.sysctl_written(setting.path, false);
        warn!(setting = setting.path, error = %ErrorChain(&error), "kernel setting not written");
    }
}

/// Where events go: to the API server, and a task that writes them there.
pub(super) async fn events(
    settings: &Settings,
    metrics: &Metrics,
    clock: &Clock,
) -> anyhow::Result<(Events, JoinHandle<()>)> {
    let Source::Kubernetes(config) = super::source_of(settings) else {
        let nothing = tokio::spawn(async {});
        return Ok((Events::nowhere(metrics.events.clone()), nothing));
    };
    let client = kubernetes::client(&config, Arc::new(metrics.source.clone())).await?;
    let reporter = Reporter {
        node: node_name(settings)?,
        host: host_name()?.into(),
    };
    let (events, queue) = Events::queue(metrics.events.clone());
    let (clock, metrics) = (clock.clone(), metrics.events.clone());
    let writing = publish::run(client, reporter, clock, metrics, queue);
    Ok((events, tokio::spawn(writing)))
}

/// Tells the kernel how dear this process is when memory is short. Without the right to it is told, as upstream does.
pub(super) fn set_oom_score(settings: &Settings) {
    const PATH: &str = "/proc/self/oom_score_adj";
    let score = settings.oom_score_adj.to_string();
    if std::fs::read_to_string(PATH).is_ok_and(|current| current.trim() == score) {
        return;
    }
    if let Err(error) = std::fs::write(PATH, &score) {
        warn!(score, %error, "oomScoreAdj not written");
    }
}

/// Starts this program again in place of this process, with the same arguments. Returns only if that cannot be; then
/// whoever started us does it.
pub(super) fn again(arguments: &[OsString]) -> anyhow::Error {
    use std::os::unix::process::CommandExt as _;
    #[expect(
        clippy::disallowed_methods,
        reason = "no program is started beside this one"
    )]
    let mut program = Command::new("/proc/self/exe");
    program.args(arguments.iter().skip(1));
    if let Some(name) = arguments.first() {
        program.arg0(name);
    }
    anyhow::Error::new(program.exec()).context("cannot start again")
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
