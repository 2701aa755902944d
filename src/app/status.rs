// SPDX-License-Identifier: Apache-2.0
//! `kube-proxy-rs status`: the running proxy at a glance. The proxy gathers it from its loop, its
//! health and its metrics ([`Overview`]); the command asks for it ([`super::local`]) and prints it
//! ([`text`]).

mod rounds;
mod text;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use jiff::Timestamp;
use prometheus::Registry;
use prometheus::proto::{Metric, MetricFamily};
use serde::{Deserialize, Serialize};

use super::instrumentation::Metrics;
use super::local;
use super::output::print;
use super::state::StatePage;
use crate::clock::Clock;
use crate::config::OutputFormat;
use crate::config::settings::Settings;
use crate::health::ProxyHealth;
use crate::reconcile::show::{Question, Shown};

pub(super) use rounds::{FinishedRound, RecentRounds};
pub(super) use text::{Screen, age, latency};

/// Services with problems that are listed.
const PROBLEMS: usize = 20;

/// What `/status` shows. Times are RFC 3339.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Status {
    pub(super) version: String,
    /// The kube-proxy that it stands for.
    pub(super) kubernetes_version: String,
    pub(super) mode: String,
    pub(super) node: String,
    pub(super) pid: u32,
    pub(super) started: String,
    pub(super) time: String,
    /// As `/livez` has it: no change has been waiting for too long.
    pub(super) healthy: bool,
    /// As `/healthz` has it: load balancers may send connections to this node.
    pub(super) node_eligible: bool,
    /// The loop did not answer in time, so what it alone knows is missing: `services` with problems
    /// and whether something is pending.
    pub(super) is_busy: bool,
    /// Which iptables is used and the reason for choosing it.
    pub(super) iptables: Option<(String, String)>,
    /// How ipvs mode holds its rules and the reason for that.
    pub(super) ipvs_rules: Option<(String, String)>,
    pub(super) services: u64,
    pub(super) endpoint_slices: u64,
    /// Services that changed since the last round.
    pub(super) changed_services: u64,
    pub(super) draining_servers: u64,
    pub(super) skipped_objects: u64,
    pub(super) families: BTreeMap<String, Family>,
    /// Objects that other programs changed since the start, by kind: found, repaired.
    pub(super) drift: BTreeMap<String, (u64, u64)>,
    /// What the kernel cannot do, of what was looked for.
    pub(super) missing_capabilities: Vec<String>,
    /// Whether the sync daemons run, where there should be any, by role.
    pub(super) sync_daemons: BTreeMap<String, bool>,
    /// Kernel settings that could not be written.
    pub(super) unwritable_settings: Vec<String>,
    /// Services with errors.
    pub(super) service_errors: u64,
    /// Services with errors or unmet wishes, as many as there is room for.
    pub(super) problems: Vec<Problem>,
}

/// One address family.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Family {
    pub(super) healthy: bool,
    pub(super) last_success: String,
    /// Something is not yet in the kernel.
    pub(super) is_pending: bool,
    /// The kernel has to be read again.
    pub(super) is_unknown: bool,
    pub(super) draining: u64,
    pub(super) unbound_addresses: u64,
    pub(super) refused_service_ports: u64,
    /// Oldest first.
    pub(super) rounds: Vec<FinishedRound>,
}

/// A Service that is not served as it asks to be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Problem {
    pub(super) service: String,
    pub(super) family: String,
    pub(super) message: String,
}

/// Exit code of `status` when the proxy does not keep up.
const EXIT_UNHEALTHY: u8 = 2;

/// Asks the running proxy how it is, and prints that.
pub(super) async fn command(output: OutputFormat) -> anyhow::Result<ExitCode> {
    let answer = local::ask("/status").await?;
    let status: Status = serde_json::from_str(&answer)?;
    match output {
        OutputFormat::Text => print(Screen::for_stdout(&status))?,
        OutputFormat::Json => print(format_args!("{}\n", serde_json::to_string_pretty(&status)?))?,
        OutputFormat::Yaml => print(serde_saphyr::to_string(&status)?)?,
    }
    Ok(if status.healthy {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_UNHEALTHY)
    })
}

/// Gathers the status of this process.
#[derive(Debug)]
pub(super) struct Overview {
    pub(super) kubernetes_version: String,
    pub(super) mode: &'static str,
    pub(super) node: String,
    pub(super) started: Timestamp,
    pub(super) clock: Clock,
    pub(super) registry: Registry,
    pub(super) health: ProxyHealth,
    pub(super) rounds: RecentRounds,
    /// Which iptables is used and the reason for choosing it, once it is chosen.
    pub(super) iptables: OnceLock<(String, String)>,
    pub(super) state: Arc<StatePage>,
}

impl Overview {
    pub(super) fn new(
        settings: &Settings,
        node: &str,
        (clock, metrics, health): (&Clock, &Metrics, &ProxyHealth),
        state: StatePage,
    ) -> Arc<Self> {
        Arc::new(Self {
            kubernetes_version: settings.kubernetes_version.clone(),
            mode: settings.mode.as_str(),
            node: node.to_owned(),
            started: clock.now(),
            clock: clock.clone(),
            registry: metrics.registry.clone(),
            health: health.clone(),
            rounds: RecentRounds::default(),
            iptables: OnceLock::new(),
            state: Arc::new(state),
        })
    }

    /// The status, and what the loop says of Services.
    pub(super) async fn gather(&self, question: Question) -> (Status, Shown) {
        let shown = self.state.answer(question).await;
        let metrics = Scrape(self.registry.gather());
        let health = self.health.healthz();
        let mut status = Status {
            version: format!("v{}", env!("CARGO_PKG_VERSION")),
            kubernetes_version: self.kubernetes_version.clone(),
            mode: self.mode.to_owned(),
            node: self.node.clone(),
            pid: std::process::id(),
            started: self.started.to_string(),
            time: self.clock.now().to_string(),
            healthy: health.healthy,
            node_eligible: health.node_eligible.unwrap_or_default(),
            is_busy: shown.is_none(),
            iptables: self.iptables.get().cloned(),
            ipvs_rules: metrics.chosen("kube_proxy_rs_ipvs_rules", "rules"),
            services: metrics.total("kube_proxy_rs_services"),
            endpoint_slices: metrics.total("kube_proxy_rs_endpoint_slices"),
            draining_servers: metrics.total("kube_proxy_rs_draining_servers"),
            skipped_objects: metrics.total("kube_proxy_rs_skipped_objects_total"),
            drift: metrics.drift(),
            missing_capabilities: metrics.names("kube_proxy_rs_kernel_capability", 0),
            sync_daemons: metrics
                .by_label("kube_proxy_rs_sync_daemon", "role")
                .into_iter()
                .map(|(role, runs)| (role.to_owned(), runs == 1))
                .collect(),
            unwritable_settings: metrics.names("kube_proxy_rs_sysctl_unwritable", 1),
            ..Status::default()
        };
        let unbound = metrics.by_label("kube_proxy_rs_unbound_addresses", "ip_family");
        let refused = metrics.by_label("kube_proxy_rs_refused_service_ports", "ip_family");
        for (name, family) in health.status {
            let family = Family {
                healthy: family.healthy,
                last_success: family.last_updated.to_string(),
                unbound_addresses: unbound.get(name).copied().unwrap_or_default(),
                refused_service_ports: refused.get(name).copied().unwrap_or_default(),
                rounds: self.rounds.of(name),
                ..Family::default()
            };
            status.families.insert(name.to_owned(), family);
        }
        let shown = shown.unwrap_or_default();
        status.add(&shown);
        (status, shown)
    }

    pub(super) async fn status(&self) -> Status {
        let question = Question {
            service: None,
            matching: None,
            skip: 0,
            limit: super::state::LIMIT,
        };
        self.gather(question).await.0
    }
}

impl Status {
    fn add(&mut self, shown: &Shown) {
        self.changed_services = shown.changed_count as u64;
        self.service_errors = shown.trouble_count as u64;
        for (name, family) in &shown.families {
            let known = self.families.entry(name.to_string()).or_default();
            known.is_pending = family.is_pending;
            known.is_unknown = family.is_unknown;
            known.draining = family.draining as u64;
        }
        let services = shown.services.iter().flat_map(|(service, families)| {
            let families = families.iter();
            families.map(move |(family, shown)| (service, family, shown))
        });
        let problems = services.flat_map(|(service, family, shown)| {
            let error = shown.error.as_ref().map(|error| &error.message);
            let messages = error.into_iter().chain(&shown.unmet);
            messages.map(move |message| Problem {
                service: service.clone(),
                family: family.to_string(),
                message: message.clone(),
            })
        });
        self.problems = problems.take(PROBLEMS).collect();
    }
}

/// The metrics of one scrape, by name.
struct Scrape(Vec<MetricFamily>);

impl Scrape {
    fn values(&self, name: &str) -> impl Iterator<Item = (&Metric, u64)> {
        let family = self.0.iter().find(|family| family.name() == name);
        family.into_iter().flat_map(|family| {
            family.get_metric().iter().map(|metric| {
                // The one that it is not is zero.
                let value = metric.get_gauge().get_value() + metric.get_counter().get_value();
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "counts, held as floats by the library"
                )]
                let count = value as u64;
                (metric, count)
            })
        })
    }

    fn total(&self, name: &str) -> u64 {
        self.values(name).map(|(_, value)| value).sum()
    }

    fn by_label(&self, name: &str, by: &str) -> BTreeMap<&str, u64> {
        let values = self.values(name);
        values
            .filter_map(|(metric, value)| Some((label(metric, by)?, value)))
            .collect()
    }

    /// The label `name` of the series with that value.
    fn names(&self, metric: &str, wanted: u64) -> Vec<String> {
        let values = self.values(metric).filter(|(_, value)| *value == wanted);
        values
            .filter_map(|(metric, _)| Some(label(metric, "name")?.to_owned()))
            .collect()
    }

    /// What a metric with a reason says was chosen.
    fn chosen(&self, metric: &str, by: &str) -> Option<(String, String)> {
        let mut values = self.values(metric);
        values.find_map(|(metric, value)| {
            let known = value == 1;
            let name = || Some(label(metric, by)?.to_owned());
            let reason = || Some(label(metric, "reason")?.to_owned());
            known.then(|| Some((name()?, reason()?))).flatten()
        })
    }

    fn drift(&self) -> BTreeMap<String, (u64, u64)> {
        let mut drift = BTreeMap::<String, (u64, u64)>::new();
        for (metric, value) in self.values("kube_proxy_rs_drift_total") {
            let counts = label(metric, "kind").map(|kind| drift.entry(kind.to_owned()));
            let Some(counts) = counts.map(Entry::or_default) else {
                continue;
            };
            match label(metric, "state") {
                Some("found") => counts.0 += value,
                _ => counts.1 += value,
            }
        }
        drift
    }
}

fn label<'a>(metric: &'a Metric, name: &str) -> Option<&'a str> {
    let label = metric.get_label().iter().find(|label| label.name() == name);
    label.map(prometheus::proto::LabelPair::value)
}

#[cfg(test)]
mod tests;
