// SPDX-License-Identifier: Apache-2.0
//! Detects new content of the configuration file: written in place, replaced by another file, or
//! by a ConfigMap volume that moved its links.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tracing::{debug, warn};

/// How often the file is read without a notification: its directory may be a link that was moved,
/// and some file systems send none.
const SAFETY_INTERVAL: Duration = Duration::from_secs(10);
/// A file that does not change for so long is not half-written.
const SETTLED: Duration = Duration::from_millis(200);

/// The file and its last content.
#[derive(Debug)]
pub(super) struct ConfigFile {
    path: PathBuf,
    content: Vec<u8>,
    touched: Arc<Notify>,
    /// None: it is polled.
    _watcher: Option<RecommendedWatcher>,
}

impl ConfigFile {
    /// Watches from here on. `content` is what was read at start.
    pub(super) fn watch(path: &Path) -> io::Result<Self> {
        let touched = Arc::new(Notify::new());
        // Before the file is read, so that no change falls between.
        let watcher = watcher(path, touched.clone());
        if let Err(error) = &watcher {
            warn!(file = %path.display(), %error, "failed to watch configuration file, polling it instead");
        }
        Ok(Self {
            content: fs::read(path)?,
            path: path.to_owned(),
            touched,
            _watcher: watcher.ok(),
        })
    }

    /// Waits until the file has settled at another content.
    pub(super) async fn changed(&mut self) {
        loop {
            // The error says that the time is over.
            drop(tokio::time::timeout(SAFETY_INTERVAL, self.touched.notified()).await);
            let mut content = self.read();
            while content.is_some() && content.as_deref() != Some(&self.content) {
                tokio::time::sleep(SETTLED).await;
                let again = self.read();
                if again == content {
                    self.content = again.unwrap_or_default();
                    return;
                }
                content = again;
            }
        }
    }

    /// A file that cannot be read, because it is just being replaced, has not changed yet.
    fn read(&self) -> Option<Vec<u8>> {
        match fs::read(&self.path) {
            Ok(content) => Some(content),
            Err(error) => {
                debug!(file = %self.path.display(), %error, "failed to read configuration file");
                None
            }
        }
    }
}

fn watcher(path: &Path, touched: Arc<Notify>) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.map_or(true, |event| is_change(&event)) {
            touched.notify_one();
        }
    })?;
    // The directory, not the file: what replaces the file has another inode.
    let directory = match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    };
    watcher.watch(directory, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

/// Reading it is what we do ourselves.
fn is_change(event: &notify::Event) -> bool {
    match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) | EventKind::Modify(ModifyKind::Metadata(_)) => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const LIMIT: Duration = Duration::from_mins(1);

    async fn changed(file: &mut ConfigFile) {
        tokio::time::timeout(LIMIT, file.changed()).await.unwrap();
    }

    #[tokio::test]
    async fn every_way_to_change_the_file_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.conf");
        fs::write(&path, "1").unwrap();
        let mut file = ConfigFile::watch(&path).unwrap();
        fs::write(&path, "2").unwrap();
        changed(&mut file).await;
        assert_eq!(file.content, b"2");
        // What ends kube-proxy's watch.
        let other = directory.path().join("other");
        fs::write(&other, "3").unwrap();
        fs::rename(&other, &path).unwrap();
        changed(&mut file).await;
        assert_eq!(file.content, b"3");
        fs::write(&path, "4").unwrap();
        changed(&mut file).await;
        assert_eq!(file.content, b"4");
    }

    #[tokio::test]
    async fn a_config_map_that_is_updated_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        // As the kubelet lays it out.
        let publish = |version: &str| {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("config.conf"), version).unwrap();
            symlink(version, at("..data_tmp")).unwrap();
            fs::rename(at("..data_tmp"), at("..data")).unwrap();
        };
        publish("..1");
        symlink("..data/config.conf", at("config.conf")).unwrap();
        let mut file = ConfigFile::watch(&at("config.conf")).unwrap();
        for version in ["..2", "..3"] {
            publish(version);
            changed(&mut file).await;
            assert_eq!(file.content, version.as_bytes());
        }
    }

    #[tokio::test]
    async fn a_file_that_is_gone_has_not_changed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.conf");
        fs::write(&path, "1").unwrap();
        let mut file = ConfigFile::watch(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(directory.path().join("beside"), "x").unwrap();
        let unchanged = tokio::time::timeout(SETTLED * 2, file.changed()).await;
        assert!(unchanged.is_err());
        fs::write(&path, "2").unwrap();
        changed(&mut file).await;
    }
}
