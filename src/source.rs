// SPDX-License-Identifier: Apache-2.0
//! Where Services, EndpointSlices, our Node and the ServiceCIDRs come from: the API server or a
//! directory of manifests. Both send [`Update`]s over one channel; nothing after the channel can
//! tell them apart. A source knows nothing of dataplanes, and never stops on bad input: the bad
//! part is a [`Problem`], the rest goes on.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::mpsc;

use kpr_core::model::{self, NodeInfo};

pub mod convert;
pub mod kubernetes;
pub mod manifests;
pub mod problem;

pub use problem::Problem;

/// A change that a source has seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// Services and EndpointSlices. The first of each kind is its `…Replaced`.
    Model(model::Event),
    /// Our own Node as it is now; `None`: there is none.
    Node(Option<NodeInfo>),
    /// The ranges of all `ServiceCIDR` objects together, sorted; empty where there are none or the
    /// server does not know the kind.
    ServiceCidrs(Vec<IpNet>),
}

/// Which source to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Kubernetes(kubernetes::Config),
    /// A directory of YAML and JSON files.
    Manifests(PathBuf),
}

/// What a source must know to read objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The name of our Node object.
    pub node_name: Arc<str>,
    /// `spec.externalIPs` count (feature gate `AllowServiceExternalIPs`).
    pub allow_external_ips: bool,
}

/// Is told what metrics count. Called on the source's task: must not block.
pub trait Observer: Send + Sync {
    /// A part of an object was skipped. Called once for each distinct state of an object.
    fn problem(&self, _problem: &Problem) {}

    /// A request to the API server was answered or failed.
    fn request(&self, _request: &Request<'_>) {}
}

/// A finished request to the API server, for `rest_client_requests_total` and
/// `rest_client_request_duration_seconds`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// The HTTP method.
    pub method: &'a str,
    /// Host and port of the server.
    pub host: &'a str,
    /// The HTTP status; `None` where there was no answer (client-go counts `<error>`).
    pub code: Option<u16>,
    /// Until the head of the answer: a watch's body has no end.
    pub duration: Duration,
}

/// An observer that looks away.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unobserved;

impl Observer for Unobserved {}

impl fmt::Debug for dyn Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observer")
    }
}

/// Why a source cannot start. Once it has started nothing ends it: it retries.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Kubernetes(#[from] kubernetes::Error),
    #[error(transparent)]
    Manifests(#[from] manifests::Error),
}

/// Sends the objects of a source, then each change of them, until the receiver is dropped. Drop
/// the future to stop it earlier.
///
/// Every kind is sent at least once, as soon as it was read completely: `ServicesReplaced`,
/// `SlicesReplaced`, `Node` and `ServiceCidrs`, in any order.
pub async fn run(
    source: Source,
    options: Options,
    observer: Arc<dyn Observer>,
    updates: mpsc::Sender<Update>,
) -> Result<(), Error> {
    match source {
        Source::Kubernetes(config) => {
            Box::pin(kubernetes::run(config, options, observer, updates)).await?;
        }
        Source::Manifests(directory) => {
            manifests::run(&directory, options, observer, updates).await?;
        }
    }
    Ok(())
}

/// Reads a source once: returns when every kind is complete. While an API server does not answer
/// that is never; put a limit around it.
pub async fn read(
    source: Source,
    options: Options,
    observer: Arc<dyn Observer>,
) -> Result<Vec<Update>, Error> {
    let (sender, mut receiver) = mpsc::channel(16);
    let reading = async {
        let mut updates = Vec::new();
        let (mut services, mut slices, mut node, mut cidrs) = (false, false, false, false);
        while !(services && slices && node && cidrs) {
            let Some(update) = receiver.recv().await else {
                break;
            };
            match &update {
                Update::Model(model::Event::ServicesReplaced(_)) => services = true,
                Update::Model(model::Event::SlicesReplaced(_)) => slices = true,
                Update::Model(_) => {}
                Update::Node(_) => node = true,
                Update::ServiceCidrs(_) => cidrs = true,
            }
            updates.push(update);
        }
        updates
    };
    tokio::select! {
        biased;
        updates = reading => Ok(updates),
        ended = run(source, options, observer, sender) => ended.map(|()| Vec::new()),
    }
}

/// The receiver is gone: nobody wants updates any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Closed;

/// Sends one update.
pub(crate) async fn send(updates: &mpsc::Sender<Update>, update: Update) -> Result<(), Closed> {
    updates.send(update).await.map_err(|_closed| Closed)
}
