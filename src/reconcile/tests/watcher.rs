// SPDX-License-Identifier: Apache-2.0
//! Records what the loop reports.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::health::ProxyHealth;

/// Counts drift, and records what is reported.
#[derive(Debug, Default)]
pub(super) struct Watcher {
    pub(super) drift: Mutex<usize>,
    pub(super) health_checks: Mutex<Vec<HealthChecks>>,
    pub(super) loopback_ports: Mutex<Vec<loopback_ports::Wanted>>,
    pub(super) events: Mutex<Vec<crate::events::Event>>,
    pub(super) node: Mutex<Vec<Option<kpr_core::model::NodeInfo>>>,
    pub(super) capabilities: Mutex<BTreeMap<String, bool>>,
    /// Success of each round, and the number of Service ports set aside.
    pub(super) rounds: Mutex<Vec<(bool, usize)>>,
    pub(super) health: OnceLock<ProxyHealth>,
    /// How often rules of ipvs mode were called to nftables.
    pub(super) ports_published: AtomicUsize,
}

impl Watcher {
    pub(super) fn health(&self) -> &ProxyHealth {
        self.health.get().unwrap()
    }
}

/// Tells health what `app::instrumentation` tells it.
impl Observer for Watcher {
    fn alive(&self) {
        self.health().loop_is_alive();
    }

    fn ready(&self) {
        self.health().ready();
    }

    fn queued(&self, family: IpFamily) {
        self.health().change_queued(family);
    }

    fn round_started(&self, family: IpFamily) {
        self.health().round_started(family);
    }

    fn round(&self, round: &observer::Round<'_>) {
        let mut rounds = self.rounds.lock().unwrap();
        rounds.push((round.succeeded, round.set_aside));
        if round.succeeded {
            self.health().round_succeeded(round.family);
        } else {
            self.health().round_failed(round.family);
        }
    }

    fn kernel_capability(&self, name: &str, available: bool) {
        let mut known = self.capabilities.lock().unwrap();
        known.insert(name.to_owned(), available);
    }

    fn drift(&self, _family: IpFamily, drift: &Drift) {
        *self.drift.lock().unwrap() += drift.found.values().sum::<usize>();
    }

    fn health_checks(&self, checks: &HealthChecks) {
        self.health_checks.lock().unwrap().push(checks.clone());
    }

    fn loopback_ports(&self, wanted: &loopback_ports::Wanted) {
        self.loopback_ports.lock().unwrap().push(wanted.clone());
    }

    fn ports_published(&self) {
        self.ports_published.fetch_add(1, Ordering::Relaxed);
    }

    fn node(&self, node: Option<&kpr_core::model::NodeInfo>) {
        self.node.lock().unwrap().push(node.cloned());
    }

    fn event(&self, event: crate::events::Event) {
        self.events.lock().unwrap().push(event);
    }
}
