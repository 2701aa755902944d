// SPDX-License-Identifier: Apache-2.0
//! What the kernel must hold, straight from the objects that the API server has, by the rules of
//! Kubernetes' documentation. A second opinion: none of the proxy's own code is used.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use kpr_testkit::oracle::set_name;
use kpr_testkit::topology::Family;
use serde_json::Value;

use crate::oracle::Lines;

/// Name and label of the node that the guest is.
pub(crate) const NODE: &str = "kpr-guest";
const ZONE: &str = "topology.kubernetes.io/zone";

const SETS: [&str; 16] = [
    "LOOP-BACK",
    "CLUSTER-IP",
    "EXTERNAL-IP",
    "EXTERNAL-IP-LOCAL",
    "LOAD-BALANCER",
    "LOAD-BALANCER-LOCAL",
    "LOAD-BALANCER-FW",
    "LOAD-BALANCER-SOURCE-CIDR",
    "LOAD-BALANCER-SOURCE-IP",
    "NODE-PORT-HASH",
    "NODE-PORT-LOCAL-HASH",
    "NO-LOCAL-ENDPOINTS",
    "LOCAL-POLICY-MARK",
    "HEALTH-CHECK-NODE-PORT",
    "HEALTH-CHECK-VIP",
    "IPVS-IPS",
];

/// The state that these objects want on our node.
pub(crate) fn wanted(objects: &[Value], node_addresses: &[IpAddr]) -> Lines {
    let mut lines = Lines::new();
    for family in Family::ALL {
        for set in SETS {
            lines.insert(set_line(family, set));
        }
        for service in objects.iter().filter(|object| is_ours(object)) {
            for port in list(&service["spec"]["ports"]) {
                let service = ServicePort {
                    service,
                    port,
                    family,
                    objects,
                    node_addresses,
                };
                service.add_to(&mut lines);
            }
        }
    }
    lines
}

/// A Service that has virtual servers.
fn is_ours(object: &Value) -> bool {
    object["kind"] == "Service"
        && object["spec"]["type"] != "ExternalName"
        && !["", "None"].contains(&string(&object["spec"]["clusterIP"]))
        && object["metadata"]["labels"]["service.kubernetes.io/service-proxy-name"].is_null()
}

fn has(family: Family, address: &IpAddr) -> bool {
    address.is_ipv4() == (family == Family::V4)
}

/// The line of a set.
fn set_line(family: Family, name: &str) -> String {
    format!("set {}", set_name(name, family))
}

fn string(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Those of a list of texts that are addresses.
fn addresses<'a>(values: impl IntoIterator<Item = &'a Value>) -> Vec<IpAddr> {
    let parsed = values.into_iter().map(|value| string(value).parse());
    parsed.filter_map(Result::ok).collect()
}

struct Endpoint {
    socket: SocketAddr,
    is_ready: bool,
    /// Serving although it is on its way out.
    is_leaving: bool,
    is_local: bool,
    zones: Vec<String>,
}

struct ServicePort<'a> {
    service: &'a Value,
    port: &'a Value,
    family: Family,
    objects: &'a [Value],
    node_addresses: &'a [IpAddr],
}

impl ServicePort<'_> {
    fn add_to(&self, lines: &mut Lines) {
        let spec = &self.service["spec"];
        let of_family = |all: Vec<IpAddr>| -> Vec<IpAddr> {
            all.into_iter().filter(|a| has(self.family, a)).collect()
        };
        let cluster_ips = of_family(addresses(list(&spec["clusterIPs"])));
        if cluster_ips.is_empty() {
            return;
        }
        let ingress = list(&self.service["status"]["loadBalancer"]["ingress"]);
        let vips = ingress.iter().filter(|entry| entry["ipMode"] != "Proxy");
        let vips = of_family(addresses(vips.map(|entry| &entry["ip"])));
        let external_ips = of_family(addresses(list(&spec["externalIPs"])));
        let number = self.port["port"].as_u64().unwrap();
        let node_port = self.port["nodePort"].as_u64().unwrap_or_default();
        let nodes = if node_port == 0 {
            Vec::new()
        } else {
            of_family(self.node_addresses.to_vec())
        };
        let external_is_local = spec["externalTrafficPolicy"] == "Local";
        let internal_is_local = spec["internalTrafficPolicy"] == "Local";
        let endpoints = self.endpoints();
        let protocol = string(&self.port["protocol"]).to_lowercase();
        // What pods and the node reach all endpoints at, although the policy is Local.
        let mut marked = BTreeSet::new();

        for (role, addresses, port, is_local) in [
            ("CLUSTER-IP", &cluster_ips, number, internal_is_local),
            ("EXTERNAL-IP", &external_ips, number, external_is_local),
            ("LOAD-BALANCER", &vips, number, external_is_local),
            ("NODE-PORT", &nodes, node_port, external_is_local),
        ] {
            for address in addresses {
                let socket = SocketAddr::new(*address, u16::try_from(port).unwrap());
                let chosen = self.chosen(&endpoints, is_local);
                let servers = self.real_servers(&endpoints, is_local);
                self.add_virtual_server(lines, socket, &servers);
                let entry = format!("{address},{protocol}:{port}");
                if is_local {
                    if chosen.is_empty() && !self.chosen(&endpoints, false).is_empty() {
                        lines.insert(format!(
                            "{} {entry}",
                            set_line(self.family, "NO-LOCAL-ENDPOINTS")
                        ));
                    }
                    if role != "CLUSTER-IP" {
                        lines.insert(format!(
                            "{} {entry}",
                            set_line(self.family, "LOCAL-POLICY-MARK")
                        ));
                        marked.insert(entry);
                    }
                }
                if role == "NODE-PORT" {
                    self.add_node_port(lines, socket, is_local);
                    continue;
                }
                if !self.node_addresses.contains(address) {
                    lines.insert(format!("address {address}"));
                    lines.insert(format!("{} {address}", set_line(self.family, "IPVS-IPS")));
                }
                let entry = format!("{address},{protocol}:{port}");
                let set = if is_local && role == "EXTERNAL-IP" {
                    "EXTERNAL-IP-LOCAL"
                } else {
                    role
                };
                lines.insert(format!("{} {entry}", set_line(self.family, set)));
                if role == "LOAD-BALANCER" {
                    self.add_load_balancer(lines, *address, &entry, is_local);
                }
            }
        }
        if !marked.is_empty() {
            let server = format!(
                "marked {}",
                marked.into_iter().collect::<Vec<_>>().join("+")
            );
            for real in self.real_servers(&endpoints, false) {
                lines.insert(format!("{server} -> {real}"));
            }
            let is_sticky = spec["sessionAffinity"] == "ClientIP";
            let how = if is_sticky { "mh (mh-fallback)" } else { "rr" };
            lines.insert(format!("{server} {how}"));
        }
        for endpoint in endpoints.iter().filter(|endpoint| endpoint.is_local) {
            let (ip, port) = (endpoint.socket.ip(), endpoint.socket.port());
            let set = set_line(self.family, "LOOP-BACK");
            lines.insert(format!("{set} {ip},{protocol}:{port},{ip}"));
        }
        let health = spec["healthCheckNodePort"].as_u64().unwrap_or_default();
        if health != 0 && external_is_local {
            lines.insert(format!(
                "{} {health}",
                set_line(self.family, "HEALTH-CHECK-NODE-PORT")
            ));
            for vip in &vips {
                let set = set_line(self.family, "HEALTH-CHECK-VIP");
                lines.insert(format!("{set} {vip},tcp:{health}"));
            }
        }
    }

    fn add_virtual_server(&self, lines: &mut Lines, socket: SocketAddr, servers: &[String]) {
        let spec = &self.service["spec"];
        let server = format!("{} {socket}", string(&self.port["protocol"]));
        let affinity = if spec["sessionAffinity"] == "ClientIP" {
            let seconds = &spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"];
            format!(" persistent {seconds}")
        } else {
            String::new()
        };
        for real in servers {
            lines.insert(format!("{server} -> {real}"));
        }
        lines.insert(format!("{server} rr{affinity}"));
    }

    fn add_node_port(&self, lines: &mut Lines, socket: SocketAddr, is_local: bool) {
        let protocol = string(&self.port["protocol"]).to_lowercase();
        let entry = format!("{},{protocol}:{}", socket.ip(), socket.port());
        let mut add = |set: &str| {
            lines.insert(format!("{} {entry}", set_line(self.family, set)));
        };
        add("NODE-PORT-HASH");
        if is_local {
            add("NODE-PORT-LOCAL-HASH");
        }
        // What leaves answers to clients of the node alone.
        let itself = if socket.is_ipv4() {
            "127.0.0.1:0"
        } else {
            "[::1]:0"
        };
        lines.insert("marked unused mark 8191 rr ops".to_owned());
        lines.insert(format!(
            "marked unused mark 8191 -> {itself} Route weight 1"
        ));
    }

    fn add_load_balancer(&self, lines: &mut Lines, vip: IpAddr, entry: &str, is_local: bool) {
        let mut add = |set: &str, entry: &str| {
            lines.insert(format!("{} {entry}", set_line(self.family, set)));
        };
        if is_local {
            add("LOAD-BALANCER-LOCAL", entry);
        }
        let ranges: Vec<IpNet> = list(&self.service["spec"]["loadBalancerSourceRanges"])
            .iter()
            .map(|range| string(range).trim().parse().unwrap())
            .filter(|range: &IpNet| has(self.family, &range.addr()))
            .collect();
        if ranges.is_empty() || ranges.iter().any(|range| range.prefix_len() == 0) {
            return;
        }
        add("LOAD-BALANCER-FW", entry);
        for range in &ranges {
            add(
                "LOAD-BALANCER-SOURCE-CIDR",
                &format!("{entry},{}", range.trunc()),
            );
        }
        let node = self.node();
        let own = list(&node["status"]["addresses"]).iter();
        let own = addresses(own.map(|address| &address["address"]));
        if own
            .iter()
            .any(|own| ranges.iter().any(|range| range.contains(own)))
        {
            add("LOAD-BALANCER-SOURCE-IP", &format!("{entry},{vip}"));
        }
    }

    fn node(&self) -> &Value {
        let is_node = |o: &&Value| o["kind"] == "Node" && o["metadata"]["name"] == NODE;
        self.objects.iter().find(is_node).unwrap_or(&Value::Null)
    }

    /// All endpoints of the port, in whatever condition.
    fn endpoints(&self) -> Vec<Endpoint> {
        let mut known = BTreeSet::new();
        let mut endpoints = Vec::new();
        let name = &self.service["metadata"]["name"];
        let namespace = &self.service["metadata"]["namespace"];
        let kind = if self.family == Family::V4 {
            "IPv4"
        } else {
            "IPv6"
        };
        let slices = self.objects.iter().filter(|object| {
            object["kind"] == "EndpointSlice"
                && object["metadata"]["namespace"] == *namespace
                && object["metadata"]["labels"]["kubernetes.io/service-name"] == *name
                && object["addressType"] == kind
        });
        for slice in slices {
            let ports = list(&slice["ports"]).iter().filter(|port| {
                string(&port["name"]) == string(&self.port["name"])
                    && port["protocol"] == self.port["protocol"]
            });
            for port in ports.filter_map(|port| port["port"].as_u64()) {
                for endpoint in list(&slice["endpoints"]) {
                    let address = string(&endpoint["addresses"][0]).parse().unwrap();
                    let socket = SocketAddr::new(address, u16::try_from(port).unwrap());
                    let conditions = &endpoint["conditions"];
                    let zones = list(&endpoint["hints"]["forZones"]).iter();
                    if known.insert(socket) {
                        endpoints.push(Endpoint {
                            socket,
                            is_ready: conditions["ready"] != false,
                            is_leaving: conditions["serving"] != false
                                && conditions["terminating"] == true,
                            is_local: endpoint["nodeName"] == NODE,
                            zones: zones.map(|zone| string(&zone["name"]).to_owned()).collect(),
                        });
                    }
                }
            }
        }
        endpoints
    }

    /// Those that get connections. Flows of UDP, which have no end, stay with an endpoint that
    /// leaves while it serves.
    fn real_servers(&self, endpoints: &[Endpoint], only_local: bool) -> Vec<String> {
        let chosen = self.chosen(endpoints, only_local);
        let stays = |endpoint: &&Endpoint| {
            self.port["protocol"] == "UDP"
                && endpoint.is_leaving
                && (endpoint.is_local || !only_local)
                && !chosen.contains(&endpoint.socket)
        };
        let leaving = endpoints
            .iter()
            .filter(stays)
            .map(|endpoint| (endpoint.socket, 0));
        let chosen = chosen.iter().map(|socket| (*socket, 1));
        leaving
            .chain(chosen)
            .map(|(socket, weight)| format!("{socket} Masq weight {weight}"))
            .collect()
    }

    /// Those that get connections.
    fn chosen(&self, endpoints: &[Endpoint], only_local: bool) -> Vec<SocketAddr> {
        let eligible: Vec<&Endpoint> = endpoints
            .iter()
            .filter(|endpoint| endpoint.is_local || !only_local)
            .collect();
        let mut chosen: Vec<&Endpoint> = eligible.iter().copied().filter(|e| e.is_ready).collect();
        if chosen.is_empty() {
            chosen = eligible.into_iter().filter(|e| e.is_leaving).collect();
        } else if !only_local {
            let zone = string(&self.node()["metadata"]["labels"][ZONE]);
            let is_near = |endpoint: &&Endpoint| endpoint.zones.iter().any(|name| name == zone);
            if chosen.iter().all(|endpoint| !endpoint.zones.is_empty())
                && chosen.iter().any(is_near)
            {
                chosen.retain(is_near);
            }
        }
        chosen.into_iter().map(|endpoint| endpoint.socket).collect()
    }
}
