// SPDX-License-Identifier: Apache-2.0
//! Where Services, EndpointSlices, our Node and the ServiceCIDRs come from: the API server or a
//! directory of manifests. Both send the same [`Update`]s; nothing downstream depends on which. A
//! source knows nothing of dataplanes, and never stops on invalid input: the invalid part is
//! reported as a [`Problem`], the rest is used.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::mpsc;

use kpr_core::model::{self, NodeClaims, NodeInfo};

pub mod annotations;
mod census;
pub mod cluster_size;
pub mod convert;
pub mod counted;
pub mod kubernetes;
pub mod manifests;
pub mod problem;

pub use annotations::Annotations;
pub use cluster_size::ClusterSize;
pub use counted::Counted;
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
    /// The addresses of all Nodes, ours too. An API server is asked for them only once some Service
    /// [claims addresses](model::Service::claims_addresses), and may refuse; files send those of
    /// other nodes.
    Nodes(NodeClaims),
    /// The addresses that the API server's name stands for; not sent where the name is an address.
    ApiServers(BTreeSet<IpAddr>),
}

/// Which source to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// An API server.
    Kubernetes(kubernetes::Config),
    /// A directory of YAML and JSON files (`--manifests`).
    Manifests(PathBuf),
}

/// What a source must know to read objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The name of our Node object.
    pub node_name: Arc<str>,
    /// `spec.externalIPs` count (feature gate `AllowServiceExternalIPs`).
    pub allow_external_ips: bool,
    /// Which annotations count.
    pub annotations: Annotations,
    /// Counts the nodes that endpoints name.
    pub cluster: ClusterSize,
}

/// Receives what metrics count. Called on the source's task: must not block.
pub trait Observer: Send + Sync {
    /// A part of an object was skipped. Called once for each distinct state of an object.
    fn problem(&self, _problem: &Problem) {}

    /// The same, of an object that had so many problems that this one is not even logged.
    /// `is_first`: it is the first such one since one was logged.
    fn problem_beyond_limit(&self, _problem: &Problem, _is_first: bool) {}

    /// The API server said something about a kind: an event, a bookmark, a complete list, or that
    /// it takes a watch.
    fn heard(&self, _kind: &'static str) {}

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

/// An observer that ignores everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unobserved;

impl Observer for Unobserved {}

impl fmt::Debug for dyn Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observer")
    }
}

impl Source {
    /// Whether the health of this node depends on its Node object. Files need not have one.
    pub const fn needs_node(&self) -> bool {
        matches!(self, Self::Kubernetes(_))
    }

    /// The addresses of the API server as its URL has them, by name or not; none without one.
    pub async fn server_addresses(&self) -> Result<BTreeSet<IpAddr>, Error> {
        match self {
            Self::Kubernetes(config) => Ok(kubernetes::server_addresses(config).await?),
            Self::Manifests(_) => Ok(BTreeSet::new()),
        }
    }

    /// A client for writing Events; `None` without an API server.
    pub fn client(&self, observer: Arc<dyn Observer>) -> Result<Option<kube::Client>, Error> {
        match self {
            Self::Kubernetes(config) => Ok(Some(kubernetes::client(config, observer)?)),
            Self::Manifests(_) => Ok(None),
        }
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
/// `SlicesReplaced`, `Node` and `ServiceCidrs`, in any order; from an API server `Nodes` too, once
/// some Service claims addresses.
pub async fn run<U: From<Update> + Send>(
    source: Source,
    options: Options,
    observer: Arc<dyn Observer>,
    updates: mpsc::Sender<U>,
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
    let has_server = source.needs_node();
    let reading = async {
        let mut updates = Vec::new();
        let (mut services, mut slices, mut node, mut cidrs) = (false, false, false, false);
        let (mut needs_nodes, mut nodes) = (false, false);
        while !(services && slices && node && cidrs && (nodes || !needs_nodes)) {
            let Some(update) = receiver.recv().await else {
                break;
            };
            match &update {
                Update::Model(model::Event::ServicesReplaced(all)) => {
                    services = true;
                    let claims = all.iter().any(model::Service::claims_addresses);
                    needs_nodes = has_server && claims;
                }
                Update::Model(model::Event::SlicesReplaced(_)) => slices = true,
                Update::Model(_) | Update::ApiServers(_) => {}
                Update::Node(_) => node = true,
                Update::ServiceCidrs(_) => cidrs = true,
                Update::Nodes(_) => nodes = true,
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

/// The receiver is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Closed;

/// Sends one update.
pub(crate) async fn send<U>(updates: &mpsc::Sender<U>, update: Update) -> Result<(), Closed>
where
    U: From<Update>,
{
    updates.send(update.into()).await.map_err(|_closed| Closed)
}
