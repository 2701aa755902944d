// SPDX-License-Identifier: Apache-2.0
//! The API server as a source.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::{Observer, Options, Update};

/// How to reach the API server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// A kubeconfig file. Neither this nor `master`: the service account of the pod is used.
    pub kubeconfig: Option<PathBuf>,
    /// URL of the API server; overrides the one of the kubeconfig file.
    pub master: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {}

pub async fn run(
    _config: Config,
    _options: Options,
    _observer: Arc<dyn Observer>,
    _updates: mpsc::Sender<Update>,
) -> Result<(), Error> {
    std::future::pending().await
}
