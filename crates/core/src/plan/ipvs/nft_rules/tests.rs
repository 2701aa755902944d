// SPDX-License-Identifier: Apache-2.0
//! Properties of the rules of the nftables table, and that they say what those of iptables say; the
//! rules themselves are recorded in golden files.

use std::collections::BTreeSet;

use super::*;
use crate::plan::ipvs::static_rules;
use crate::plan::testing::{context, golden};

fn detectors(family: IpFamily) -> [(&'static str, LocalDetector, bool); 5] {
    let cidr = match family {
        IpFamily::V4 => "10.244.0.0/16",
        IpFamily::V6 => "fd00:10:244::/56",
    };
    let cidr = LocalDetector::Cidr(cidr.parse().unwrap());
    let bridge = LocalDetector::BridgeInterface("cni0".parse().unwrap());
    let prefix = LocalDetector::InterfacePrefix("veth".parse().unwrap());
    [
        ("none", LocalDetector::None, false),
        ("cidr", cidr.clone(), false),
        ("bridge", bridge, false),
        ("prefix", prefix, false),
        ("all", cidr, true),
    ]
}

fn contexts() -> Vec<(String, Context)> {
    let of = |family| {
        detectors(family).map(|(name, local_detector, masquerade_all)| {
            let name = match family {
                IpFamily::V4 => format!("ipv4-{name}"),
                IpFamily::V6 => format!("ipv6-{name}"),
            };
            let context = Context {
                masquerade_all,
                local_detector,
                ..context(family)
            };
            (name, context)
        })
    };
    IpFamily::ALL.into_iter().flat_map(of).collect()
}

fn rules_of(chain: Chain, context: &Context) -> Vec<Rule> {
    let lines = chain.lines(context).into_iter();
    lines
        .filter_map(|line| match line {
            Line::Rule(rule) => Some(rule),
            Line::Base(_) => None,
        })
        .collect()
}

#[test]
fn every_variant_is_as_recorded() {
    for (name, context) in contexts() {
        golden(&format!("nft/{name}.nft"), &Shown(&context).to_string());
    }
}

#[test]
fn every_line_is_read_as_it_was_written() {
    for (name, context) in contexts() {
        for masquerade_mark in [0x4000, 1, 0x8000_0000] {
            let context = Context {
                masquerade_mark,
                ..context.clone()
            };
            for chain in Chain::ALL {
                for line in chain.lines(&context) {
                    let text = line.shown(context.family);
                    let read = Line::parse(&text, context.family);
                    assert_eq!(read, Some(line), "{name}: {text}");
                }
            }
        }
    }
}

#[test]
fn addresses_are_compared_whole() {
    for (family, source, destination) in [
        (IpFamily::V4, 12..16, 16..20),
        (IpFamily::V6, 8..24, 24..40),
    ] {
        let compared: BTreeSet<(u8, u8)> = address_bytes(family).collect();
        assert_eq!(compared, source.zip(destination).collect());
    }
    // The last bytes differ most.
    assert_eq!(address_bytes(IpFamily::V4).next(), Some((15, 19)));
}

#[test]
fn other_lines_are_not_read() {
    for text in [
        "",
        "accept accept",
        "ip saddr 10.0.0.0/8",
        "ip daddr @KUBE-OTHER drop",
        "meta mark & 0x00001000 accept",
        "type filter hook ingress priority 0; policy accept;",
        "jump elsewhere",
    ] {
        assert_eq!(Line::parse(text, IpFamily::V4), None, "{text}");
    }
}

/// The sets that the rules of iptables match.
fn sets_of_iptables(rules: &FixedRules, family: IpFamily) -> BTreeSet<SetId> {
    let texts: Vec<String> = rules
        .chains
        .chains
        .values()
        .flatten()
        .map(ToString::to_string)
        .collect();
    let is_used = |id: &SetId| {
        let needle = format!("-set {} ", id.name(family));
        texts.iter().any(|text| text.contains(&needle))
    };
    SetId::ALL.into_iter().filter(is_used).collect()
}

fn set_of(rule: &Rule) -> Option<SetId> {
    match rule.action {
        Action::MapMark(set) | Action::SaveAndMapMark(set, _) => return Some(set),
        _ => {}
    }
    rule.matches.iter().find_map(|it| match it {
        Match::In(set, _) => Some(*set),
        // Instead of looking them up.
        Match::ToItself => Some(SetId::LoopBack),
        _ => None,
    })
}

#[test]
fn every_set_of_the_iptables_rules_is_used() {
    for (name, context) in contexts() {
        let iptables = static_rules::fixed_rules(&context).unwrap();
        let wanted = sets_of_iptables(&iptables, context.family);
        let rules = Chain::ALL.into_iter().flat_map(|it| rules_of(it, &context));
        let used: BTreeSet<SetId> = rules.filter_map(|rule| set_of(&rule)).collect();
        assert_eq!(used, wanted, "{name}");
    }
}

/// The chains of iptables that have one of ours, with their table. The others are base chains here,
/// or differ for the reasons that the module gives.
const COUNTERPARTS: [(&str, &str, Chain); 11] = [
    ("nat", "KUBE-MARK-MASQ", Chain::MarkMasquerade),
    ("nat", "KUBE-LOAD-BALANCER", Chain::LoadBalancer),
    ("nat", "KUBE-NODE-PORT", Chain::NodePort),
    ("nat", "KUBE-SERVICES", Chain::Services),
    ("nat", "KUBE-POSTROUTING", Chain::Postrouting),
    ("mangle", "KUBE-IPVS-MARK", Chain::PolicyMarks),
    ("mangle", "KUBE-IPVS-PASS", Chain::Pass),
    ("mangle", "KUBE-IPVS-UNMARK", Chain::AfterIpvs),
    ("mangle", "KUBE-SOURCE-RANGES-FIREWALL", Chain::SourceRanges),
    ("filter", "KUBE-SOURCE-RANGES-FIREWALL", Chain::SourceRanges),
    ("filter", "KUBE-IPVS-FILTER", Chain::Unserved),
];

/// What a rule of iptables does with packets, as far as both can be compared.
fn target(text: &str) -> &'static str {
    let word = text.split("-j ").nth(1).unwrap();
    match word.split(' ').next().unwrap() {
        "RETURN" => "return",
        "ACCEPT" => "accept",
        "DROP" => "drop",
        "REJECT" => "reject",
        "MARK" | "SET" | "CONNMARK" => "mark",
        "MASQUERADE" => "masquerade",
        _ => "jump",
    }
}

fn action(rule: &Rule) -> &'static str {
    match rule.action {
        Action::Return => "return",
        // What `ACCEPT` of a nat table does to all chains of iptables there.
        Action::Accept | Action::Keep => "accept",
        Action::Drop => "drop",
        Action::Reject => "reject",
        Action::Mark(_)
        | Action::SetMark(_)
        | Action::RestoreMark(_)
        | Action::ForgetMark
        | Action::MapMark(_)
        | Action::SaveAndMapMark(..) => "mark",
        Action::Masquerade { .. } => "masquerade",
        Action::Jump(_) => "jump",
    }
}

/// Set, and whether only first packets and only marked ones are meant.
fn conditions(rule: &Rule) -> (Option<SetId>, bool, bool) {
    let is_about_mark = |it: &Match| matches!(it, Match::Mark { .. });
    (
        set_of(rule),
        rule.matches.contains(&Match::New),
        rule.matches.iter().any(is_about_mark),
    )
}

#[test]
fn each_chain_has_the_rules_of_its_counterpart() {
    for (name, context) in contexts() {
        let iptables = static_rules::fixed_rules(&context).unwrap();
        for (table, chain, ours) in COUNTERPARTS {
            let theirs = iptables
                .chains
                .chains
                .iter()
                .find(|((of, it), _)| of.as_str() == table && it.as_str() == chain);
            let (_, theirs) = theirs.unwrap();
            let set_of = |text: &str| {
                let named =
                    |id: &SetId| text.contains(&format!("-set {} ", id.name(context.family)));
                SetId::ALL.into_iter().find(named)
            };
            let theirs: Vec<_> = theirs
                .iter()
                .map(ToString::to_string)
                // Here the drop comes with the mark, right before IPVS.
                .filter(|text| ours != Chain::Unserved || target(text) != "drop")
                // Here bits of others are saved once, right before IPVS.
                .filter(|text| !text.ends_with("-j KUBE-IPVS-SAVE"))
                .map(|text| {
                    let is_new = text.contains("--ctstate NEW");
                    let is_marked = text.contains("-m mark ") || text.contains("-m connmark ");
                    (target(&text), (set_of(&text), is_new, is_marked))
                })
                .collect();
            let ours: Vec<_> = rules_of(ours, &context)
                .iter()
                .map(|rule| (action(rule), conditions(rule)))
                .collect();
            assert_eq!(ours, theirs, "{name}: {table} {chain}");
        }
    }
}

#[test]
fn no_chain_jumps_to_one_behind_it() {
    for (_, context) in contexts() {
        let mut seen = BTreeSet::new();
        for chain in Chain::ALL {
            for rule in rules_of(chain, &context) {
                if let Action::Jump(to) = rule.action {
                    assert!(seen.contains(&to), "{chain:?} jumps to {to:?}");
                    assert!(to.base().is_none(), "{chain:?} jumps to {to:?}");
                }
            }
            seen.insert(chain);
        }
    }
}

#[test]
fn the_names_of_all_chains_are_valid() {
    for (_, context) in contexts() {
        let rules = fixed_rules(&context).unwrap();
        assert_eq!(rules.chains.chains.len(), Chain::ALL.len());
        assert_eq!(rules.jumps, []);
    }
}
