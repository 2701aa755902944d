// SPDX-License-Identifier: Apache-2.0
//! Memory of the model alone: a process that converts the cluster's objects and keeps them.

use std::path::Path;

use anyhow::Context as _;
use kpr_core::model::tracker::{Event, Tracker};
use kpr_tools::process;
use kube_proxy_rs::memory;
use kube_proxy_rs::source::Options;
use kube_proxy_rs::source::convert::Converter;
use serde_json::json;

use crate::{Shape, cluster, save};

pub(crate) fn measure(shape: Shape, out: &Path) -> anyhow::Result<()> {
    memory::keep_large_apart();
    let mut converter = Converter::new(&Options {
        node_name: cluster::NODE.into(),
        allow_external_ips: false,
        annotations: kube_proxy_rs::source::Annotations::default(),
        cluster: kube_proxy_rs::source::ClusterSize::default(),
    });
    let mut tracker = Tracker::default();
    for number in 0..shape.services {
        let mut service = cluster::service(number, false)?;
        if let Some(spec) = &mut service.spec {
            let address = cluster::cluster_ip(number).to_string();
            spec.cluster_ips = Some(vec![address.clone()]);
            spec.cluster_ip = Some(address);
        }
        let (service, problems) = converter.service(&service);
        let service = service.with_context(|| format!("{problems:?}"))?;
        tracker.apply(Event::ServiceApplied(service));
        for slice in cluster::slices(number, shape.endpoints)? {
            let (slice, problems) = converter.slice(&slice);
            let slice = slice.with_context(|| format!("{problems:?}"))?;
            tracker.apply(Event::SliceApplied(slice));
        }
        drop(tracker.take());
    }
    memory::release();
    let memory = process::memory(std::process::id())?;
    let result = json!({
        "kind": "model",
        "services": shape.services,
        "endpoints": shape.endpoints,
        "memory": memory,
    });
    // Must live until memory has been read.
    drop(tracker);
    save(out, &result)
}
