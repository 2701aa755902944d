// SPDX-License-Identifier: Apache-2.0
//! A Service with its slices as the test varies it: made by dice, turned into manifests, made
//! simpler.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde_json::{Value, json};

use super::dice::Dice;
use crate::manifests::{Endpoint, OTHER_ZONE, ZONE};
use crate::topology::{Family, Host, cluster_ip, external_ip, load_balancer_vip};
use crate::traffic::{MANY_PORTS, Protocol, WEB_PORTS, is_supported};

/// Where all Services under test are.
pub const NAMESPACE: &str = "kpr-differential";
/// The number of the external IP that several Services have, each at ports of its own.
pub const SHARED: u8 = 90;
/// How many Services there are at most; they have the numbers from 0.
pub const SERVICES: u8 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    ClusterIp,
    Headless,
    ExternalName,
    NodePort,
    LoadBalancer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    pub number: u16,
    pub protocol: Protocol,
    pub target: u16,
    /// `targetPort` is a name.
    pub is_named: bool,
}

/// A slice of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    pub family: Family,
    /// Its endpoints serve elsewhere than `targetPort` says.
    pub moved_to: Option<u16>,
    pub endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "the API's Service has as many"
)]
pub struct Service {
    /// From this follow its name, its addresses and its node ports.
    pub n: u8,
    pub kind: Kind,
    pub families: Vec<Family>,
    pub ports: Vec<Port>,
    pub has_external_ip: bool,
    pub has_shared_ip: bool,
    pub has_vip: bool,
    /// `ipMode: Proxy`: the load balancer's address is not the node's business.
    pub is_vip_elsewhere: bool,
    /// A load balancer that needs no node ports.
    pub has_no_node_ports: bool,
    pub source_ranges: Vec<&'static str>,
    pub is_internal_local: bool,
    pub is_external_local: bool,
    pub has_affinity: bool,
    pub publishes_not_ready: bool,
    pub distribution: Option<&'static str>,
    pub slices: Vec<Slice>,
}

/// The client, pods, the node, nobody: of both families, which the API takes together.
const RANGES: [&str; 8] = [
    "172.20.0.100/32",
    "10.244.0.0/16",
    "172.20.0.10/32",
    "192.0.2.0/24",
    "fd00:20::64/128",
    "fd00:244::/32",
    "fd00:20::a/128",
    "2001:db8:ffff::/48",
];

pub fn name(n: u8) -> String {
    format!("service-{n}")
}

/// The protocols that Services are given here. kube-proxy writes nothing at all if the kernel
/// refuses one rule.
pub fn protocols() -> Vec<Protocol> {
    Protocol::ALL
        .into_iter()
        .filter(|it| is_supported(*it))
        .collect()
}

impl Service {
    pub fn random(n: u8, dice: &mut Dice) -> Self {
        let kind = match dice.below(20) {
            0..=6 => Kind::ClusterIp,
            7 => Kind::Headless,
            8 => Kind::ExternalName,
            9..=12 => Kind::NodePort,
            _ => Kind::LoadBalancer,
        };
        let families = match dice.below(4) {
            0 => vec![Family::V4],
            1 => vec![Family::V6],
            _ => Family::ALL.to_vec(),
        };
        let has_shared_ip = dice.chance(20);
        let ports = ports(n, has_shared_ip, dice);
        let local = dice.chance(35);
        let mut service = Self {
            n,
            kind,
            families,
            ports,
            has_external_ip: dice.chance(35),
            has_shared_ip,
            has_vip: kind == Kind::LoadBalancer && dice.chance(85),
            is_vip_elsewhere: dice.chance(8),
            has_no_node_ports: dice.chance(15),
            source_ranges: Vec::new(),
            is_internal_local: dice.chance(20),
            is_external_local: local,
            has_affinity: dice.chance(15),
            publishes_not_ready: dice.chance(12),
            distribution: None,
            slices: Vec::new(),
        };
        if kind == Kind::LoadBalancer && dice.chance(40) {
            service.source_ranges = dice.some(&RANGES, 30);
        }
        if dice.chance(25) {
            service.distribution =
                Some(dice.pick(&["PreferClose", "PreferSameZone", "PreferSameNode"]));
        }
        service.roll_slices(dice);
        service
    }

    /// Other endpoints.
    pub fn roll_slices(&mut self, dice: &mut Dice) {
        let hints = self.distribution.is_some() || dice.chance(5);
        self.slices.clear();
        for family in Family::ALL {
            let mut known: BTreeMap<Host, Endpoint> = BTreeMap::new();
            // More slices than the Service has families are no mistake: the API allows them.
            let count = dice.pick(&[0, 1, 1, 1, 1, 2, 2, 3]);
            for _ in 0..count {
                let endpoints = dice.some(&Host::WEB, 45);
                let mut endpoints: Vec<Endpoint> = endpoints
                    .into_iter()
                    .map(|host| {
                        let new = endpoint(host, hints, dice);
                        // An endpoint that moves from one slice to another is in both for a moment,
                        // seldom with other conditions.
                        match known.entry(host) {
                            Entry::Occupied(mut known) if dice.chance(5) => {
                                known.insert(new.clone())
                            }
                            known => known.or_insert(new).clone(),
                        }
                    })
                    .collect();
                if dice.chance(10)
                    && let Some(first) = endpoints.first()
                {
                    // The same endpoint twice in one slice.
                    endpoints.push(first.clone());
                }
                self.slices.push(Slice {
                    family,
                    moved_to: dice.chance(15).then(|| dice.pick(&MANY_PORTS)),
                    endpoints,
                });
            }
        }
    }

    pub fn name(&self) -> String {
        name(self.n)
    }

    pub fn has_node_ports(&self) -> bool {
        match self.kind {
            Kind::NodePort => true,
            Kind::LoadBalancer => !self.has_no_node_ports,
            Kind::ClusterIp | Kind::Headless | Kind::ExternalName => false,
        }
    }

    /// The node port of a port. Two protocols at one number share it.
    pub fn node_port(n: u8, number: u16) -> u16 {
        30_000 + u16::from(n) * 10 + number % 10
    }

    pub fn health_check_port(n: u8) -> u16 {
        31_000 + u16::from(n)
    }

    /// Whether two slices, or one, say different things about an endpoint.
    pub fn disagrees(&self, family: Family) -> bool {
        let slices = || self.slices.iter().filter(|slice| slice.family == family);
        let all = || slices().flat_map(|slice| &slice.endpoints);
        all().any(|one| all().any(|other| one.host == other.host && one != other))
    }

    fn is_exposed(&self) -> bool {
        matches!(self.kind, Kind::NodePort | Kind::LoadBalancer)
            || (self.kind == Kind::ClusterIp && !self.external_ips().is_empty())
    }

    fn external_ips(&self) -> Vec<String> {
        let numbers = [(self.has_external_ip, self.n), (self.has_shared_ip, SHARED)];
        self.addresses(
            &numbers
                .into_iter()
                .filter(|(has, _)| *has)
                .map(|(_, n)| n)
                .collect::<Vec<_>>(),
            external_ip,
        )
    }

    fn addresses(&self, numbers: &[u8], of: fn(Family, u8) -> std::net::IpAddr) -> Vec<String> {
        let families = self.families.iter();
        families
            .flat_map(|family| numbers.iter().map(|n| of(*family, *n).to_string()))
            .collect()
    }

    fn port_name(&self, port: Port) -> String {
        // One port needs no name.
        if self.ports.len() == 1 && !port.is_named {
            return String::new();
        }
        format!("{}-{}", port.protocol, port.number)
    }

    pub fn manifest(&self) -> Value {
        let mut metadata = json!({"name": self.name(), "namespace": NAMESPACE});
        metadata["labels"] = json!({"kpr": "differential"});
        let mut spec = json!({"type": self.type_name()});
        if self.kind == Kind::ExternalName {
            spec["externalName"] = json!("elsewhere.example.com");
            return json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec});
        }
        let ports = self.ports.iter().map(|port| {
            let mut value = json!({
                "name": self.port_name(*port),
                "protocol": port.protocol.manifest_name(),
                "port": port.number,
                "targetPort": if port.is_named { json!("web") } else { json!(port.target) },
            });
            if self.has_node_ports() {
                value["nodePort"] = json!(Self::node_port(self.n, port.number));
            }
            value
        });
        spec["ports"] = ports.collect();
        let families = self.families.iter().map(|family| match family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        });
        spec["ipFamilies"] = families.collect();
        spec["ipFamilyPolicy"] = json!(if self.families.len() == 2 {
            "RequireDualStack"
        } else {
            "SingleStack"
        });
        let cluster_ips = match self.kind {
            Kind::Headless => vec!["None".to_owned()],
            _ => self.addresses(&[self.n + 100], cluster_ip),
        };
        spec["clusterIP"] = json!(cluster_ips[0]);
        spec["clusterIPs"] = json!(cluster_ips);
        let external = self.external_ips();
        if !external.is_empty() {
            spec["externalIPs"] = json!(external);
        }
        if self.kind == Kind::LoadBalancer {
            spec["allocateLoadBalancerNodePorts"] = json!(!self.has_no_node_ports);
            if !self.source_ranges.is_empty() {
                spec["loadBalancerSourceRanges"] = json!(self.source_ranges);
            }
        }
        if self.is_exposed() {
            spec["externalTrafficPolicy"] = json!(if self.is_external_local {
                "Local"
            } else {
                "Cluster"
            });
            if self.has_health_check() {
                spec["healthCheckNodePort"] = json!(Self::health_check_port(self.n));
            }
        }
        spec["internalTrafficPolicy"] = json!(if self.is_internal_local {
            "Local"
        } else {
            "Cluster"
        });
        spec["sessionAffinity"] = json!(if self.has_affinity {
            "ClientIP"
        } else {
            "None"
        });
        spec["publishNotReadyAddresses"] = json!(self.publishes_not_ready);
        if let Some(distribution) = self.distribution {
            spec["trafficDistribution"] = json!(distribution);
        }
        json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
    }

    pub fn has_health_check(&self) -> bool {
        self.kind == Kind::LoadBalancer && self.is_external_local
    }

    const fn type_name(&self) -> &'static str {
        match self.kind {
            Kind::ClusterIp | Kind::Headless => "ClusterIP",
            Kind::ExternalName => "ExternalName",
            Kind::NodePort => "NodePort",
            Kind::LoadBalancer => "LoadBalancer",
        }
    }

    /// What the load balancer's controller would write.
    pub fn status(&self) -> Value {
        let mode = if self.is_vip_elsewhere {
            "Proxy"
        } else {
            "VIP"
        };
        let vips = if self.kind == Kind::LoadBalancer && self.has_vip {
            self.addresses(&[self.n], load_balancer_vip)
        } else {
            Vec::new()
        };
        let ingress = vips.into_iter().map(|ip| json!({"ip": ip, "ipMode": mode}));
        json!({"status": {"loadBalancer": {"ingress": ingress.collect::<Vec<_>>()}}})
    }

    /// Names and manifests.
    pub fn slice_manifests(&self) -> Vec<(String, Value)> {
        self.slices
            .iter()
            .enumerate()
            .map(|(index, slice)| {
                // The family of a slice is for ever, so it is in the name.
                let name = format!("{}-{}-{index}", self.name(), slice.family);
                let ports: Vec<Value> = self
                    .ports
                    .iter()
                    .map(|port| {
                        json!({
                            "name": self.port_name(*port),
                            "protocol": port.protocol.manifest_name(),
                            "port": slice.moved_to.unwrap_or(port.target),
                        })
                    })
                    .collect();
                let endpoints: Vec<Value> =
                    slice.endpoints.iter().map(|it| it.manifest(slice.family)).collect();
                let manifest = json!({
                    "apiVersion": "discovery.k8s.io/v1",
                    "kind": "EndpointSlice",
                    "metadata": {
                        "name": name,
                        "namespace": NAMESPACE,
                        "labels": {"kubernetes.io/service-name": self.name()},
                    },
                    "addressType": match slice.family { Family::V4 => "IPv4", Family::V6 => "IPv6" },
                    "ports": ports,
                    "endpoints": endpoints,
                });
                (name, manifest)
            })
            .collect()
    }

    /// The same with one thing less, the largest first.
    pub fn simpler(&self) -> Vec<Self> {
        let mut all = Vec::new();
        let mut push = |change: &dyn Fn(&mut Self)| {
            let mut simpler = self.clone();
            change(&mut simpler);
            if simpler != *self {
                all.push(simpler);
            }
        };
        for family in Family::ALL {
            if self.families.len() == 2 {
                push(&|it| it.families = vec![family]);
            }
        }
        for index in 0..self.ports.len() {
            if self.ports.len() > 1 {
                push(&|it| it.ports = without(&it.ports, index));
            }
        }
        for index in 0..self.slices.len() {
            push(&|it| it.slices = without(&it.slices, index));
        }
        push(&|it| it.kind = Kind::ClusterIp);
        push(&|it| it.kind = Kind::NodePort);
        push(&|it| it.has_external_ip = false);
        push(&|it| it.has_shared_ip = false);
        push(&|it| it.has_vip = false);
        push(&|it| it.is_vip_elsewhere = false);
        push(&|it| it.has_no_node_ports = false);
        push(&|it| it.source_ranges.clear());
        for index in 0..self.source_ranges.len() {
            push(&|it| it.source_ranges = without(&it.source_ranges, index));
        }
        push(&|it| it.is_internal_local = false);
        push(&|it| it.is_external_local = false);
        push(&|it| it.has_affinity = false);
        push(&|it| it.publishes_not_ready = false);
        push(&|it| it.distribution = None);
        for (index, slice) in self.slices.iter().enumerate() {
            push(&|it| it.slices[index].moved_to = None);
            for (which, endpoint) in slice.endpoints.iter().enumerate() {
                push(&|it| it.slices[index].endpoints = without(&slice.endpoints, which));
                push(&|it| it.slices[index].endpoints[which] = Endpoint::ready(endpoint.host));
            }
        }
        for index in 0..self.ports.len() {
            push(&|it| it.ports[index].is_named = false);
        }
        all
    }
}

fn without<T: Clone>(all: &[T], index: usize) -> Vec<T> {
    [&all[..index], &all[index + 1..]].concat()
}

fn ports(n: u8, is_shared: bool, dice: &mut Dice) -> Vec<Port> {
    let protocols = protocols();
    // Of two Services with one address, each has other ports.
    let base = if is_shared {
        1000 * u16::from(n + 1)
    } else {
        0
    };
    let mut ports: Vec<Port> = Vec::new();
    for _ in 0..dice.pick(&[1, 1, 1, 2, 2, 3]) {
        let port = Port {
            number: base + dice.pick(&[80, 81, 443]),
            protocol: dice.pick(&protocols),
            target: dice.pick(&WEB_PORTS),
            is_named: dice.chance(20),
        };
        let is_taken = |it: &Port| (it.number, it.protocol) == (port.number, port.protocol);
        if !ports.iter().any(is_taken) {
            ports.push(port);
        }
    }
    ports
}

fn endpoint(host: Host, hints: bool, dice: &mut Dice) -> Endpoint {
    let mut endpoint = match dice.below(20) {
        0..=12 => Endpoint::ready(host),
        13 | 14 => Endpoint {
            ready: false,
            serving: false,
            ..Endpoint::ready(host)
        },
        15..=17 => Endpoint::terminating(host, true),
        _ => Endpoint::terminating(host, false),
    };
    if hints && dice.chance(85) {
        endpoint.zone_hint = Some(dice.pick(&[ZONE, OTHER_ZONE]));
        if dice.chance(40) {
            endpoint.node_hint = Some(dice.pick(&["node", "remote"]));
        }
    }
    endpoint
}
