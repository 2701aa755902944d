// SPDX-License-Identifier: Apache-2.0
//! Which endpoints of a Service port are used: readiness, topology hints, traffic policies and the
//! fallback to terminating endpoints. The same for every mode.

use super::{Endpoint, NodeHint, ServicePort};

#[cfg(test)]
mod tests;

/// The endpoints chosen for a Service port, in the order of the input.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice<'a> {
    /// For the policy Cluster; empty if no destination of the port has that policy.
    pub cluster: Vec<&'a Endpoint>,
    /// For the policy Local; empty if no destination has it, or no endpoint is on this node.
    pub local: Vec<&'a Endpoint>,
    /// Whether a policy could use any endpoint of the cluster. If so, a destination without
    /// endpoints drops packets ("not here"), else it rejects them ("nowhere").
    pub has_any: bool,
}

/// The topological distance of an endpoint.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Preference {
    Anywhere,
    SameNode,
    SameZone,
}

/// Chooses among all endpoints of a Service port. `zone` is the label
/// `topology.kubernetes.io/zone` of our node.
pub fn choose<'a>(
    service_port: &ServicePort,
    endpoints: &'a [Endpoint],
    zone: Option<&str>,
) -> Choice<'a> {
    let mut choice = Choice::default();
    if service_port.uses_cluster_endpoints() {
        let preference = preference(endpoints, zone);
        choice.cluster = endpoints
            .iter()
            .filter(|endpoint| endpoint.is_ready() && is_near(endpoint, preference, zone))
            .collect();
        if choice.cluster.is_empty() {
            choice.cluster = endpoints
                .iter()
                .filter(|e| e.is_serving_while_terminating())
                .collect();
        }
        choice.has_any = !choice.cluster.is_empty();
    }
    if service_port.uses_local_endpoints() {
        let local = |endpoint: &&Endpoint| endpoint.local;
        choice.local = endpoints
            .iter()
            .filter(local)
            .filter(|e| e.is_ready())
            .collect();
        if choice.local.is_empty() {
            choice.local = endpoints
                .iter()
                .filter(local)
                .filter(|e| e.is_serving_while_terminating())
                .collect();
        }
        choice.has_any |= endpoints
            .iter()
            .any(|e| e.is_ready() || e.is_serving_while_terminating());
    }
    choice
}

/// Hints apply only if every ready endpoint has one and at least one points here: a partial set of
/// hints would send all traffic to the few endpoints that happen to have one.
fn preference(endpoints: &[Endpoint], zone: Option<&str>) -> Preference {
    let ready = || endpoints.iter().filter(|endpoint| endpoint.is_ready());
    if ready().next().is_none() {
        return Preference::Anywhere;
    }
    let node_hinted = ready().all(|endpoint| endpoint.node_hint != NodeHint::Absent);
    if node_hinted && ready().any(|endpoint| endpoint.node_hint == NodeHint::Here) {
        return Preference::SameNode;
    }
    let zone_hinted = ready().all(|endpoint| !endpoint.zones.hints.is_empty());
    if zone_hinted && ready().any(|e| is_near(e, Preference::SameZone, zone)) {
        return Preference::SameZone;
    }
    Preference::Anywhere
}

fn is_near(endpoint: &Endpoint, preference: Preference, zone: Option<&str>) -> bool {
    match preference {
        Preference::Anywhere => true,
        Preference::SameNode => endpoint.node_hint == NodeHint::Here,
        Preference::SameZone => {
            let mut hints = endpoint.zones.hints.iter();
            zone.is_some_and(|zone| hints.any(|hint| **hint == *zone))
        }
    }
}
