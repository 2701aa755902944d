// SPDX-License-Identifier: Apache-2.0
//! Traffic of each Service, as IPVS counts it by virtual server.
//!
//! The kernel's counters begin with their virtual server: one that is deleted and made anew begins
//! at zero. Here the totals of a Service port go on for as long as the port is counted, and begin
//! with what the kernel says when it is first seen.

use std::collections::{BTreeMap, BTreeSet};

use prometheus::core::Collector as _;
use prometheus::proto::MetricFamily;
use prometheus::{IntCounterVec, IntGauge, IntGaugeVec};

use super::{opts, signed};
use kpr_core::model::{IpFamily, Protocol};
use kpr_core::plan::ipvs::object::{RealServerKey, VirtualServerKey};

/// Of a Service port in a family. Not `namespace` and `service`, which Prometheus gives to targets.
const LABELS: [&str; 5] = [
    "service_namespace",
    "service_name",
    "service_port",
    "protocol",
    "ip_family",
];

/// A Service port in a family, as its labels have it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CountedPort {
    pub namespace: String,
    pub service: String,
    /// The port's name, or its number if it has none.
    pub port: String,
    pub protocol: Protocol,
    pub family: IpFamily,
}

impl CountedPort {
    fn labels(&self) -> [String; 5] {
        [
            self.namespace.clone(),
            self.service.clone(),
            self.port.clone(),
            self.protocol.to_string(),
            self.family.to_string(),
        ]
    }
}

/// What is counted of a server. Pairs are in from clients, out to clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub connections: u64,
    pub packets: (u64, u64),
    pub bytes: (u64, u64),
}

impl Counts {
    const fn all(self) -> [u64; 5] {
        [
            self.connections,
            self.packets.0,
            self.packets.1,
            self.bytes.0,
            self.bytes.1,
        ]
    }

    /// What came since `before`. A counter that went back is that of a new server.
    fn since(self, before: Self) -> [u64; 5] {
        let (now, before) = (self.all(), before.all());
        let mut pairs = now.iter().zip(&before);
        if pairs.any(|(now, before)| now < before) {
            return now;
        }
        let mut new = now;
        for (new, before) in new.iter_mut().zip(before) {
            *new -= before;
        }
        new
    }
}

/// Connections that the kernel remembers at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remembered {
    pub active: u64,
    pub inactive: u64,
}

/// A virtual server at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    pub port: CountedPort,
    pub server: VirtualServerKey,
    pub counts: Counts,
    pub remembered: Remembered,
    /// Its real servers, if endpoints are counted.
    pub endpoints: BTreeMap<RealServerKey, (Counts, Remembered)>,
}

/// A server, or one of its real servers.
type Source = (VirtualServerKey, Option<RealServerKey>);

/// A series' totals and present connections.
#[derive(Clone, Copy, Debug, Default)]
struct Total {
    counts: [u64; 5],
    remembered: Remembered,
}

impl Total {
    fn add(&mut self, new: [u64; 5], remembered: Remembered) {
        for (total, new) in self.counts.iter_mut().zip(new) {
            *total += new;
        }
        self.remembered.active += remembered.active;
        self.remembered.inactive += remembered.inactive;
    }
}

/// The totals of all that is counted.
#[derive(Debug)]
pub struct ServiceCounters {
    limit: usize,
    ports: BTreeMap<CountedPort, Total>,
    endpoints: BTreeMap<(CountedPort, RealServerKey), Total>,
    last: BTreeMap<Source, Counts>,
    left_out: (usize, usize),
}

impl ServiceCounters {
    /// Counts at most so many Service ports, and so many endpoints.
    pub const fn new(limit: usize) -> Self {
        Self {
            limit,
            ports: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            last: BTreeMap::new(),
            left_out: (0, 0),
        }
    }

    /// Which of these Service ports are counted: those that were, and others while there is room.
    /// All that are not among them are forgotten.
    pub fn admit(&mut self, wanted: &BTreeSet<CountedPort>) -> BTreeSet<CountedPort> {
        self.ports.retain(|port, _| wanted.contains(port));
        for port in wanted {
            if self.ports.len() >= self.limit {
                break;
            }
            self.ports.entry(port.clone()).or_default();
        }
        self.left_out.0 = wanted.len() - self.ports.len();
        self.ports.keys().cloned().collect()
    }

    /// Takes in what the kernel says of the virtual servers of admitted ports.
    pub fn take(&mut self, samples: &[Sample]) {
        for total in self.ports.values_mut() {
            total.remembered = Remembered::default();
        }
        for total in self.endpoints.values_mut() {
            total.remembered = Remembered::default();
        }
        let mut last = BTreeMap::new();
        let mut there = BTreeSet::new();
        let mut left_out = BTreeSet::new();
        for sample in samples {
            let source = (sample.server, None);
            let before = self.last.get(&source).copied().unwrap_or_default();
            let Some(total) = self.ports.get_mut(&sample.port) else {
                continue;
            };
            total.add(sample.counts.since(before), sample.remembered);
            last.insert(source, sample.counts);
            for (endpoint, (counts, remembered)) in &sample.endpoints {
                let series = (sample.port.clone(), *endpoint);
                let is_known = self.endpoints.contains_key(&series);
                if !is_known && self.endpoints.len() >= self.limit {
                    left_out.insert(series);
                    continue;
                }
                let source = (sample.server, Some(*endpoint));
                let before = self.last.get(&source).copied().unwrap_or_default();
                let total = self.endpoints.entry(series.clone()).or_default();
                total.add(counts.since(before), *remembered);
                last.insert(source, *counts);
                there.insert(series);
            }
        }
        self.last = last;
        self.left_out.1 = left_out.len();
        // The next scrape admits others in the place of those that are gone.
        self.endpoints.retain(|series, _| there.contains(series));
    }

    /// The series. `is_frozen`: the kernel does not add up its counters.
    pub fn families(&self, is_frozen: bool) -> prometheus::Result<Vec<MetricFamily>> {
        let ports = self.ports.iter();
        let ports = ports.map(|(port, total)| (port.labels().to_vec(), *total));
        let mut families = PORTS.families(&LABELS, ports)?;
        let endpoints = self.endpoints.iter().map(|((port, endpoint), total)| {
            let mut labels = port.labels().to_vec();
            labels.push(endpoint.to_string());
            (labels, *total)
        });
        let names = [&LABELS[..], &["endpoint_address"]].concat();
        families.extend(ENDPOINTS.families(&names, endpoints)?);
        let left_out = IntGaugeVec::new(
            opts(
                "kube_proxy_rs_service_metrics_left_out",
                "Service ports and endpoints beyond --service-metrics-limit that have no traffic metrics",
            ),
            &["kind"],
        )?;
        for (kind, count) in [
            ("service_port", self.left_out.0),
            ("endpoint", self.left_out.1),
        ] {
            let gauge = left_out.get_metric_with_label_values(&[kind])?;
            gauge.set(signed(count));
        }
        families.extend(left_out.collect());
        let frozen = IntGauge::with_opts(opts(
            "kube_proxy_rs_service_counters_frozen",
            "1 if the kernel does not add up its IPVS counters (sysctl net.ipv4.vs.run_estimation is 0), so that traffic metrics of Services stand still",
        ))?;
        frozen.set(is_frozen.into());
        families.extend(frozen.collect());
        // The text format has none without a series.
        families.retain(|family| !family.get_metric().is_empty());
        Ok(families)
    }
}

/// Names and descriptions of the series of one kind.
struct Names {
    connections: (&'static str, &'static str),
    packets: (&'static str, &'static str),
    bytes: (&'static str, &'static str),
    active: (&'static str, &'static str),
    inactive: (&'static str, &'static str),
}

const PORTS: Names = Names {
    connections: (
        "kube_proxy_rs_service_connections_total",
        "Connections of a Service port that IPVS has scheduled on this node",
    ),
    packets: (
        "kube_proxy_rs_service_packets_total",
        "Packets of a Service port: in from clients, out to clients",
    ),
    bytes: (
        "kube_proxy_rs_service_bytes_total",
        "Bytes of a Service port: in from clients, out to clients",
    ),
    active: (
        "kube_proxy_rs_service_active_connections",
        "Established connections of a Service port",
    ),
    inactive: (
        "kube_proxy_rs_service_inactive_connections",
        "Other connections of a Service port that IPVS remembers, and all of UDP",
    ),
};

const ENDPOINTS: Names = Names {
    connections: (
        "kube_proxy_rs_endpoint_connections_total",
        "Connections of a Service port to an endpoint, with --service-metrics-endpoints",
    ),
    packets: (
        "kube_proxy_rs_endpoint_packets_total",
        "Packets of a Service port to and from an endpoint: in from clients, out to clients",
    ),
    bytes: (
        "kube_proxy_rs_endpoint_bytes_total",
        "Bytes of a Service port to and from an endpoint: in from clients, out to clients",
    ),
    active: (
        "kube_proxy_rs_endpoint_active_connections",
        "Established connections of a Service port to an endpoint",
    ),
    inactive: (
        "kube_proxy_rs_endpoint_inactive_connections",
        "Other connections of a Service port to an endpoint that IPVS remembers, and all of UDP",
    ),
};

impl Names {
    fn families(
        &self,
        labels: &[&str],
        series: impl Iterator<Item = (Vec<String>, Total)>,
    ) -> prometheus::Result<Vec<MetricFamily>> {
        let directed = [labels, &["direction"]].concat();
        let counter =
            |(name, about), labels: &[&str]| IntCounterVec::new(opts(name, about), labels);
        let gauge = |(name, about)| IntGaugeVec::new(opts(name, about), labels);
        let connections = counter(self.connections, labels)?;
        let packets = counter(self.packets, &directed)?;
        let bytes = counter(self.bytes, &directed)?;
        let (active, inactive) = (gauge(self.active)?, gauge(self.inactive)?);
        for (labels, total) in series {
            let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
            let at = |direction| [&labels[..], &[direction]].concat();
            let [new, packets_in, packets_out, bytes_in, bytes_out] = total.counts;
            let count = |counter: &IntCounterVec, labels: &[&str], total| {
                counter
                    .get_metric_with_label_values(labels)
                    .map(|counter| counter.inc_by(total))
            };
            count(&connections, &labels, new)?;
            count(&packets, &at("in"), packets_in)?;
            count(&packets, &at("out"), packets_out)?;
            count(&bytes, &at("in"), bytes_in)?;
            count(&bytes, &at("out"), bytes_out)?;
            let Remembered {
                active: established,
                inactive: others,
            } = total.remembered;
            for (gauge, now) in [(&active, established), (&inactive, others)] {
                let gauge = gauge.get_metric_with_label_values(&labels)?;
                gauge.set(i64::try_from(now).unwrap_or(i64::MAX));
            }
        }
        Ok([
            connections.collect(),
            packets.collect(),
            bytes.collect(),
            active.collect(),
            inactive.collect(),
        ]
        .concat())
    }
}

#[cfg(test)]
pub(super) mod tests;
