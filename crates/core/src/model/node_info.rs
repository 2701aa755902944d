// SPDX-License-Identifier: Apache-2.0
//! This node's Node object, reduced to what a proxy needs.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

/// The Node object of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    pub name: Arc<str>,
    /// `status.addresses`: all of type `InternalIP`, then all of type `ExternalIP`, each in the
    /// order of the object.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`; empty until they are allocated.
    pub pod_cidrs: Vec<IpNet>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// `metadata.deletionTimestamp` is set.
    pub being_deleted: bool,
    /// The cluster autoscaler is about to remove the node (taint `ToBeDeletedByClusterAutoscaler`).
    pub marked_by_autoscaler: bool,
}

/// The addresses and pod ranges of all Nodes of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeClaims {
    /// Of any type in `status.addresses`.
    pub addresses: BTreeSet<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: BTreeSet<IpNet>,
}

impl NodeInfo {
    /// A Node object with only a name.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.into(),
            addresses: Vec::new(),
            pod_cidrs: Vec::new(),
            zone: None,
            being_deleted: false,
            marked_by_autoscaler: false,
        }
    }

    /// Whether the node is about to be removed: load balancers should send it no new connections.
    pub fn is_leaving(&self) -> bool {
        self.being_deleted || self.marked_by_autoscaler
    }
}
