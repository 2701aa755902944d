// SPDX-License-Identifier: Apache-2.0
//! JSON of the API server: Services, EndpointSlices, Nodes. Any user of the cluster can write most
//! of it.
#![no_main]

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube_proxy_rs::source::Options;
use kube_proxy_rs::source::convert::Converter;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|json: &[u8]| {
    let mut converter = Converter::new(&Options {
        node_name: Arc::from("node"),
        allow_external_ips: true,
        annotations: kube_proxy_rs::source::Annotations::unlimited(),
        cluster: kube_proxy_rs::source::ClusterSize::default(),
    });
    if let Ok(service) = serde_json::from_slice::<Service>(json) {
        let (_, problems) = converter.service(&service);
        problems
            .iter()
            .for_each(|problem| drop(problem.to_string()));
    }
    if let Ok(slice) = serde_json::from_slice::<EndpointSlice>(json) {
        converter.slice(&slice);
    }
    if let Ok(node) = serde_json::from_slice::<Node>(json) {
        converter.node(&node);
    }
    if let Ok(range) = serde_json::from_slice::<ServiceCIDR>(json) {
        converter.service_cidr(&range);
    }
});
