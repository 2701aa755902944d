// SPDX-License-Identifier: Apache-2.0
//! One endpoint more or less: from the write to the API server until the kernel has it.
//!
//! Writer and watcher are one thread of one machine, so that one clock measures. Between two looks at
//! the kernel it sleeps: the guest has one processor, and the proxy needs it.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions};
use kube_proxy_rs::clock::Clock;
use kube_proxy_rs::dataplane::ipvs::{Client as Ipvs, Protocol, ServiceKey};
use serde_json::{Value, json};

use crate::api::Writer;
use crate::{cluster, micros, pause};

/// Changes go to so many Services in turn.
const SERVICES: u16 = 50;

/// Between two looks at the kernel.
const LOOK: Duration = Duration::from_micros(500);

/// A proxy that needs longer has failed.
const LIMIT: Duration = Duration::from_mins(5);

/// The endpoint that comes and goes.
const EXTRA: u8 = 250;

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

fn one(
    clock: &Clock,
    writer: &Writer,
    ipvs: &mut Ipvs,
    number: u16,
    is_added: bool,
) -> anyhow::Result<Change> {
    let name = format!("svc-{number:05}");
    let slice_name = format!("{name}-0");
    let key = ServiceKey::new(Protocol::Tcp, writer.cluster_ip(&name)?, cluster::PORT);
    let mut slice = writer.slice(&slice_name)?;
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
    let begin = clock.monotonic();
    writer.replace(&slice)?;
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
