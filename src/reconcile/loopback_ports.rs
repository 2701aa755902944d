// SPDX-License-Identifier: Apache-2.0
//! Which node ports to forward from the loopback address, and where to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::context::NodeView;
use crate::loopback::Transport;
use kpr_core::model::ProxyMode;
use kpr_core::model::{IpFamily, ServiceName, ServicePort, ServiceView};

/// The forwarding that one family wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub family: IpFamily,
    /// The node's own address, on which the kernel serves node ports. `None`: nothing is forwarded.
    pub target: Option<IpAddr>,
    pub services: BTreeMap<ServiceName, BTreeSet<(Transport, u16)>>,
}

/// [`Wanted`], and whether it changed since it was last published.
#[derive(Debug)]
pub(super) struct LoopbackPorts {
    is_on: bool,
    wanted: Wanted,
    is_news: bool,
}

impl LoopbackPorts {
    pub(super) fn new(family: IpFamily, node: NodeView<'_>) -> Self {
        let wanted = Wanted {
            family,
            target: listening_target(family, node),
            services: BTreeMap::new(),
        };
        Self {
            // A flag cannot change while the process runs.
            is_on: node.settings.localhost_node_ports,
            wanted,
            is_news: node.settings.localhost_node_ports,
        }
    }

    /// Takes in a change of the node or its settings.
    pub(super) fn set_node(&mut self, node: NodeView<'_>) {
        let target = listening_target(self.wanted.family, node);
        self.is_news |= target != self.wanted.target;
        self.wanted.target = target;
    }

    /// Takes in a change of a Service.
    pub(super) fn update(&mut self, changed: &ServiceView<'_>) {
        if !self.is_on {
            return;
        }
        let (name, ports) = (changed.name, ports(changed));
        let before = self.wanted.services.get(name);
        if before.map_or(ports.is_empty(), |before| *before == ports) {
            return;
        }
        self.is_news = true;
        if ports.is_empty() {
            self.wanted.services.remove(name);
        } else {
            self.wanted.services.insert(name.clone(), ports);
        }
    }

    pub(super) const fn take_news(&mut self) -> bool {
        std::mem::replace(&mut self.is_news, false)
    }

    pub(super) const fn wanted(&self) -> &Wanted {
        &self.wanted
    }
}

fn ports(changed: &ServiceView<'_>) -> BTreeSet<(Transport, u16)> {
    let with_transport = |port: &ServicePort| {
        let transport = Transport::of(port.name.protocol)?;
        Some((transport, port.node_port?.get()))
    };
    changed.ports.iter().filter_map(with_transport).collect()
}

fn listening_target(family: IpFamily, node: NodeView<'_>) -> Option<IpAddr> {
    is_listening(family, node)
        .then(|| target(family, node))
        .flatten()
}

/// Whether the flag, the mode and `nodePortAddresses` request it.
pub(super) fn is_listening(family: IpFamily, node: NodeView<'_>) -> bool {
    let settings = node.settings;
    let has_rules = settings.mode == ProxyMode::IPTABLES
        && family == IpFamily::V4
        && settings.iptables_localhost_node_ports;
    let loopback = match family {
        IpFamily::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpFamily::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    let ranges = node.node_port_ranges(family);
    settings.localhost_node_ports && !has_rules && ranges.contains(loopback)
}

/// An address of the node that accepts node ports, preferably its primary one.
pub(super) fn target(family: IpFamily, node: NodeView<'_>) -> Option<IpAddr> {
    let addresses = node
        .node_port_ranges(family)
        .select(&node.facts.around.addresses);
    node.ips()
        .known_ip(family)
        .filter(|ip| addresses.contains(ip))
        .or_else(|| addresses.first().copied())
}

#[cfg(test)]
mod tests {
    use super::super::context::NodeFacts;
    use super::*;
    use crate::config::settings::Settings;
    use crate::config::{self, Command};
    use kpr_core::model::testing::{ip, service, service_name, tracker};
    use kpr_core::model::{Event, NodeInfo, Protocol};

    const FLAG: &str = "--localhost-nodeports";

    fn settings(flags: &[&str]) -> Settings {
        let arguments = ["kube-proxy-rs", "--manifests=/m"].iter().chain(flags);
        match config::parse(arguments.map(Into::into)).unwrap() {
            Command::Run(settings) => *settings,
            other => panic!("{other:?}"),
        }
    }

    fn facts(addresses: &[&str]) -> NodeFacts {
        NodeFacts::at(addresses)
    }

    fn targets(flags: &[&str], facts: &NodeFacts) -> [Option<IpAddr>; 2] {
        let settings = settings(flags);
        [IpFamily::V4, IpFamily::V6].map(|family| {
            let ports = LoopbackPorts::new(family, NodeView::new(&settings, facts));
            ports.wanted.target
        })
    }

    #[test]
    fn it_forwards_if_flag_and_addresses_ask_for_it_and_rules_cannot() {
        let all = ["192.0.2.1", "198.51.100.1", "2001:db8::1"];
        let (v4, second) = (Some("192.0.2.1"), Some("198.51.100.1"));
        let v6 = Some("2001:db8::1");
        for (flags, addresses, expected) in [
            (&["--proxy-mode=ipvs"][..], &all[..], [None, None]),
            (&["--proxy-mode=ipvs", FLAG], &all, [v4, v6]),
            (&[FLAG], &all, [None, v6]),
            (
                &[FLAG, "--iptables-localhost-nodeports=false"],
                &all,
                [v4, v6],
            ),
            (&["--proxy-mode=ipvs", FLAG], &["192.0.2.1"], [v4, None]),
            (
                &["--proxy-mode=ipvs", FLAG, "--nodeport-addresses=primary"],
                &all,
                [None, None],
            ),
            (
                &[
                    "--proxy-mode=ipvs",
                    FLAG,
                    "--nodeport-addresses=127.0.0.0/8,198.51.100.0/24,2001:db8::/32",
                ],
                &all,
                [second, None],
            ),
            // A part of loopback other than the address that is listened on.
            (
                &[
                    "--proxy-mode=ipvs",
                    FLAG,
                    "--nodeport-addresses=127.0.0.2/32,192.0.2.0/24",
                ],
                &all,
                [None, v6],
            ),
            // The kernel serves them on no address.
            (
                &["--proxy-mode=ipvs", FLAG, "--nodeport-addresses=localhost"],
                &all,
                [None, None],
            ),
        ] {
            let expected = expected.map(|text| text.map(ip));
            assert_eq!(targets(flags, &facts(addresses)), expected, "{flags:?}");
        }
    }

    #[test]
    fn it_prefers_the_address_of_the_node_object() {
        let mut facts = facts(&["192.0.2.1", "192.0.2.9"]);
        facts.info = Some(NodeInfo {
            addresses: vec![ip("192.0.2.9")],
            ..NodeInfo::named("worker")
        });
        let flags = ["--proxy-mode=ipvs", FLAG];
        assert_eq!(targets(&flags, &facts)[0], Some(ip("192.0.2.9")));
        // Not before the address exists.
        facts.around.addresses.remove(&ip("192.0.2.9"));
        assert_eq!(targets(&flags, &facts)[0], Some(ip("192.0.2.1")));
    }

    #[test]
    fn only_changes_are_published() {
        let web = service("ns/web")
            .named_port("a", Protocol::Tcp, 80)
            .node_port(30_080)
            .named_port("b", Protocol::Udp, 80)
            .node_port(30_081)
            .named_port("c", Protocol::Sctp, 80)
            .node_port(30_082)
            .named_port("d", Protocol::Tcp, 81);
        let name = service_name("ns/web");
        let mut tracker = tracker(vec![web], vec![]);
        let (settings, facts) = (
            settings(&[FLAG, "--proxy-mode=ipvs"]),
            facts(&["192.0.2.1"]),
        );
        let mut ports = LoopbackPorts::new(IpFamily::V4, NodeView::new(&settings, &facts));
        assert!(ports.take_news() && !ports.take_news());
        ports.update(&ServiceView::of(&tracker, &name, IpFamily::V4));
        let expected = [(Transport::Tcp, 30_080), (Transport::Udp, 30_081)];
        assert_eq!(
            ports.wanted().services,
            [(name.clone(), expected.into())].into()
        );
        assert!(ports.take_news());
        ports.update(&ServiceView::of(&tracker, &name, IpFamily::V4));
        ports.set_node(NodeView::new(&settings, &facts));
        assert!(!ports.take_news(), "nothing changed");
        ports.set_node(NodeView::new(&settings, &NodeFacts::default()));
        assert!(ports.take_news() && ports.wanted().target.is_none());
        tracker.apply(Event::ServiceDeleted(name.clone()));
        ports.update(&ServiceView::of(&tracker, &name, IpFamily::V4));
        assert!(ports.take_news() && ports.wanted().services.is_empty());
    }
}
