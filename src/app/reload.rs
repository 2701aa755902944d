// SPDX-License-Identifier: Apache-2.0
//! A changed configuration file is applied live where possible, else by a restart. An invalid one
//! changes nothing.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use super::config_file::ConfigFile;
use super::{bootstrap, modes};
use crate::config::changes::needs_restart;
use crate::config::settings::Settings;
use crate::config::{self, Command};
use crate::events::{Event, Events, action, reason};
use crate::health::ProxyHealth;
use crate::metrics::DataplaneMetrics;
use crate::reconcile::Input;
use kpr_core::model::ProxyMode;

/// Where new settings go.
pub(super) struct Targets {
    /// As they were read last.
    pub(super) settings: watch::Sender<Arc<Settings>>,
    pub(super) inputs: mpsc::Sender<Input>,
    pub(super) health: ProxyHealth,
    pub(super) dataplane: DataplaneMetrics,
    pub(super) events: Events,
}

/// Follows the configuration file, if there is one. Returns the names of the fields that need a
/// restart, once one has changed.
pub(super) async fn follow(arguments: &[OsString], targets: Targets) -> Vec<&'static str> {
    let path = targets.settings.borrow().config_file.clone();
    let Some(path) = path else {
        return std::future::pending().await;
    };
    let mut file = match ConfigFile::watch(&path) {
        Ok(file) => file,
        Err(error) => {
            warn!(file = %path.display(), %error, "failed to watch configuration file, changes need a restart");
            return std::future::pending().await;
        }
    };
    // It may have changed between the start and the watch.
    loop {
        if let Some(fields) = targets.reload(&path, arguments).await {
            return fields;
        }
        file.changed().await;
    }
}

impl Targets {
    /// Reads the file; says which fields need a restart, if any do.
    async fn reload(&self, path: &Path, arguments: &[OsString]) -> Option<Vec<&'static str>> {
        let old = self.settings.borrow().clone();
        let new = match read(arguments, &old) {
            Ok(new) => new,
            Err(error) => {
                let error = format!("{error:#}");
                error!(
                    file = path.display().to_string(),
                    error, "invalid configuration file, keeping the previous configuration"
                );
                self.events.send(Event::node(
                    reason::INVALID_CONFIGURATION,
                    action::CONFIGURE,
                    format!("{error}; keeping the previous configuration"),
                ));
                return None;
            }
        };
        if new == *old {
            return None;
        }
        let fields = needs_restart(&old, &new);
        if !fields.is_empty() {
            return Some(fields);
        }
        info!(file = %path.display(), "configuration reloaded without a restart");
        for notice in &new.notices {
            if !old.notices.contains(notice) {
                warn!(
                    subject = notice.subject,
                    notice = notice.message,
                    "configuration notice"
                );
            }
        }
        let new = Arc::new(new);
        self.health.set_sync_period(new.sync.period);
        bootstrap::set_oom_score(&new);
        if new.conntrack != old.conntrack {
            bootstrap::tune_conntrack(&new, &self.dataplane);
        }
        self.settings.send_replace(new.clone());
        // A loop that has ended needs no settings.
        drop(self.inputs.send(Input::Settings(new)).await);
        None
    }
}

fn read(arguments: &[OsString], old: &Settings) -> anyhow::Result<Settings> {
    let Command::Run(new) = config::parse(arguments.iter().cloned())? else {
        anyhow::bail!("the new configuration does not run the proxy");
    };
    // A kernel without the scheduler would refuse every virtual server.
    if new.mode == ProxyMode::IPVS
        && old.mode == ProxyMode::IPVS
        && new.ipvs.scheduler != old.ipvs.scheduler
    {
        modes::has_scheduler(&new)?;
    }
    Ok(*new)
}
