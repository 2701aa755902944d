// SPDX-License-Identifier: Apache-2.0
//! `Endpoints` objects as EndpointSlices, as the mirroring controller of Kubernetes makes them
//! (`pkg/controller/endpointslicemirroring`).

use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints};
use k8s_openapi::api::discovery::v1 as discovery;

use super::super::super::convert::{SERVICE_NAME_LABEL, TRIGGER_ANNOTATION};
use kpr_core::model::IpFamily;
use kpr_core::model::address::parse_ip;

const SKIP_LABEL: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER_ANNOTATION: &str = "control-plane.alpha.kubernetes.io/leader";
/// The controller takes no more addresses of one subset.
const MAX_ADDRESSES: usize = 1000;

/// A slice, and what its parts are in the `Endpoints` object.
#[derive(Debug)]
pub(super) struct Mirrored {
    pub(super) slice: discovery::EndpointSlice,
    subset: usize,
    /// Where each of the endpoints comes from.
    addresses: Vec<String>,
}

impl Mirrored {
    /// The field of the `Endpoints` object for one of the slice.
    pub(super) fn field(&self, field: &str) -> String {
        let subset = self.subset;
        if let Some(rest) = field.strip_prefix("endpoints[") {
            let index = rest.split(']').next().and_then(|index| index.parse().ok());
            let address = index.and_then(|index: usize| self.addresses.get(index));
            return address.map_or(field.to_owned(), |address| format!("{address}.ip"));
        }
        match field.strip_prefix("ports[") {
            Some(rest) => format!("subsets[{subset}].ports[{rest}"),
            None => field.to_owned(),
        }
    }
}

/// The slices of an object: one for each subset and family. None if it is not to be mirrored.
pub(super) fn slices(object: &Endpoints) -> Vec<Mirrored> {
    let meta = &object.metadata;
    let skipped = meta
        .labels
        .as_ref()
        .and_then(|labels| labels.get(SKIP_LABEL));
    let leads = meta
        .annotations
        .as_ref()
        .is_some_and(|all| all.contains_key(LEADER_ANNOTATION));
    let mut mirrored = Vec::new();
    if leads || skipped.is_some_and(|value| value == "true") {
        return mirrored;
    }
    let service = meta.name.as_deref().unwrap_or_default();
    for (index, subset) in object.subsets.iter().flatten().enumerate() {
        let ready = subset.addresses.iter().flatten().enumerate();
        let not_ready = subset.not_ready_addresses.iter().flatten().enumerate();
        let all: Vec<(String, &EndpointAddress, bool)> = ready
            .map(|(i, address)| (format!("subsets[{index}].addresses[{i}]"), address, true))
            .chain(not_ready.map(|(i, address)| {
                let field = format!("subsets[{index}].notReadyAddresses[{i}]");
                (field, address, false)
            }))
            .take(MAX_ADDRESSES)
            .collect();
        for family in IpFamily::ALL {
            // What is no address is named with the first family.
            let of_family = all.iter().filter(|(_, address, _)| {
                parse_ip(&address.ip)
                    .map_or(family == IpFamily::V4, |ip| IpFamily::of(ip) == family)
            });
            let (addresses, endpoints): (Vec<_>, Vec<_>) = of_family
                .map(|(field, address, ready)| (field.clone(), endpoint(address, *ready)))
                .unzip();
            if endpoints.is_empty() {
                continue;
            }
            let mut slice = discovery::EndpointSlice {
                address_type: family.as_str().to_owned(),
                endpoints: Some(endpoints),
                metadata: meta.clone(),
                ports: Some(subset.ports.iter().flatten().map(port).collect()),
            };
            // No object has a slash in its name.
            slice.metadata.name = Some(format!("{service}/{index}-{}", family.as_str()));
            if let Some(annotations) = &mut slice.metadata.annotations {
                annotations.remove(TRIGGER_ANNOTATION);
            }
            let labels = slice.metadata.labels.get_or_insert_default();
            labels.insert(SERVICE_NAME_LABEL.to_owned(), service.to_owned());
            mirrored.push(Mirrored {
                slice,
                subset: index,
                addresses,
            });
        }
    }
    mirrored
}

fn endpoint(address: &EndpointAddress, ready: bool) -> discovery::Endpoint {
    discovery::Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(discovery::EndpointConditions {
            ready: Some(ready),
            ..discovery::EndpointConditions::default()
        }),
        hostname: address.hostname.clone(),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..discovery::Endpoint::default()
    }
}

fn port(port: &k8s_openapi::api::core::v1::EndpointPort) -> discovery::EndpointPort {
    discovery::EndpointPort {
        app_protocol: port.app_protocol.clone(),
        name: port.name.clone(),
        port: Some(port.port),
        protocol: port.protocol.clone(),
    }
}
