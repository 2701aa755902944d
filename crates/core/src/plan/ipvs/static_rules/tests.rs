// SPDX-License-Identifier: Apache-2.0
//! The fixed rules, compared with kube-proxy's and with golden files.

use super::*;
use crate::plan::ruleset::render_edits;
use crate::plan::testing::{context, golden};

fn detectors(family: IpFamily) -> [(&'static str, LocalDetector, bool); 5] {
    let cidr = match family {
        IpFamily::V4 => "10.244.0.0/16",
        IpFamily::V6 => "fd00:10:244::/56",
    };
    let cidr = LocalDetector::Cidr(cidr.parse().unwrap());
    [
        ("none", LocalDetector::None, false),
        ("cidr", cidr.clone(), false),
        (
            "bridge",
            LocalDetector::BridgeInterface("cni0".parse().unwrap()),
            false,
        ),
        (
            "prefix",
            LocalDetector::InterfacePrefix("veth".parse().unwrap()),
            false,
        ),
        ("all", cidr, true),
    ]
}

fn with(family: IpFamily, local_detector: LocalDetector, masquerade_all: bool) -> FixedRules {
    fixed_rules(&Context {
        masquerade_all,
        local_detector,
        ..context(family)
    })
    .unwrap()
}

fn chain(rules: &FixedRules, table: Table, name: &str) -> Vec<String> {
    let name = ChainName::new(name).unwrap();
    let rules = rules.chains.rules(table, &name).unwrap();
    rules.iter().map(ToString::to_string).collect()
}

fn v4() -> FixedRules {
    with(IpFamily::V4, LocalDetector::None, false)
}

/// `-m set --match-set X f`.
fn ms(set: &str, flags: &str) -> String {
    format!("-m set --match-set {set} {flags}")
}

/// A comment, as iptables-save prints those with blanks.
fn comment(text: &str) -> String {
    format!("-m comment --comment \"{text}\"")
}

#[test]
fn every_variant_is_as_recorded() {
    for family in IpFamily::ALL {
        for (name, detector, all) in detectors(family) {
            let rules = with(family, detector, all);
            let text = render_edits(&edits(&rules, &Ruleset::new()));
            let family = if family == IpFamily::V4 {
                "ipv4"
            } else {
                "ipv6"
            };
            golden(&format!("rules/{family}-{name}.rules"), &text);
        }
    }
}

#[test]
fn services_are_sorted_into_what_is_masqueraded_and_what_is_accepted() {
    let cluster_ip = comment("Kubernetes service cluster ip + port for masquerade purpose");
    let external =
        comment("Kubernetes service external ip + port for masquerade and filter purpose");
    let external_local =
        comment("Kubernetes service external ip + port with externalTrafficPolicy=local");
    let portal = comment("Kubernetes service lb portal");
    let physdev = "-m physdev ! --physdev-is-in -m addrtype ! --src-type LOCAL -j ACCEPT";
    let local = "-m addrtype --dst-type LOCAL -j ACCEPT";
    let external_set = ms("KUBE-EXTERNAL-IP", "dst,dst");
    let local_set = ms("KUBE-EXTERNAL-IP-LOCAL", "dst,dst");
    assert_eq!(
        chain(&v4(), Table::Nat, "KUBE-SERVICES"),
        [
            "-s 127.0.0.0/8 -j RETURN".to_owned(),
            format!(
                "{portal} {} -j KUBE-LOAD-BALANCER",
                ms("KUBE-LOAD-BALANCER", "dst,dst")
            ),
            format!(
                "{cluster_ip} {} -j KUBE-MARK-MASQ",
                ms("KUBE-CLUSTER-IP", "src,dst")
            ),
            format!("{external} {external_set} -j KUBE-MARK-MASQ"),
            format!("{external} {external_set} {physdev}"),
            format!("{external} {external_set} {local}"),
            format!("{external_local} {local_set} {physdev}"),
            format!("{external_local} {local_set} {local}"),
            "-m addrtype --dst-type LOCAL -j KUBE-NODE-PORT".to_owned(),
            format!("{} -j ACCEPT", ms("KUBE-CLUSTER-IP", "dst,dst")),
            format!("{} -j ACCEPT", ms("KUBE-LOAD-BALANCER", "dst,dst")),
        ]
    );
}

#[test]
fn the_detector_says_what_to_a_cluster_ip_is_masqueraded() {
    let rule = |(name, detector, all): (&str, LocalDetector, bool)| {
        let rules = with(IpFamily::V4, detector, all);
        let rule = chain(&rules, Table::Nat, "KUBE-SERVICES")[2].clone();
        let noted = comment("Kubernetes service cluster ip + port for masquerade purpose");
        (name.to_owned(), rule.replace(&noted, "NOTE"))
    };
    let expected = [
        (
            "none",
            "NOTE -m set --match-set KUBE-CLUSTER-IP src,dst -j KUBE-MARK-MASQ",
        ),
        (
            "cidr",
            "! -s 10.244.0.0/16 NOTE -m set --match-set KUBE-CLUSTER-IP dst,dst -j KUBE-MARK-MASQ",
        ),
        (
            "bridge",
            "! -i cni0 NOTE -m set --match-set KUBE-CLUSTER-IP dst,dst -j KUBE-MARK-MASQ",
        ),
        (
            "prefix",
            "! -i veth+ NOTE -m set --match-set KUBE-CLUSTER-IP dst,dst -j KUBE-MARK-MASQ",
        ),
        (
            "all",
            "NOTE -m set --match-set KUBE-CLUSTER-IP dst,dst -j KUBE-MARK-MASQ",
        ),
    ];
    assert_eq!(
        detectors(IpFamily::V4).map(rule),
        expected.map(|(name, rule)| (name.to_owned(), rule.to_owned()))
    );
}

#[test]
fn load_balancers_are_masqueraded_unless_local() {
    let local =
        comment("Kubernetes service load balancer ip + port with externalTrafficPolicy=local");
    assert_eq!(
        chain(&v4(), Table::Nat, "KUBE-LOAD-BALANCER"),
        [
            format!(
                "{local} {} -j RETURN",
                ms("KUBE-LOAD-BALANCER-LOCAL", "dst,dst")
            ),
            "-j KUBE-MARK-MASQ".to_owned(),
        ]
    );
}

#[test]
fn node_ports_match_address_and_port_the_local_set_first() {
    let rule = |set: &str, what: &str, target: &str| {
        format!("{} {} -j {target}", comment(what), ms(set, "dst,dst"))
    };
    assert_eq!(
        chain(&v4(), Table::Nat, "KUBE-NODE-PORT"),
        [
            rule(
                "KUBE-NODE-PORT-LOCAL-HASH",
                "Kubernetes nodeport address and port with externalTrafficPolicy=local",
                "RETURN",
            ),
            rule(
                "KUBE-NODE-PORT-HASH",
                "Kubernetes nodeport address and port for masquerade purpose",
                "KUBE-MARK-MASQ",
            ),
        ]
    );
}

#[test]
fn marked_packets_and_hairpins_are_masqueraded_once() {
    let hairpin =
        comment("Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose");
    let snat = comment("kubernetes service traffic requiring SNAT");
    assert_eq!(
        chain(&v4(), Table::Nat, "KUBE-POSTROUTING"),
        [
            format!(
                "{hairpin} {} -j MASQUERADE",
                ms("KUBE-LOOP-BACK", "dst,dst,src")
            ),
            "-m mark --mark 0x2000/0xffffe000 -m addrtype --src-type LOCAL -j MASQUERADE --random-fully".to_owned(),
            "-m mark ! --mark 0x4000/0x4000 -j RETURN".to_owned(),
            // `--xor-mark 0x4000` and `--or-mark 0x4000` in the words of iptables-save.
            "-j MARK --set-xmark 0x4000/0x0".to_owned(),
            format!("{snat} -j MASQUERADE --random-fully"),
        ]
    );
    assert_eq!(
        chain(&v4(), Table::Nat, "KUBE-MARK-MASQ"),
        ["-j MARK --set-xmark 0x4000/0x4000"]
    );
}

#[test]
fn the_mark_is_configurable() {
    let rules = fixed_rules(&Context {
        masquerade_mark: 1,
        ..context(IpFamily::V4)
    })
    .unwrap();
    assert_eq!(
        chain(&rules, Table::Nat, "KUBE-MARK-MASQ"),
        ["-j MARK --set-xmark 0x1/0x1"]
    );
    let postrouting = chain(&rules, Table::Nat, "KUBE-POSTROUTING");
    // The marks of policies make room for it.
    assert!(postrouting[1].starts_with("-m mark --mark 0x20000000/0xe000ffff "));
    assert_eq!(postrouting[2], "-m mark ! --mark 0x1/0x1 -j RETURN");
    assert_eq!(postrouting[3], "-j MARK --set-xmark 0x1/0x0");
    assert!(chain(&rules, Table::Filter, "KUBE-FORWARD")[0].contains("--mark 0x1/0x1 "));
}

#[test]
fn forwarded_packets_of_services_are_accepted() {
    let rules = comment("kubernetes forwarding rules");
    let established = comment("kubernetes forwarding conntrack rule");
    assert_eq!(
        chain(&v4(), Table::Filter, "KUBE-FORWARD"),
        [
            format!("{rules} -m mark --mark 0x4000/0x4000 -j ACCEPT"),
            format!("{established} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"),
        ]
    );
}

#[test]
fn health_checks_are_accepted() {
    let note = comment("Kubernetes health check node port");
    assert_eq!(
        chain(&v4(), Table::Filter, "KUBE-NODE-PORT"),
        [format!(
            "{note} {} -j ACCEPT",
            ms("KUBE-HEALTH-CHECK-NODE-PORT", "dst")
        )]
    );
}

#[test]
fn source_ranges_decide_about_new_connections() {
    let closed =
        comment("Kubernetes service load balancer ip + port for load balancer with sourceRange");
    let fw = ms("KUBE-LOAD-BALANCER-FW", "dst,dst");
    let jump = format!("-m conntrack --ctstate NEW {closed} {fw} -j KUBE-SOURCE-RANGES-FIREWALL");
    assert_eq!(
        chain(&v4(), Table::Filter, "KUBE-PROXY-FIREWALL"),
        std::slice::from_ref(&jump)
    );
    // The node's own packets, before IPVS takes them.
    assert_eq!(chain(&v4(), Table::Mangle, "KUBE-IPVS-OUT-FILTER")[0], jump);
    let cidr = comment(
        "Kubernetes service load balancer ip + port + source cidr for packet filter purpose",
    );
    let address =
        comment("Kubernetes service load balancer ip + port + source IP for packet filter purpose");
    let ranges = [
        format!(
            "{cidr} {} -j RETURN",
            ms("KUBE-LOAD-BALANCER-SOURCE-CIDR", "dst,dst,src")
        ),
        format!(
            "{address} {} -j RETURN",
            ms("KUBE-LOAD-BALANCER-SOURCE-IP", "dst,dst,src")
        ),
        "-j DROP".to_owned(),
    ];
    for table in [Table::Mangle, Table::Filter] {
        assert_eq!(chain(&v4(), table, "KUBE-SOURCE-RANGES-FIREWALL"), ranges);
    }
}

/// The rule that drops new connections which a Local policy admits to no endpoint.
fn no_local() -> String {
    format!(
        "-m conntrack --ctstate NEW -m mark ! --mark 0x2000/0xffffe000 {} {} -j DROP",
        comment(SetId::NoLocalEndpoints.comment()),
        ms("KUBE-NO-LOCAL-ENDPOINTS", "dst,dst")
    )
}

#[test]
fn pods_and_the_node_get_the_mark_of_a_policy() {
    let set = "KUBE-LOCAL-POLICY-MARK";
    let mark = format!(
        "{} {} -j SET --map-set {set} dst,dst --map-mark",
        comment(SetId::LocalPolicyMark.comment()),
        ms(set, "dst,dst")
    );
    let node = format!("-m addrtype --src-type LOCAL {mark}");
    for (name, detector, _) in detectors(IpFamily::V4) {
        let rules = with(IpFamily::V4, detector, false);
        let pods = match name {
            "none" => None,
            "bridge" => Some(format!("-i cni0 {mark}")),
            "prefix" => Some(format!("-i veth+ {mark}")),
            _ => Some(format!("-s 10.244.0.0/16 {mark}")),
        };
        let expected: Vec<String> = pods.into_iter().chain([node.clone()]).collect();
        assert_eq!(chain(&rules, Table::Mangle, "KUBE-IPVS-MARK"), expected);
        // The node's own packets: IPVS takes them before any other table sees them.
        assert_eq!(
            chain(&rules, Table::Mangle, "KUBE-IPVS-OUT-FILTER")[1..],
            ["-j KUBE-IPVS-MARK".to_owned(), no_local()]
        );
    }
}

#[test]
fn unknown_ports_of_service_addresses_are_refused() {
    let known = [
        "KUBE-LOAD-BALANCER",
        "KUBE-CLUSTER-IP",
        "KUBE-EXTERNAL-IP",
        "KUBE-EXTERNAL-IP-LOCAL",
    ];
    let mut expected = vec![no_local()];
    expected.extend(known.map(|set| format!("{} -j RETURN", ms(set, "dst,dst"))));
    let ips = ms("KUBE-IPVS-IPS", "dst");
    expected.push(format!(
        "-m conntrack --ctstate NEW {ips} -j REJECT --reject-with icmp-port-unreachable"
    ));
    assert_eq!(chain(&v4(), Table::Filter, "KUBE-IPVS-FILTER"), expected);
}

#[test]
fn ipv6_has_its_own_names_and_rejection() {
    let rules = with(IpFamily::V6, LocalDetector::None, false);
    assert_eq!(
        chain(&rules, Table::Nat, "KUBE-SERVICES")[0],
        "-s ::1/128 -j RETURN"
    );
    let reject = chain(&rules, Table::Filter, "KUBE-IPVS-FILTER")
        .pop()
        .unwrap();
    assert_eq!(
        reject,
        "-m conntrack --ctstate NEW -m set --match-set KUBE-6-IPVS-IPS dst -j REJECT --reject-with icmp6-port-unreachable"
    );
    // One name is cut to 31 bytes.
    let all = render_edits(&edits(&rules, &Ruleset::new()));
    assert!(all.contains(" KUBE-6-LOAD-BALANCER-SOURCE-CID dst,dst,src "));
    assert!(!all.contains("--match-set KUBE-LOAD"));
}

#[test]
fn jumps_are_kube_proxys_and_two_more() {
    let rules = v4();
    let jumps: Vec<String> = rules
        .jumps
        .iter()
        .map(|(table, chain, rule)| format!("{table} {chain} {rule}"))
        .collect();
    let jump = |table: &str, from: &str, note: &str, to: &str| {
        format!("{table} {from} {} -j {to}", comment(note))
    };
    assert_eq!(
        jumps,
        [
            jump(
                "nat",
                "OUTPUT",
                "kubernetes service portals",
                "KUBE-SERVICES"
            ),
            jump(
                "nat",
                "PREROUTING",
                "kubernetes service portals",
                "KUBE-SERVICES"
            ),
            jump(
                "nat",
                "POSTROUTING",
                "kubernetes postrouting rules",
                "KUBE-POSTROUTING"
            ),
            jump(
                "filter",
                "FORWARD",
                "kubernetes forwarding rules",
                "KUBE-FORWARD"
            ),
            jump(
                "filter",
                "INPUT",
                "kubernetes health check rules",
                "KUBE-NODE-PORT"
            ),
            jump(
                "filter",
                "INPUT",
                "kube-proxy firewall rules",
                "KUBE-PROXY-FIREWALL"
            ),
            jump(
                "filter",
                "FORWARD",
                "kube-proxy firewall rules",
                "KUBE-PROXY-FIREWALL"
            ),
            jump(
                "filter",
                "INPUT",
                "kubernetes ipvs access filter",
                "KUBE-IPVS-FILTER"
            ),
            jump(
                "filter",
                "OUTPUT",
                "kubernetes ipvs access filter",
                "KUBE-IPVS-OUT-FILTER"
            ),
            jump(
                "mangle",
                "OUTPUT",
                "kubernetes ipvs access filter",
                "KUBE-IPVS-OUT-FILTER"
            ),
            jump(
                "mangle",
                "INPUT",
                "kubernetes external traffic policy of pods",
                "KUBE-IPVS-MARK"
            ),
        ]
    );
}

#[test]
fn every_chain_that_a_rule_names_is_made() {
    for family in IpFamily::ALL {
        let rules = with(family, LocalDetector::None, false);
        let built = |table: Table, name: &str| {
            rules
                .chains
                .rules(table, &ChainName::new(name).unwrap())
                .is_some()
        };
        for ((table, _), of_chain) in &rules.chains.chains {
            for target in of_chain.iter().filter_map(Rule::target) {
                assert!(
                    !target.starts_with("KUBE-") || built(*table, target),
                    "{target}"
                );
            }
        }
        for (table, from, rule) in &rules.jumps {
            assert!(table.has_built_in(from));
            assert!(built(*table, rule.target().unwrap()), "{rule}");
        }
    }
}

#[test]
fn every_set_is_used_and_no_other() {
    for family in IpFamily::ALL {
        let rules = with(family, LocalDetector::None, false);
        let text = render_edits(&edits(&rules, &Ruleset::new()));
        for id in SetId::ALL {
            assert!(
                text.contains(&format!("--match-set {} ", id.name(family))),
                "{id:?}"
            );
        }
        let known = |name: &str| {
            SetId::ALL
                .into_iter()
                .any(|id| id.name(family).as_str() == name)
        };
        for name in text.split("--match-set ").skip(1) {
            let name = name.split(' ').next().unwrap();
            assert!(known(name), "{name}");
        }
    }
}

#[test]
fn present_rules_need_no_edits() {
    let rules = v4();
    let text = render_edits(&edits(&rules, &Ruleset::new()));
    // What the batch makes, as a listing would show it: the last jump that was put on top is first.
    let mut present = rules.chains.clone();
    for (table, chain, rule) in &rules.jumps {
        let key = (*table, chain.clone());
        present
            .chains
            .entry(key)
            .or_default()
            .insert(0, rule.clone());
    }
    assert!(!text.is_empty());
    assert_eq!(edits(&rules, &present), []);
}

#[test]
fn only_what_differs_is_edited() {
    let rules = v4();
    let mut present = rules.chains.clone();
    for (table, chain, rule) in &rules.jumps {
        // Somebody has put rules before ours.
        let rules = present.chains.entry((*table, chain.clone())).or_default();
        rules.push(Rule::new("-j ACCEPT"));
        rules.push(rule.clone());
    }
    assert_eq!(edits(&rules, &present), []);
    let firewall = (
        Table::Filter,
        ChainName::new("KUBE-PROXY-FIREWALL").unwrap(),
    );
    present
        .chains
        .get_mut(&firewall)
        .unwrap()
        .push(Rule::new("-j ACCEPT"));
    present
        .chains
        .remove(&(Table::Nat, ChainName::new("OUTPUT").unwrap()));
    let edits: Vec<String> = edits(&rules, &present)
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        edits,
        [
            "replace chain filter/KUBE-PROXY-FIREWALL with 1 rule",
            "prepend to nat/OUTPUT: -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES",
        ]
    );
}
