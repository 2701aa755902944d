// SPDX-License-Identifier: Apache-2.0
//! Counters kept elsewhere and read at each scrape.

use std::fmt;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, Registry};

use super::{MetricsError, opts, raise};

/// Reads a total; `None` if it cannot be read at the moment.
type Read = Box<dyn Fn() -> Option<u64> + Send + Sync>;

struct Scraped {
    counter: IntCounter,
    read: Read,
}

impl fmt::Debug for Scraped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scraped").finish_non_exhaustive()
    }
}

impl Collector for Scraped {
    fn desc(&self) -> Vec<&Desc> {
        self.counter.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        if let Some(total) = (self.read)() {
            raise(&self.counter, total);
        }
        self.counter.collect()
    }
}

/// Registers kube-proxy's counters of packets that rules count: those that conntrack calls invalid,
/// and those that node ports accept on loopback addresses.
pub fn register_packet_counters(
    registry: &Registry,
    invalid_dropped: Read,
    localhost_accepted: Read,
) -> Result<(), MetricsError> {
    for (name, help, read) in [
        (
            "kubeproxy_iptables_ct_state_invalid_dropped_packets_total",
            "Packets dropped because conntrack considers them invalid",
            invalid_dropped,
        ),
        (
            "kubeproxy_iptables_localhost_nodeports_accepted_packets_total",
            "Packets accepted by node ports on loopback addresses, one per connection",
            localhost_accepted,
        ),
    ] {
        let counter = IntCounter::with_opts(opts(name, help)).map_err(MetricsError::from)?;
        registry
            .register(Box::new(Scraped { counter, read }))
            .map_err(MetricsError::from)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn totals_are_read_when_asked_for_and_never_fall() {
        let registry = Registry::new();
        let total = Arc::new(AtomicU64::new(3));
        let read = {
            let total = total.clone();
            move || Some(total.load(Ordering::Relaxed))
        };
        register_packet_counters(&registry, Box::new(read), Box::new(|| None)).unwrap();
        let values = || {
            let families = registry.gather();
            let value = |family: &MetricFamily| family.get_metric()[0].get_counter().get_value();
            families.iter().map(value).collect::<Vec<_>>()
        };
        assert_eq!(values(), [3.0, 0.0]);
        total.store(5, Ordering::Relaxed);
        assert_eq!(values(), [5.0, 0.0]);
        total.store(1, Ordering::Relaxed);
        assert_eq!(values(), [5.0, 0.0]);
    }
}
