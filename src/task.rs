// SPDX-License-Identifier: Apache-2.0
//! Tasks that are aborted when dropped.

use std::collections::BTreeMap;

use tokio::task::JoinHandle;

/// A running task, ended when dropped.
#[derive(Debug)]
pub(crate) struct Task(JoinHandle<()>);

impl Task {
    /// Must be called within a tokio runtime.
    pub(crate) fn spawn(work: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(work))
    }

    /// Whether it has ended by itself: by a bug, if its work has no end.
    pub(crate) fn is_finished(&self) -> bool {
        self.0.is_finished()
    }

    /// Returns once everything that the task had is dropped, such as a listening socket.
    pub(crate) async fn end(mut self) {
        self.0.abort();
        // Always the error that says so.
        drop((&mut self.0).await);
    }
}

/// Ends the tasks of some keys and waits for them.
pub(crate) async fn end_some<K: Ord>(
    tasks: &mut BTreeMap<K, Task>,
    is_unwanted: impl Fn(&K) -> bool,
) {
    let unwanted: Vec<_> = tasks.extract_if(.., |key, _| is_unwanted(key)).collect();
    for (_, task) in unwanted {
        task.end().await;
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}
