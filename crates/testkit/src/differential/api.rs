// SPDX-License-Identifier: Apache-2.0
//! Writes to the API server, so many that a process for each would take most of the time.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::{Namespace, Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::case::Step;
use super::objects::{self, NAMESPACE};
use crate::manifests::node_manifest;
use crate::testbed::Testbed;
use crate::topology::{Family, Host, cluster_ip};
use crate::traffic::MANY_PORTS;

/// The namespace of the marker, which stays when the others go.
const MARKER: &str = "kpr-marker";
/// The number of its cluster IP.
const MARKER_NUMBER: u8 = 250;
const FIRST_MARK: u16 = 10_000;
const MARKS: u16 = 50_000;

/// What both proxies show when they have taken in all that was written before it.
#[derive(Clone, Copy, Debug)]
pub struct Mark(u16);

impl Mark {
    /// Where the marker's Service is.
    pub fn address(self, family: Family) -> std::net::SocketAddr {
        (cluster_ip(family, MARKER_NUMBER), FIRST_MARK + self.0).into()
    }

    /// At which port its endpoint answers.
    pub fn target(self) -> u16 {
        MANY_PORTS[usize::from(self.0) % MANY_PORTS.len()]
    }
}

#[allow(missing_debug_implementations, reason = "the client has none")]
pub struct Cluster {
    runtime: Runtime,
    client: kube::Client,
    /// The slices that each Service has there.
    slices: BTreeMap<u8, BTreeSet<String>>,
    mark: Mark,
}

impl Cluster {
    pub fn new(testbed: &Testbed) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let client = runtime.block_on(async {
            let file = Kubeconfig::read_from(testbed.kubeconfig("admin"))?;
            let options = KubeConfigOptions::default();
            let config = kube::Config::from_custom_kubeconfig(file, &options).await?;
            anyhow::Ok(kube::Client::try_from(config)?)
        })?;
        let mut cluster = Self {
            runtime,
            client,
            slices: BTreeMap::new(),
            mark: Mark(0),
        };
        let node = node_manifest();
        let status = json!({"status": node["status"]});
        let spec = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": node["metadata"], "spec": node["spec"],
        });
        let nodes: Api<Node> = Api::all(cluster.client.clone());
        let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
        cluster.runtime.block_on(async {
            apply(&nodes, Host::Node.name(), &spec).await?;
            let merge = Patch::Merge(&status);
            nodes
                .patch_status(Host::Node.name(), &PatchParams::default(), &merge)
                .await?;
            for name in [NAMESPACE, MARKER] {
                let manifest =
                    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
                apply(&namespaces, name, &manifest).await?;
            }
            anyhow::Ok(())
        })?;
        cluster.clear()?;
        cluster.mark()?;
        Ok(cluster)
    }

    fn services(&self, namespace: &str) -> Api<Service> {
        Api::namespaced(self.client.clone(), namespace)
    }

    fn endpoint_slices(&self, namespace: &str) -> Api<EndpointSlice> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Deletes all Services under test.
    pub fn clear(&mut self) -> Result<()> {
        self.slices.clear();
        self.empty(NAMESPACE)
    }

    fn empty(&self, namespace: &str) -> Result<()> {
        let (services, slices) = (self.services(namespace), self.endpoint_slices(namespace));
        self.runtime.block_on(async {
            let (how, all) = (DeleteParams::default(), kube::api::ListParams::default());
            services.delete_collection(&how, &all).await?;
            slices.delete_collection(&how, &all).await?;
            Ok(())
        })
    }

    /// Does it.
    pub fn take(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Put(service) => self.put(service).with_context(|| step.to_string()),
            Step::Delete(n) => self.delete(*n).with_context(|| step.to_string()),
            Step::Probe => Ok(()),
        }
    }

    fn put(&mut self, service: &objects::Service) -> Result<()> {
        let (services, slices) = (self.services(NAMESPACE), self.endpoint_slices(NAMESPACE));
        let (name, manifest, status) = (service.name(), service.manifest(), service.status());
        let wanted = service.slice_manifests();
        let there = self.slices.entry(service.n).or_default();
        self.runtime.block_on(async {
            if let Err(error) = apply(&services, &name, &manifest).await {
                // What cannot be changed, such as the first family, is made anew.
                let is_invalid = matches!(&error, kube::Error::Api(status) if status.code == 422);
                let exists = services.get_opt(&name).await?.is_some();
                anyhow::ensure!(is_invalid && exists, "{error}");
                services.delete(&name, &DeleteParams::default()).await?;
                apply(&services, &name, &manifest).await?;
            }
            services
                .patch_status(&name, &PatchParams::default(), &Patch::Merge(&status))
                .await?;
            let names: BTreeSet<String> = wanted.iter().map(|(name, _)| name.clone()).collect();
            for gone in there.difference(&names) {
                slices.delete(gone, &DeleteParams::default()).await?;
            }
            for (name, manifest) in &wanted {
                apply(&slices, name, manifest).await?;
            }
            *there = names;
            anyhow::Ok(())
        })
    }

    fn delete(&mut self, n: u8) -> Result<()> {
        let (services, slices) = (self.services(NAMESPACE), self.endpoint_slices(NAMESPACE));
        let there = self.slices.remove(&n).unwrap_or_default();
        self.runtime.block_on(async {
            let how = DeleteParams::default();
            // A step that made it may have been left out.
            if services.get_opt(&objects::name(n)).await?.is_some() {
                services.delete(&objects::name(n), &how).await?;
            }
            for name in there {
                slices.delete(&name, &how).await?;
            }
            Ok(())
        })
    }

    /// Writes the next mark: a Service and its slices, after all else.
    pub fn mark(&mut self) -> Result<Mark> {
        self.mark = Mark((self.mark.0 + 1) % MARKS);
        let mark = self.mark;
        let addresses = Family::ALL.map(|family| cluster_ip(family, MARKER_NUMBER));
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": MARKER, "namespace": MARKER},
            "spec": {
                "clusterIP": addresses[0], "clusterIPs": addresses,
                "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack",
                "ports": [{"port": FIRST_MARK + mark.0}],
            },
        });
        let (services, slices) = (self.services(MARKER), self.endpoint_slices(MARKER));
        self.runtime.block_on(async {
            apply(&services, MARKER, &service).await?;
            for family in Family::ALL {
                let (name, manifest) = marker_slice(family, mark.target());
                apply(&slices, &name, &manifest).await?;
            }
            Ok(mark)
        })
    }
}

/// Other tests have the API server after this.
impl Drop for Cluster {
    fn drop(&mut self) {
        for namespace in [NAMESPACE, MARKER] {
            if let Err(error) = self.empty(namespace) {
                eprintln!("{namespace} is not empty: {error:?}");
            }
        }
    }
}

fn marker_slice(family: Family, target: u16) -> (String, Value) {
    let name = format!("{MARKER}-{family}");
    let manifest = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": name, "namespace": MARKER, "labels": {"kubernetes.io/service-name": MARKER},
        },
        "addressType": match family { Family::V4 => "IPv4", Family::V6 => "IPv6" },
        "ports": [{"name": "", "protocol": "TCP", "port": target}],
        "endpoints": [{"addresses": [Host::Web1.address(family)], "nodeName": Host::Node.name()}],
    });
    (name, manifest)
}

async fn apply<K>(api: &Api<K>, name: &str, manifest: &Value) -> kube::Result<()>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let how = PatchParams::apply("kpr-differential").force();
    api.patch(name, &how, &Patch::Apply(manifest))
        .await
        .map(drop)
}
