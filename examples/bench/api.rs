// SPDX-License-Identifier: Apache-2.0
//! Writes to the API server.

use std::net::IpAddr;
use std::path::Path;

use anyhow::Context as _;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};

/// Requests of [`Writer::replace_all`] that are under way at a time.
const PARALLEL: usize = 8;

/// A connection to the API server.
pub(crate) struct Writer {
    runtime: tokio::runtime::Runtime,
    services: Api<Service>,
    slices: Api<EndpointSlice>,
}

impl Writer {
    pub(crate) fn new(kubeconfig: &Path, namespace: &str) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let client = runtime.block_on(async {
            let file = Kubeconfig::read_from(kubeconfig)?;
            let options = KubeConfigOptions::default();
            let config = kube::Config::from_custom_kubeconfig(file, &options).await?;
            anyhow::Ok(kube::Client::try_from(config)?)
        })?;
        Ok(Self {
            services: Api::namespaced(client.clone(), namespace),
            slices: Api::namespaced(client, namespace),
            runtime,
        })
    }

    pub(crate) fn cluster_ip(&self, service: &str) -> anyhow::Result<IpAddr> {
        let service = self.runtime.block_on(self.services.get(service))?;
        cluster_ip(&service)
    }

    /// Creates a Service and says which address it was given.
    pub(crate) fn create_service(&self, service: &Service) -> anyhow::Result<IpAddr> {
        let parameters = PostParams::default();
        let request = self.services.create(&parameters, service);
        cluster_ip(&self.runtime.block_on(request)?)
    }

    pub(crate) fn delete_service(&self, name: &str) -> anyhow::Result<()> {
        let parameters = DeleteParams::default();
        let request = self.services.delete(name, &parameters);
        self.runtime.block_on(request)?;
        Ok(())
    }

    pub(crate) fn slice(&self, name: &str) -> anyhow::Result<EndpointSlice> {
        Ok(self.runtime.block_on(self.slices.get(name))?)
    }

    pub(crate) fn create_slice(&self, slice: &EndpointSlice) -> anyhow::Result<()> {
        let parameters = PostParams::default();
        let request = self.slices.create(&parameters, slice);
        self.runtime.block_on(request)?;
        Ok(())
    }

    pub(crate) fn delete_slice(&self, name: &str) -> anyhow::Result<()> {
        let parameters = DeleteParams::default();
        let request = self.slices.delete(name, &parameters);
        self.runtime.block_on(request)?;
        Ok(())
    }

    /// Writes a slice and returns what became of it.
    pub(crate) fn replace(&self, slice: &EndpointSlice) -> anyhow::Result<EndpointSlice> {
        self.runtime.block_on(replace(&self.slices, slice))
    }

    /// Writes many slices at the same time, and returns what became of them.
    pub(crate) fn replace_all(
        &self,
        slices: &[EndpointSlice],
    ) -> anyhow::Result<Vec<EndpointSlice>> {
        let requests =
            futures::stream::iter(slices.iter().map(|slice| replace(&self.slices, slice)));
        let results = requests.buffered(PARALLEL).collect::<Vec<_>>();
        self.runtime.block_on(results).into_iter().collect()
    }
}

async fn replace(
    slices: &Api<EndpointSlice>,
    slice: &EndpointSlice,
) -> anyhow::Result<EndpointSlice> {
    let name = slice
        .metadata
        .name
        .as_deref()
        .context("a slice has no name")?;
    Ok(slices.replace(name, &PostParams::default(), slice).await?)
}

fn cluster_ip(service: &Service) -> anyhow::Result<IpAddr> {
    let spec = service.spec.as_ref();
    let address = spec.and_then(|spec| spec.cluster_ip.as_ref());
    Ok(address.context("a Service has no cluster IP")?.parse()?)
}
