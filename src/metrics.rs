// SPDX-License-Identifier: Apache-2.0
//! The proxy's metrics: kube-proxy's names, types, labels and buckets, and a few of our own.
//!
//! `app` makes one [`Registry`] and hands it down; each part gets the struct with its metrics and never sees a label. A series
//! with labels appears once it was touched. Values are written where things happen and read only by `/metrics`.

mod dataplane;
mod events;
mod healthz;
mod ipvs;
mod process;
mod scraped;
mod source;
mod sync;

pub use dataplane::{DataplaneMetrics, DriftState};
pub use events::EventMetrics;
pub use healthz::HealthMetrics;
pub use ipvs::register_ipvs_traffic;
pub use scraped::register_packet_counters;
pub use source::SourceMetrics;
pub use sync::{SyncMetrics, SyncScope, Table};

use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

/// Metrics cannot be registered: two parts use the same name, which is a mistake in this program.
#[derive(Debug, thiserror::Error)]
#[error("cannot register metrics")]
pub struct MetricsError(#[from] prometheus::Error);

/// The process's registry, with `process_*` and `kubernetes_build_info` in it. `kubernetes_version` is `v1.37.2` or alike.
pub fn registry(kubernetes_version: &str) -> Result<Registry, MetricsError> {
    let registry = Registry::new();
    registry.register(Box::new(ProcessCollector::for_self()))?;
    registry.register(Box::new(process::ProcessExtras::new()?))?;
    register_build_info(&registry, kubernetes_version)?;
    Ok(registry)
}

fn register_build_info(registry: &Registry, kubernetes_version: &str) -> prometheus::Result<()> {
    let mut numbers = kubernetes_version.trim_start_matches('v').splitn(3, '.');
    let platform = format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH);
    let git_version = format!(
        "{kubernetes_version}+kube-proxy-rs.{}",
        env!("CARGO_PKG_VERSION")
    );
    let labels = [
        ("major", numbers.next().unwrap_or_default()),
        ("minor", numbers.next().unwrap_or_default()),
        ("git_version", git_version.as_str()),
        ("git_commit", ""),
        ("git_tree_state", ""),
        ("build_date", ""),
        ("go_version", ""),
        ("compiler", "rustc"),
        ("platform", platform.as_str()),
    ];
    let names: Vec<&str> = labels.iter().map(|(name, _)| *name).collect();
    let values: Vec<&str> = labels.iter().map(|(_, value)| *value).collect();
    let help = "Build information: version, compiler and platform; always 1";
    let info = IntGaugeVec::new(opts("kubernetes_build_info", help), &names)?;
    info.get_metric_with_label_values(&values)?.set(1);
    registry.register(Box::new(info))
}

/// Upstream marks its help texts with the stability of the metric.
fn opts(name: &str, help: &str) -> Opts {
    Opts::new(name, format!("[ALPHA] {help}"))
}

/// Registers a metric and keeps a handle.
fn register<M: Collector + Clone + 'static>(
    registry: &Registry,
    metric: M,
) -> prometheus::Result<M> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn counter(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntCounter> {
    register(registry, IntCounter::with_opts(opts(name, help))?)
}

fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<IntCounterVec> {
    register(registry, IntCounterVec::new(opts(name, help), labels)?)
}

fn gauge(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntGauge> {
    register(registry, IntGauge::with_opts(opts(name, help))?)
}

fn gauges(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<IntGaugeVec> {
    register(registry, IntGaugeVec::new(opts(name, help), labels)?)
}

fn histograms(
    registry: &Registry,
    name: &str,
    help: &str,
    buckets: Vec<f64>,
    labels: &[&str],
) -> prometheus::Result<HistogramVec> {
    let opts = HistogramOpts::from(opts(name, help)).buckets(buckets);
    register(registry, HistogramVec::new(opts, labels)?)
}

/// A count as a gauge holds it.
fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
