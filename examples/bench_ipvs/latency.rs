// SPDX-License-Identifier: Apache-2.0
//! One endpoint more or less: from the write to the API server until the kernel has it.
//!
//! Writer and watcher are one thread of one machine, so that one clock measures. Between two looks at
//! the kernel it sleeps: the guest has one processor, and the proxy needs it.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointSlice};
use kube::api::{Api, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube_proxy_rs::clock::Clock;
use kube_proxy_rs::dataplane::ipvs::{Client as Ipvs, Protocol, ServiceKey};
use serde_json::{Value, json};

use crate::{cluster, pause};

/// Changes go to so many Services in turn.
const SERVICES: u16 = 50;

/// Between two looks at the kernel.
const LOOK: Duration = Duration::from_micros(500);

/// A proxy that needs longer has failed.
const LIMIT: Duration = Duration::from_mins(5);

/// The endpoint that comes and goes.
const EXTRA: u8 = 250;

/// A connection to the API server.
pub(crate) struct Writer {
    runtime: tokio::runtime::Runtime,
    services: Api<Service>,
    slices: Api<EndpointSlice>,
}

impl Writer {
    pub(crate) fn new(kubeconfig: &Path, namespace: &str) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let client = runtime.block_on(async {
            let file = Kubeconfig::read_from(kubeconfig)?;
            let options = KubeConfigOptions::default();
            let config = kube::Config::from_custom_kubeconfig(file, &options).await?;
            anyhow::Ok(kube::Client::try_from(config)?)
        })?;
        Ok(Self {
            services: Api::namespaced(client.clone(), namespace),
            slices: Api::namespaced(client, namespace),
            runtime,
        })
    }

    fn virtual_server(&self, name: &str) -> anyhow::Result<ServiceKey> {
        let service = self.runtime.block_on(self.services.get(name))?;
        let address: IpAddr = service
            .spec
            .and_then(|spec| spec.cluster_ip)
            .context("a Service has no cluster IP")?
            .parse()?;
        Ok(ServiceKey::new(Protocol::Tcp, address, cluster::PORT))
    }
}

/// One change.
#[derive(Clone, Copy, Debug)]
struct Change {
    is_added: bool,
    /// From sending the request until its answer was there.
    answer: Duration,
    /// From sending the request until the kernel had the change.
    kernel: Duration,
    /// The time between the last look without and the first look with the change.
    blur: Duration,
}

/// Adds and removes endpoints, one at a time.
pub(crate) fn measure(clock: &Clock, writer: &Writer, changes: u16) -> anyhow::Result<Vec<Value>> {
    let mut ipvs = Ipvs::open()?;
    let mut results = Vec::new();
    for index in 0..changes {
        // Added, and removed by the next.
        let number = (index / 2) % SERVICES;
        let change = one(clock, writer, &mut ipvs, number, index % 2 == 0)?;
        results.push(json!({
            "added": change.is_added,
            "answerUs": micros(change.answer),
            "kernelUs": micros(change.kernel),
            "blurUs": micros(change.blur),
        }));
        // Not in step with anything periodic.
        pause(Duration::from_millis(60 + u64::from(index * 37 % 101)));
    }
    Ok(results)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn one(
    clock: &Clock,
    writer: &Writer,
    ipvs: &mut Ipvs,
    number: u16,
    is_added: bool,
) -> anyhow::Result<Change> {
    let name = format!("svc-{number:05}");
    let slice_name = format!("{name}-0");
    let key = writer.virtual_server(&name)?;
    let mut slice = writer.runtime.block_on(writer.slices.get(&slice_name))?;
    let address = cluster::endpoint(number, EXTRA);
    let text = address.to_string();
    let endpoints = slice.endpoints.get_or_insert_default();
    endpoints.retain(|endpoint| endpoint.addresses != [text.as_str()]);
    if is_added {
        endpoints.push(Endpoint {
            addresses: vec![text],
            conditions: Some(EndpointConditions {
                ready: Some(true),
                ..EndpointConditions::default()
            }),
            node_name: Some("node-b".to_owned()),
            ..Endpoint::default()
        });
    }
    let parameters = PostParams::default();
    let begin = clock.monotonic();
    let write = writer.slices.replace(&slice_name, &parameters, &slice);
    writer.runtime.block_on(write)?;
    let answer = clock.monotonic().saturating_sub(begin);
    let mut last_look = clock.monotonic();
    loop {
        // A server of weight 0 gets no connections any more: it is removed as soon as it is drained.
        let is_there = ipvs.destinations(&key)?.iter().any(|status| {
            status.destination.key.address == IpAddr::V4(address) && status.destination.weight > 0
        });
        let now = clock.monotonic();
        if is_there == is_added {
            return Ok(Change {
                is_added,
                answer,
                kernel: now.saturating_sub(begin),
                blur: now.saturating_sub(last_look),
            });
        }
        anyhow::ensure!(
            now.saturating_sub(begin) < LIMIT,
            "{name} did not change within {LIMIT:?}"
        );
        last_look = now;
        pause(LOOK);
    }
}
