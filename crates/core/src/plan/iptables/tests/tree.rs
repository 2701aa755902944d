// SPDX-License-Identifier: Apache-2.0
//! The dispatch tree as a function of its keys.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use crate::model::{IpFamily, Protocol};
use crate::plan::iptables::tree::{Key, LEAF, Prefix, Tree, TreeId};
use crate::plan::ruleset::{ChainName, Rule};

/// Addresses clustered like real ones: few networks, many hosts.
fn v4() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0_u32..2_000).prop_map(|n| 0x0a60_0000 + n),
        (0_u32..200).prop_map(|n| 0xcb00_7100 + n),
        any::<u32>(),
    ]
    .prop_map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits)))
}

fn v6() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0_u128..2_000).prop_map(|n| 0xfd00_0096 << 96 | n),
        (0_u128..200).prop_map(|n| 0xfd00_0096 << 96 | n << 61),
        any::<u128>(),
    ]
    .prop_map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits)))
}

fn service() -> impl Strategy<Value = (Protocol, u16)> {
    let protocol = prop_oneof![
        Just(Protocol::Tcp),
        Just(Protocol::Udp),
        Just(Protocol::Sctp)
    ];
    let port = prop_oneof![Just(80), Just(443), 30_000_u16..30_100, any::<u16>()];
    (protocol, port)
}

type Destination = (Option<IpAddr>, Option<(Protocol, u16)>);

fn destinations() -> impl Strategy<Value = (TreeId, IpFamily, Vec<Destination>)> {
    let some = |address: BoxedStrategy<IpAddr>| {
        prop::collection::vec((address.prop_map(Some), service().prop_map(Some)), 0..400)
    };
    prop_oneof![
        some(v4().boxed()).prop_map(|all| (TreeId::Services, IpFamily::V4, all)),
        some(v6().boxed()).prop_map(|all| (TreeId::Services, IpFamily::V6, all)),
        // Many ports of one address.
        some(Just(IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1))).boxed()).prop_map(|all| (
            TreeId::Services,
            IpFamily::V4,
            all
        )),
        some(Just(IpAddr::V6(Ipv6Addr::LOCALHOST)).boxed()).prop_map(|all| (
            TreeId::Services,
            IpFamily::V6,
            all
        )),
        prop::collection::vec((Just(None), service().prop_map(Some)), 0..400).prop_map(|all| (
            TreeId::NodePorts,
            IpFamily::V4,
            all
        )),
        prop::collection::vec((v4().prop_map(Some), Just(None)), 0..400).prop_map(|all| (
            TreeId::Hairpin,
            IpFamily::V4,
            all
        )),
    ]
}

fn key((address, service): Destination) -> Key {
    Key::new(address, service)
}

fn rule(destination: Destination) -> Rule {
    Rule::new(format!("{destination:?} -j HERE"))
}

type Chains = BTreeMap<ChainName, Vec<Rule>>;

fn chains(tree: &Tree, id: TreeId, family: IpFamily) -> Chains {
    let nodes = tree.nodes();
    let chains: Chains = nodes
        .iter()
        .map(|node| {
            (
                id.chain(*node, family),
                tree.rules(id, *node, family).unwrap(),
            )
        })
        .collect();
    assert_eq!(chains.len(), nodes.len(), "two nodes have the same name");
    chains
}

/// Number of rules that a packet traverses until it finds `wanted`, or all that match.
fn walk(chains: &Chains, at: &str, to: Destination, wanted: &Rule) -> Result<usize, usize> {
    let mut met = 0;
    for rule in &chains[&ChainName::new(at).unwrap()] {
        met += 1;
        if rule == wanted {
            return Ok(met);
        }
        if rule.target() == Some("HERE") || !matches(rule, to) {
            continue;
        }
        match walk(chains, rule.target().unwrap(), to, wanted) {
            Ok(more) => return Ok(met + more),
            Err(more) => met += more,
        }
    }
    Err(met)
}

/// Whether the rule that jumps to a node matches.
fn matches(rule: &Rule, (address, service): Destination) -> bool {
    let words: Vec<&str> = rule.as_str().split(' ').collect();
    let after = |word: &str| {
        let at = words.iter().position(|other| *other == word)?;
        words.get(at + 1).copied()
    };
    let address_matches = after("-d").is_none_or(|net| {
        let net: ipnet::IpNet = net.parse().unwrap();
        assert_eq!(net, net.trunc(), "iptables would print it differently");
        net.contains(&address.unwrap())
    });
    let protocol_matches = after("-p").is_none_or(|p| p == service.unwrap().0.lowercase());
    let port_matches = after("--dport").is_none_or(|ports| {
        let (from, to) = ports.split_once(':').unwrap_or((ports, ports));
        let range: std::ops::RangeInclusive<u16> = from.parse().unwrap()..=to.parse().unwrap();
        range.contains(&service.unwrap().1)
    });
    address_matches && protocol_matches && port_matches
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_key_is_found_in_small_chains((id, family, all) in destinations()) {
        let mut tree = Tree::default();
        let mut dirty = BTreeSet::new();
        for to in &all {
            tree.set(key(*to), Some(rule(*to)), &mut dirty);
        }
        let chains = chains(&tree, id, family);
        for rules in chains.values() {
            prop_assert!(rules.len() <= LEAF.max(16));
        }
        for to in &all {
            let met = walk(&chains, id.root(), *to, &rule(*to));
            prop_assert!(met.is_ok(), "{to:?}");
        }
    }

    #[test]
    fn changes_touch_all_that_differs(
        (id, family, all) in destinations(),
        removed in prop::collection::vec(any::<prop::sample::Index>(), 0..60),
    ) {
        let mut tree = Tree::default();
        let mut ignored = BTreeSet::new();
        let (first, later) = all.split_at(all.len() / 2);
        for to in first {
            tree.set(key(*to), Some(rule(*to)), &mut ignored);
        }
        let before = chains(&tree, id, family);
        let mut dirty = BTreeSet::new();
        for to in later {
            tree.set(key(*to), Some(rule(*to)), &mut dirty);
        }
        for index in removed.iter().filter(|_| !all.is_empty()) {
            tree.set(key(*index.get(&all)), None, &mut dirty);
        }
        let after = chains(&tree, id, family);
        let mut followed = before;
        for node in dirty {
            let name = id.chain(node, family);
            match tree.rules(id, node, family) {
                Some(rules) => followed.insert(name, rules),
                None => followed.remove(&name),
            };
        }
        prop_assert_eq!(followed, after);
    }

    #[test]
    fn order_of_changes_does_not_matter((id, family, mut all) in destinations()) {
        let build = |all: &[Destination]| {
            let mut tree = Tree::default();
            for to in all {
                tree.set(key(*to), Some(rule(*to)), &mut BTreeSet::new());
            }
            chains(&tree, id, family)
        };
        let forth = build(&all);
        all.reverse();
        prop_assert_eq!(forth, build(&all));
    }
}

/// Nodes that one change of a large tree affects, and rules that a packet traverses.
#[test]
fn large_tree_is_shallow() {
    let mut tree = Tree::default();
    let all: Vec<Destination> = (0..20_000_u32)
        .map(|n| {
            // Multiplying by an odd number scatters over the range like random allocation.
            let bits = 0x0a60_0000 | (n.wrapping_mul(2_654_435_761) >> 12);
            let address = IpAddr::V4(Ipv4Addr::from_bits(bits));
            (Some(address), Some((Protocol::Tcp, 80)))
        })
        .collect();
    for to in &all {
        tree.set(key(*to), Some(rule(*to)), &mut BTreeSet::new());
    }
    let chains = chains(&tree, TreeId::Services, IpFamily::V4);
    let rules: usize = chains.values().map(Vec::len).sum();
    assert!(
        rules - tree.len() < tree.len() / 4,
        "{rules} for {}",
        tree.len()
    );
    for to in &all {
        let met = walk(&chains, "KUBE-SERVICES", *to, &rule(*to)).unwrap();
        assert!(met <= 80, "{met} for {to:?}");
    }
    let mut dirty = BTreeSet::new();
    tree.set(key(all[7]), None, &mut dirty);
    assert!(dirty.len() <= 80, "{}", dirty.len());
    assert!(dirty.contains(&Prefix::ROOT));
}

#[test]
fn names_and_matches_of_nodes() {
    let mut tree = Tree::default();
    for n in 0..200_u16 {
        let [high, low] = n.to_be_bytes();
        let address = IpAddr::V4(Ipv4Addr::new(10, 96, high, low));
        let to = (Some(address), Some((Protocol::Tcp, 80)));
        tree.set(key(to), Some(Rule::new("-j HERE")), &mut BTreeSet::new());
    }
    let root = tree
        .rules(TreeId::Services, Prefix::ROOT, IpFamily::V4)
        .unwrap();
    assert_eq!(root.len(), 13);
    assert_eq!(
        root[1].as_str(),
        "-d 10.96.0.16/28 -j KUBE-SVC-10.96.0.16-28"
    );
    let mut ports = Tree::default();
    for port in 30_000..30_100 {
        let to = (None, Some((Protocol::Udp, port)));
        ports.set(key(to), Some(Rule::new("-j HERE")), &mut BTreeSet::new());
    }
    let root = ports
        .rules(TreeId::NodePorts, Prefix::ROOT, IpFamily::V4)
        .unwrap();
    assert_eq!(
        root[0].as_str(),
        "-p udp -m udp --dport 30000:30015 -j KUBE-EXT-udp-30000-30015"
    );
}

/// Sets of ten thousand keys that try to make chains long or trees deep.
fn hard_sets() -> Vec<(&'static str, TreeId, IpFamily, Vec<Destination>)> {
    const COUNT: u32 = 10_000;
    let web = Some((Protocol::Tcp, 80));
    let v4 = |bits: u32| (Some(IpAddr::V4(Ipv4Addr::from_bits(bits))), web);
    let v6 = |bits: u128| (Some(IpAddr::V6(Ipv6Addr::from_bits(bits))), web);
    let scattered = |n: u32| n.wrapping_mul(2_654_435_761);
    let mut seed = 0x1234_5678_9abc_def0_u64;
    let mut random = || {
        // Knuth's MMIX generator.
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        seed >> 32
    };
    let random_v4: Vec<_> = (0..COUNT)
        .map(|_| v4(u32::try_from(random()).unwrap()))
        .collect();
    let random_v6: Vec<_> = (0..COUNT)
        .map(|_| v6((0..4).fold(0, |bits, _| bits << 32 | u128::from(random()))))
        .collect();
    // All that differ from one address in few bits: long shared prefixes of every length.
    let comb: Vec<_> = (0..128_u32)
        .flat_map(|high| (0..high).map(move |low| (high, low)))
        .map(|(high, low)| v6(1 << high | 1 << low))
        .chain((0..2_000).map(|n| v6(u128::MAX - n)))
        .collect();
    let strided: Vec<_> = (0..COUNT).map(|n| v4(n.rotate_right(14))).collect();
    let dense: Vec<_> = (0..COUNT).map(|n| v4(0x0a60_0000 + n)).collect();
    let ports_of = |address: Option<IpAddr>| -> Vec<Destination> {
        (0..COUNT)
            .map(|n| {
                let protocol = Protocol::ALL[usize::try_from(n % 3).unwrap()];
                let [_, _, high, low] = scattered(n).to_be_bytes();
                (address, Some((protocol, u16::from_be_bytes([high, low]))))
            })
            .collect()
    };
    let one = Some(IpAddr::V6(Ipv6Addr::from_bits(1)));
    let pods = (0..COUNT).map(|n| {
        let (address, _) = v6(0xfd00_0244 << 96 | u128::from(scattered(n)) << 40);
        (address, None)
    });
    let (four, six) = (IpFamily::V4, IpFamily::V6);
    vec![
        ("random", TreeId::Services, four, random_v4),
        ("random", TreeId::Services, six, random_v6),
        ("comb", TreeId::Refused, six, comb),
        ("strided", TreeId::RefusedExternal, four, strided),
        ("dense", TreeId::Firewall, four, dense),
        ("ports of one", TreeId::Services, six, ports_of(one)),
        ("node ports", TreeId::NodePorts, four, ports_of(None)),
        ("pods", TreeId::Hairpin, six, pods.collect()),
    ]
}

#[test]
fn ten_thousand_keys_make_short_chains() {
    for (kind, id, family, mut all) in hard_sets() {
        let build = |all: &[Destination]| {
            let mut tree = Tree::default();
            for to in all {
                tree.set(key(*to), Some(rule(*to)), &mut BTreeSet::new());
            }
            chains(&tree, id, family)
        };
        let forth = build(&all);
        for (chain, rules) in &forth {
            assert!(rules.len() <= LEAF, "{kind} {chain}: {}", rules.len());
        }
        for to in all.iter().step_by(7) {
            let met = walk(&forth, id.root(), *to, &rule(*to));
            // In the worst case as many levels as there are digits.
            assert!(
                met.is_ok_and(|met| met <= 37 * 16),
                "{kind} {to:?}: {met:?}"
            );
        }
        // Smaller sets are tried in both orders above.
        if kind == "comb" {
            all.reverse();
            assert!(forth == build(&all), "the order of changes matters");
        }
    }
}
