// SPDX-License-Identifier: Apache-2.0
//! The API server as a source: one watch each for Services, EndpointSlices, our Node and the
//! `ServiceCIDR`s. Objects are converted as they arrive and are not kept here.
//!
//! While the server is unreachable nothing changes: what was sent stays in force.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::Resource;
use tokio::sync::{mpsc, watch as signal};
use tower::BoxError;
use tracing::info;

use super::convert::{HEADLESS_LABEL, PROXY_NAME_LABEL};
use super::{Observer, Options, Update};
use all_nodes::AllNodes;
pub use encoding::{Encoding, PROTOBUF};
#[cfg(feature = "fuzzing")]
pub use fuzz::fuzz;
use kinds::{Cidrs, Nodes, Services, Slices};
use request::Selection;
use settings::Settings;
pub use settings::Unusable;
use watch::{Following, Watched, follow};

mod all_nodes;
mod client;
mod connect;
mod credentials;
mod encoding;
mod event;
mod failure;
#[cfg(feature = "fuzzing")]
mod fuzz;
mod kinds;
mod message;
mod object;
mod pace;
mod pieces;
mod plugin;
mod proxy;
mod request;
mod server_name;
mod settings;
mod state;
#[cfg(test)]
mod tests;
mod tls;
mod watch;

/// How to reach the API server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// A kubeconfig file. Neither this nor `master`: the service account of the pod is used.
    pub kubeconfig: Option<PathBuf>,
    /// URL of the API server; overrides the one of the kubeconfig file.
    pub master: Option<String>,
    /// In which form to ask for objects.
    pub encoding: Encoding,
}

/// Why no client for the API server can be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot use the kubeconfig file {}", path.display())]
    Kubeconfig {
        path: PathBuf,
        #[source]
        source: Box<kube::config::KubeconfigError>,
    },
    #[error("{url:?} is not the URL of an API server")]
    Master {
        url: String,
        #[source]
        source: http::uri::InvalidUri,
    },
    #[error("neither a kubeconfig file nor the service account of a pod can be used")]
    InCluster(#[source] Box<kube::config::InClusterError>),
    #[error("cannot use the kubeconfig file {}", path.display())]
    Credentials {
        path: PathBuf,
        #[source]
        source: Unusable,
    },
    #[error("cannot make a client for {url}")]
    Client {
        url: String,
        #[source]
        source: BoxError,
    },
}

/// A Service as an item of a list, for `benches/`.
#[doc(hidden)]
pub fn decode_service(encoding: Encoding, bytes: Bytes) -> Option<Service> {
    object::decode_item(encoding, bytes).ok()
}

/// The same of an EndpointSlice.
#[doc(hidden)]
pub fn decode_slice(encoding: Encoding, bytes: Bytes) -> Option<EndpointSlice> {
    object::decode_item(encoding, bytes).ok()
}

/// A client of the API server, for what is no watch (events). Its requests are observed too.
pub fn client(config: &Config, observer: Arc<dyn Observer>) -> Result<kube::Client, Error> {
    let (connection, _upkeep) = client::new(config, observer)?;
    Ok(connection.client)
}

/// The API server's addresses: the one of its URL, or those of its name if they are known soon.
/// Does not connect.
pub async fn server_addresses(config: &Config) -> Result<BTreeSet<IpAddr>, Error> {
    let server = client::server(config)?;
    Ok(Box::pin(server_name::resolve(&server)).await)
}

/// Sends the objects of the cluster, then each change, until the receiver is dropped.
pub async fn run<U: From<Update> + Send>(
    config: Config,
    options: Options,
    observer: Arc<dyn Observer>,
    updates: mpsc::Sender<U>,
) -> Result<(), Error> {
    Settings::load(&config)?.warn_of_insecurity();
    let (connection, upkeep) = client::new(&config, observer.clone())?;
    let server = client::server(&config)?;
    let (claims, mut claimed) = signal::channel(false);
    let services = Watched {
        kind: "Service",
        selection: Selection {
            path: Service::url_path(&(), None),
            labels: Some(format!("!{PROXY_NAME_LABEL}")),
            fields: Some("spec.clusterIP!=None".to_owned()),
        },
        optional: false,
    };
    let slices = Watched {
        kind: "EndpointSlice",
        selection: Selection {
            path: EndpointSlice::url_path(&(), None),
            labels: Some(format!("!{HEADLESS_LABEL}")),
            fields: None,
        },
        optional: false,
    };
    let nodes = Watched {
        kind: "Node",
        selection: Selection {
            path: Node::url_path(&(), None),
            labels: None,
            fields: Some(format!("metadata.name={}", options.node_name)),
        },
        optional: false,
    };
    let cidrs = Watched {
        kind: "ServiceCIDR",
        selection: Selection {
            path: ServiceCIDR::url_path(&(), None),
            ..Selection::default()
        },
        // Servers before 1.33 do not have it.
        optional: true,
    };
    let all_nodes = Watched {
        kind: "Node",
        selection: Selection {
            path: Node::url_path(&(), None),
            ..Selection::default()
        },
        // A role of the operator's own may not allow it.
        optional: true,
    };
    let by = |watched| Following {
        watched,
        connection: connection.clone(),
        encoding: config.encoding,
        observer: observer.clone(),
    };
    let follow_all_nodes = async {
        let is_needed = async { claimed.wait_for(|claimed| *claimed).await.is_ok() };
        tokio::select! {
            true = is_needed => {}
            () = updates.closed() => return,
        }
        follow(by(all_nodes), AllNodes::default(), &updates).await;
    };
    let following = async {
        // Each ends only when the receiver is gone.
        tokio::join!(
            follow(
                by(services),
                Services::new(&options, observer.clone()).telling(claims),
                &updates
            ),
            follow(
                by(slices),
                Slices::new(&options, observer.clone()),
                &updates
            ),
            follow(by(nodes), Nodes::new(&options, observer.clone()), &updates),
            follow(by(cidrs), Cidrs::new(&options, observer.clone()), &updates),
            follow_all_nodes,
            server_name::follow(server, &updates),
        );
    };
    tokio::select! {
        () = following => {}
        () = upkeep.run() => {}
    }
    info!("watches ended");
    Ok(())
}
