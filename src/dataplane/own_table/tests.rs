// SPDX-License-Identifier: Apache-2.0
//! What we write is read as what it was.

use kpr_core::model::Protocol;
use kpr_core::model::node::LocalDetector;
use kpr_core::plan::Context;
use kpr_core::plan::ipvs::nft_rules::Chain;
use kpr_core::plan::ipvs::set::{SetEntry, SetType};
use kpr_core::plan::testing::context;
use nft_netlink::{RuleAttribute, RuleStatus};

use super::*;

fn contexts() -> Vec<Context> {
    let mut contexts = Vec::new();
    for family in IpFamily::ALL {
        let pods: &[&str] = match family {
            IpFamily::V4 => &["10.244.0.0/16", "10.0.0.0/9", "0.0.0.0/0", "192.0.2.1/32"],
            IpFamily::V6 => &["fd00:10:244::/56", "fd00::/11", "::/0", "fd00::1/128"],
        };
        let detectors = pods
            .iter()
            .map(|pods| LocalDetector::Cidr(pods.parse().unwrap()))
            .chain([
                LocalDetector::None,
                LocalDetector::BridgeInterface("cni0".parse().unwrap()),
                LocalDetector::BridgeInterface("fifteen-letters".parse().unwrap()),
                LocalDetector::InterfacePrefix("veth".parse().unwrap()),
            ]);
        for local_detector in detectors {
            for masquerade_mark in [1, 0x4000, 0x8000_0000] {
                contexts.push(Context {
                    masquerade_mark,
                    local_detector: local_detector.clone(),
                    ..context(family)
                });
            }
        }
    }
    contexts
}

/// What the kernel would answer of a rule.
fn status(
    chain: Chain,
    family: IpFamily,
    rule: &kpr_core::plan::ipvs::nft_rules::Rule,
) -> RuleStatus {
    let key = encode::table(family).unwrap();
    let chain = key.chain(chain.name().parse().unwrap());
    let mut written = nft::Rule::new(chain, encode::steps(family, rule).unwrap());
    written.comment.clone_from(&rule.comment);
    let mut attributes = written.to_attributes();
    attributes.push(RuleAttribute::Handle(7));
    RuleStatus::from_attributes(key.family, &attributes).unwrap()
}

#[test]
fn every_rule_is_read_as_it_was_written() {
    for context in contexts() {
        let family = context.family;
        for chain in Chain::ALL {
            for line in chain.lines(&context) {
                let text = line.shown(family);
                let found = match line {
                    Line::Base(base) => decode::base(&encode::base(base), family),
                    Line::Rule(rule) => decode::rule(family, &status(chain, family, &rule)),
                };
                assert_eq!(found.as_str(), text, "{context:?}");
            }
        }
    }
}

#[test]
fn a_rule_with_one_step_changed_is_none_of_ours() {
    let context = context(IpFamily::V4);
    for chain in Chain::ALL {
        for line in chain.lines(&context) {
            let Line::Rule(rule) = line else {
                continue;
            };
            let whole = status(chain, IpFamily::V4, &rule);
            for left_out in 0..whole.rule.expressions.len() {
                let mut changed = whole.clone();
                changed.rule.expressions.remove(left_out);
                let text = decode::rule(IpFamily::V4, &changed);
                assert_ne!(text.as_str(), Line::Rule(rule.clone()).shown(IpFamily::V4));
            }
            let mut counted = whole.clone();
            counted
                .rule
                .expressions
                .insert(0, nft::Expression::counts());
            let text = decode::rule(IpFamily::V4, &counted);
            assert_eq!(text.as_str(), "unknown rule, handle 7");
        }
    }
}

#[test]
fn every_entry_is_read_as_it_was_written() {
    for family in IpFamily::ALL {
        let (service, source, networks) = match family {
            IpFamily::V4 => (
                "10.96.0.1",
                "192.0.2.7",
                ["192.0.2.0/24", "0.0.0.0/0", "10.0.0.0/9", "192.0.2.7/32"],
            ),
            IpFamily::V6 => (
                "fd00:96::1",
                "fd01::7",
                ["fd01::/64", "::/0", "8000::/1", "fd01::7/128"],
            ),
        };
        let service = service.parse().unwrap();
        let source = source.parse().unwrap();
        let mut entries = vec![
            (SetType::HashIp, SetEntry::Ip(service)),
            (SetType::BitmapPort, SetEntry::Port(30_080)),
        ];
        for protocol in Protocol::ALL {
            entries.extend([
                (
                    SetType::HashIpPort,
                    SetEntry::IpPort(service, protocol, 443),
                ),
                (
                    SetType::HashIpPortMark,
                    SetEntry::IpPortMark(service, protocol, 443, 0x1002),
                ),
                (
                    SetType::HashIpPortIp,
                    SetEntry::IpPortIp(service, protocol, 443, source),
                ),
            ]);
            entries.extend(networks.map(|network| {
                let network = network.parse().unwrap();
                let entry = SetEntry::IpPortNet(service, protocol, 443, network);
                (SetType::HashIpPortNet, entry)
            }));
        }
        for (set_type, entry) in entries {
            let element = encode::element(&entry);
            let read = decode::entry(family, set_type, &element);
            assert_eq!(read, Some(entry), "{family} {set_type:?}");
        }
    }
}
