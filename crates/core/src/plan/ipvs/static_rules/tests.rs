// SPDX-License-Identifier: Apache-2.0
//! Properties of all static rules; the rules themselves are recorded in golden files.

use std::collections::BTreeSet;

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

/// The name and the whole batch of each variant.
fn variants() -> impl Iterator<Item = (String, String)> {
    IpFamily::ALL.into_iter().flat_map(|family| {
        detectors(family).map(|(name, detector, all)| {
            let rules = with(family, detector, all);
            let text = render_edits(&edits(&rules, &Ruleset::new()));
            let family = if family == IpFamily::V4 {
                "ipv4"
            } else {
                "ipv6"
            };
            (format!("{family}-{name}"), text)
        })
    })
}

#[test]
fn every_variant_is_as_recorded() {
    for (name, text) in variants() {
        golden(&format!("rules/{name}.rules"), &text);
    }
}

/// A rule that asks for bridge ports loads `br_netfilter`, which hands all bridged packets to
/// iptables.
#[test]
fn no_rule_asks_for_bridge_ports() {
    for (name, text) in variants() {
        assert!(!text.contains("physdev"), "{name}: {text}");
    }
}

/// The node monitoring agent of EKS warns of each one that it does not know.
#[test]
fn docs_have_all_chains_that_refuse_packets() {
    let docs = include_str!("../../../../../../docs/neighbours.md");
    let row = docs
        .lines()
        .find(|it| it.starts_with("| IPVS, rules in iptables | since"));
    let row = row.unwrap();
    for family in IpFamily::ALL {
        let rules = with(family, LocalDetector::None, false);
        let refuses = |rule: &Rule| {
            let text = rule.to_string();
            text.contains("-j REJECT") || text.contains("-j DROP")
        };
        let chains = rules.chains.chains.iter();
        let refusing = chains.filter(|(_, rules)| rules.iter().any(refuses));
        let wanted: BTreeSet<&str> = refusing.map(|((_, chain), _)| chain.as_str()).collect();
        let named: BTreeSet<&str> = row.split('`').skip(1).step_by(2).collect();
        assert_eq!(named, wanted);
    }
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
    // The marks of policies leave room for it.
    assert!(postrouting[1].starts_with("-m mark --mark 0x10000000/0xf000ffff "));
    assert_eq!(postrouting[2], "-m mark ! --mark 0x1/0x1 -j RETURN");
    assert_eq!(postrouting[3], "-j MARK --set-xmark 0x1/0x0");
    assert!(chain(&rules, Table::Filter, "KUBE-FORWARD")[0].contains("--mark 0x1/0x1 "));
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
    // The result of the batch in the order of a listing: the last jump inserted at the top is
    // first.
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
        // Another program has put rules before ours.
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

#[test]
fn without_a_table_security_marks_are_cleared_where_they_are_set() {
    let rules = fixed_rules(&Context {
        has_security_table: false,
        ..context(IpFamily::V4)
    })
    .unwrap();
    assert_eq!(rules.chains.table(Table::Security).count(), 0);
    assert!(
        rules
            .jumps
            .iter()
            .all(|(table, ..)| *table != Table::Security)
    );
    let marks = chain(&rules, Table::Mangle, "KUBE-IPVS-MARK");
    // Behind it are the answers, whose mark is set as a whole.
    let last = marks.iter().rev().nth(2).unwrap();
    assert!(last.starts_with("-m mark --mark 0x1000/0x1000 "), "{last}");
    assert!(
        last.ends_with(" -j MARK --set-xmark 0x0/0xffffe000"),
        "{last}"
    );
}

#[test]
fn services_come_before_the_published_ports_of_others() {
    let rules = v4();
    let mut present = rules.chains.clone();
    for (table, chain, rule) in &rules.jumps {
        let of_chain = present.chains.entry((*table, chain.clone())).or_default();
        of_chain.insert(0, rule.clone());
    }
    let taker = Rule::new("-m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT");
    for name in ["PREROUTING", "OUTPUT"] {
        let id = (Table::Nat, ChainName::new(name).unwrap());
        present
            .chains
            .get_mut(&id)
            .unwrap()
            .insert(0, taker.clone());
    }
    let moved = edits(&rules, &present);
    assert_eq!(moved.len(), 4);
    for edit in &moved {
        assert!(order::moves(&moved, edit), "{edit}");
        present.apply(edit).unwrap();
    }
    assert_eq!(edits(&rules, &present), []);
}
