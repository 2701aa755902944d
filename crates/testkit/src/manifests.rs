// SPDX-License-Identifier: Apache-2.0
//! Manifests: Services and EndpointSlices of the small cluster, and the directory that the proxy
//! reads.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::topology::{
    Family, Host, cluster_ip, external_ip, load_balancer_vip, node_port, second,
    second_node_address,
};
use crate::traffic::Protocol;

/// The zone of the node under test.
pub const ZONE: &str = "zone-a";
pub const OTHER_ZONE: &str = "zone-b";
/// A file system in memory. The guest kernel's other files are the host's, and of those it does not
/// tell when they change.
const MEMORY: &str = "/run";
const NAMESPACE: &str = "default";

/// One port of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::struct_field_names, reason = "the words of the API")]
pub struct Port {
    pub port: u16,
    pub target: u16,
    pub node_port: Option<u16>,
}

/// An endpoint and its conditions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub host: Host,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub zone_hint: Option<&'static str>,
    pub node_hint: Option<&'static str>,
    pub zone: Option<&'static str>,
}

impl Endpoint {
    pub const fn ready(host: Host) -> Self {
        Self {
            host,
            ready: true,
            serving: true,
            terminating: false,
            zone_hint: None,
            node_hint: None,
            zone: None,
        }
    }

    pub const fn terminating(host: Host, serving: bool) -> Self {
        Self {
            ready: false,
            serving,
            terminating: true,
            ..Self::ready(host)
        }
    }

    #[must_use]
    pub const fn for_zone(self, zone: &'static str) -> Self {
        Self {
            zone_hint: Some(zone),
            ..self
        }
    }

    #[must_use]
    pub const fn for_node(self, node: &'static str) -> Self {
        Self {
            node_hint: Some(node),
            ..self
        }
    }

    #[must_use]
    pub const fn in_zone(self, zone: &'static str) -> Self {
        Self {
            zone: Some(zone),
            ..self
        }
    }

    pub fn manifest(&self, family: Family) -> Value {
        let mut hints = json!({});
        if let Some(zone) = self.zone_hint {
            hints["forZones"] = json!([{ "name": zone }]);
        }
        if let Some(node) = self.node_hint {
            hints["forNodes"] = json!([{ "name": node }]);
        }
        json!({
            "addresses": [self.host.address(family)],
            "conditions": {
                "ready": self.ready,
                "serving": self.serving,
                "terminating": self.terminating,
            },
            "nodeName": self.host.node().map(Host::name),
            "zone": self.zone,
            "hints": hints,
        })
    }
}

/// A dual-stack Service that serves every port with each of its protocols. It has number `n`, from
/// which its addresses and node ports follow.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    pub name: String,
    pub n: u8,
    pub protocols: Vec<Protocol>,
    pub ports: Vec<Port>,
    pub endpoints: Vec<Endpoint>,
    /// Slices beside the one with those, whose endpoints serve at another port.
    pub elsewhere: Vec<(u16, Vec<Endpoint>)>,
    pub external: bool,
    pub load_balancer: bool,
    /// Twice as many external IPs and VIPs.
    pub has_second: bool,
    /// Fields of `spec` beside those.
    pub spec: Value,
    /// `ipMode` of the load balancer's addresses.
    pub ip_mode: Option<&'static str>,
    pub annotations: BTreeMap<&'static str, String>,
}

impl Service {
    /// A cluster IP with port 80 for all protocols, served at 8080 by these pods.
    pub fn new(name: &str, n: u8, endpoints: &[Host]) -> Self {
        Self {
            name: name.to_owned(),
            n,
            protocols: Protocol::ALL.to_vec(),
            ports: vec![Port {
                port: 80,
                target: 8080,
                node_port: None,
            }],
            endpoints: endpoints.iter().copied().map(Endpoint::ready).collect(),
            elsewhere: Vec::new(),
            external: false,
            load_balancer: false,
            has_second: false,
            spec: json!({}),
            ip_mode: None,
            annotations: BTreeMap::new(),
        }
    }

    /// A node port, an external IP and a load-balancer VIP as well.
    #[must_use]
    pub fn exposed(mut self) -> Self {
        let number = node_port(self.n);
        for port in &mut self.ports {
            port.node_port = Some(number);
        }
        self.external = true;
        self.load_balancer = true;
        self
    }

    /// Another field of `spec`.
    #[must_use]
    pub fn with(mut self, field: &str, value: Value) -> Self {
        self.spec[field] = value;
        self
    }

    #[must_use]
    pub fn endpoints(mut self, endpoints: &[Endpoint]) -> Self {
        self.endpoints = endpoints.to_vec();
        self
    }

    #[must_use]
    pub fn port(mut self, port: u16, target: u16) -> Self {
        self.ports.push(Port {
            port,
            target,
            node_port: None,
        });
        self
    }

    /// One more slice: pods that serve all ports of the Service at another number.
    #[must_use]
    pub fn elsewhere(mut self, target: u16, endpoints: &[Host]) -> Self {
        let endpoints = endpoints.iter().copied().map(Endpoint::ready).collect();
        self.elsewhere.push((target, endpoints));
        self
    }

    /// Another external IP and another VIP.
    #[must_use]
    pub fn twice(mut self) -> Self {
        self.has_second = true;
        self
    }

    #[must_use]
    pub fn annotated(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.annotations.insert(name, value.into());
        self
    }

    #[must_use]
    pub fn ip_mode(mut self, mode: &'static str) -> Self {
        self.ip_mode = Some(mode);
        self
    }

    #[must_use]
    pub fn protocols(mut self, protocols: &[Protocol]) -> Self {
        self.protocols = protocols.to_vec();
        self
    }

    /// Port names are unique in a Service, so each carries its protocol.
    fn port_names(&self) -> impl Iterator<Item = (String, Protocol, Port)> + '_ {
        self.ports.iter().flat_map(|port| {
            self.protocols
                .iter()
                .map(|protocol| (format!("{protocol}-{}", port.port), *protocol, *port))
        })
    }

    pub fn service_manifest(&self) -> Value {
        let of_both = |address: fn(Family, u8) -> std::net::IpAddr| {
            let second = self.has_second.then(|| second(self.n));
            let numbers = [self.n].into_iter().chain(second);
            numbers
                .flat_map(|n| Family::ALL.map(|family| address(family, n).to_string()))
                .collect::<Vec<String>>()
        };
        let has_node_port = self.ports.iter().any(|port| port.node_port.is_some());
        let ports: Vec<Value> = self
            .port_names()
            .map(|(name, protocol, port)| {
                let mut value = json!({
                    "name": name,
                    "protocol": protocol.manifest_name(),
                    "port": port.port,
                    "targetPort": port.target,
                });
                if let Some(number) = port.node_port {
                    value["nodePort"] = json!(number);
                }
                value
            })
            .collect();
        let cluster_ips = Family::ALL.map(|family| cluster_ip(family, self.n).to_string());
        let [first_cluster_ip, _] = &cluster_ips;
        let mut spec = json!({
            "type": match (self.load_balancer, has_node_port) {
                (true, _) => "LoadBalancer",
                (false, true) => "NodePort",
                (false, false) => "ClusterIP",
            },
            "clusterIP": first_cluster_ip,
            "clusterIPs": cluster_ips,
            "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "RequireDualStack",
            "ports": ports,
        });
        if self.external {
            spec["externalIPs"] = json!(of_both(external_ip));
        }
        for (field, value) in self.spec.as_object().into_iter().flatten() {
            spec[field] = value.clone();
        }
        let mut manifest = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "namespace": NAMESPACE,
                "name": self.name,
                "annotations": self.annotations,
            },
            "spec": spec,
        });
        if self.load_balancer {
            let ingress: Vec<Value> = of_both(load_balancer_vip)
                .into_iter()
                .map(|ip| match self.ip_mode {
                    Some(mode) => json!({ "ip": ip, "ipMode": mode }),
                    None => json!({ "ip": ip }),
                })
                .collect();
            manifest["status"] = json!({ "loadBalancer": { "ingress": ingress } });
        }
        manifest
    }

    /// One slice per family, and one more for each target elsewhere.
    pub fn slice_manifests(&self) -> Vec<Value> {
        let here = (None, &self.endpoints);
        let elsewhere = self.elsewhere.iter();
        [here]
            .into_iter()
            .chain(elsewhere.map(|(target, endpoints)| (Some(*target), endpoints)))
            .flat_map(|(target, endpoints)| {
                Family::ALL.map(|family| self.slice_manifest(family, target, endpoints))
            })
            .collect()
    }

    fn slice_manifest(&self, family: Family, target: Option<u16>, endpoints: &[Endpoint]) -> Value {
        let ports: Vec<Value> = self
            .port_names()
            .map(|(name, protocol, port)| {
                json!({
                    "name": name,
                    "protocol": protocol.manifest_name(),
                    "port": target.unwrap_or(port.target),
                })
            })
            .collect();
        let endpoints: Vec<Value> = endpoints
            .iter()
            .map(|endpoint| endpoint.manifest(family))
            .collect();
        let suffix = target.map_or_else(String::new, |target| format!("-{target}"));
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "namespace": NAMESPACE,
                "name": format!("{}-{family}{suffix}", self.name),
                "labels": { "kubernetes.io/service-name": self.name },
            },
            "addressType": match family { Family::V4 => "IPv4", Family::V6 => "IPv6" },
            "ports": ports,
            "endpoints": endpoints,
        })
    }

    /// All of it, as one `List`.
    pub fn manifest(&self) -> Value {
        let mut items = vec![self.service_manifest()];
        items.extend(self.slice_manifests());
        list(&items)
    }
}

/// The Node object of the node under test.
pub fn node_manifest() -> Value {
    let address = |ip| json!({ "type": "InternalIP", "address": ip });
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": Host::Node.name(),
            "labels": { "topology.kubernetes.io/zone": ZONE },
        },
        "spec": { "podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:244:1::/64"] },
        "status": {
            "addresses": [
                address(Host::Node.address(Family::V4)),
                address(Host::Node.address(Family::V6)),
                address(second_node_address(Family::V4)),
                address(second_node_address(Family::V6)),
            ],
        },
    })
}

pub fn list(items: &[Value]) -> Value {
    json!({ "apiVersion": "v1", "kind": "List", "items": items })
}

/// A directory of manifests that disappears with this.
#[derive(Debug)]
pub struct ManifestDirectory {
    directory: TempDir,
}

impl ManifestDirectory {
    /// A directory with the Node object and these Services, one file each.
    pub fn new(services: &[Service]) -> Result<Self> {
        let mut builder = tempfile::Builder::new();
        builder.prefix("kpr-manifests-");
        // Only root may write there, and needs to.
        let directory = builder.tempdir_in(MEMORY).or_else(|_| builder.tempdir())?;
        let manifests = Self { directory };
        manifests.write("node.json", &node_manifest().to_string())?;
        for service in services {
            manifests.apply(service)?;
        }
        Ok(manifests)
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Creates or changes a Service and its slices.
    pub fn apply(&self, service: &Service) -> Result<()> {
        self.write(
            &format!("{}.json", service.name),
            &serde_json::to_string_pretty(&service.manifest())?,
        )
    }

    /// Removes a Service and its slices.
    pub fn delete(&self, service: &Service) -> Result<()> {
        self.remove(&format!("{}.json", service.name))
    }

    /// Writes a file in one step, as `mv` does, so that no half of it is read.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        let draft = self.file(&format!(".{name}.draft"));
        fs::write(&draft, text)
            .and_then(|()| fs::rename(&draft, self.file(name)))
            .with_context(|| format!("cannot write the manifest {name}"))
    }

    pub fn remove(&self, name: &str) -> Result<()> {
        fs::remove_file(self.file(name)).with_context(|| format!("cannot remove {name}"))
    }
}
