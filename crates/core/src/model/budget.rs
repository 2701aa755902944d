// SPDX-License-Identifier: Apache-2.0
//! PURE: how much of one Service is programmed, at most, in one family.
//!
//! Ports, addresses and endpoints multiply: an object of 58 KB may ask for a million places at
//! which it answers, and for each endpoint at each of them. What is beyond the budget is left out
//! before anything is computed from it, so memory and time follow what is programmed. What stays
//! is a function of the objects alone: a restart leaves out the same.

use std::collections::BTreeMap;
use std::fmt;

use super::slices::{self, EndpointsByPort};
use super::{EndpointSlice, IpFamily, ServicePort, SliceEndpoint};

/// The limits for each Service and family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Addresses and ports at which a Service answers; a node port counts once.
    pub frontends: usize,
    /// Entries of its EndpointSlices, whatever their number of ports.
    pub endpoints: usize,
    /// Frontends, source ranges for each frontend of the load balancer, and endpoints for each
    /// frontend.
    pub objects: usize,
}

impl Budget {
    pub const UNLIMITED: Self = Self {
        frontends: usize::MAX,
        endpoints: usize::MAX,
        objects: usize::MAX,
    };
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            frontends: 5_000,
            endpoints: 10_000,
            objects: 50_000,
        }
    }
}

/// How many of something are programmed, and how many there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share {
    pub kept: usize,
    pub of: usize,
}

impl Share {
    /// As many as there is room for.
    pub(super) fn within(of: usize, room: usize) -> Self {
        let kept = of.min(room);
        Self { kept, of }
    }

    const fn is_all(self) -> bool {
        self.kept == self.of
    }
}

/// What a budget left out of a Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cut {
    pub ports: Share,
    pub load_balancer_vips: Share,
    pub node_ports: Share,
    pub external_ips: Share,
    pub source_ranges: Share,
    /// Some endpoints were left out. Their number changes too often to be reported.
    pub endpoints: bool,
}

impl Cut {
    fn shares(self) -> [(Share, &'static str); 5] {
        [
            (self.ports, "ports"),
            (self.load_balancer_vips, "load-balancer VIPs"),
            (self.node_ports, "node ports"),
            (self.external_ips, "external IPs"),
            (self.source_ranges, "source ranges"),
        ]
    }

    pub fn is_empty(self) -> bool {
        !self.endpoints && self.shares().iter().all(|(share, _)| share.is_all())
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("more than one Service may have; programmed are ")?;
        let cut = self.shares().into_iter().filter(|(it, _)| !it.is_all());
        let parts = cut.map(|(Share { kept, of }, what)| format!("{kept} of {of} {what}"));
        let endpoints = self.endpoints.then(|| "some of its endpoints".to_owned());
        let parts: Vec<String> = parts.chain(endpoints).collect();
        f.write_str(&parts.join(", "))
    }
}

/// The preference among endpoints that are too many: those on this node first, which policies and
/// health checks need, then those that are ready.
fn rank(endpoint: &SliceEndpoint) -> impl Ord + use<> {
    let conditions = endpoint.conditions;
    let is_useful = conditions.ready || conditions.serving;
    (
        !(endpoint.local && is_useful),
        !conditions.ready,
        !conditions.serving,
        endpoint.address,
    )
}

impl Budget {
    /// The endpoints of the ports of one Service, as many as the budget has room for. `ports` are
    /// within the budget.
    pub(super) fn endpoints<'a>(
        &self,
        ports: &[ServicePort],
        slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
        family: IpFamily,
        cut: &mut Cut,
    ) -> EndpointsByPort {
        let slices = slices.filter(|slice| slice.family == family);
        let all: usize = slices.clone().map(|slice| slice.endpoints.len()).sum();
        // Nearly always this is all: a cheap upper limit of what follows.
        let most = slices.clone().map(|slice| {
            let ports = slice.ports.len().max(1);
            slice.endpoints.len().saturating_mul(ports)
        });
        let frontends: usize = ports.iter().map(ServicePort::frontend_count).sum();
        let ranges: usize = ports.iter().map(ServicePort::range_count).sum();
        let widest = ports.iter().map(ServicePort::frontend_count).max();
        let most = most.fold(0, usize::saturating_add);
        let room = self
            .objects
            .saturating_sub(frontends.saturating_add(ranges));
        if all <= self.endpoints && most.saturating_mul(widest.unwrap_or(1)) <= room {
            return slices::merge(slices, family);
        }
        self.selected(ports, slices, family, room, cut)
    }

    /// The endpoints that are preferred, of the ports that the Service has.
    fn selected<'a>(
        &self,
        ports: &[ServicePort],
        slices: impl Iterator<Item = &'a EndpointSlice>,
        family: IpFamily,
        room: usize,
        cut: &mut Cut,
    ) -> EndpointsByPort {
        let frontends: BTreeMap<_, _> = ports
            .iter()
            .map(|port| {
                let key = (&*port.name.port, port.name.protocol);
                (key, port.frontend_count())
            })
            .collect();
        let mut chosen: Vec<EndpointSlice> = Vec::new();
        let mut candidates = Vec::new();
        for slice in slices {
            let mut cost = 0;
            let mut served = Vec::new();
            for port in &slice.ports {
                if let Some(frontends) = frontends.get(&(&*port.name, port.protocol)) {
                    cost += frontends;
                    served.push(port.clone());
                }
            }
            if cost == 0 {
                continue;
            }
            let of = chosen.len();
            candidates.extend(slice.endpoints.iter().map(|endpoint| (endpoint, of, cost)));
            chosen.push(EndpointSlice {
                name: slice.name.clone(),
                service: slice.service.clone(),
                family,
                ports: served,
                endpoints: Vec::new(),
                last_change_trigger: None,
            });
        }
        candidates.sort_by_cached_key(|(endpoint, of, _)| (rank(endpoint), *of));
        let (mut left, mut kept) = (room, 0);
        for (endpoint, of, cost) in candidates {
            if kept == self.endpoints || cost > left {
                cut.endpoints = true;
                // Those of slices with fewer ports may still fit, but then a port with many would
                // have none while one with few has all.
                break;
            }
            kept += 1;
            left -= cost;
            if let Some(slice) = chosen.get_mut(of) {
                slice.endpoints.push(endpoint.clone());
            }
        }
        slices::merge(chosen.iter(), family)
    }
}

#[cfg(test)]
mod tests;
