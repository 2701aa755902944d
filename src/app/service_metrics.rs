// SPDX-License-Identifier: Apache-2.0
//! Traffic metrics of Services: at each scrape the loop says whose virtual servers there are, and
//! the kernel, in one dump and one list, what it has counted. Without Services to count there is
//! none of this.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use prometheus::proto::MetricFamily;
use tokio::sync::Mutex;
use tracing::warn;

use super::blocking;
use super::state::StatePage;
use crate::config::settings::Settings;
use crate::dataplane::modes::ipvs::statistics::{self, Counters, Servers};
use crate::metrics::{CountedPort, Counts, Remembered, Sample, ServiceCounters};
use crate::reconcile::show::Owner;
use crate::telemetry::ErrorChain;
use ipvs_netlink::Stats;
use kpr_core::model::ProxyMode;
use kpr_core::plan::ipvs::object::VirtualServerKey;

/// How long a scrape waits for the loop. A round of many changes takes longer: then the virtual
/// servers are those of the last scrape.
const PATIENCE: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(super) struct ServiceTraffic {
    state: Arc<StatePage>,
    by_endpoint: bool,
    /// Two scrapes at once take turns.
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    owners: Vec<Owner>,
    counters: ServiceCounters,
    /// The last scrape could not read the kernel, and said so.
    has_failed: bool,
}

impl ServiceTraffic {
    /// `None` if nothing is to be counted, or the mode does not count.
    pub(super) fn new(settings: &Settings, state: Arc<StatePage>) -> Option<Arc<Self>> {
        let is_off = settings.annotations.counted.is_empty();
        if is_off || settings.mode != ProxyMode::IPVS {
            return None;
        }
        let counters = ServiceCounters::new(settings.service_metrics.limit);
        Some(Arc::new(Self {
            state,
            by_endpoint: settings.service_metrics.by_endpoint,
            known: Mutex::new(Known {
                owners: Vec::new(),
                counters,
                has_failed: false,
            }),
        }))
    }

    /// The series; none if the kernel cannot be read.
    pub(super) async fn scrape(&self) -> Vec<MetricFamily> {
        let mut known = self.known.lock().await;
        if let Some(owners) = self.state.owners(true, PATIENCE).await {
            known.owners = owners;
        }
        let Known {
            owners, counters, ..
        } = &mut *known;
        let ports: Vec<CountedPort> = owners.iter().map(counted_port).collect();
        let admitted = counters.admit(&ports.iter().cloned().collect());
        let pairs = owners.iter().cloned().zip(ports);
        let counted = pairs.filter(|(_, port)| admitted.contains(port));
        let (counted, by_endpoint) = (counted.collect(), self.by_endpoint);
        let read = blocking(move || Ok((samples(counted, by_endpoint)?, statistics::are_frozen())));
        let families = match read.await {
            Ok((samples, is_frozen)) => {
                counters.take(&samples);
                counters.families(is_frozen).map_err(anyhow::Error::from)
            }
            Err(error) => Err(error),
        };
        let has_failed = families.is_err();
        let families = families.unwrap_or_else(|error| {
            if !known.has_failed {
                warn!(error = %ErrorChain(error.as_ref()), "cannot read the traffic of Services");
            }
            Vec::new()
        });
        known.has_failed = has_failed;
        families
    }
}

fn counted_port(owner: &Owner) -> CountedPort {
    let Owner { server, port, .. } = owner;
    CountedPort {
        namespace: port.service.namespace.to_string(),
        service: port.service.name.to_string(),
        port: owner.port_text(),
        protocol: port.protocol,
        family: server.family(),
    }
}

/// What the kernel says of these virtual servers.
fn samples(counted: Vec<(Owner, CountedPort)>, by_endpoint: bool) -> anyhow::Result<Vec<Sample>> {
    let mut counters = Counters::open().context("cannot read IPVS counters")?;
    let stats = counters
        .of_servers()
        .context("cannot read virtual servers")?;
    let listed = statistics::servers().context("cannot list connections")?;
    let mut samples = Vec::with_capacity(counted.len());
    for (owner, port) in counted {
        let server = owner.server;
        // Not made yet, or refused.
        let Some(found) = stats.get(&server) else {
            continue;
        };
        let endpoints = if by_endpoint {
            let found = counters.of_real_servers(&server);
            let found = found.context("cannot read real servers")?;
            let of_server = listed.get(&server);
            let found = found.into_iter().map(|(key, stats)| {
                let listed = of_server.and_then(|of| of.get(&key));
                (key, (counts(&stats), remembered(listed)))
            });
            found.collect()
        } else {
            BTreeMap::new()
        };
        samples.push(Sample {
            port,
            server,
            counts: counts(found),
            remembered: all_remembered(&listed, &server),
            endpoints,
        });
    }
    Ok(samples)
}

fn counts(stats: &Stats) -> Counts {
    Counts {
        connections: stats.connections,
        packets: (stats.incoming_packets, stats.outgoing_packets),
        bytes: (stats.incoming_bytes, stats.outgoing_bytes),
    }
}

fn remembered(listed: Option<&statistics::Listed>) -> Remembered {
    listed.map_or_else(Remembered::default, |listed| Remembered {
        active: listed.active,
        inactive: listed.inactive,
    })
}

fn all_remembered(listed: &Servers, server: &VirtualServerKey) -> Remembered {
    let servers = listed.get(server).into_iter().flat_map(BTreeMap::values);
    servers.fold(Remembered::default(), |sum, listed| Remembered {
        active: sum.active + listed.active,
        inactive: sum.inactive + listed.inactive,
    })
}

/// Names of virtual servers, for `top`: `TCP 10.96.0.1:80` to `shop/web:http`.
pub(super) fn names(owners: &[Owner]) -> BTreeMap<String, String> {
    let name = |owner: &Owner| (owner.server.to_string(), owner.port.to_string());
    owners.iter().map(name).collect()
}
