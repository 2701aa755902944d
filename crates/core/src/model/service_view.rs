// SPDX-License-Identifier: Apache-2.0
//! PURE: one Service as one family sees it, resolved once per round for all consumers.

use super::slices::EndpointsByPort;
use super::{Endpoint, IpFamily, Service, ServiceName, ServicePort, Tracker};

/// See the module.
#[derive(Clone, Debug)]
pub struct ServiceView<'a> {
    pub name: &'a ServiceName,
    /// Absent if the Service is gone.
    pub service: Option<&'a Service>,
    /// Empty if the Service has no cluster IP of the family.
    pub ports: Vec<ServicePort>,
    /// Merged from the Service's EndpointSlices, regardless of the Service's ports.
    pub endpoints: EndpointsByPort,
}

impl<'a> ServiceView<'a> {
    pub fn of(tracker: &'a Tracker, name: &'a ServiceName, family: IpFamily) -> Self {
        let service = tracker.service(name);
        let ports = service.map_or_else(Vec::new, |service| ServicePort::of(service, family));
        let endpoints = if ports.is_empty() {
            EndpointsByPort::new()
        } else {
            tracker.endpoints(name, family)
        };
        Self {
            name,
            service,
            ports,
            endpoints,
        }
    }

    /// The endpoints that serve a port.
    pub fn endpoints_of(&self, port: &ServicePort) -> &[Endpoint] {
        let key = (port.name.port.clone(), port.name.protocol);
        self.endpoints.get(&key).map_or(&[], Vec::as_slice)
    }
}
