// SPDX-License-Identifier: Apache-2.0
//! PURE: the desired and believed state of one Service, for people to read.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::model::ServicePortName;
use crate::plan::ipvs::object::{RealServers, VirtualServer};

/// One Service in one family.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ServiceState {
    /// By name and protocol.
    pub ports: BTreeMap<String, PortState>,
    /// What is pending: steps, or names of chains.
    pub pending: Vec<String>,
}

/// One Service port: its virtual servers, or its chains, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PortState {
    /// Where it answers, if it has no virtual servers that show it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub frontends: Vec<String>,
    pub desired: BTreeMap<String, ObjectState>,
    pub believed: BTreeMap<String, ObjectState>,
}

/// The content of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum ObjectState {
    VirtualServer {
        settings: String,
        real_servers: BTreeMap<String, String>,
    },
    /// Number of rules.
    Rules(usize),
    /// A set of clients, who keep their endpoint for so long.
    Clients { timeout_seconds: Option<u32> },
}

impl ObjectState {
    pub(super) fn virtual_server(server: &VirtualServer, real_servers: &RealServers) -> Self {
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
            Self::Rules(_) | Self::Clients { .. } => 1,
        }
    }
}

impl ServiceState {
    /// Number of lines needed to show it.
    pub fn size(&self) -> usize {
        let objects = self.ports.values().flat_map(|port| {
            let objects = port.desired.values().chain(port.believed.values());
            objects.map(ObjectState::size)
        });
        let frontends = self.ports.values().map(|port| 1 + port.frontends.len());
        objects.sum::<usize>() + frontends.sum::<usize>() + self.pending.len()
    }
}

/// Ports of the same name but different protocols are two.
pub(super) fn port_name(name: &ServicePortName) -> String {
    if name.port.is_empty() {
        name.protocol.to_string()
    } else {
        format!("{} {}", name.port, name.protocol)
    }
}
