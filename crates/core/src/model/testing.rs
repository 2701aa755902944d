// SPDX-License-Identifier: Apache-2.0
//! Builders of Services and EndpointSlices for tests:
//! `service("ns/web").port(80).node_port(30080)`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::return_self_not_must_use,
    reason = "for tests, which may fail loudly"
)]

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use super::endpoint::Conditions;
use super::ipvs_options::{IpvsOptions, Scheduler, Weight};
use super::{
    EndpointSlice, Event, IpFamily, NodeHint, PortSpec, Protocol, Service, ServiceName,
    SliceEndpoint, SliceName, SlicePort, Tracker,
};

/// A Service at 10.96.0.1 without ports.
pub fn service(name: &str) -> Service {
    Service {
        name: service_name(name),
        uid: "".into(),
        created: 0,
        cluster_ips: vec![ip("10.96.0.1")],
        ports: Vec::new(),
        client_ip_affinity: None,
        external_ips: Vec::new(),
        load_balancer_vips: Vec::new(),
        load_balancer_source_ranges: Vec::new(),
        external_policy_local: false,
        internal_policy_local: false,
        health_check_node_port: None,
        ipvs: None,
    }
}

/// `ns/name`.
pub fn service_name(name: &str) -> ServiceName {
    let (namespace, name) = name.split_once('/').unwrap();
    ServiceName::new(namespace, name)
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

impl Service {
    pub fn created(mut self, seconds: i64) -> Self {
        self.created = seconds;
        self
    }

    /// Replaces the cluster IPs.
    pub fn cluster_ips(mut self, addresses: &[&str]) -> Self {
        self.cluster_ips = addresses.iter().copied().map(ip).collect();
        self
    }

    /// Changes its settings for IPVS mode.
    pub fn options(mut self, change: impl FnOnce(&mut IpvsOptions)) -> Self {
        let options = self.ipvs.take().map(Arc::unwrap_or_clone);
        let mut options = options.unwrap_or_default();
        change(&mut options);
        self.ipvs = Some(Arc::new(options));
        self
    }

    pub fn scheduler(self, scheduler: Scheduler) -> Self {
        self.options(|options| options.scheduler = Some(scheduler))
    }

    pub fn drain_limit(self, limit: Duration) -> Self {
        self.options(|options| options.drain_limit = Some(limit))
    }

    /// Adds an unnamed TCP port.
    pub fn port(self, port: u16) -> Self {
        self.named_port("", Protocol::Tcp, port)
    }

    pub fn named_port(mut self, name: &str, protocol: Protocol, port: u16) -> Self {
        self.ports.push(PortSpec {
            name: name.into(),
            protocol,
            port,
            node_port: None,
        });
        self
    }

    /// Gives the last port a node port.
    pub fn node_port(mut self, port: u16) -> Self {
        self.ports.last_mut().unwrap().node_port = NonZeroU16::new(port);
        self
    }

    pub fn external_ip(mut self, address: &str) -> Self {
        self.external_ips.push(ip(address));
        self
    }

    pub fn vip(mut self, address: &str) -> Self {
        self.load_balancer_vips.push(ip(address));
        self
    }

    pub fn source_range(mut self, range: &str) -> Self {
        self.load_balancer_source_ranges
            .push(range.parse().unwrap());
        self
    }

    pub fn affinity(mut self, seconds: u64) -> Self {
        self.client_ip_affinity = Some(Duration::from_secs(seconds));
        self
    }

    pub fn external_local(mut self) -> Self {
        self.external_policy_local = true;
        self
    }

    pub fn internal_local(mut self) -> Self {
        self.internal_policy_local = true;
        self
    }

    pub fn health_check(mut self, port: u16) -> Self {
        self.health_check_node_port = NonZeroU16::new(port);
        self
    }
}

/// A slice of a Service (`ns/name`), called `name-suffix`; its family is that of its endpoints.
pub fn slice(service: &str, suffix: &str, endpoints: Vec<SliceEndpoint>) -> EndpointSlice {
    let service = service_name(service);
    let name = SliceName {
        namespace: service.namespace.clone(),
        name: format!("{}-{suffix}", service.name).into(),
    };
    EndpointSlice {
        name,
        service,
        family: endpoints
            .first()
            .map_or(IpFamily::V4, |endpoint| IpFamily::of(endpoint.address)),
        ports: Vec::new(),
        endpoints,
        last_change_trigger: None,
    }
}

impl EndpointSlice {
    /// Adds an unnamed TCP port.
    pub fn port(self, port: u16) -> Self {
        self.named_port("", Protocol::Tcp, port)
    }

    pub fn named_port(mut self, name: &str, protocol: Protocol, port: u16) -> Self {
        let name = name.into();
        self.ports.push(SlicePort {
            name,
            protocol,
            port,
        });
        self
    }
}

/// A ready endpoint on another node.
pub fn endpoint(address: &str) -> SliceEndpoint {
    endpoint_at(ip(address))
}

pub fn endpoint_at(address: IpAddr) -> SliceEndpoint {
    SliceEndpoint {
        address,
        local: false,
        conditions: Conditions::from_api(None, None, None),
        node_hint: NodeHint::Absent,
        zones: Arc::default(),
        weight: None,
    }
}

impl SliceEndpoint {
    /// It is on our node.
    pub fn local(mut self) -> Self {
        self.local = true;
        self
    }

    pub fn unready(mut self) -> Self {
        self.conditions.ready = false;
        self.conditions.serving = false;
        self
    }

    /// Shutting down, but still serving.
    pub fn terminating(mut self) -> Self {
        self.conditions = Conditions::from_api(Some(false), Some(true), Some(true));
        self
    }

    pub fn weight(mut self, weight: u16) -> Self {
        self.weight = Weight::new(weight);
        self
    }

    /// It is for clients of this zone.
    pub fn zone(mut self, zone: &str) -> Self {
        Arc::make_mut(&mut self.zones).hints = vec![zone.into()];
        self
    }

    /// It is in this zone.
    pub fn in_zone(mut self, zone: &str) -> Self {
        Arc::make_mut(&mut self.zones).zone = Some(zone.into());
        self
    }
}

/// A fully synced tracker with these objects.
pub fn tracker(services: Vec<Service>, slices: Vec<EndpointSlice>) -> Tracker {
    let mut tracker = Tracker::default();
    tracker.apply(Event::ServicesReplaced(services));
    tracker.apply(Event::SlicesReplaced(slices));
    tracker
}
