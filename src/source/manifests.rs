// SPDX-License-Identifier: Apache-2.0
//! A directory of manifests as a source: YAML and JSON files with the objects that `kubectl` would
//! apply, one or many in a file, also as `List`s. The directory is watched; changes in a file are
//! sent as the API server would send them.
//!
//! While a file or document cannot be parsed, its last valid content stays in force: an object is
//! deleted only when its document or file is removed.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::mpsc;
use tracing::{debug, info};

use super::{Observer, Options, Update, send};
use files::Changes;
use store::Store;

mod document;
mod files;
mod object;
mod store;
#[cfg(test)]
mod tests;

/// Why a manifest directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read the manifest directory {}", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("the reader of the manifest directory {} ended", path.display())]
    Reader {
        path: PathBuf,
        source: tokio::task::JoinError,
    },
}

/// Sends the objects in `directory`, then each change, until the receiver is dropped.
pub async fn run<U: From<Update> + Send>(
    directory: &Path,
    options: Options,
    observer: Arc<dyn Observer>,
    updates: mpsc::Sender<U>,
) -> Result<(), Error> {
    let failed = |source| Error::Directory {
        path: directory.to_owned(),
        source,
    };
    drop(tokio::fs::read_dir(directory).await.map_err(failed)?);
    // Events name files by their absolute paths.
    let directory = &std::path::absolute(directory).map_err(failed)?;
    // Watched before it is read: no change falls between the two.
    let mut changes = Changes::watch(directory);
    let mut store = Store::new(directory, &options, observer);
    loop {
        let unfinished = changes.unfinished();
        // Reading is blocking work. The store comes back with what it learned.
        let scan = tokio::task::spawn_blocking(move || {
            let updates = store.scan(&unfinished);
            (store, updates)
        });
        let (scanned, found) = scan.await.map_err(|source| Error::Reader {
            path: directory.to_owned(),
            source,
        })?;
        store = scanned;
        debug!(directory = %directory.display(), updates = found.len(), "manifests read");
        for update in found {
            if send(&updates, update).await.is_err() {
                return Ok(());
            }
        }
        tokio::select! {
            () = changes.next() => {}
            () = updates.closed() => {
                info!(directory = %directory.display(), "manifest watch ended");
                return Ok(());
            }
        }
    }
}
