// SPDX-License-Identifier: Apache-2.0
//! What this machine does, or lacks, that keeps packets of Services from their way. Nothing of it
//! is ours to change, so that operators are told what to do.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::context::NodeView;
use crate::dataplane::network::NetworkLink;
use kpr_core::model::IpFamily;
use kpr_core::model::node::DetectLocal;
use kpr_core::plan::ipvs::object::SyncDaemon;

/// Bridges by these names have pods, where no range of pods is known.
const POD_BRIDGES: [&str; 3] = ["cni", "cbr", "kube-bridge"];

/// All warnings, as sentences for operators. `families` are the served ones.
pub(super) fn network_warnings(node: NodeView<'_>, families: &[IpFamily]) -> BTreeSet<String> {
    let mut warnings = BTreeSet::new();
    warnings.extend(foreign_node(node));
    warnings.extend(
        families
            .iter()
            .filter_map(|family| past_iptables(node, *family)),
    );
    warnings.extend(strict_links(node));
    if node.loses_ports() {
        warnings.insert(
            "the CNI plugin portmap publishes ports by nftables (table cni_hostport): a published \
             port takes the same port of every Service on this node while the rules of IPVS mode are \
             in iptables; use --ipvs-rules=nftables, or set portmap's backend to iptables"
                .to_owned(),
        );
    }
    if let Some(daemon) = &node.settings.ipvs.sync
        && node.facts.around.sync_link.is_none()
    {
        let SyncDaemon {
            interface, group, ..
        } = daemon;
        let family = IpFamily::of(*group);
        warnings.insert(format!(
            "--ipvs-sync-interface {interface} is not there, not up or without an {family} address: \
             connections are not exchanged with other nodes until it is ready"
        ));
    }
    for name in &node.facts.missing_matches {
        warnings.insert(format!(
            "iptables or the kernel has no {name}: Services that need it are not served; install the \
             kernel's extra modules and load the module"
        ));
    }
    let sysctls = node.settings.ipvs.sysctls.iter();
    for (name, value) in sysctls.filter(|(name, _)| !node.facts.sysctls.contains_key(*name)) {
        warnings.insert(format!(
            "{name} cannot be {value} here, as a flag asks for: this kernel does not have the setting, \
             or the node none of the CPUs"
        ));
    }
    warnings
}

/// The Node object describes another machine.
fn foreign_node(node: NodeView<'_>) -> Option<String> {
    let info = node.facts.info.as_ref()?;
    let mine = &node.facts.around.addresses;
    let is_known = !info.addresses.is_empty() && !mine.is_empty();
    if !is_known || info.addresses.iter().any(|ip| mine.contains(ip)) {
        return None;
    }
    let theirs: Vec<String> = info.addresses.iter().map(ToString::to_string).collect();
    Some(format!(
        "Node {} has the addresses {}, and this machine has none of them: if it is another machine, \
         correct --hostname-override (hostnameOverride), else no endpoint counts as local",
        info.name,
        theirs.join(", ")
    ))
}

/// Packets between pods on one bridge do not meet iptables, so that replies are not translated
/// back.
fn past_iptables(node: NodeView<'_>, family: IpFamily) -> Option<String> {
    let network = &node.facts.around.network;
    let mut links = network.links.iter();
    let (bridge, _) = links.find(|(name, link)| has_pods(node, name, link, family))?;
    if !network.bridged_past.contains(&family) {
        return None;
    }
    let programs = match family {
        IpFamily::V4 => "iptables",
        IpFamily::V6 => "ip6tables",
    };
    let what_to_do = if network.has_br_netfilter {
        format!("set net.bridge.bridge-nf-call-{programs}=1")
    } else {
        format!("load br_netfilter and keep net.bridge.bridge-nf-call-{programs}=1")
    };
    Some(format!(
        "packets between pods on bridge {bridge} do not meet {programs}: a pod gets no answer from a \
         Service whose endpoint is on this node; {what_to_do}"
    ))
}

fn has_pods(node: NodeView<'_>, name: &str, link: &NetworkLink, family: IpFamily) -> bool {
    let is_of = |network: &IpNet| IpFamily::of(network.addr()) == family;
    if link.kind.as_deref() != Some("bridge") || !link.networks.iter().any(is_of) {
        return false;
    }
    let info = node.facts.info.as_ref();
    let of_node = info.map_or(&[][..], |info| &info.pod_cidrs);
    let of_cluster = match &node.settings.detect_local {
        DetectLocal::BridgeInterface(bridge) => return bridge.as_str() == name,
        DetectLocal::InterfaceNamePrefix(prefix) if name.starts_with(prefix.as_str()) => {
            return true;
        }
        DetectLocal::ClusterCidr(cidrs) => cidrs.as_slice(),
        _ => &[],
    };
    let ranges = || {
        of_node
            .iter()
            .chain(of_cluster)
            .filter(|range| is_of(range))
    };
    if ranges().next().is_none() {
        return POD_BRIDGES.iter().any(|start| name.starts_with(start));
    }
    let mut networks = link.networks.iter();
    networks.any(|network| ranges().any(|range| range.contains(network)))
}

/// On a machine with several uplinks, one that drops what it would not answer through.
fn strict_links(node: NodeView<'_>) -> Option<String> {
    let links = node.facts.around.network.links.iter();
    let uplinks: Vec<_> = links.filter(|(_, link)| is_uplink(link)).collect();
    let strict = uplinks.iter().filter(|(_, link)| link.is_strict);
    let strict: Vec<&str> = strict.map(|(name, _)| name.as_str()).collect();
    if uplinks.len() < 2 || strict.is_empty() {
        return None;
    }
    Some(format!(
        "rp_filter is 1 (strict) on {}: packets of clients of Services are dropped where the route \
         back goes through another link; set net.ipv4.conf.LINK.rp_filter=2 where that happens",
        strict.join(", ")
    ))
}

/// Links to other machines; those with IPv6 alone have no such filter.
fn is_uplink(link: &NetworkLink) -> bool {
    let has_v4 = |network: &IpNet| matches!(network, IpNet::V4(_));
    !matches!(link.kind.as_deref(), Some("bridge" | "dummy")) && link.networks.iter().any(has_v4)
}

#[cfg(test)]
mod tests {
    use super::super::context::NodeFacts;
    use super::*;
    use crate::config::{self, Command};
    use kpr_core::model::NodeInfo;
    use kpr_core::model::testing::ip;
    use kpr_core::plan::IpvsRules;

    fn warnings(flags: &[&str], facts: &NodeFacts) -> Vec<String> {
        let arguments = ["kube-proxy-rs"].iter().chain(flags);
        let Command::Run(settings) = config::parse(arguments.map(Into::into)).unwrap() else {
            panic!("not a command to run")
        };
        let view = NodeView::new(&settings, facts);
        network_warnings(view, &IpFamily::ALL).into_iter().collect()
    }

    fn link(kind: Option<&str>, networks: &[&str], is_strict: bool) -> NetworkLink {
        NetworkLink {
            kind: kind.map(str::to_owned),
            networks: networks
                .iter()
                .map(|network| network.parse().unwrap())
                .collect(),
            is_strict,
        }
    }

    fn linked(links: &[(&str, NetworkLink)]) -> NodeFacts {
        let mut facts = NodeFacts::default();
        let links = links.iter().cloned();
        facts.around.network.links = links.map(|(name, link)| (name.to_owned(), link)).collect();
        facts
    }

    #[test]
    fn a_node_object_of_another_machine_is_named() {
        let facts = |theirs: &str, mine: &[&str]| NodeFacts {
            info: Some(NodeInfo {
                addresses: vec![ip(theirs)],
                ..NodeInfo::named("worker")
            }),
            ..NodeFacts::at(mine)
        };
        let found = warnings(&[], &facts("192.0.2.1", &["192.0.2.9"]));
        assert_eq!(found.len(), 1, "{found:?}");
        let start = "Node worker has the addresses 192.0.2.1, and this machine has none";
        assert!(found[0].starts_with(start), "{found:?}");
        assert_eq!(
            warnings(&[], &facts("192.0.2.1", &["192.0.2.1", "10.0.0.1"])),
            [""; 0]
        );
        assert_eq!(
            warnings(&[], &facts("192.0.2.1", &[])),
            [""; 0],
            "not known yet"
        );
    }

    #[test]
    fn pods_on_a_bridge_need_br_netfilter() {
        let cluster = ["--cluster-cidr=10.1.0.0/16,fd00:1::/48"];
        let cni0 = link(Some("bridge"), &["10.1.3.0/24"], false);
        let mut facts = linked(&[("cni0", cni0)]);
        facts.around.network.bridged_past = IpFamily::ALL.into();
        let found = warnings(&cluster, &facts);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].contains("bridge cni0 do not meet iptables"),
            "{found:?}"
        );
        assert!(found[0].contains("load br_netfilter"), "{found:?}");
        facts.around.network.has_br_netfilter = true;
        let found = warnings(&cluster, &facts);
        assert!(
            found[0].ends_with("; set net.bridge.bridge-nf-call-iptables=1"),
            "{found:?}"
        );
        facts.around.network.bridged_past = [IpFamily::V6].into();
        assert_eq!(warnings(&cluster, &facts), [""; 0], "it has no IPv6 pods");
    }

    #[test]
    fn bridges_of_others_do_not_matter() {
        let docker0 = link(Some("bridge"), &["172.17.0.0/16"], false);
        let mut facts = linked(&[("docker0", docker0)]);
        facts.around.network.bridged_past = IpFamily::ALL.into();
        for flags in [&[][..], &["--cluster-cidr=10.1.0.0/16"]] {
            assert_eq!(warnings(flags, &facts), [""; 0]);
        }
        let bridge = [
            "--detect-local-mode=BridgeInterface",
            "--pod-bridge-interface=docker0",
        ];
        assert_eq!(warnings(&bridge, &facts).len(), 1, "pods are on it");
        let cni0 = link(Some("bridge"), &["10.88.0.0/16"], false);
        let mut facts = linked(&[("cni0", cni0)]);
        facts.around.network.bridged_past = [IpFamily::V4].into();
        assert_eq!(warnings(&[], &facts).len(), 1, "by its name");
    }

    #[test]
    fn strict_reverse_path_matters_with_two_uplinks() {
        let uplink = |network, is_strict| link(None, &[network], is_strict);
        let one = linked(&[
            ("eth0", uplink("192.0.2.0/24", true)),
            ("cni0", link(Some("bridge"), &["10.1.3.0/24"], true)),
        ]);
        assert_eq!(warnings(&[], &one), [""; 0]);
        let loose = linked(&[
            ("eth0", uplink("192.0.2.0/24", false)),
            ("eth1", uplink("198.51.100.0/24", false)),
        ]);
        assert_eq!(warnings(&[], &loose), [""; 0]);
        let two = linked(&[
            ("eth0", uplink("192.0.2.0/24", false)),
            ("eth1", uplink("198.51.100.0/24", true)),
        ]);
        let found = warnings(&[], &two);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].starts_with("rp_filter is 1 (strict) on eth1:"),
            "{found:?}"
        );
    }

    #[test]
    fn a_sync_interface_that_is_not_ready_is_named() {
        let flags = ["--proxy-mode=ipvs", "--ipvs-sync-interface=eth1"];
        let mut facts = NodeFacts::default();
        let found = warnings(&flags, &facts);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("--ipvs-sync-interface eth1 is not there"));
        assert_eq!(warnings(&flags[1..], &facts), [""; 0], "another mode");
        facts.around.sync_link = Some(3);
        assert_eq!(warnings(&flags, &facts), [""; 0]);
    }

    #[test]
    fn settings_that_the_kernel_lacks_are_named() {
        let flags = ["--proxy-mode=ipvs", "--ipvs-est-nice=5"];
        let mut facts = NodeFacts::default();
        let found = warnings(&flags, &facts);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("net/ipv4/vs/est_nice cannot be 5 here"));
        facts.sysctls = [("net/ipv4/vs/est_nice", "5".to_owned())].into();
        assert_eq!(warnings(&flags, &facts), [""; 0]);
    }

    #[test]
    fn ports_that_nftables_publish_take_those_of_services_from_iptables() {
        let mut facts = NodeFacts::default();
        facts.around.network.publishes_ports = true;
        let ipvs = ["--proxy-mode=ipvs"];
        let found = warnings(&ipvs, &facts);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("use --ipvs-rules=nftables"), "{found:?}");
        assert_eq!(
            warnings(&[], &facts),
            [""; 0],
            "addresses of Services are not local"
        );
        facts.ipvs_rules = IpvsRules::Nftables;
        assert_eq!(warnings(&ipvs, &facts), [""; 0], "our chain comes first");
    }

    #[test]
    fn what_iptables_lacks_is_named() {
        let facts = NodeFacts {
            missing_matches: ["xt_statistic"].into(),
            ..NodeFacts::default()
        };
        let found = warnings(&[], &facts);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("has no xt_statistic"), "{found:?}");
    }
}
