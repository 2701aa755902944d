// SPDX-License-Identifier: Apache-2.0
//! The addresses and pod ranges of all Nodes, which no Service may take by listing them in
//! `spec.externalIPs`.
//!
//! A Node object is large and its status is written every few minutes: nothing of it is decoded but
//! what is kept, and it is watched only once some Service claims an address outside the Service
//! ranges. `docs/security.md` states the cost. A proof by routes would need no list, but the route
//! to a node in another network is that to any address of the world.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher::Event as WatchEvent;
use serde::{Deserialize, Deserializer};

use super::super::Update;
use super::super::census::{Census, node_claims};
use super::message;
use super::object::{Decode, Object, metadata};
use super::watch::Handler;
use kpr_core::model::NodeClaims;

/// A Node, as far as it matters to other nodes.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Outline {
    #[serde(deserialize_with = "name_and_version")]
    metadata: ObjectMeta,
    spec: Spec,
    status: Status,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    addresses: Option<Vec<Address>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Address {
    address: String,
}

/// Of the metadata only what a watch needs.
fn name_and_version<'de, D: Deserializer<'de>>(object: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Needed {
        name: Option<String>,
        resource_version: Option<String>,
    }
    let needed = Needed::deserialize(object)?;
    Ok(ObjectMeta {
        name: needed.name,
        resource_version: needed.resource_version,
        ..ObjectMeta::default()
    })
}

impl Outline {
    pub(super) fn new(
        (name, resource_version): (Option<String>, Option<String>),
        (pod_cidr, pod_cidrs): (Option<String>, Option<Vec<String>>),
        addresses: impl Iterator<Item = String>,
    ) -> Self {
        Self {
            metadata: ObjectMeta {
                name,
                resource_version,
                ..ObjectMeta::default()
            },
            spec: Spec {
                pod_cidr,
                pod_cidrs,
            },
            status: Status {
                addresses: Some(addresses.map(|address| Address { address }).collect()),
            },
        }
    }

    pub(super) fn claims(&self) -> NodeClaims {
        let addresses = self.status.addresses.iter().flatten();
        let spec = &self.spec;
        let cidrs = spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr);
        node_claims(
            addresses.map(|address| address.address.as_str()),
            cidrs.map(String::as_str),
        )
    }
}

impl Decode for Outline {
    type Fields = Self;
    type Message = message::Node;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}

/// Takes in the Nodes of the cluster.
#[derive(Debug, Default)]
pub(super) struct AllNodes {
    census: Census,
    listed: Census,
    /// Something was sent: a first round waits for it, even if there is no Node.
    has_sent: bool,
}

impl AllNodes {
    fn news(&mut self) -> Option<Update> {
        let is_first = !std::mem::replace(&mut self.has_sent, true);
        let nothing = || Update::Nodes(NodeClaims::default());
        self.census.news().or_else(|| is_first.then(nothing))
    }
}

/// Returns whether the Node has other addresses than before.
fn note(census: &mut Census, node: &Object<Outline>) -> bool {
    // One that cannot be read keeps what it had.
    let Ok(node) = node else {
        return false;
    };
    let Some(name) = &node.metadata.name else {
        return false;
    };
    census.set(name, node.claims())
}

impl Handler<Outline> for AllNodes {
    fn handle(&mut self, event: WatchEvent<Object<Outline>>) -> Option<Update> {
        match event {
            WatchEvent::Init => {
                self.listed.clear();
                return None;
            }
            WatchEvent::InitApply(node) => {
                note(&mut self.listed, &node);
                return None;
            }
            WatchEvent::InitDone => self.census.replace(&mut self.listed),
            WatchEvent::Apply(node) => {
                // Nearly all changes are none here.
                if !note(&mut self.census, &node) {
                    return None;
                }
            }
            WatchEvent::Delete(node) => {
                let name = metadata(&node).name.as_deref();
                self.census.remove(name.unwrap_or_default());
            }
        }
        self.news()
    }

    /// The role does not allow it.
    fn absent(&mut self) -> Option<Update> {
        self.census.clear();
        self.news()
    }
}
