// SPDX-License-Identifier: Apache-2.0
//! The proxy's metrics: kube-proxy's names, types, labels and buckets, and a few of our own.
//!
//! `app` makes one [`Registry`]; each part gets the struct with its metrics and never handles
//! labels. A labelled series appears when it is first written. Values are written where things
//! happen and read only by `/metrics`.

mod dataplane;
mod events;
mod healthz;
mod ipvs;
mod process;
mod scraped;
mod services;
mod source;
mod sync;

pub use dataplane::{DataplaneMetrics, DriftState};
pub use events::EventMetrics;
pub use healthz::HealthMetrics;
pub use ipvs::register_ipvs_traffic;
pub use scraped::register_packet_counters;
pub use services::{CountedPort, Counts, Remembered, Sample, ServiceCounters};
pub use source::SourceMetrics;
pub use sync::{SyncMetrics, SyncScope, Table};

use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry,
};

/// Metrics cannot be registered: two parts use the same name, which is a mistake in this program.
#[derive(Debug, thiserror::Error)]
#[error("cannot register metrics")]
pub struct MetricsError(#[from] prometheus::Error);

/// The process's registry, with `process_*` and `kubernetes_build_info` in it. `kubernetes_version`
/// is `v1.37.2` or alike.
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

/// A metric that can be made from its name and help, its labels and the limits of its buckets.
trait Metric: Collector + Clone + 'static {
    fn new(opts: Opts, labels: &[&str], buckets: Vec<f64>) -> prometheus::Result<Self>;
}

macro_rules! metric {
    ($type:ty, |$opts:ident, $labels:ident, $buckets:ident| $made:expr) => {
        impl Metric for $type {
            fn new($opts: Opts, $labels: &[&str], $buckets: Vec<f64>) -> prometheus::Result<Self> {
                $made
            }
        }
    };
}

metric!(IntCounter, |opts, _labels, _buckets| Self::with_opts(opts));
metric!(IntCounterVec, |opts, labels, _buckets| Self::new(
    opts, labels
));
metric!(IntGauge, |opts, _labels, _buckets| Self::with_opts(opts));
metric!(IntGaugeVec, |opts, labels, _buckets| Self::new(
    opts, labels
));
metric!(Gauge, |opts, _labels, _buckets| Self::with_opts(opts));
metric!(GaugeVec, |opts, labels, _buckets| Self::new(opts, labels));
metric!(HistogramVec, |opts, labels, buckets| {
    Self::new(HistogramOpts::from(opts).buckets(buckets), labels)
});

/// Declares the metrics of one part: a struct with a handle for each, and how they are registered.
/// A line is `field: type = name, help, labels, buckets`, the last two where the type has them.
macro_rules! declare_metrics {
    ($(#[$about:meta])* $visibility:vis struct $part:ident {
        $($field:ident: $type:ty = $name:literal, $help:literal
            $(, $labels:expr $(, $buckets:expr)?)?;)*
    }) => {
        $(#[$about])*
        #[derive(Clone, Debug)]
        $visibility struct $part { $($field: $type,)* }

        impl $part {
            /// Registers them.
            $visibility fn register(
                registry: &prometheus::Registry,
            ) -> Result<Self, $crate::metrics::MetricsError> {
                Ok(Self {
                    $($field: {
                        #[allow(unused_mut, unused_assignments, reason = "not all have labels")]
                        let (mut labels, mut buckets): (&[&str], Vec<f64>) = (&[], Vec::new());
                        $(labels = $labels; $(buckets = $buckets;)?)?
                        let opts = $crate::metrics::opts($name, $help);
                        let metric = <$type as $crate::metrics::Metric>::new(opts, labels, buckets)?;
                        registry.register(Box::new(metric.clone()))?;
                        metric
                    },)*
                })
            }
        }
    };
}
use declare_metrics;

/// Raises a counter to a total that is counted elsewhere.
fn raise(counter: &IntCounter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}

/// A count as a gauge holds it.
fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
