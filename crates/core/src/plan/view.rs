// SPDX-License-Identifier: Apache-2.0
//! PURE: what one Service has and should have, for people.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::model::{ServiceName, ServicePortName};
use crate::plan::iptables::Planner as IptablesPlanner;
use crate::plan::ipvs::object::{RealServers, VirtualServer};
use crate::plan::ipvs::planner::Planner;
use crate::plan::ipvs::set::{SetEntry, SetId};
use crate::plan::mode::ModePlanner;
use crate::plan::ruleset::Table;
use crate::plan::step::Step;

/// One Service in one family.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ServiceView {
    /// By name and protocol.
    pub ports: BTreeMap<String, PortView>,
    /// What is not yet in the kernel: steps, or names of chains.
    pub pending: Vec<String>,
}

/// One Service port: its virtual servers, or its chains, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PortView {
    /// Where it answers, if no virtual server tells.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub frontends: Vec<String>,
    pub desired: BTreeMap<String, ObjectView>,
    pub believed: BTreeMap<String, ObjectView>,
}

/// What is in an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum ObjectView {
    VirtualServer {
        settings: String,
        real_servers: BTreeMap<String, String>,
    },
    /// Number of rules.
    Rules(usize),
}

impl ObjectView {
    fn virtual_server(server: &VirtualServer, real_servers: &RealServers) -> Self {
        let show = |(key, server): (
            &crate::plan::ipvs::object::RealServerKey,
            &crate::plan::ipvs::object::RealServer,
        )| { (key.to_string(), server.to_string()) };
        Self::VirtualServer {
            settings: server.to_string(),
            real_servers: real_servers.iter().map(show).collect(),
        }
    }

    fn size(&self) -> usize {
        match self {
            Self::VirtualServer { real_servers, .. } => 1 + real_servers.len(),
            Self::Rules(_) => 1,
        }
    }
}

impl ServiceView {
    /// Lines that it takes to show.
    pub fn size(&self) -> usize {
        let objects = self.ports.values().flat_map(|port| {
            let objects = port.desired.values().chain(port.believed.values());
            objects.map(ObjectView::size)
        });
        let frontends = self.ports.values().map(|port| 1 + port.frontends.len());
        objects.sum::<usize>() + frontends.sum::<usize>() + self.pending.len()
    }
}

impl ModePlanner {
    /// What one Service has and should have. Costs what that Service costs.
    pub fn view(&self, service: &ServiceName) -> ServiceView {
        match self {
            Self::Ipvs(planner) => ipvs(planner, service),
            Self::Iptables(planner) => iptables(planner, service),
        }
    }

    /// The Service port that a step is for; `None` if it is for all, or if it takes away what nobody wants any more.
    pub fn owner(&self, step: &Step) -> Option<&ServicePortName> {
        let Self::Ipvs(planner) = self else {
            // The chains of many go together.
            return None;
        };
        let desired = planner.desired();
        let mut by_port = desired.by_port().iter();
        match step {
            Step::AddVirtualServer { key, .. }
            | Step::SetVirtualServer { key, .. }
            | Step::DeleteVirtualServer { key }
            | Step::AddRealServer { vs: key, .. }
            | Step::SetRealServer { vs: key, .. }
            | Step::DeleteRealServer { vs: key, .. } => desired.claimants(key).next(),
            Step::AddAddress { address } => by_port
                .find(|(_, port_objects)| port_objects.addresses.contains(address))
                .map(|(name, _)| name),
            Step::AddEntry { set, entry } => {
                let family = planner.context().family;
                let is_it =
                    |(id, other): &(SetId, SetEntry)| other == entry && id.name(family) == *set;
                by_port
                    .find(|(_, port_objects)| {
                        let of_servers = port_objects.virtual_servers.values();
                        let of_servers = of_servers.flat_map(|server| &server.entries);
                        port_objects.entries.iter().chain(of_servers).any(is_it)
                    })
                    .map(|(name, _)| name)
            }
            _ => None,
        }
    }
}

fn ipvs(planner: &Planner, service: &ServiceName) -> ServiceView {
    let mut view = ServiceView {
        pending: planner
            .plan_of(service)
            .steps()
            .map(Step::to_string)
            .collect(),
        ..ServiceView::default()
    };
    let desired = planner.desired();
    for name in desired.ports_of(service) {
        let Some(port_objects) = desired.by_port().get(name) else {
            continue;
        };
        let mut port = PortView::default();
        for (key, wanted) in port_objects.virtual_servers.iter() {
            // An older Service may have it.
            if desired.claimants(key).next() != Some(name) {
                continue;
            }
            let object = ObjectView::virtual_server(&wanted.server, &wanted.real_servers);
            port.desired.insert(key.to_string(), object);
            if let Some(present) = planner.believed().virtual_servers.get(key) {
                let object = ObjectView::virtual_server(&present.server, &present.real_servers);
                port.believed.insert(key.to_string(), object);
            }
        }
        view.ports.insert(port_name(name), port);
    }
    view
}

fn iptables(planner: &IptablesPlanner, service: &ServiceName) -> ServiceView {
    let mut view = ServiceView::default();
    let (desired, believed) = (planner.desired(), planner.believed());
    for name in desired.ports_of(service) {
        let Some(port_objects) = desired.by_port().get(name) else {
            continue;
        };
        let frontends = port_objects.frontends(planner.context());
        let mut port = PortView {
            frontends: frontends.keys().map(ToString::to_string).collect(),
            ..PortView::default()
        };
        for (chain, rules) in planner.chains(port_objects) {
            let id = (Table::Nat, chain);
            let shown = format!("{} {}", id.0, id.1);
            if let Some(count) = believed.rules_of(&id) {
                port.believed
                    .insert(shown.clone(), ObjectView::Rules(count));
            }
            if !believed.has(&id, &rules) {
                view.pending.push(shown.clone());
            }
            port.desired.insert(shown, ObjectView::Rules(rules.len()));
        }
        view.ports.insert(port_name(name), port);
    }
    view
}

/// Ports of one name that differ in their protocol are two.
fn port_name(name: &ServicePortName) -> String {
    if name.port.is_empty() {
        name.protocol.to_string()
    } else {
        format!("{} {}", name.port, name.protocol)
    }
}
