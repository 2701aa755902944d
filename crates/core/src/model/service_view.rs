// SPDX-License-Identifier: Apache-2.0
//! PURE: one Service as one family sees it, resolved once per round for all consumers.

use super::slices::EndpointsByPort;
use super::{Budget, Cut, Endpoint, IpFamily, Service, ServiceName, ServicePort, Tracker};

/// See the module.
#[derive(Clone, Debug)]
pub struct ServiceView<'a> {
    pub name: &'a ServiceName,
    /// Absent if the Service is gone.
    pub service: Option<&'a Service>,
    /// Empty if the Service has no cluster IP of the family. Without the addresses that are
    /// somebody's.
    pub ports: Vec<ServicePort>,
    /// Merged from the Service's EndpointSlices, regardless of the Service's ports.
    pub endpoints: EndpointsByPort,
    /// What the budget left out of all this.
    pub cut: Cut,
}

impl<'a> ServiceView<'a> {
    /// Within the default budget.
    pub fn of(tracker: &'a Tracker, name: &'a ServiceName, family: IpFamily) -> Self {
        Self::within(tracker, name, family, &Budget::default())
    }

    /// As much of a Service as a budget has room for.
    pub fn within(
        tracker: &'a Tracker,
        name: &'a ServiceName,
        family: IpFamily,
        budget: &Budget,
    ) -> Self {
        let service = tracker.service(name);
        let of_service = |service| ServicePort::within(service, family, budget);
        let (ports, mut cut) = service.map(of_service).unwrap_or_default();
        let yielding = |port: ServicePort| port.yielding_to(tracker.holders());
        let ports: Vec<ServicePort> = ports.into_iter().map(yielding).collect();
        let endpoints = if ports.is_empty() {
            EndpointsByPort::new()
        } else {
            budget.endpoints(&ports, tracker.slices_of(name), family, &mut cut)
        };
        Self {
            name,
            service,
            ports,
            endpoints,
            cut,
        }
    }

    /// The endpoints that serve a port.
    pub fn endpoints_of(&self, port: &ServicePort) -> &[Endpoint] {
        let key = (port.name.port.clone(), port.name.protocol);
        self.endpoints.get(&key).map_or(&[], Vec::as_slice)
    }
}
