// SPDX-License-Identifier: Apache-2.0
//! Which files of a directory are manifests, and when to read them again.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tracing::{debug, warn};

/// How often the directory is read although nothing was noticed: some file systems send no events.
const SAFETY_INTERVAL: Duration = Duration::from_mins(1);
/// The same where nothing can be noticed.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// After a directory appeared: files that were made before it was watched are found then.
const NEW_DIRECTORY_INTERVAL: Duration = Duration::from_millis(500);

/// All manifest files under `directory`, in the order of their names.
pub(super) fn list(directory: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let mut visited = BTreeSet::new();
    visited.insert(identity(directory)?);
    visit(directory, &mut visited, &mut found)?;
    Ok(found)
}

fn visit(
    directory: &Path,
    visited: &mut BTreeSet<(u64, u64)>,
    found: &mut BTreeSet<PathBuf>,
) -> io::Result<()> {
    let mut entries = fs::read_dir(directory)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<Vec<_>>>()?;
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // Hidden files: editors' swap files, and `..data` of a ConfigMap volume.
        if name.starts_with(['.', '#']) || name.ends_with('~') {
            continue;
        }
        let is_manifest = matches!(
            path.extension().and_then(|extension| extension.to_str()),
            Some("yaml" | "yml" | "json")
        );
        // Follows links, which is what the files of a ConfigMap volume are.
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => {
                // A link may lead back up.
                if visited.insert((metadata.dev(), metadata.ino())) {
                    visit(&path, visited, found)?;
                }
            }
            // A link that leads nowhere is named when it is read.
            Err(_) if !path.is_symlink() => {}
            Ok(_) | Err(_) if is_manifest => {
                found.insert(path);
            }
            Ok(_) | Err(_) => {}
        }
    }
    Ok(())
}

fn identity(directory: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::metadata(directory)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Notices changes in a directory.
#[derive(Debug)]
pub(super) struct Changes {
    directory: PathBuf,
    shared: Arc<Shared>,
    /// The watcher and the directory that it watches; a directory of the same name may replace it.
    watcher: Option<(RecommendedWatcher, (u64, u64))>,
    /// One warning is enough.
    warned: bool,
}

/// What the watcher's thread has seen.
#[derive(Debug, Default)]
struct Shared {
    changed: Notify,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// Files that were changed but not closed yet.
    unfinished: BTreeSet<PathBuf>,
    new_directory: bool,
}

impl Changes {
    pub(super) fn watch(directory: &Path) -> Self {
        let mut changes = Self {
            directory: directory.to_owned(),
            shared: Arc::default(),
            watcher: None,
            warned: false,
        };
        changes.renew();
        changes
    }

    /// Files that are being written.
    pub(super) fn unfinished(&self) -> BTreeSet<PathBuf> {
        self.shared.seen().unfinished.clone()
    }

    /// Waits until it is worth reading the directory.
    pub(super) async fn next(&mut self) {
        let interval = if self.watcher.is_none() {
            POLL_INTERVAL
        } else if std::mem::take(&mut self.shared.seen().new_directory) {
            NEW_DIRECTORY_INTERVAL
        } else {
            SAFETY_INTERVAL
        };
        if tokio::time::timeout(interval, self.shared.changed.notified())
            .await
            .is_err()
        {
            // Whoever opened a file this long ago may never close it.
            self.shared.seen().unfinished.clear();
        }
        self.renew();
    }

    /// Watches the directory that has the name now.
    fn renew(&mut self) {
        let current = identity(&self.directory).ok();
        if self.watcher.as_ref().map(|(_, watched)| *watched) == current {
            return;
        }
        self.watcher = None;
        let Some(current) = current else {
            return;
        };
        match watcher(&self.directory, &self.shared) {
            Ok(watcher) => self.watcher = Some((watcher, current)),
            Err(error) => {
                if !self.warned {
                    warn!(
                        directory = %self.directory.display(), %error,
                        "failed to watch manifest directory, polling it instead"
                    );
                }
                self.warned = true;
            }
        }
    }
}

impl Shared {
    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        // The set is whole whatever a thread that panicked did.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of an event; says whether to read the directory.
    fn note(&self, directory: &Path, event: &notify::Event) -> bool {
        if event.need_rescan() {
            self.seen().unfinished.clear();
            return true;
        }
        let mut seen = self.seen();
        let ours = event.paths.iter().any(|path| path.starts_with(directory));
        match event.kind {
            // The parent is watched too, for the directory's own name.
            _ if !ours => false,
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => {
                for path in &event.paths {
                    seen.unfinished.remove(path);
                }
                true
            }
            // Reading them is what we do ourselves.
            EventKind::Access(_) | EventKind::Modify(ModifyKind::Metadata(_)) => false,
            EventKind::Modify(ModifyKind::Data(_)) => {
                seen.unfinished.extend(event.paths.iter().cloned());
                false
            }
            EventKind::Create(CreateKind::Folder) => {
                seen.new_directory = true;
                true
            }
            _ => {
                for path in &event.paths {
                    seen.unfinished.remove(path);
                }
                true
            }
        }
    }
}

fn watcher(directory: &Path, shared: &Arc<Shared>) -> notify::Result<RecommendedWatcher> {
    let shared = shared.clone();
    let root = directory.to_owned();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let wake = match event {
            Ok(event) => shared.note(&root, &event),
            Err(error) => {
                debug!(%error, "manifest directory watch failed");
                true
            }
        };
        if wake {
            shared.changed.notify_one();
        }
    })?;
    watcher.watch(directory, RecursiveMode::Recursive)?;
    // Notices when the directory itself is replaced.
    if let Some(parent) = directory
        .parent()
        .filter(|path| !path.as_os_str().is_empty())
    {
        watcher.watch(parent, RecursiveMode::NonRecursive)?;
    }
    Ok(watcher)
}
