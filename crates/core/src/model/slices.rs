// SPDX-License-Identifier: Apache-2.0
//! Merging the EndpointSlices of a Service into the endpoints of its ports.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::{Endpoint, EndpointSlice, IpFamily, Protocol};

#[cfg(test)]
mod tests;

/// The endpoints of a Service in one family, by port name and protocol of its slices. They serve
/// the Service port of the same name and protocol.
pub type EndpointsByPort = BTreeMap<(Arc<str>, Protocol), Vec<Endpoint>>;

/// Merges slices. The result does not depend on their order: if an address and port appear more
/// than once (moving a Pod between slices takes two writes), the most useful endpoint is kept.
pub fn merge<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice>,
    family: IpFamily,
) -> EndpointsByPort {
    type ByAddress = BTreeMap<(IpAddr, u16), Endpoint>;
    let mut ports: BTreeMap<(Arc<str>, Protocol), ByAddress> = BTreeMap::new();
    for slice in slices.filter(|slice| slice.family == family) {
        for port in &slice.ports {
            let endpoints = ports.entry((port.name.clone(), port.protocol)).or_default();
            for endpoint in &slice.endpoints {
                let candidate = Endpoint {
                    address: endpoint.address,
                    port: port.port,
                    local: endpoint.local,
                    conditions: endpoint.conditions,
                    node_hint: endpoint.node_hint,
                    zones: endpoint.zones.clone(),
                    weight: endpoint.weight,
                };
                endpoints
                    .entry((endpoint.address, port.port))
                    .and_modify(|kept| {
                        if usefulness(&candidate) > usefulness(kept) {
                            *kept = candidate.clone();
                        }
                    })
                    .or_insert(candidate);
            }
        }
    }
    ports
        .into_iter()
        .map(|(port, endpoints)| (port, endpoints.into_values().collect()))
        .collect()
}

/// A total order in which the greater of two copies of an endpoint wins. kube-proxy prefers the one
/// that is not terminating; the rest makes the choice independent of the order of slices.
fn usefulness(endpoint: &Endpoint) -> impl Ord + use<'_> {
    let conditions = endpoint.conditions;
    (
        !conditions.terminating,
        conditions.ready,
        conditions.serving,
        endpoint.local,
        endpoint.node_hint as u8,
        &endpoint.zones,
        endpoint.weight,
    )
}
