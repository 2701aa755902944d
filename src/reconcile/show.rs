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
use kpr_core::model::{IpFamily, ProxyMode, Service, ServiceName, ServicePortName};
use kpr_core::plan::Planner;
use kpr_core::plan::explain::{self, Client, Explanation, Place};
use kpr_core::plan::ipvs::object::VirtualServerKey;
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
    /// So many of them are passed over.
    pub skip: usize,
    /// Maximum number of Services.
    pub limit: usize,
}

/// What to explain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explain {
    pub target: Target,
    pub from: From,
}

/// Explaining a place looks at all Services: this many for one question.
const MAX_PLACES: usize = 100;

/// A Service answers at more places than are explained at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the Service answers at more than {MAX_PLACES} addresses and ports: ask for one of them")]
pub struct TooMany;

/// The Service port that has a virtual server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub server: VirtualServerKey,
    pub port: ServicePortName,
    /// The port's number.
    pub number: u16,
}

impl Owner {
    /// The port's name, or its number if it has none.
    pub fn port_text(&self) -> String {
        if self.port.port.is_empty() {
            self.number.to_string()
        } else {
            self.port.port.to_string()
        }
    }
}

fn number_of(service: &Service, port: &ServicePortName) -> u16 {
    let mut ports = service.ports.iter();
    let spec = ports.find(|spec| spec.name == port.port && spec.protocol == port.protocol);
    spec.map_or(0, |spec| spec.port)
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
    /// Those that contain the text, if one was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub matching_count: Option<usize>,
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

    /// Whose virtual servers there are; those of counted Services alone if asked so.
    pub(super) fn owners(&self, counted: bool) -> Vec<Owner> {
        let services = self.tracker.services();
        let is_counted = |service: &&Service| service.ipvs.as_ref().is_some_and(|it| it.is_counted);
        let services = services.filter(|service| !counted || is_counted(service));
        let mut owners = Vec::new();
        for service in services {
            for family in self.families() {
                let servers = family.planner.servers_of(&service.name);
                owners.extend(servers.into_iter().map(|(port, server)| Owner {
                    number: number_of(service, &port),
                    port,
                    server,
                }));
            }
        }
        owners
    }

    pub(super) fn explain(&self, question: &Explain) -> Result<Vec<Explanation>, TooMany> {
        let settings = explain::Settings {
            localhost_by_forwarder: self.settings.localhost_node_ports,
            refuses_other_ports: self.settings.mode == ProxyMode::IPVS,
            ..explain::Settings::default()
        };
        let (mut explanations, mut asked) = (Vec::new(), 0);
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
            asked += places.len();
            if asked > MAX_PLACES {
                return Err(TooMany);
            }
            for place in places {
                if IpFamily::of(place.address) != context.family {
                    continue;
                }
                let explain = |client: &Client| {
                    let is_outside = explain::is_outside(*client, context);
                    let server = family.planner.server_of(place, is_outside);
                    Explanation {
                        virtual_server: server.map(|server| server.to_string()),
                        ..explain::place(&self.tracker, context, settings, place, *client)
                    }
                };
                explanations.extend(clients.iter().map(explain));
            }
        }
        Ok(explanations)
    }

    pub(super) fn show(&self, question: &Question) -> Shown {
        let changed = &self.tracker.pending().services;
        let troubled: BTreeSet<&ServiceName> = self
            .families()
            .flat_map(|family| family.errors.services())
            .collect();
        let mut shown = Shown {
            service_count: self.tracker.services().count(),
            trouble_count: troubled.len(),
            changed_count: changed.len(),
            warnings: self.warnings(),
            ..Shown::default()
        };
        for family in self.families() {
            shown.families.insert(family.family(), family.show());
        }
        let all = self.tracker.services().map(|service| &service.name);
        let others = all.filter(|name| !troubled.contains(name));
        let names: Box<dyn Iterator<Item = &ServiceName>> = match &question.service {
            Some(service) => Box::new(std::iter::once(service)),
            None => Box::new(troubled.iter().copied().chain(others)),
        };
        let (mut lines, mut matching) = (0, 0);
        for name in names {
            let text = name.to_string();
            let part = question.matching.as_ref();
            if !part.is_none_or(|part| text.contains(part)) {
                continue;
            }
            matching += 1;
            if matching <= question.skip {
                continue;
            }
            if shown.services.len() >= question.limit || lines >= MAX_LINES {
                if part.is_some() {
                    continue;
                }
                break;
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
        shown.matching_count = question.matching.is_some().then_some(matching);
        shown
    }
}
