// SPDX-License-Identifier: Apache-2.0
//! Settings that do not fit this node. Each one alone is valid, so the proxy applies what it can
//! and warns about the rest.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::context::NodeView;
use super::loopback_ports;
use kpr_core::model::IpFamily;
use kpr_core::model::node::{DetectLocal, NodePortAddress};

/// All warnings, as sentences for operators. `families` are the served ones.
pub(super) fn node_warnings(node: NodeView<'_>, families: &[IpFamily]) -> BTreeSet<String> {
    let NodeView { settings, facts } = node;
    let primary = node.ips().primary_family();
    let mut warnings = BTreeSet::new();
    let mut warn_if = |applies: bool, text: String| {
        if applies {
            warnings.insert(text);
        }
    };
    let are_of_the_other =
        |addresses: &[IpAddr]| !addresses.is_empty() && lacks_family(addresses, primary);

    warn_if(
        !families.contains(&primary),
        format!("the node's primary family is {primary}, which this machine cannot serve"),
    );
    let pod_cidrs = facts.info.as_ref().map_or(&[][..], |info| &info.pod_cidrs);
    let networks =
        |cidrs: &[ipnet::IpNet]| cidrs.iter().map(ipnet::IpNet::addr).collect::<Vec<_>>();
    let message = |what: &str| {
        format!(
            "{what} has no range of the node's primary family, {primary}: traffic from local pods cannot be detected there"
        )
    };
    match &settings.detect_local {
        DetectLocal::ClusterCidr(cidrs) => {
            warn_if(are_of_the_other(&networks(cidrs)), message("clusterCIDR"));
        }
        DetectLocal::NodeCidr => {
            warn_if(
                are_of_the_other(&networks(pod_cidrs)),
                message("spec.podCIDRs"),
            );
        }
        DetectLocal::BridgeInterface(_) | DetectLocal::InterfaceNamePrefix(_) => {}
    }
    let ranges: Vec<Option<IpAddr>> = settings
        .node_port_addresses
        .entries()
        .iter()
        .map(|entry| match entry {
            NodePortAddress::Cidr(cidr) => Some(cidr.addr()),
            _ => None,
        })
        .collect();
    // A keyword covers both families.
    if let Some(ranges) = ranges.into_iter().collect::<Option<Vec<IpAddr>>>() {
        warn_if(
            are_of_the_other(&ranges),
            format!(
                "nodePortAddresses has no range of the node's primary family, {primary}: node ports answer on all of its addresses"
            ),
        );
    }
    for family in families {
        let mut mine = facts.around.addresses.iter().map(|ip| IpFamily::of(*ip));
        warn_if(
            mine.any(|it| it == *family)
                && loopback_ports::is_listening(*family, node)
                && loopback_ports::target(*family, node).is_none(),
            format!(
                "nodePortAddresses has none of the node's {family} addresses, to which --localhost-nodeports could forward"
            ),
        );
    }
    if let [only] = families {
        let is_other =
            |address: &IpAddr| !address.is_unspecified() && IpFamily::of(*address) != *only;
        let servers = [
            ("healthzBindAddress", settings.healthz_address),
            ("metricsBindAddress", settings.metrics_address),
        ];
        for (field, address) in servers {
            warn_if(
                address.is_some_and(|address| is_other(&address.ip())),
                format!("{field} is not an address of the only served family, {only}"),
            );
        }
        let excluded = networks(&settings.ipvs.exclude_cidrs);
        warn_if(
            !excluded.is_empty() && lacks_family(&excluded, *only),
            format!("ipvs.excludeCIDRs has no range of the only served family, {only}"),
        );
    }
    warnings
}

fn lacks_family(addresses: &[IpAddr], family: IpFamily) -> bool {
    addresses
        .iter()
        .all(|address| IpFamily::of(*address) != family)
}

#[cfg(test)]
mod tests {
    use super::super::context::NodeFacts;
    use super::*;
    use crate::config::{self, Command};
    use kpr_core::model::NodeInfo;
    use kpr_core::model::testing::ip;

    fn warnings_of(flags: &[&str], addresses: &[&str], families: &[IpFamily]) -> Vec<String> {
        let arguments = ["kube-proxy-rs"].iter().chain(flags);
        let Command::Run(settings) = config::parse(arguments.map(Into::into)).unwrap() else {
            panic!("not a command to run")
        };
        let info = NodeInfo {
            addresses: addresses.iter().copied().map(ip).collect(),
            pod_cidrs: vec!["10.1.0.0/24".parse().unwrap()],
            ..NodeInfo::named("worker")
        };
        let facts = NodeFacts {
            info: Some(info),
            ..NodeFacts::default()
        };
        node_warnings(NodeView::new(&settings, &facts), families)
            .into_iter()
            .collect()
    }

    #[test]
    fn settings_that_fit_give_no_warning() {
        for flags in [
            &[][..],
            &["--cluster-cidr=10.0.0.0/8,fd00::/8"],
            &["--cluster-cidr=10.0.0.0/8", "--nodeport-addresses=primary"],
            &[
                "--detect-local-mode=NodeCIDR",
                "--nodeport-addresses=fd00::/8,10.0.0.0/8",
            ],
            &[
                "--healthz-bind-address=::",
                "--metrics-bind-address=127.0.0.1",
            ],
        ] {
            for families in [&IpFamily::ALL[..], &[IpFamily::V4]] {
                assert_eq!(
                    warnings_of(flags, &["192.0.2.1"], families),
                    [""; 0],
                    "{flags:?}"
                );
            }
        }
    }

    #[test]
    fn settings_of_the_other_family_give_a_warning() {
        let both = &IpFamily::ALL[..];
        for (flags, families, starts) in [
            (
                &["--cluster-cidr=10.0.0.0/8"][..],
                both,
                "clusterCIDR has no range",
            ),
            (
                &["--detect-local-mode=NodeCIDR"],
                both,
                "spec.podCIDRs has no range",
            ),
            (
                &["--nodeport-addresses=10.0.0.0/8"],
                both,
                "nodePortAddresses has no range",
            ),
            (&[], &[IpFamily::V4], "the node's primary family is IPv6"),
        ] {
            let warnings = warnings_of(flags, &["2001:db8::1", "192.0.2.1"], families);
            assert_eq!(warnings.len(), 1, "{warnings:?}");
            assert!(warnings[0].starts_with(starts), "{warnings:?}");
        }
        for (flag, field) in [
            ("--healthz-bind-address=::1", "healthzBindAddress"),
            ("--metrics-bind-address=::1", "metricsBindAddress"),
        ] {
            let warnings = warnings_of(&[flag], &["192.0.2.1"], &[IpFamily::V4]);
            assert_eq!(warnings.len(), 1, "{warnings:?}");
            assert!(warnings[0].starts_with(field), "{warnings:?}");
        }
        let excluded = ["--proxy-mode=ipvs", "--ipvs-exclude-cidrs=fd00::/8"];
        let warnings = warnings_of(&excluded, &["192.0.2.1"], &[IpFamily::V4]);
        assert!(warnings[0].starts_with("ipvs.excludeCIDRs"), "{warnings:?}");
    }

    #[test]
    fn node_ports_on_localhost_alone_have_nowhere_to_go() {
        let warnings = |addresses: &[&str], ranges: &str| {
            let ranges = format!("--nodeport-addresses={ranges}");
            let arguments = [
                "kube-proxy-rs",
                "--proxy-mode=ipvs",
                "--localhost-nodeports",
            ];
            let arguments = arguments.into_iter().chain([ranges.as_str()]);
            let Command::Run(settings) = config::parse(arguments.map(Into::into)).unwrap() else {
                panic!("not a command to run")
            };
            let facts = NodeFacts::at(addresses);
            node_warnings(NodeView::new(&settings, &facts), &IpFamily::ALL).len()
        };
        assert_eq!(warnings(&["192.0.2.1", "2001:db8::1"], "localhost"), 2);
        assert_eq!(warnings(&["192.0.2.1"], "localhost"), 1, "there is no IPv6");
        assert_eq!(warnings(&["192.0.2.1"], "localhost,192.0.2.0/24"), 0);
        assert_eq!(warnings(&["192.0.2.1"], "all"), 0);
    }
}
