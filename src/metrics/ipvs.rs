// SPDX-License-Identifier: Apache-2.0
//! IPVS's own totals: all virtual servers of this network namespace, including those of others.

use std::path::{Path, PathBuf};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntCounterVec, Registry};

use super::{MetricsError, opts, raise};

/// Where the kernel shows its sums since the module was loaded.
const TOTALS: &str = "/proc/self/net/ip_vs_stats";

/// Reads the sums at each scrape.
#[derive(Debug)]
struct Traffic {
    path: PathBuf,
    connections: IntCounter,
    packets: IntCounterVec,
    bytes: IntCounterVec,
}

/// Registers the sums, which only IPVS mode has.
pub fn register_ipvs_traffic(registry: &Registry) -> Result<(), MetricsError> {
    register_from(registry, Path::new(TOTALS))
}

/// The same from another file.
pub(super) fn register_from(registry: &Registry, path: &Path) -> Result<(), MetricsError> {
    Ok(registry.register(Box::new(Traffic::new(path)?))?)
}

impl Traffic {
    fn new(path: &Path) -> prometheus::Result<Self> {
        let by_direction =
            |name: &str, help: &str| IntCounterVec::new(opts(name, help), &["direction"]);
        Ok(Self {
            path: path.to_owned(),
            connections: IntCounter::with_opts(opts(
                "kube_proxy_rs_ipvs_connections_total",
                "Connections scheduled by IPVS, for all virtual servers of the node",
            ))?,
            packets: by_direction(
                "kube_proxy_rs_ipvs_packets_total",
                "Packets forwarded by IPVS: in from clients, out to clients",
            )?,
            bytes: by_direction(
                "kube_proxy_rs_ipvs_bytes_total",
                "Bytes forwarded by IPVS: in from clients, out to clients",
            )?,
        })
    }
}

impl Collector for Traffic {
    fn desc(&self) -> Vec<&Desc> {
        let parts = [
            self.connections.desc(),
            self.packets.desc(),
            self.bytes.desc(),
        ];
        parts.concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let text = std::fs::read_to_string(&self.path).ok();
        let Some([connections, packets_in, packets_out, bytes_in, bytes_out]) =
            text.as_deref().and_then(totals)
        else {
            return Vec::new();
        };
        let directions = [
            ("in", packets_in, bytes_in),
            ("out", packets_out, bytes_out),
        ];
        raise(&self.connections, connections);
        for (direction, packets, bytes) in directions {
            raise(&self.packets.with_label_values(&[direction]), packets);
            raise(&self.bytes.with_label_values(&[direction]), bytes);
        }
        let parts = [
            self.connections.collect(),
            self.packets.collect(),
            self.bytes.collect(),
        ];
        parts.concat()
    }
}

/// Connections, packets in and out, bytes in and out: the first line of numbers, in hexadecimal.
fn totals(text: &str) -> Option<[u64; 5]> {
    let line = text.lines().nth(2)?;
    let numbers: Option<Vec<u64>> = line
        .split_whitespace()
        .map(|number| u64::from_str_radix(number, 16).ok())
        .collect();
    numbers?.try_into().ok()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Linux 6.1, `cat /proc/net/ip_vs_stats` in the guest.
    pub(in crate::metrics) const SHOWN: &str =
        "   Total Incoming Outgoing         Incoming         Outgoing
   Conns  Packets  Packets            Bytes            Bytes
       3       1A       12              9A0              88F

 Conns/s   Pkts/s   Pkts/s          Bytes/s          Bytes/s
       0        0        0                0                0
";

    #[test]
    fn the_sums_are_the_first_numbers() {
        assert_eq!(totals(SHOWN), Some([3, 26, 18, 2464, 2191]));
        assert_eq!(totals(""), None);
        assert_eq!(totals("a\nb\n1 2 3 4\n"), None);
        assert_eq!(totals("a\nb\n1 2 3 4 x\n"), None);
    }

    #[test]
    fn a_kernel_without_ipvs_has_none() {
        let missing = Traffic::new(Path::new("/nonexistent/ip_vs_stats")).unwrap();
        assert!(missing.collect().is_empty());
    }

    #[test]
    fn the_sums_reach_their_series() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ip_vs_stats");
        let traffic = Traffic::new(&path).unwrap();
        std::fs::write(&path, SHOWN).unwrap();
        let values = || -> Vec<f64> {
            let families = traffic.collect();
            let metrics = families.iter().flat_map(MetricFamily::get_metric);
            metrics
                .map(|metric| metric.get_counter().get_value())
                .collect()
        };
        assert_eq!(values(), [3.0, 26.0, 18.0, 2464.0, 2191.0]);
        std::fs::write(&path, SHOWN.replace("       3 ", "       4 ")).unwrap();
        assert_eq!(values(), [4.0, 26.0, 18.0, 2464.0, 2191.0]);
    }
}
