// SPDX-License-Identifier: Apache-2.0
//! Opens what serving needs: IP families, IPVS, the scheduler, iptables. A proxy that cannot work
//! here fails with the reason.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::instrumentation::Metrics;
use super::modes::Opening;
use crate::clock::Clock;
use crate::config::settings::{IptablesBackend, Settings};
use crate::dataplane::conntrack;
use crate::dataplane::conntrack::tuning::{ConntrackSysctls, Unwritable};
use crate::dataplane::exec::Exec;
use crate::dataplane::iptables::{Backend, Backends, Iptables, IptablesError, Reason};
use crate::dataplane::kernel::Host as _;
use crate::dataplane::links::Links;
use crate::dataplane::node::NodeKernel;
use crate::dataplane::sysctl::Sysctls;
use crate::events::{Events, Reporter, publish};
use crate::metrics::DataplaneMetrics;
use crate::reconcile::context::NodeFacts;
use crate::telemetry::ErrorChain;
use kpr_core::model::IpFamily;
use kpr_core::plan::KernelVersion;

/// What every mode opens.
#[derive(Debug)]
pub(super) struct Common {
    pub(super) iptables: BTreeMap<IpFamily, Iptables>,
    pub(super) node: NodeKernel,
    version: KernelVersion,
}

impl Common {
    /// Opens the kernel of this network namespace, and the iptables to use.
    pub(super) fn open(opening: &Opening<'_>) -> anyhow::Result<(Self, Backend)> {
        let (backends, iptables) = iptables(opening.settings.iptables_backend, opening.exec)?;
        let (backend, reason) = (backends.backend.as_str(), backends.reason.as_str());
        opening.observer.iptables_backend(backend, reason);
        Ok((Self::over(opening, iptables)?, backends.backend))
    }

    /// Opens the kernel of this network namespace. No program is started for a family that is not
    /// in `iptables`.
    pub(super) fn over(
        opening: &Opening<'_>,
        iptables: BTreeMap<IpFamily, Iptables>,
    ) -> anyhow::Result<Self> {
        let sysctls = Sysctls::new("/proc/sys");
        let version = sysctls
            .read("kernel/osrelease")
            .ok()
            .and_then(|release| KernelVersion::parse(&release))
            .context("cannot read the kernel's version")?;
        let links = Links::open().context("cannot use route netlink")?;
        let conntrack = conntrack::Client::open()
            .inspect_err(|error| {
                warn!(
                    error = %ErrorChain(error),
                    "cannot use conntrack, stale UDP flows will not be deleted"
                );
            })
            .ok();
        let exec = opening.exec.clone();
        let node = NodeKernel::new(links, sysctls, iptables.clone(), exec)
            .with_conntrack(conntrack)
            .with_sync(opening.settings.ipvs.sync.as_ref());
        Ok(Self {
            iptables,
            node,
            version,
        })
    }

    /// The families whose iptables can be used.
    pub(super) fn families(&self) -> Vec<IpFamily> {
        self.iptables.keys().copied().collect()
    }

    /// What is known of the node before anything is watched.
    pub(super) fn facts(&mut self, opening: &Opening<'_>) -> anyhow::Result<NodeFacts> {
        Ok(NodeFacts {
            name: node_name(&opening.settings)?,
            around: self.node.surroundings()?,
            api_servers: opening.api_servers.clone(),
            kernel: self.version,
            tcp_is_liberal: ConntrackSysctls::default().is_liberal(),
            ..NodeFacts::default()
        })
    }
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
    let error = match usable(&backends, exec) {
        Ok(usable) => return Ok((backends, usable)),
        Err(error) => error,
    };
    // Programs are there where the kernel has nothing for them.
    if wanted.is_none()
        && let Ok(mut others) = Backends::detect(&**exec, Some(backends.backend.other()))
    {
        others.reason = Reason::OnlyOne;
        if let Ok(usable) = usable(&others, exec) {
            return Ok((others, usable));
        }
    }
    Err(error).context(
        "iptables is not available on this host (iptables-nft needs kernel modules nft_chain_nat \
         and nft_compat, iptables-legacy needs iptable_nat; Fedora and Red Hat have them in package \
         kernel-modules-extra)",
    )
}

/// The families that the kernel can serve with a backend; at least one.
pub(super) fn usable(
    backends: &Backends,
    exec: &Arc<dyn Exec>,
) -> Result<BTreeMap<IpFamily, Iptables>, IptablesError> {
    let Backends {
        backend,
        reason,
        version,
        ..
    } = backends;
    info!(%backend, %reason, %version, "selected iptables backend");
    of_families("iptables", |family| {
        let iptables = Iptables::new(exec.clone(), backends.programs(family));
        iptables.probe().map(|()| iptables)
    })
}

/// What `open` makes for each family that the kernel has on; at least one. `of`: what cannot be
/// used for a family if it fails.
pub(super) fn of_families<T, E: Error + 'static>(
    of: &str,
    mut open: impl FnMut(IpFamily) -> Result<T, E>,
) -> Result<BTreeMap<IpFamily, T>, E> {
    let mut opened = BTreeMap::new();
    let mut last_error = None;
    for family in enabled_families() {
        match open(family) {
            Ok(made) => _ = opened.insert(family, made),
            Err(error) => {
                warn!(%family, error = %ErrorChain(&error), "cannot use {of}, not serving this family");
                last_error = Some(error);
            }
        }
    }
    match last_error {
        Some(error) if opened.is_empty() => Err(error),
        _ => Ok(opened),
    }
}

/// The families that the kernel has on.
pub(super) fn enabled_families() -> impl Iterator<Item = IpFamily> {
    let has_v6 = ipv6_is_enabled();
    if !has_v6 {
        info!("IPv6 is disabled in this kernel, serving IPv4 only");
    }
    IpFamily::ALL
        .into_iter()
        .filter(move |family| has_v6 || *family == IpFamily::V4)
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
pub(super) fn events(
    settings: &Settings,
    metrics: &Metrics,
    clock: &Clock,
) -> anyhow::Result<(Events, JoinHandle<()>)> {
    let observer = Arc::new(metrics.source.clone());
    let Some(client) = settings.source.client(observer)? else {
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
