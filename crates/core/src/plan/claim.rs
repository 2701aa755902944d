// SPDX-License-Identifier: Apache-2.0
//! PURE: who gets what several Service ports want for themselves: an address and port, a node port.

use crate::model::ServicePortName;

/// A claim of a Service port on one place. The smallest wins: the same one after any order of changes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    by: Right,
    /// Nobody takes over what an older Service has.
    created: i64,
    name: ServicePortName,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Right {
    /// The cluster gave the address to the Service.
    ClusterIp,
    /// Whoever may write a Service can name any external address, also another Service's cluster IP.
    Other,
}

impl Claim {
    pub fn new(is_cluster_ip: bool, created: i64, name: ServicePortName) -> Self {
        let by = if is_cluster_ip {
            Right::ClusterIp
        } else {
            Right::Other
        };
        Self { by, created, name }
    }

    pub fn name(&self) -> &ServicePortName {
        &self.name
    }
}
