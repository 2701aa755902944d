// SPDX-License-Identifier: Apache-2.0
//! Objects of a tenant beside those of victims, through the converter and the planners of both
//! modes: the victims must not notice. Each byte makes a choice, so that all inputs are objects
//! that could be written.
#![no_main]

use std::sync::Arc;

use kpr_core::plan::testing::two_worlds::{ADDRESSES, NODE_PORTS, Object, PORTS, check};
use kube_proxy_rs::source::Options;
use kube_proxy_rs::source::convert::Converter;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

/// At most this many objects, so that an input does not take long.
const OBJECTS: usize = 6;
const NAMES: [&str; 3] = ["a", "b", "kubernetes"];
const PORT_NAMES: [&str; 3] = ["", "a", "dns"];
const PROTOCOLS: [&str; 4] = ["TCP", "UDP", "SCTP", "QUIC"];
const POLICIES: [&str; 3] = ["Local", "Cluster", "Odd"];
const RANGES: [&str; 4] = ["0.0.0.0/0", "10.96.0.10/32", "198.51.100.0/24", "none"];
const CREATED: [&str; 3] = [
    "1969-12-31T23:59:59Z",
    "1970-01-01T00:00:10Z",
    "2026-02-02T00:00:00Z",
];
const ANNOTATIONS: [&str; 8] = [
    "scheduler",
    "scheduler-flags",
    "weight",
    "weights",
    "persistence-netmask",
    "drain-limit",
    "forwarding-method",
    "gue-port",
];
const VALUES: [&str; 16] = [
    "mh",
    "sh",
    "dh",
    "port",
    "fallback",
    "0",
    "0s",
    "1h",
    "-1s",
    "dsr",
    "ipip",
    "gue",
    "8472",
    "10.244.0.0/16=0",
    "ipv4/16",
    "ipv6/64",
];

/// The bytes that are left.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::from(self.byte()) % all.len()]
    }

    fn some<T>(&mut self, most: u8, mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let count = self.byte() % (most + 1);
        (0..count).map(|_| make(self)).collect()
    }

    fn maybe(&mut self) -> Option<bool> {
        self.of(&[None, Some(false), Some(true)])
    }

    fn annotations(&mut self) -> Value {
        let all = self.some(3, |it| {
            let name = format!("kube-proxy-rs.io/{}", it.of(&ANNOTATIONS));
            (name, Value::from(it.of(&VALUES)))
        });
        Value::Object(all.into_iter().collect())
    }

    fn service(&mut self) -> Value {
        let ports = self.some(4, |it| {
            json!({
                "name": it.of(&PORT_NAMES), "protocol": it.of(&PROTOCOLS),
                "port": it.of(&PORTS), "nodePort": it.of(&NODE_PORTS),
            })
        });
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": self.of(&NAMES), "namespace": "tenant",
                "creationTimestamp": self.of(&CREATED), "annotations": self.annotations(),
            },
            "spec": {
                "type": self.of(&["ClusterIP", "NodePort", "LoadBalancer", "Odd"]),
                "clusterIP": "10.96.1.1", "clusterIPs": ["10.96.1.1"], "ipFamilies": ["IPv4"],
                "ports": ports, "externalIPs": self.some(6, |it| it.of(&ADDRESSES)),
                "internalTrafficPolicy": self.of(&POLICIES),
                "externalTrafficPolicy": self.of(&POLICIES),
                "sessionAffinity": self.of(&["ClientIP", "None"]),
                "loadBalancerSourceRanges": self.some(2, |it| it.of(&RANGES)),
                "healthCheckNodePort": self.of(&[0, 31_100, -1, 70_000]),
            },
        })
    }

    fn slice(&mut self) -> Value {
        let endpoints = self.some(6, |it| {
            json!({
                "addresses": it.some(2, |it| it.of(&ADDRESSES)),
                "nodeName": it.of(&["here", "elsewhere", ""]),
                "conditions": {
                    "ready": it.maybe(), "serving": it.maybe(), "terminating": it.maybe(),
                },
            })
        });
        let ports = self.some(4, |it| {
            json!({
                "name": it.of(&PORT_NAMES), "protocol": it.of(&PROTOCOLS), "port": it.of(&PORTS),
            })
        });
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": self.of(&NAMES), "namespace": "tenant", "annotations": self.annotations(),
                "labels": {"kubernetes.io/service-name": self.of(&NAMES)},
            },
            "addressType": self.of(&["IPv4", "IPv6", "FQDN"]),
            "endpoints": endpoints, "ports": ports,
        })
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut converter = Converter::new(&Options {
        node_name: Arc::from("here"),
        allow_external_ips: true,
        annotations: kube_proxy_rs::source::Annotations::unlimited(),
        cluster: kube_proxy_rs::source::ClusterSize::default(),
    });
    let mut choices = Choices(bytes);
    let first = choices.byte() & 1 == 1;
    let mut objects = Vec::new();
    while !choices.0.is_empty() && objects.len() < OBJECTS {
        if choices.byte() & 1 == 1 {
            let service = serde_json::from_value(choices.service()).expect("a Service");
            objects.extend(converter.service(&service).0.map(Object::Service));
        } else {
            let slice = serde_json::from_value(choices.slice()).expect("a slice");
            objects.extend(converter.slice(&slice).0.map(Object::Slice));
        }
    }
    check(objects, first);
});
