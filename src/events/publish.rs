// SPDX-License-Identifier: Apache-2.0
//! Writes Events to the API server (`events.k8s.io/v1`), as kube-proxy's role allows; identical
//! ones as a series.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{Node, ObjectReference, Service};
use kube::api::ListParams;
use kube::runtime::events::{Event as ApiEvent, EventType, Recorder, Reporter as ApiReporter};
use kube::{Api, Client};
use tracing::{debug, warn};

use super::limit::Limit;
use super::{Event, Queue, Regarding, Reporter, Severity};
use crate::clock::Clock;
use crate::metrics::EventMetrics;
use crate::telemetry::ErrorChain;
use kpr_core::model::ServiceName;

/// kube-proxy's name for itself; what its operators filter by.
const CONTROLLER: &str = "kube-proxy";
/// How often an event is tried while the API server does not answer, and how long it is waited
/// between.
const TRIES: u32 = 12;
const PAUSE: Duration = Duration::from_secs(10);
/// Longest note that the API takes, in bytes.
const MAX_NOTE: usize = 1024;

/// Writes what comes out of the queue until all its senders are gone.
pub async fn run(
    client: Client,
    reporter: Reporter,
    clock: Clock,
    metrics: EventMetrics,
    mut queue: Queue,
) {
    let api_reporter = ApiReporter {
        controller: CONTROLLER.to_owned(),
        instance: Some(format!("{CONTROLLER}-{}", reporter.host)),
    };
    let recorder = Recorder::new(client.clone(), api_reporter);
    let mut limit = Limit::default();
    while let Some(event) = queue.recv().await {
        if !limit.allows(&event.regarding, clock.monotonic()) {
            metrics.dropped();
            continue;
        }
        let mut tries = 1;
        loop {
            let writing = write(&client, &recorder, &reporter, &event);
            let Ok(written) = AssertUnwindSafe(writing).catch_unwind().await else {
                // The panic was logged; the other events are written nevertheless.
                metrics.failed();
                break;
            };
            match written {
                Ok(()) => {
                    metrics.written();
                    break;
                }
                // No answer: it may come back. A refusal stays one.
                Err(error) if tries < TRIES && !matches!(error, kube::Error::Api(_)) => {
                    debug!(reason = event.reason, error = %ErrorChain(&error), "failed to write Event, retrying");
                    tries += 1;
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => {
                    metrics.failed();
                    warn!(reason = event.reason, error = %ErrorChain(&error), "failed to write Event");
                    break;
                }
            }
        }
    }
}

async fn write(
    client: &Client,
    recorder: &Recorder,
    reporter: &Reporter,
    event: &Event,
) -> Result<(), kube::Error> {
    let reference = match &event.regarding {
        Regarding::Node => node_reference(reporter),
        Regarding::Service(name) => match service_reference(client, name).await? {
            Some(reference) => reference,
            // The Service is gone, and its events with it.
            None => return Ok(()),
        },
    };
    let note = shortened(&event.note);
    let event = ApiEvent {
        type_: match event.severity {
            Severity::Normal => EventType::Normal,
            Severity::Warning => EventType::Warning,
        },
        reason: event.reason.to_owned(),
        note: Some(note.to_owned()).filter(|note| !note.is_empty()),
        action: event.action.to_owned(),
        secondary: None,
    };
    recorder.publish(&event, &reference).await
}

/// Kubelets write a node's name where its UID belongs, and `kubectl describe` looks for that.
fn node_reference(reporter: &Reporter) -> ObjectReference {
    use kube::Resource as _;
    ObjectReference {
        api_version: Some(Node::api_version(&()).into_owned()),
        kind: Some(Node::kind(&()).into_owned()),
        name: Some(reporter.node.to_string()),
        uid: Some(reporter.node.to_string()),
        ..ObjectReference::default()
    }
}

/// `kubectl describe` finds an event by its object's UID. Events are rare, so that is asked for
/// instead of kept; the role allows a list, and no single read.
async fn service_reference(
    client: &Client,
    name: &ServiceName,
) -> Result<Option<ObjectReference>, kube::Error> {
    use kube::Resource as _;
    let services: Api<Service> = Api::namespaced(client.clone(), &name.namespace);
    let only = ListParams::default()
        .fields(&format!("metadata.name={}", name.name))
        // Served from the API server's cache.
        .match_any();
    let found = services
        .list_metadata(&only)
        .await?
        .items
        .into_iter()
        .next();
    Ok(found.map(|service| ObjectReference {
        api_version: Some(Service::api_version(&()).into_owned()),
        kind: Some(Service::kind(&()).into_owned()),
        namespace: Some(name.namespace.to_string()),
        name: Some(name.name.to_string()),
        uid: service.metadata.uid,
        resource_version: service.metadata.resource_version,
        ..ObjectReference::default()
    }))
}

/// A note that the API server takes.
fn shortened(note: &str) -> &str {
    note.split_at(note.floor_char_boundary(MAX_NOTE)).0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_note_is_cut_between_characters() {
        assert_eq!(shortened("short"), "short");
        let long = format!("x{}", "é".repeat(1_000));
        assert_eq!(shortened(&long).len(), MAX_NOTE - 1);
        assert!(long.starts_with(shortened(&long)));
    }
}
