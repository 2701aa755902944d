// SPDX-License-Identifier: Apache-2.0
//! The objects of a tenant and of a victim, and the victim's endpoints, which answer on this node.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use kpr_testkit::namespace::Namespace;
use serde_json::{Value, json};

use super::server::Server;

const VICTIM: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 2);
const TENANT: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 3);
/// The first one answers with its index, so does the second.
const ENDPOINTS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 128, 0, 1), Ipv4Addr::new(10, 128, 0, 2)];
const TARGET: u16 = 8_080;
/// The first address of the tenant's pods.
const PODS: u32 = u32::from_be_bytes([10, 132, 0, 0]);
/// No EndpointSlice may have more.
const PORTS_OF_A_SLICE: u16 = 100;

fn service(namespace: &str, name: &str, ip: Ipv4Addr, ports: u16, external: u16) -> Value {
    let external: Vec<Ipv4Addr> = (0..external)
        .map(|n| {
            let [high, low] = n.to_be_bytes();
            Ipv4Addr::new(203, high, 113, low)
        })
        .collect();
    let ports: Vec<Value> = (1..=ports)
        .map(|port| json!({"name": format!("p{port}"), "port": 79 + port, "protocol": "TCP"}))
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "namespace": namespace, "name": name, "uid": name,
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {
            "type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"],
            "externalIPs": external, "ports": ports,
        },
    })
}

fn slice(
    namespace: &str,
    service: &str,
    number: usize,
    ports: std::ops::RangeInclusive<u16>,
    endpoints: &[Ipv4Addr],
) -> Value {
    let ports: Vec<Value> = ports
        .map(|port| json!({"name": format!("p{port}"), "port": TARGET, "protocol": "TCP"}))
        .collect();
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|address| {
            json!({
                "addresses": [address],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": "node-1",
            })
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "namespace": namespace, "name": format!("{service}-{number}"),
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4", "ports": ports, "endpoints": endpoints,
    })
}

/// What the tenant asks for.
#[derive(Clone, Debug)]
pub(super) struct Demand {
    pub(super) name: &'static str,
    ports: u16,
    external: u16,
    /// Slices for each group of ports that fits into one.
    slices: u32,
    endpoints: u32,
}

impl Demand {
    pub(super) const fn external_ips() -> Self {
        Self {
            name: "1,000 ports x 1,000 external IPs",
            ports: 1_000,
            external: 1_000,
            slices: 1,
            endpoints: 2,
        }
    }

    pub(super) const fn endpoints() -> Self {
        Self {
            name: "1,000 ports x 1,000 endpoints",
            ports: 1_000,
            external: 0,
            slices: 1,
            endpoints: 1_000,
        }
    }

    pub(super) const fn slices() -> Self {
        Self {
            name: "100 slices x 1,000 endpoints",
            ports: 1,
            external: 0,
            slices: 100,
            endpoints: 1_000,
        }
    }

    /// As much as one may have, and no more.
    pub(super) const fn at_the_budget() -> Self {
        Self {
            name: "1,000 ports x 5 addresses x 9 endpoints",
            ports: 1_000,
            external: 4,
            slices: 1,
            endpoints: 9,
        }
    }

    pub(super) const fn far_too_much() -> Self {
        Self {
            name: "9,000 ports x 40 endpoints, created, changed and deleted",
            ports: 9_000,
            external: 0,
            slices: 1,
            endpoints: 40,
        }
    }

    fn service(&self) -> Value {
        service("tenant", "all", TENANT, self.ports, self.external)
    }

    /// Each version has other endpoints.
    fn all_slices(&self, version: u16) -> Vec<Value> {
        let groups = self.ports.div_ceil(PORTS_OF_A_SLICE);
        let mut all = Vec::new();
        for group in 0..groups {
            let first = group * PORTS_OF_A_SLICE + 1;
            let last = (first + PORTS_OF_A_SLICE - 1).min(self.ports);
            for slice_number in 0..self.slices {
                let of_slice = slice_number * self.endpoints;
                let first_pod = PODS + (u32::from(version % 2) << 18) + of_slice;
                let endpoints: Vec<Ipv4Addr> = (first_pod..first_pod + self.endpoints)
                    .map(Ipv4Addr::from)
                    .collect();
                let number = all.len();
                all.push(slice("tenant", "all", number, first..=last, &endpoints));
            }
        }
        all
    }

    /// Whether the Service alone asks for too much.
    pub(super) const fn is_one_object(&self) -> bool {
        self.external > 0
    }

    /// Size of the Service.
    pub(super) fn bytes(&self) -> usize {
        self.service().to_string().len()
    }

    pub(super) fn apply(&self, server: &Server, version: u16) {
        if version == 0 {
            server.apply(&self.service());
        }
        for slice in self.all_slices(version) {
            server.apply(&slice);
        }
    }

    pub(super) fn delete(&self, server: &Server) {
        for slice in self.all_slices(0) {
            server.delete(&slice);
        }
        server.delete(&self.service());
    }
}

/// A Service with one of two endpoints at a time.
#[derive(Debug)]
pub(super) struct Victim {
    present: usize,
}

impl Victim {
    pub(super) fn start(here: &Namespace, server: &Server) -> anyhow::Result<Self> {
        for (index, address) in ENDPOINTS.into_iter().enumerate() {
            here.ip(&format!("address add {address}/32 dev lo\n"))?;
            let listener = TcpListener::bind((address, TARGET))?;
            let answer = [u8::try_from(index)?];
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    // Who has gone needs no answer.
                    drop((&stream).write_all(&answer));
                }
            });
        }
        server.apply(&service("victim", "web", VICTIM, 1, 0));
        let victim = Self { present: 0 };
        victim.publish(server);
        Ok(victim)
    }

    fn publish(&self, server: &Server) {
        let endpoint = ENDPOINTS.get(self.present).copied();
        let endpoints: Vec<Ipv4Addr> = endpoint.into_iter().collect();
        server.apply(&slice("victim", "web", 0, 1..=1, &endpoints));
    }

    /// The other endpoint takes its place.
    pub(super) fn change(&mut self, server: &Server) {
        self.present = 1 - self.present;
        self.publish(server);
    }

    /// Whether a new connection reaches the present endpoint.
    pub(super) fn has_changed(&self) -> bool {
        let to = SocketAddr::from((VICTIM, 80));
        let Ok(mut stream) = TcpStream::connect_timeout(&to, Duration::from_secs(1)) else {
            return false;
        };
        let mut answer = [u8::MAX];
        stream.read_exact(&mut answer).is_ok() && usize::from(answer[0]) == self.present
    }
}
