// SPDX-License-Identifier: Apache-2.0
//! Converts API objects to model objects. This is the only module that knows `k8s_openapi`'s types
//! in detail. It does not depend on the source: the same rules hold for the API server and for
//! manifests. Invalid parts are left out and reported as [`Problem`]s.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use kpr_core::model::endpoint::Conditions;
use kpr_core::model::{
    EndpointSlice, IpFamily, NodeHint, NodeInfo, PortSpec, Service, ServiceName, SliceEndpoint,
    SliceName, SlicePort,
};

use super::problem::{Problem, reason};
use super::{Annotations, ClusterSize, Options};
use crate::shortened::quoted;
use address::parse_cidr;
use annotations::SliceWeights;
use intern::Interner;
use problems::Problems;
pub(crate) use problems::{object_name, unreadable};

mod address;
mod annotations;
mod intern;
mod problems;
#[cfg(test)]
mod tests;

/// Services with this label are another proxy's.
pub const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// Slices with this label belong to headless Services.
pub const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// The Service of a slice.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
pub(super) const TRIGGER_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";
const AUTOSCALER_TAINT: &str = "ToBeDeletedByClusterAutoscaler";
/// The API's default of `sessionAffinityConfig.clientIP.timeoutSeconds`.
const DEFAULT_AFFINITY_SECONDS: i32 = 10_800;
/// The API's limit for it: one day.
const MAX_AFFINITY_SECONDS: i32 = 86_400;

/// Whether an annotation means something here.
pub(super) fn reads_annotation(name: &str) -> bool {
    name == TRIGGER_ANNOTATION || annotations::is_read(name)
}

/// Turns API objects into model objects. Keeps strings that repeat in many objects once.
#[derive(Debug)]
pub struct Converter {
    node_name: Arc<str>,
    allow_external_ips: bool,
    annotations: Annotations,
    cluster: ClusterSize,
    interner: Interner,
}

/// A model object, or `None` if the proxy has nothing to do with it, and what was left out.
pub type Converted<T> = (Option<T>, Vec<Problem>);

impl Converter {
    pub fn new(options: &Options) -> Self {
        Self {
            node_name: options.node_name.clone(),
            allow_external_ips: options.allow_external_ips,
            annotations: options.annotations.clone(),
            cluster: options.cluster.clone(),
            interner: Interner::default(),
        }
    }

    /// A Service; `None` for those that have no cluster IP (headless, `ExternalName`) or another
    /// proxy.
    pub fn service(&mut self, object: &core::Service) -> Converted<Service> {
        let mut problems = Problems::of("Service", &object.metadata);
        let service = self.service_or_none(object, &mut problems);
        (service, problems.found)
    }

    fn service_or_none(
        &mut self,
        object: &core::Service,
        problems: &mut Problems,
    ) -> Option<Service> {
        let meta = &object.metadata;
        let spec = object.spec.as_ref()?;
        let type_ = spec.type_.as_deref().unwrap_or("ClusterIP");
        if has_label(meta, PROXY_NAME_LABEL)
            || type_ == "ExternalName"
            || spec.cluster_ip.as_deref() == Some("None")
        {
            return None;
        }
        let name = problems.name(meta)?;
        let cluster_ips = cluster_ips(spec, problems);
        if cluster_ips.is_empty() {
            if problems.found.is_empty() {
                problems.add("spec.clusterIP", reason::NO_CLUSTER_IP, "missing");
            }
            return None;
        }
        let external_ips = texts(spec.external_ips.as_ref());
        let externally_accessible =
            matches!(type_, "LoadBalancer" | "NodePort") || !external_ips.is_empty();
        let external_policy_local =
            spec.external_traffic_policy.as_deref() == Some("Local") && externally_accessible;
        let health_check_node_port = if type_ == "LoadBalancer" && external_policy_local {
            problems.optional_port("spec.healthCheckNodePort", spec.health_check_node_port)
        } else {
            None
        };
        let kinds = &["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"][..];
        let policies = &["Cluster", "Local"][..];
        for (field, word, words) in [
            ("spec.type", &spec.type_, kinds),
            (
                "spec.externalTrafficPolicy",
                &spec.external_traffic_policy,
                policies,
            ),
            (
                "spec.internalTrafficPolicy",
                &spec.internal_traffic_policy,
                policies,
            ),
        ] {
            problems.one_of(field, word.as_deref(), words);
        }
        Some(Service {
            name: ServiceName {
                namespace: self.interner.text(&name.0),
                name: name.1,
            },
            uid: meta.uid.as_deref().unwrap_or_default().into(),
            created: meta
                .creation_timestamp
                .as_ref()
                .map_or(0, |time| time.0.as_second()),
            cluster_ips,
            ports: self.service_ports(spec, problems),
            client_ip_affinity: client_ip_affinity(spec, problems),
            external_ips: if self.allow_external_ips {
                problems.addresses("spec.externalIPs", external_ips)
            } else {
                Vec::new()
            },
            load_balancer_vips: load_balancer_vips(object, problems),
            load_balancer_source_ranges: source_ranges(spec, problems),
            external_policy_local,
            internal_policy_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            health_check_node_port,
            ipvs: annotations::ipvs_options(meta, &self.annotations, problems),
        })
    }

    fn service_ports(
        &mut self,
        spec: &core::ServiceSpec,
        problems: &mut Problems,
    ) -> Vec<PortSpec> {
        let mut ports: Vec<PortSpec> = Vec::new();
        let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
        for (index, port) in spec.ports.iter().flatten().enumerate() {
            let field = |name: &str| format!("spec.ports[{index}].{name}");
            let Some(protocol) = problems.protocol(&field("protocol"), port.protocol.as_deref())
            else {
                continue;
            };
            let Some(number) = problems.port(&field("port"), Some(port.port)) else {
                continue;
            };
            let name = port.name.as_deref().unwrap_or_default();
            // The name and protocol identify a port everywhere after this.
            if names.contains(&(name, protocol)) {
                let message = format!("another {protocol} port has the name {}", quoted(name));
                problems.add(&field("name"), reason::DUPLICATE, message);
                continue;
            }
            if !numbers.insert((number, protocol)) {
                let message = format!("another port is {protocol} {number} too");
                problems.add(&field("port"), reason::DUPLICATE, message);
                continue;
            }
            names.insert((name, protocol));
            ports.push(PortSpec {
                name: self.interner.text(name),
                protocol,
                port: number.get(),
                node_port: problems.optional_port(&field("nodePort"), port.node_port),
            });
        }
        // Kept as long as the Service lives.
        ports.shrink_to_fit();
        ports
    }

    /// An EndpointSlice; `None` for those of headless Services and of no Service.
    pub fn slice(&mut self, object: &discovery::EndpointSlice) -> Converted<EndpointSlice> {
        let mut problems = Problems::of("EndpointSlice", &object.metadata);
        let slice = self.slice_or_none(object, &mut problems);
        (slice, problems.found)
    }

    fn slice_or_none(
        &mut self,
        object: &discovery::EndpointSlice,
        problems: &mut Problems,
    ) -> Option<EndpointSlice> {
        let meta = &object.metadata;
        if has_label(meta, HEADLESS_LABEL) {
            return None;
        }
        let service = label(meta, SERVICE_NAME_LABEL).filter(|name| !name.is_empty())?;
        let (namespace, name) = problems.name(meta)?;
        let family = match object.address_type.as_str() {
            "IPv4" => IpFamily::V4,
            "IPv6" => IpFamily::V6,
            "FQDN" => {
                let message = "FQDN endpoints cannot be proxied; the slice is ignored";
                problems.add("addressType", reason::VALUE, message);
                return None;
            }
            other => {
                let other = quoted(other);
                let message = format!("{other} must be IPv4 or IPv6; the slice is ignored");
                problems.add("addressType", reason::VALUE, message);
                return None;
            }
        };
        let mut ports = Vec::new();
        for (index, port) in object.ports.iter().flatten().enumerate() {
            let field = |name: &str| format!("ports[{index}].{name}");
            let protocol = problems.protocol(&field("protocol"), port.protocol.as_deref());
            let number = problems.port(&field("port"), port.port);
            if let (Some(protocol), Some(number)) = (protocol, number) {
                ports.push(SlicePort {
                    name: self.interner.text(port.name.as_deref().unwrap_or_default()),
                    protocol,
                    port: number.get(),
                });
            }
        }
        let weights = SliceWeights::of(meta, &self.annotations, problems);
        let mut endpoints: Vec<SliceEndpoint> = object
            .endpoints
            .iter()
            .flatten()
            .enumerate()
            .filter_map(|(index, endpoint)| self.endpoint(index, endpoint, family, problems))
            .map(|endpoint| SliceEndpoint {
                weight: weights.of_endpoint(endpoint.address),
                ..endpoint
            })
            .collect();
        // Slices are kept as long as they live, and there are many.
        endpoints.shrink_to_fit();
        ports.shrink_to_fit();
        let namespace = self.interner.text(&namespace);
        Some(EndpointSlice {
            service: ServiceName {
                namespace: namespace.clone(),
                name: service.into(),
            },
            name: SliceName { namespace, name },
            family,
            ports,
            endpoints,
            last_change_trigger: last_change_trigger(meta),
        })
    }

    fn endpoint(
        &mut self,
        index: usize,
        endpoint: &discovery::Endpoint,
        family: IpFamily,
        problems: &mut Problems,
    ) -> Option<SliceEndpoint> {
        let field = format!("endpoints[{index}].addresses");
        let Some(text) = endpoint.addresses.first() else {
            problems.add(&field, reason::ADDRESS, "empty; the endpoint is ignored");
            return None;
        };
        let address = problems.host(&format!("{field}[0]"), text)?;
        if IpFamily::of(address) != family {
            let text = quoted(text);
            let message = format!("{text} is not {family}, as the slice's addressType says");
            problems.add(&format!("{field}[0]"), reason::ADDRESS, message);
            return None;
        }
        if let Some(node) = &endpoint.node_name {
            self.cluster.saw(node);
        }
        let conditions = endpoint.conditions.as_ref();
        let hints = endpoint.hints.as_ref();
        let zones = hints.and_then(|hints| hints.for_zones.as_ref());
        let nodes = hints.and_then(|hints| hints.for_nodes.as_ref());
        Some(SliceEndpoint {
            address,
            local: endpoint.node_name.as_deref() == Some(&*self.node_name),
            conditions: Conditions::from_api(
                conditions.and_then(|c| c.ready),
                conditions.and_then(|c| c.serving),
                conditions.and_then(|c| c.terminating),
            ),
            node_hint: match nodes {
                Some(nodes) if nodes.iter().any(|node| *node.name == *self.node_name) => {
                    NodeHint::Here
                }
                Some(nodes) if !nodes.is_empty() => NodeHint::Elsewhere,
                _ => NodeHint::Absent,
            },
            zones: self.interner.zones(
                endpoint.zone.as_deref().filter(|zone| !zone.is_empty()),
                zones.into_iter().flatten().map(|zone| zone.name.as_str()),
            ),
            weight: None,
        })
    }

    /// A Node; `None` unless it is ours.
    pub fn node(&mut self, object: &core::Node) -> Converted<NodeInfo> {
        let mut problems = Problems::of("Node", &object.metadata);
        if object.metadata.name.as_deref() != Some(&*self.node_name) {
            return (None, problems.found);
        }
        let spec = object.spec.as_ref();
        let mut pod_cidrs = Vec::new();
        let given = spec.and_then(|spec| spec.pod_cidrs.as_ref());
        let old = spec.and_then(|spec| spec.pod_cidr.as_ref());
        let texts = match given {
            Some(given) if !given.is_empty() => given.as_slice(),
            _ => old.map_or(&[][..], std::slice::from_ref),
        };
        for (index, text) in texts.iter().enumerate() {
            pod_cidrs.extend(problems.cidr(&format!("spec.podCIDRs[{index}]"), text));
        }
        let info = NodeInfo {
            name: self.node_name.clone(),
            addresses: node_addresses(object, &mut problems),
            pod_cidrs,
            zone: label(&object.metadata, ZONE_LABEL).map(|zone| self.interner.text(zone)),
            being_deleted: object.metadata.deletion_timestamp.is_some(),
            marked_by_autoscaler: spec
                .and_then(|spec| spec.taints.as_ref())
                .is_some_and(|taints| taints.iter().any(|taint| taint.key == AUTOSCALER_TAINT)),
        };
        (Some(info), problems.found)
    }

    /// The ranges of a `ServiceCIDR`.
    pub fn service_cidr(&mut self, object: &networking::ServiceCIDR) -> Converted<Vec<IpNet>> {
        let mut problems = Problems::of("ServiceCIDR", &object.metadata);
        let spec = object.spec.as_ref();
        let mut cidrs = Vec::new();
        let texts = spec.and_then(|spec| spec.cidrs.as_ref());
        for (index, text) in texts.into_iter().flatten().enumerate() {
            cidrs.extend(problems.cidr(&format!("spec.cidrs[{index}]"), text));
        }
        (Some(cidrs), problems.found)
    }
}

fn label<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.labels.as_ref()?.get(key).map(String::as_str)
}

fn has_label(meta: &ObjectMeta, key: &str) -> bool {
    label(meta, key).is_some()
}

fn texts(list: Option<&Vec<String>>) -> &[String] {
    list.map_or(&[], Vec::as_slice)
}

/// At most one cluster IP for each family. `ipFamilies` says which of `clusterIPs` is of which; the
/// API server always writes both, a manifest may leave them out.
fn cluster_ips(spec: &core::ServiceSpec, problems: &mut Problems) -> Vec<IpAddr> {
    let first = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty());
    let all = texts(spec.cluster_ips.as_ref());
    let families = texts(spec.ip_families.as_ref());
    let mut found: Vec<IpAddr> = Vec::new();
    let candidates: Vec<(String, &str)> = if all.is_empty() {
        first
            .map(|text| ("spec.clusterIP".to_owned(), text))
            .into_iter()
            .collect()
    } else {
        all.iter()
            .enumerate()
            .map(|(index, text)| (format!("spec.clusterIPs[{index}]"), text.as_str()))
            .collect()
    };
    for (index, (field, text)) in candidates.into_iter().enumerate() {
        let Some(address) = problems.host(&field, text) else {
            continue;
        };
        let family = IpFamily::of(address);
        if !families.is_empty() && families.get(index).map(String::as_str) != Some(family.as_str())
        {
            let message = format!("{text:?} is {family}, but spec.ipFamilies says otherwise");
            problems.add(&field, reason::ADDRESS, message);
        } else if found.iter().any(|ip| IpFamily::of(*ip) == family) {
            let message = format!("{text:?} is a second {family} address");
            problems.add(&field, reason::DUPLICATE, message);
        } else {
            found.push(address);
        }
    }
    found
}

fn client_ip_affinity(spec: &core::ServiceSpec, problems: &mut Problems) -> Option<Duration> {
    match spec.session_affinity.as_deref() {
        None | Some("None" | "") => return None,
        Some("ClientIP") => {}
        Some(other) => {
            let other = quoted(other);
            let message = format!("{other} must be None or ClientIP; there is no affinity");
            problems.add("spec.sessionAffinity", reason::VALUE, message);
            return None;
        }
    }
    let seconds = spec
        .session_affinity_config
        .as_ref()
        .and_then(|config| config.client_ip.as_ref())
        .and_then(|config| config.timeout_seconds)
        .unwrap_or(DEFAULT_AFFINITY_SECONDS);
    let seconds = if (1..=MAX_AFFINITY_SECONDS).contains(&seconds) {
        seconds
    } else {
        let message = format!(
            "{seconds} must be 1 to {MAX_AFFINITY_SECONDS}; {DEFAULT_AFFINITY_SECONDS} is used"
        );
        let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        problems.add(field, reason::VALUE, message);
        DEFAULT_AFFINITY_SECONDS
    };
    Some(Duration::from_secs(u64::from(seconds.unsigned_abs())))
}

/// The addresses of the load balancer that reach a node unchanged. With `ipMode: Proxy` the load
/// balancer delivers to node ports, and a client must go through it.
fn load_balancer_vips(object: &core::Service, problems: &mut Problems) -> Vec<IpAddr> {
    let ingress = object
        .status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref())
        .and_then(|status| status.ingress.as_ref());
    let mut vips = Vec::new();
    for (index, ingress) in ingress.into_iter().flatten().enumerate() {
        let Some(ip) = ingress.ip.as_deref().filter(|ip| !ip.is_empty()) else {
            continue;
        };
        if matches!(ingress.ip_mode.as_deref(), None | Some("VIP")) {
            let field = format!("status.loadBalancer.ingress[{index}].ip");
            vips.extend(problems.address(&field, ip));
        }
    }
    vips
}

/// The source ranges that parse. If none of those given does, no client is admitted: an empty list
/// would admit all.
fn source_ranges(spec: &core::ServiceSpec, problems: &mut Problems) -> Vec<IpNet> {
    let given = texts(spec.load_balancer_source_ranges.as_ref());
    let mut ranges = Vec::new();
    for (index, text) in given.iter().enumerate() {
        let field = format!("spec.loadBalancerSourceRanges[{index}]");
        ranges.extend(problems.valid(&field, reason::SOURCE_RANGE, parse_cidr(text.trim())));
    }
    if ranges.is_empty() && !given.is_empty() {
        // No packet has the unspecified address as its source.
        ranges.extend(IpFamily::ALL.map(|family| IpNet::from(family.unspecified())));
    }
    ranges
}

/// When the change of the endpoints that led to this slice happened, in Unix nanoseconds.
fn last_change_trigger(meta: &ObjectMeta) -> Option<i64> {
    let text = meta.annotations.as_ref()?.get(TRIGGER_ANNOTATION)?;
    let time: jiff::Timestamp = text.parse().ok()?;
    i64::try_from(time.as_nanosecond()).ok()
}

fn node_addresses(object: &core::Node, problems: &mut Problems) -> Vec<IpAddr> {
    let mut found = Vec::new();
    let addresses = object
        .status
        .as_ref()
        .and_then(|status| status.addresses.as_ref());
    for wanted in ["InternalIP", "ExternalIP"] {
        for (index, address) in addresses.into_iter().flatten().enumerate() {
            if address.type_ == wanted {
                let field = format!("status.addresses[{index}].address");
                found.extend(problems.address(&field, &address.address));
            }
        }
    }
    found
}
