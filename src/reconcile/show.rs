// SPDX-License-Identifier: Apache-2.0
//! Shows the state of the loop on request: what is desired, believed and pending, Service by
//! Service.
//!
//! It answers between two rounds and never waits for the client.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::Serialize;

use super::Reconciler;
use super::family::Family;
use super::service_errors::LastError;
use crate::dataplane::kernel::Kernel;
use kpr_core::model::{IpFamily, ProxyMode, ServiceName};
use kpr_core::plan::Planner;
use kpr_core::plan::explain::{self, Client, Explanation, Place};
use kpr_core::plan::ruleset::Table;
use kpr_core::plan::shown::ServiceState;

/// Once this many lines are reached no further Service is shown, so that a request costs the loop
/// little.
const MAX_LINES: usize = 10_000;

/// The request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// One Service; otherwise as many as there is room for, those with errors first.
    pub service: Option<ServiceName>,
    /// Only Services whose `namespace/name` contains this text.
    pub matching: Option<String>,
    /// Maximum number of Services.
    pub limit: usize,
}

/// What to explain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explain {
    pub target: Target,
    pub from: From,
}

/// Where connections go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Everywhere that a Service answers; with a port, only at that port or node port.
    Service(ServiceName, Option<u16>),
    Place(Place),
}

/// Where connections come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// All of the following.
    Everywhere,
    Pod,
    Node,
    Outside,
    Address(IpAddr),
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Shown {
    /// Including those not shown.
    pub service_count: usize,
    pub trouble_count: usize,
    /// Services that changed since the last round, including those not shown.
    pub changed_count: usize,
    /// What may be wrong with settings, Node object or network of this node.
    pub warnings: BTreeSet<String>,
    pub families: BTreeMap<IpFamily, FamilyShown>,
    pub services: BTreeMap<String, BTreeMap<IpFamily, ServiceShown>>,
}

/// One family as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FamilyShown {
    /// Something is not yet in the kernel.
    pub is_pending: bool,
    /// The state of the kernel is unknown until it is observed.
    pub is_unknown: bool,
    pub draining: usize,
    /// Tables that iptables cannot list, because other programs have rules of nft's own in them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unread_tables: Vec<&'static str>,
}

/// One Service in one family.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceShown {
    /// It changed since the last round; the other fields are older.
    pub is_changed: bool,
    #[serde(flatten)]
    pub view: ServiceState,
    /// The last thing that the kernel rejected.
    pub error: Option<LastError>,
    /// What the Service requests and does not get.
    #[serde(rename = "findings")]
    pub unmet: Vec<String>,
}

impl<P: Planner> Family<P> {
    fn show(&self) -> FamilyShown {
        FamilyShown {
            is_pending: self.is_pending(),
            is_unknown: self.is_unknown,
            draining: self.draining(),
            unread_tables: self
                .planner
                .unread_tables()
                .into_iter()
                .map(Table::as_str)
                .collect(),
        }
    }

    fn show_service(&self, service: &ServiceName) -> ServiceShown {
        let unmet = self.unmet.present().iter();
        let unmet = unmet.filter(|(port, _)| port.service == *service);
        let cuts = self.cuts.present().iter();
        let cuts = cuts.filter(|(of, _)| of == service);
        let conflicts = self.conflicts.present().iter();
        let conflicts = conflicts.filter(|conflict| conflict.loser.service == *service);
        ServiceShown {
            is_changed: false,
            view: self.planner.state_of(service),
            error: self.errors.of(service).cloned(),
            unmet: unmet
                .map(|(_, unmet)| unmet.to_string())
                .chain(cuts.map(|(_, cut)| cut.to_string()))
                .chain(conflicts.map(|lost| format!("{} belongs to {}", lost.place, lost.winner)))
                .collect(),
        }
    }
}

impl<P: Planner, K: Kernel<P>> Reconciler<P, K> {
    fn warnings(&self) -> BTreeSet<String> {
        let warnings = self.warnings.present().iter().cloned();
        warnings.chain(self.missing_in_words()).collect()
    }

    pub(super) fn explain(&self, question: &Explain) -> Vec<Explanation> {
        let settings = explain::Settings {
            localhost_by_forwarder: self.settings.localhost_node_ports,
            refuses_other_ports: self.settings.mode == ProxyMode::IPVS,
            ..explain::Settings::default()
        };
        let mut explanations = Vec::new();
        for family in self.families() {
            let context = family.planner.context();
            let settings = explain::Settings {
                localhost_by_rules: self.settings.mode == ProxyMode::IPTABLES
                    && context.iptables.localhost_node_ports,
                ..settings
            };
            let places = match &question.target {
                Target::Service(name, port) => explain::places(&self.tracker, context, name, *port),
                Target::Place(place) => vec![*place],
            };
            let clients = match question.from {
                From::Everywhere => vec![Client::Pod(None), Client::Node, Client::Outside(None)],
                From::Pod => vec![Client::Pod(None)],
                From::Node => vec![Client::Node],
                From::Outside => vec![Client::Outside(None)],
                From::Address(ip) if IpFamily::of(ip) == context.family => {
                    vec![Client::at(ip, context, &self.tracker)]
                }
                From::Address(_) => Vec::new(),
            };
            for place in places {
                if IpFamily::of(place.address) != context.family {
                    continue;
                }
                let explain = |client: &Client| {
                    explain::place(&self.tracker, context, settings, place, *client)
                };
                explanations.extend(clients.iter().map(explain));
            }
        }
        explanations
    }

    pub(super) fn show(&self, question: &Question) -> Shown {
        let changed = &self.tracker.pending().services;
        let troubled = self
            .families()
            .map(|family| family.errors.services())
            .collect::<Vec<_>>();
        let mut shown = Shown {
            service_count: self.tracker.services().count(),
            trouble_count: troubled.iter().map(ExactSizeIterator::len).sum(),
            changed_count: changed.len(),
            warnings: self.warnings(),
            ..Shown::default()
        };
        for family in self.families() {
            shown.families.insert(family.family(), family.show());
        }
        let all = self.tracker.services().map(|service| &service.name);
        let names: Box<dyn Iterator<Item = &ServiceName>> = match &question.service {
            Some(service) => Box::new(std::iter::once(service)),
            None => Box::new(troubled.into_iter().flatten().chain(all)),
        };
        let mut lines = 0;
        for name in names {
            if shown.services.len() >= question.limit || lines >= MAX_LINES {
                break;
            }
            let text = name.to_string();
            let matching = question.matching.as_ref();
            if !matching.is_none_or(|part| text.contains(part))
                || shown.services.contains_key(&text)
            {
                continue;
            }
            let mut families = BTreeMap::new();
            for family in self.families() {
                let mut service = family.show_service(name);
                service.is_changed = changed.contains(name);
                lines += 1 + service.view.size();
                families.insert(family.family(), service);
            }
            shown.services.insert(text, families);
        }
        shown
    }
}
