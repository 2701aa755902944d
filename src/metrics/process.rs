// SPDX-License-Identifier: Apache-2.0
//! The `process_*` metrics of Go's client library that Rust's lacks.

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Gauge, IntCounter, Opts};

/// Where the kernel says what it counts. Both are of this process, or of its network namespace.
const LIMITS: &str = "/proc/self/limits";
const NETSTAT: &str = "/proc/self/net/netstat";

/// Reads `/proc` at each scrape.
#[derive(Debug)]
pub(super) struct ProcessExtras {
    virtual_memory_max: Gauge,
    received: IntCounter,
    transmitted: IntCounter,
}

impl ProcessExtras {
    pub(super) fn new() -> prometheus::Result<Self> {
        let counter = |name: &str, help: &str| IntCounter::with_opts(Opts::new(name, help));
        Ok(Self {
            virtual_memory_max: Gauge::with_opts(Opts::new(
                "process_virtual_memory_max_bytes",
                "Maximum amount of virtual memory available in bytes.",
            ))?,
            received: counter(
                "process_network_receive_bytes_total",
                "Number of bytes received by the process over the network.",
            )?,
            transmitted: counter(
                "process_network_transmit_bytes_total",
                "Number of bytes sent by the process over the network.",
            )?,
        })
    }
}

impl Collector for ProcessExtras {
    fn desc(&self) -> Vec<&Desc> {
        [
            self.virtual_memory_max.desc(),
            self.received.desc(),
            self.transmitted.desc(),
        ]
        .concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = Vec::new();
        let read = |path: &str| std::fs::read_to_string(path).ok();
        if let Some(limit) = read(LIMITS).as_deref().and_then(address_space) {
            self.virtual_memory_max.set(limit);
            families.extend(self.virtual_memory_max.collect());
        }
        if let Some((received, transmitted)) = read(NETSTAT).as_deref().and_then(octets) {
            for (counter, total) in [(&self.received, received), (&self.transmitted, transmitted)] {
                super::raise(counter, total);
                families.extend(counter.collect());
            }
        }
        families
    }
}

/// The soft limit; without one, what Go says then.
#[expect(
    clippy::cast_precision_loss,
    reason = "metrics are floats, as upstream's"
)]
fn address_space(limits: &str) -> Option<f64> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max address space"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX as f64),
        limit => Some(limit.parse::<u64>().ok()? as f64),
    }
}

/// Received and sent bytes of IPv4, as Go's library counts. A line of names is followed by one of
/// values.
fn octets(netstat: &str) -> Option<(u64, u64)> {
    let mut lines = netstat
        .lines()
        .filter_map(|line| line.strip_prefix("IpExt: "));
    let (names, values) = (lines.next()?.split(' '), lines.next()?.split(' '));
    let pairs: Vec<(&str, &str)> = names.zip(values).collect();
    let value = |name: &str| {
        let (_, value) = pairs.iter().find(|(of, _)| *of == name)?;
        value.parse().ok()
    };
    Some((value("InOctets")?, value("OutOctets")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
             Max address space         unlimited            unlimited            bytes     \n";
        assert_eq!(address_space(text), Some(18_446_744_073_709_551_615.0));
        let limited = text.replacen("unlimited", "4096", 1);
        assert_eq!(address_space(&limited), Some(4096.0));
        assert_eq!(address_space(""), None);
    }

    #[test]
    fn octets_are_found_by_name() {
        let text =
            "TcpExt: A B\nTcpExt: 1 2\nIpExt: InNoRoutes InOctets OutOctets\nIpExt: 7 11 13\n";
        assert_eq!(octets(text), Some((11, 13)));
        assert_eq!(octets("IpExt: InOctets\n"), None);
    }

    #[test]
    fn this_process_has_all_of_them() {
        let names: Vec<String> = ProcessExtras::new()
            .unwrap()
            .collect()
            .iter()
            .map(|family| family.name().to_owned())
            .collect();
        assert_eq!(
            names,
            [
                "process_virtual_memory_max_bytes",
                "process_network_receive_bytes_total",
                "process_network_transmit_bytes_total",
            ]
        );
    }
}
