// SPDX-License-Identifier: Apache-2.0
//! The API server as a source: one watch each for Services, EndpointSlices, our Node and the
//! `ServiceCIDR`s. Objects are converted as they arrive and are not kept here.
//!
//! While the server is unreachable nothing changes: what was sent stays in force.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::Api;
use kube::runtime::watcher;
use tokio::sync::mpsc;
use tracing::info;

use super::convert::{HEADLESS_LABEL, PROXY_NAME_LABEL};
use super::{Observer, Options, Update};
use kinds::{Cidrs, Nodes, Services, Slices};
use watch::{Watched, follow};

mod client;
mod kinds;
mod pace;
#[cfg(test)]
mod tests;
mod watch;

/// How to reach the API server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// A kubeconfig file. Neither this nor `master`: the service account of the pod is used.
    pub kubeconfig: Option<PathBuf>,
    /// URL of the API server; overrides the one of the kubeconfig file.
    pub master: Option<String>,
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
    #[error("cannot make a client for {url}")]
    Client {
        url: String,
        #[source]
        source: Box<kube::Error>,
    },
}

/// A client of the API server, for what is no watch (events). Its requests are observed too.
pub async fn client(config: &Config, observer: Arc<dyn Observer>) -> Result<kube::Client, Error> {
    client::new(config, observer).await
}

/// The API server's address, if the configuration has one and not a name. Does not connect.
pub async fn server_address(config: &Config) -> Result<Option<IpAddr>, Error> {
    client::server_address(config).await
}

/// Sends the objects of the cluster, then each change, until the receiver is dropped.
pub async fn run<U: From<Update> + Send>(
    config: Config,
    options: Options,
    observer: Arc<dyn Observer>,
    updates: mpsc::Sender<U>,
) -> Result<(), Error> {
    let client = client::new(&config, observer.clone()).await?;
    let no_other_proxy = format!("!{PROXY_NAME_LABEL}");
    let not_headless = format!("!{HEADLESS_LABEL}");
    let own_node = format!("metadata.name={}", options.node_name);
    let services = Watched {
        kind: "Service",
        api: Api::<Service>::all(client.clone()),
        config: watcher::Config::default()
            .labels(&no_other_proxy)
            .fields("spec.clusterIP!=None"),
        optional: false,
    };
    let slices = Watched {
        kind: "EndpointSlice",
        api: Api::<EndpointSlice>::all(client.clone()),
        config: watcher::Config::default().labels(&not_headless),
        optional: false,
    };
    let nodes = Watched {
        kind: "Node",
        api: Api::<Node>::all(client.clone()),
        config: watcher::Config::default().fields(&own_node),
        optional: false,
    };
    let cidrs = Watched {
        kind: "ServiceCIDR",
        api: Api::<ServiceCIDR>::all(client),
        config: watcher::Config::default(),
        // Servers before 1.33 do not have it.
        optional: true,
    };
    // Each ends only when the receiver is gone.
    tokio::join!(
        follow(
            services,
            Services::new(&options, observer.clone()),
            &updates
        ),
        follow(slices, Slices::new(&options, observer.clone()), &updates),
        follow(nodes, Nodes::new(&options, observer.clone()), &updates),
        follow(cidrs, Cidrs::new(&options, observer), &updates),
    );
    info!("watches ended");
    Ok(())
}
