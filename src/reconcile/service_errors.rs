// SPDX-License-Identifier: Apache-2.0
//! The last error of each Service with an object that the kernel rejected.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Serialize;

use kpr_core::model::{ServiceName, ServicePortName};
use kpr_core::plan::{Outcome, Plan, Planner, Report, Step as _};

/// Maximum number of failed steps of a plan to attribute to Services; each may cost a walk over all
/// Services.
const ATTRIBUTED: usize = 100;

/// The last error of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LastError {
    pub time: String,
    pub message: String,
}

/// A step of a Service port that the kernel rejects. Retrying will not help.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) port: ServicePortName,
    pub(super) message: String,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct ServiceErrors {
    by_service: BTreeMap<ServiceName, LastError>,
    /// The last error of a batch of rules.
    last_rules: Option<String>,
}

impl ServiceErrors {
    pub(super) fn of(&self, service: &ServiceName) -> Option<&LastError> {
        self.by_service.get(service)
    }

    pub(super) fn services(&self) -> impl ExactSizeIterator<Item = &ServiceName> {
        self.by_service.keys()
    }

    /// Takes in a plan of everything that was pending: a Service without a failed step in it has
    /// recovered, unless one of its steps was not tried. Returns what was rejected for the first
    /// time. Costs what failed.
    pub(super) fn follow<P: Planner>(
        &mut self,
        planner: &P,
        plan: &Plan<P::Step>,
        report: &Report,
        now: Timestamp,
    ) -> Vec<Refused> {
        let old = std::mem::take(&mut self.by_service);
        let mut new = Vec::new();
        for (step, failure) in report.failures(plan).take(ATTRIBUTED) {
            if !step.edits().is_empty() {
                self.last_rules = Some(failure.message.clone());
            }
            let Some(port) = planner.owner(step) else {
                continue;
            };
            let message = format!("{step}: {}", failure.message);
            let is_known = old
                .get(&port.service)
                .is_some_and(|known| known.message == message);
            if self.by_service.contains_key(&port.service) {
                continue;
            }
            if !is_known && failure.kind.is_final() {
                new.push(Refused {
                    port: port.clone(),
                    message: message.clone(),
                });
            }
            let time = now.to_string();
            let error = LastError { time, message };
            self.by_service.insert(port.service.clone(), error);
        }
        let untried = plan.steps().zip(&report.outcomes);
        let untried = untried.filter(|(_, outcome)| **outcome == Outcome::NotTried);
        let untried: BTreeSet<&ServiceName> = untried
            .take(ATTRIBUTED)
            .filter_map(|(step, _)| Some(&planner.owner(step)?.service))
            .collect();
        let set_aside = planner.set_aside();
        let is_set_aside = |service: &ServiceName| {
            let mut ports = set_aside.range(ServicePortName::first_of(service)..);
            ports.next().is_some_and(|port| port.service == *service)
        };
        for (service, error) in old {
            if untried.contains(&service) || is_set_aside(&service) {
                self.by_service.entry(service).or_insert(error);
            }
        }
        new
    }

    /// Bisection found that the kernel rejects the rules of a Service port.
    pub(super) fn quarantined(&mut self, port: &ServicePortName, now: Timestamp) {
        let message = self.last_rules.clone().unwrap_or_default();
        let time = now.to_string();
        self.by_service
            .insert(port.service.clone(), LastError { time, message });
    }
}
