// SPDX-License-Identifier: Apache-2.0
//! A kubelet that probes the proxy as the manifests in `deploy` ask for, and counts how often it
//! would have restarted it.
//!
//! With `KPR_PROBES=real` this takes ten minutes and each probe comes when a kubelet sends it. Else
//! all is ten times as fast, the proxy's sync period included.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::namespace::Namespace;
use crate::proxy::{HEALTH_PORT, get};
use crate::wait;

/// The liveness probe, and how long it is watched.
#[derive(Clone, Copy, Debug)]
pub struct Kubelet {
    initial_delay: Duration,
    period: Duration,
    failure_threshold: u64,
    watched: Duration,
    /// The flag for the proxy's sync period, in iptables mode.
    pub sync_period: &'static str,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Probed {
    pub probes: u64,
    /// The answers that were not 200.
    pub failures: Vec<String>,
    pub restarts: u64,
}

impl Kubelet {
    /// With the settings of `deploy/kustomize/base/daemonset.yaml`.
    pub fn new() -> Result<Self> {
        let path = crate::repository().join("deploy/kustomize/base/daemonset.yaml");
        let text = fs::read_to_string(path)?;
        let manifest: Value = serde_saphyr::from_str(&text)?;
        let containers = &manifest["spec"]["template"]["spec"]["containers"];
        let probe = &containers[0]["livenessProbe"];
        let number = |name: &str, default: u64| probe[name].as_u64().unwrap_or(default);
        probe["httpGet"]["path"]
            .as_str()
            .filter(|path| *path == "/livez")
            .context("the liveness probe asks for something else")?;
        let is_real = std::env::var("KPR_PROBES").is_ok_and(|how| how == "real");
        let scale = if is_real { 1 } else { 10 };
        Ok(Self {
            initial_delay: Duration::from_secs(number("initialDelaySeconds", 0)) / scale,
            period: Duration::from_secs(number("periodSeconds", 10)) / scale,
            failure_threshold: number("failureThreshold", 3),
            watched: Duration::from_mins(10) / scale,
            sync_period: if is_real {
                "--iptables-sync-period=30s"
            } else {
                "--iptables-sync-period=3s"
            },
        })
    }

    /// Probes a proxy that was just started; something happens before each probe.
    pub fn watch(
        self,
        node: &Namespace,
        mut happens: impl FnMut(u64) -> Result<()>,
    ) -> Result<Probed> {
        // On a busy machine a start takes longer than a tenth of the delay.
        wait::until("the proxy answers", || get(node, HEALTH_PORT, "/livez"))?;
        wait::let_pass(self.initial_delay);
        let start = wait::now();
        let mut probed = Probed::default();
        let mut failed_in_a_row = 0;
        while start.elapsed() < self.watched {
            happens(probed.probes)?;
            probed.probes += 1;
            let answer = get(node, HEALTH_PORT, "/livez").map_err(|error| format!("{error:#}"));
            let answer = answer.unwrap_or_else(|error| error);
            if answer.starts_with("HTTP/1.0 200") {
                failed_in_a_row = 0;
            } else {
                failed_in_a_row += 1;
                probed
                    .failures
                    .push(format!("after {:?}: {answer}", start.elapsed()));
            }
            if failed_in_a_row == self.failure_threshold {
                failed_in_a_row = 0;
                probed.restarts += 1;
            }
            wait::let_pass(self.period);
        }
        Ok(probed)
    }
}
