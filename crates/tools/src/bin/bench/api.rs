// SPDX-License-Identifier: Apache-2.0
//! Writes to the API server.

use std::net::IpAddr;
use std::path::Path;

use anyhow::Context as _;
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};

use crate::cluster;

/// Concurrent requests of a burst.
const PARALLEL: usize = 8;

/// A connection to the API server.
pub(crate) struct Writer {
    runtime: tokio::runtime::Runtime,
    services: Api<Service>,
    slices: Api<EndpointSlice>,
    pods: Api<Pod>,
    /// Whether the EndpointSlice controller creates the slices from Pods.
    has_controller: bool,
}

impl Writer {
    pub(crate) fn new(kubeconfig: &Path, has_controller: bool) -> anyhow::Result<Self> {
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
            services: Api::namespaced(client.clone(), "load"),
            slices: Api::namespaced(client.clone(), "load"),
            pods: Api::namespaced(client, "load"),
            runtime,
            has_controller,
        })
    }

    pub(crate) fn cluster_ip(&self, service: u16) -> anyhow::Result<IpAddr> {
        let service = self
            .runtime
            .block_on(self.services.get(&cluster::name(service)))?;
        cluster_ip(&service)
    }

    /// Deletes what an interrupted case left behind.
    pub(crate) fn clear(&self) -> anyhow::Result<()> {
        let now = DeleteParams::default().grace_period(0);
        let everything = ListParams::default();
        let is_left = |name: String| name >= cluster::name(cluster::NEW);
        self.runtime.block_on(async {
            for service in self.services.list_metadata(&everything).await? {
                if is_left(service.name_any()) {
                    self.services.delete(&service.name_any(), &now).await?;
                }
            }
            for slice in self.slices.list_metadata(&everything).await? {
                // The controller deletes those it created.
                if is_left(slice.name_any()) && !self.has_controller {
                    self.slices.delete(&slice.name_any(), &now).await?;
                }
            }
            for pod in self.pods.list_metadata(&everything).await? {
                if is_left(pod.name_any()) {
                    self.pods.delete(&pod.name_any(), &now).await?;
                }
            }
            Ok(())
        })
    }

    /// Creates what a new Service with ten endpoints needs and no proxy watches.
    pub(crate) fn prepare_service(&self, number: u16) -> anyhow::Result<()> {
        if !self.has_controller {
            return Ok(());
        }
        let parameters = PostParams::default();
        self.runtime.block_on(async {
            for index in 0..cluster::NEW_ENDPOINTS {
                self.pods
                    .create(&parameters, &cluster::pod(number, index)?)
                    .await?;
                self.set_pod(number, index, true).await?;
            }
            Ok(())
        })
    }

    /// Creates a prepared Service without endpoints; returns its cluster IP.
    pub(crate) fn create_service(&self, number: u16) -> anyhow::Result<IpAddr> {
        let parameters = PostParams::default();
        let service = cluster::service(number, self.has_controller)?;
        let request = self.services.create(&parameters, &service);
        cluster_ip(&self.runtime.block_on(request)?)
    }

    /// Creates the endpoints of a new Service, unless the controller does.
    pub(crate) fn create_endpoints(&self, number: u16) -> anyhow::Result<()> {
        if self.has_controller {
            return Ok(());
        }
        let parameters = PostParams::default();
        for slice in cluster::slices(number, cluster::NEW_ENDPOINTS)? {
            self.runtime
                .block_on(self.slices.create(&parameters, &slice))?;
        }
        Ok(())
    }

    pub(crate) fn delete_service(&self, number: u16) -> anyhow::Result<()> {
        let parameters = DeleteParams::default();
        self.runtime.block_on(async {
            self.services
                .delete(&cluster::name(number), &parameters)
                .await?;
            if self.has_controller {
                let now = DeleteParams::default().grace_period(0);
                for index in 0..cluster::NEW_ENDPOINTS {
                    self.pods
                        .delete(&cluster::pod_name(number, index), &now)
                        .await?;
                }
            } else {
                self.slices
                    .delete(&cluster::slice_name(number), &parameters)
                    .await?;
            }
            Ok(())
        })
    }

    /// Prepares requests that leave 0, 1, ... `missing` of a Service's first ten endpoints out.
    pub(crate) fn without(&self, service: u16, missing: u16) -> anyhow::Result<Vec<Request>> {
        if self.has_controller {
            // One Pod each; the first request makes the Pod removed last ready again.
            return Ok((0..=missing)
                .map(|missing| Request::Pod { service, missing })
                .collect());
        }
        let mut slice = self
            .runtime
            .block_on(self.slices.get(&cluster::slice_name(service)))?;
        // Unconditional replacement.
        slice.metadata.resource_version = None;
        let requests = (0..=missing).map(|missing| {
            let gone: Vec<String> = (cluster::NEW_ENDPOINTS - missing..cluster::NEW_ENDPOINTS)
                .map(|index| cluster::endpoint(service, index).to_string())
                .collect();
            let mut slice = slice.clone();
            let endpoints = slice.endpoints.get_or_insert_default();
            endpoints.retain(|endpoint| endpoint.addresses.iter().all(|at| !gone.contains(at)));
            Request::Slice(Box::new(slice))
        });
        Ok(requests.collect())
    }

    pub(crate) fn send(&self, request: &Request, before: u16) -> anyhow::Result<()> {
        self.runtime.block_on(self.write(request, before))
    }

    /// Sends requests concurrently, all to Services with `before` endpoints missing.
    pub(crate) fn send_all(&self, requests: &[&Request], before: u16) -> anyhow::Result<()> {
        let requests = requests.iter().map(|request| self.write(request, before));
        let answers = futures::stream::iter(requests).buffered(PARALLEL);
        self.runtime.block_on(answers.try_collect::<Vec<_>>())?;
        Ok(())
    }

    async fn write(&self, request: &Request, before: u16) -> anyhow::Result<()> {
        match request {
            Request::Slice(slice) => {
                let name = slice.metadata.name.as_deref().context("no name")?;
                let parameters = PostParams::default();
                self.slices.replace(name, &parameters, slice).await?;
                Ok(())
            }
            Request::Pod { service, missing } => {
                let is_ready = *missing < before;
                let index = cluster::NEW_ENDPOINTS - before.max(*missing);
                self.set_pod(*service, index, is_ready).await
            }
        }
    }

    async fn set_pod(&self, service: u16, index: u16, is_ready: bool) -> anyhow::Result<()> {
        let status = cluster::pod_status(service, index, is_ready);
        let name = cluster::pod_name(service, index);
        let parameters = PatchParams::default();
        self.pods
            .patch_status(&name, &parameters, &Patch::Merge(&status))
            .await?;
        Ok(())
    }
}

/// A change of a Service's endpoints, prepared before its time is taken.
pub(crate) enum Request {
    Slice(Box<EndpointSlice>),
    Pod { service: u16, missing: u16 },
}

fn cluster_ip(service: &Service) -> anyhow::Result<IpAddr> {
    let spec = service.spec.as_ref();
    let address = spec.and_then(|spec| spec.cluster_ip.as_ref());
    Ok(address.context("a Service has no cluster IP")?.parse()?)
}
