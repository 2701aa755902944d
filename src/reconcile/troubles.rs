// SPDX-License-Identifier: Apache-2.0
//! What the kernel refuses to each Service, until it does not any more.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Serialize;

use kpr_core::model::{ServiceName, ServicePortName};
use kpr_core::plan::mode::ModePlanner;
use kpr_core::plan::{FailureKind, Outcome, Plan, Report};

/// Most failed steps of a plan whose Service is looked for, which may cost a look at every Service.
const ATTRIBUTED: usize = 100;

/// The last error of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Trouble {
    pub time: String,
    pub message: String,
}

/// A step that the kernel refuses to a Service port. Trying again will not help.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) port: ServicePortName,
    pub(super) message: String,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Troubles {
    by_service: BTreeMap<ServiceName, Trouble>,
    /// The last answer to a batch of rules.
    last_rules: Option<String>,
}

impl Troubles {
    pub(super) fn of(&self, service: &ServiceName) -> Option<&Trouble> {
        self.by_service.get(service)
    }

    pub(super) fn services(&self) -> impl ExactSizeIterator<Item = &ServiceName> {
        self.by_service.keys()
    }

    /// Follows a plan of all that was pending: who had no failed step in it is in no trouble any more, unless a step
    /// was not tried. Returns what is refused for the first time. Costs what failed.
    pub(super) fn follow(
        &mut self,
        planner: &ModePlanner,
        plan: &Plan,
        report: &Report,
        now: Timestamp,
    ) -> Vec<Refused> {
        let former = std::mem::take(&mut self.by_service);
        let mut news = Vec::new();
        for (step, failure) in report.failures(plan).take(ATTRIBUTED) {
            if !step.edits().is_empty() {
                self.last_rules = Some(failure.message.clone());
            }
            let Some(port) = planner.owner(step) else {
                continue;
            };
            let message = format!("{step}: {}", failure.message);
            let is_known = former
                .get(&port.service)
                .is_some_and(|known| known.message == message);
            if self.by_service.contains_key(&port.service) {
                continue;
            }
            if !is_known && is_final(failure.kind) {
                news.push(Refused {
                    port: port.clone(),
                    message: message.clone(),
                });
            }
            let time = now.to_string();
            let trouble = Trouble { time, message };
            self.by_service.insert(port.service.clone(), trouble);
        }
        let untried = plan.steps().zip(&report.outcomes);
        let untried = untried.filter(|(_, outcome)| **outcome == Outcome::NotTried);
        let untried: BTreeSet<&ServiceName> = untried
            .take(ATTRIBUTED)
            .filter_map(|(step, _)| Some(&planner.owner(step)?.service))
            .collect();
        let quarantined = planner.quarantined();
        for (service, trouble) in former {
            if untried.contains(&service) || quarantined.iter().any(|port| port.service == service)
            {
                self.by_service.entry(service).or_insert(trouble);
            }
        }
        news
    }

    /// Rules of a Service port were refused, and it was found that it is to blame.
    pub(super) fn quarantined(&mut self, port: &ServicePortName, now: Timestamp) {
        let message = self.last_rules.clone().unwrap_or_default();
        let time = now.to_string();
        self.by_service
            .insert(port.service.clone(), Trouble { time, message });
    }
}

/// The kernel has judged, and will again. What was not as believed is looked at and tried again.
const fn is_final(kind: FailureKind) -> bool {
    match kind {
        FailureKind::Full
        | FailureKind::Permission
        | FailureKind::Unsupported
        | FailureKind::Other => true,
        FailureKind::NotFound
        | FailureKind::AlreadyExists
        | FailureKind::Busy
        | FailureKind::Transient => false,
    }
}
