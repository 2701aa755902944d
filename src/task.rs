// SPDX-License-Identifier: Apache-2.0
//! Tasks that are aborted when dropped.

use tokio::task::JoinHandle;

/// A running task, ended when dropped.
#[derive(Debug)]
pub(crate) struct Task(JoinHandle<()>);

impl Task {
    /// Must be called within a tokio runtime.
    pub(crate) fn spawn(work: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(work))
    }

    /// Returns once everything that the task had is dropped, such as a listening socket.
    pub(crate) async fn end(mut self) {
        self.0.abort();
        // Always the error that says so.
        drop((&mut self.0).await);
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}
