// SPDX-License-Identifier: Apache-2.0
//! The answers to load balancers' health checks: the Services with a `healthCheckNodePort`, and the
//! number of ready endpoints of each on this node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::context::NodeView;
use kpr_core::model::{IpFamily, ServiceName, ServiceView};

/// The health checks of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthChecks {
    pub family: IpFamily,
    /// The addresses that accept node ports; only the unspecified address if all do.
    pub addresses: BTreeSet<IpAddr>,
    pub services: BTreeMap<ServiceName, HealthCheck>,
}

/// The health check of one Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    pub port: u16,
    /// Addresses of ready endpoints on this node, over all ports of the Service.
    pub local_endpoints: usize,
}

impl HealthChecks {
    pub(super) fn new(family: IpFamily, node: NodeView<'_>) -> Self {
        Self {
            family,
            addresses: addresses(family, node),
            services: BTreeMap::new(),
        }
    }

    /// Takes in a change of the node or its settings. Returns whether the addresses changed.
    pub(super) fn set_node(&mut self, node: NodeView<'_>) -> bool {
        let addresses = addresses(self.family, node);
        let is_news = addresses != self.addresses;
        self.addresses = addresses;
        is_news
    }

    /// Takes in a change of a Service or its endpoints. Returns whether its health check changed.
    pub(super) fn update(&mut self, changed: &ServiceView<'_>) -> bool {
        let check = health_check(changed);
        let before = match check {
            Some(check) => self.services.insert(changed.name.clone(), check),
            None => self.services.remove(changed.name),
        };
        before != check
    }
}

fn health_check(changed: &ServiceView<'_>) -> Option<HealthCheck> {
    let port = changed.service?.health_check_node_port?;
    // A family in which the Service has no address has no health check of it.
    changed.ports.first()?;
    let local: BTreeSet<IpAddr> = changed
        .endpoints
        .values()
        .flatten()
        .filter(|endpoint| endpoint.local && endpoint.is_ready())
        .map(|endpoint| endpoint.address)
        .collect();
    Some(HealthCheck {
        port: port.get(),
        local_endpoints: local.len(),
    })
}

fn addresses(family: IpFamily, node: NodeView<'_>) -> BTreeSet<IpAddr> {
    let ranges = node.node_port_ranges(family);
    let (unspecified, loopback) = match family {
        IpFamily::V4 => (
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V4(Ipv4Addr::LOCALHOST),
        ),
        IpFamily::V6 => (
            IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            IpAddr::V6(Ipv6Addr::LOCALHOST),
        ),
    };
    if ranges.matches_all() {
        return BTreeSet::from([unspecified]);
    }
    // Loopback addresses are not node addresses, so no traffic is sent to them. Health checks there
    // are fine.
    ranges.select(node.facts.around.addresses.iter().chain([&loopback]))
}

#[cfg(test)]
mod tests {
    use super::super::context::NodeFacts;
    use super::*;
    use crate::config::settings::Settings;
    use crate::config::{self, Command};
    use kpr_core::model::Event;
    use kpr_core::model::testing::{endpoint, ip, service, service_name, slice, tracker};

    fn settings(flags: &[&str]) -> Settings {
        let arguments = ["kube-proxy-rs", "--manifests=/m"].iter().chain(flags);
        match config::parse(arguments.map(Into::into)).unwrap() {
            Command::Run(settings) => *settings,
            other => panic!("{other:?}"),
        }
    }

    fn facts() -> NodeFacts {
        NodeFacts::at(&["192.0.2.1", "198.51.100.1", "2001:db8::1"])
    }

    fn texts(addresses: &BTreeSet<IpAddr>) -> Vec<String> {
        addresses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ports_are_open_where_node_ports_answer() {
        for (flag, v4, v6) in [
            ("all", &["0.0.0.0"][..], &["::"][..]),
            // As in kube-proxy, a family without an entry accepts them everywhere.
            ("192.0.2.0/24", &["192.0.2.1"], &["::"]),
            ("localhost", &["127.0.0.1"], &["::1"]),
            (
                "198.51.100.0/24,127.0.0.0/8,2001:db8::/32",
                &["127.0.0.1", "198.51.100.1"],
                &["2001:db8::1"],
            ),
            ("203.0.113.0/24,2001:db8:1::/48", &[], &[]),
        ] {
            let settings = settings(&[&format!("--nodeport-addresses={flag}")]);
            for (family, expected) in [(IpFamily::V4, v4), (IpFamily::V6, v6)] {
                let checks = HealthChecks::new(family, NodeView::new(&settings, &facts()));
                assert_eq!(texts(&checks.addresses), expected, "{flag} {family}");
            }
        }
    }

    #[test]
    fn addresses_follow_the_node() {
        let settings = settings(&["--nodeport-addresses=192.0.2.0/24"]);
        let mut checks = HealthChecks::new(IpFamily::V4, NodeView::new(&settings, &facts()));
        let mut moved = facts();
        moved.around.addresses.insert(ip("192.0.2.7"));
        moved.around.addresses.remove(&ip("192.0.2.1"));
        assert!(checks.set_node(NodeView::new(&settings, &moved)));
        assert_eq!(texts(&checks.addresses), ["192.0.2.7"]);
    }

    #[test]
    fn addresses_of_local_ready_endpoints_are_counted_once() {
        let web = service("ns/web").port(80).health_check(30_000);
        let name = service_name("ns/web");
        let both = |port| {
            let endpoints = vec![
                endpoint("10.0.0.1").local(),
                endpoint("10.0.0.2").local().unready(),
                endpoint("10.0.0.3").local().terminating(),
                endpoint("10.0.0.4"),
            ];
            slice("ns/web", &format!("{port}"), endpoints).port(port)
        };
        let tracker = tracker(vec![web.clone()], vec![both(8080), both(8081)]);
        let settings = settings(&[]);
        let mut checks = HealthChecks::new(IpFamily::V4, NodeView::new(&settings, &facts()));
        checks.update(&ServiceView::of(&tracker, &name, IpFamily::V4));
        let expected = HealthCheck {
            port: 30_000,
            local_endpoints: 1,
        };
        assert_eq!(checks.services, [(name.clone(), expected)].into());

        let mut v6 = HealthChecks::new(IpFamily::V6, NodeView::new(&settings, &facts()));
        v6.update(&ServiceView::of(&tracker, &name, IpFamily::V6));
        assert_eq!(v6.services, BTreeMap::new(), "it has no IPv6 address");
    }

    #[test]
    fn a_service_that_is_gone_has_no_health_check() {
        let web = service("ns/web").port(80).health_check(30_000);
        let name = service_name("ns/web");
        let mut tracker = tracker(vec![web], vec![]);
        let mut checks = HealthChecks::new(IpFamily::V4, NodeView::new(&settings(&[]), &facts()));
        checks.update(&ServiceView::of(&tracker, &name, IpFamily::V4));
        assert_eq!(checks.services.len(), 1);
        tracker.apply(Event::ServiceDeleted(name.clone()));
        checks.update(&ServiceView::of(&tracker, &name, IpFamily::V4));
        assert_eq!(checks.services, BTreeMap::new());
    }
}
