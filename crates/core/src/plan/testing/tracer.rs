// SPDX-License-Identifier: Apache-2.0
//! Follows the first packet of a connection through rules, as the kernel would. A rule that it does
//! not understand fails the test. Random matches are followed both ways, and the result has the
//! probability of each outcome.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use crate::model::{IpFamily, Protocol};
use crate::plan::iptables::{affinity, syntax};
use crate::plan::ruleset::{ChainName, Rule, Ruleset, Table};

/// The outcome of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// It reaches an endpoint, which sees the client's address.
    To(SocketAddr),
    /// It reaches an endpoint, which sees the node's address.
    Masqueraded(SocketAddr),
    /// No rule of ours affects it.
    Untouched,
    Rejected,
    Dropped,
}

/// Outcomes and their probabilities.
pub type Ends = BTreeMap<End, f64>;

/// The first packet.
#[derive(Clone, Debug)]
pub struct Packet {
    pub from: IpAddr,
    /// The input interface; `None`: the node itself sends it.
    pub interface: Option<&'static str>,
    pub to: SocketAddr,
    pub protocol: Protocol,
    /// The chain of the endpoint that the client has affinity to.
    pub known_to: Option<String>,
}

/// The node that packets pass through.
#[derive(Debug)]
pub struct Tracer<'a> {
    pub rules: &'a Ruleset,
    /// Addresses of the node, loopback included.
    pub local: Vec<IpAddr>,
}

#[derive(Clone, Debug)]
struct Journey {
    packet: Packet,
    mark: u32,
    translated: bool,
    masqueraded: bool,
    chance: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// The next rule, or the end of the chain.
    Go,
    Return,
    /// No more rules in this table.
    Accept,
    Drop,
    Reject,
}

impl Tracer<'_> {
    pub fn trace(&self, packet: &Packet) -> Ends {
        let start = Journey {
            packet: packet.clone(),
            mark: 0,
            translated: false,
            masqueraded: false,
            chance: 1.0,
        };
        let mut ends = Ends::new();
        let first = if packet.interface.is_some() {
            "PREROUTING"
        } else {
            "OUTPUT"
        };
        for (journey, verdict) in self.hook(Table::Nat, first, start) {
            assert_eq!(verdict, Verdict::Accept);
            let to_node = self.local.contains(&journey.packet.to.ip());
            let filter = match (packet.interface, to_node) {
                (None, _) => "OUTPUT",
                (Some(_), true) => "INPUT",
                (Some(_), false) => "FORWARD",
            };
            for (journey, verdict) in self.hook(Table::Filter, filter, journey) {
                let mut add = |end, chance| *ends.entry(end).or_default() += chance;
                match verdict {
                    Verdict::Drop => add(End::Dropped, journey.chance),
                    Verdict::Reject => add(End::Rejected, journey.chance),
                    _ => {
                        for (journey, _) in self.hook(Table::Nat, "POSTROUTING", journey) {
                            let to = journey.packet.to;
                            let end = match (journey.translated, journey.masqueraded) {
                                (true, true) => End::Masqueraded(to),
                                (true, false) => End::To(to),
                                (false, false) => End::Untouched,
                                (false, true) => panic!("masqueraded without translation"),
                            };
                            add(end, journey.chance);
                        }
                    }
                }
            }
        }
        ends
    }

    fn hook(&self, table: Table, chain: &str, journey: Journey) -> Vec<(Journey, Verdict)> {
        let ends = self.chain(table, chain, journey, 0).into_iter();
        ends.map(|(journey, verdict)| match verdict {
            Verdict::Go | Verdict::Return => (journey, Verdict::Accept),
            verdict => (journey, verdict),
        })
        .collect()
    }

    fn chain(
        &self,
        table: Table,
        chain: &str,
        journey: Journey,
        depth: usize,
    ) -> Vec<(Journey, Verdict)> {
        assert!(depth < 20, "a loop at {chain}");
        let name = ChainName::new(chain).unwrap();
        let rules = self.rules.rules(table, &name);
        let rules = match rules {
            Some(rules) => rules,
            None if table.has_built_in(&name) => &[],
            None => panic!("no chain {table}/{chain}"),
        };
        let mut ends = Vec::new();
        let mut here = vec![journey];
        for rule in rules {
            let mut next = Vec::new();
            for journey in here {
                let chance = self.matches(table, rule, &journey);
                let split = |chance: f64| Journey {
                    chance: journey.chance * chance,
                    ..journey.clone()
                };
                if chance < 1.0 {
                    next.push(split(1.0 - chance));
                }
                if chance > 0.0 {
                    for (journey, verdict) in self.target(table, rule, split(chance), depth) {
                        match verdict {
                            Verdict::Go => next.push(journey),
                            verdict => ends.push((journey, verdict)),
                        }
                    }
                }
            }
            here = next;
        }
        ends.extend(here.into_iter().map(|journey| (journey, Verdict::Go)));
        ends
    }

    fn target(
        &self,
        table: Table,
        rule: &Rule,
        mut journey: Journey,
        depth: usize,
    ) -> Vec<(Journey, Verdict)> {
        let mut words = words(rule).skip_while(|word| *word != "-j");
        if words.next().is_none() {
            return vec![(journey, Verdict::Go)];
        }
        let words: Vec<&str> = words.collect();
        let verdict = match words.as_slice() {
            ["ACCEPT"] => Verdict::Accept,
            ["DROP"] => Verdict::Drop,
            ["RETURN"] => Verdict::Return,
            [
                "REJECT",
                "--reject-with",
                "icmp-port-unreachable" | "icmp6-port-unreachable",
            ] => Verdict::Reject,
            ["MARK", "--set-xmark", mark] => {
                let (value, bits) = mark_and_mask(mark);
                journey.mark = (journey.mark & !bits) ^ value;
                Verdict::Go
            }
            ["DNAT", "--to-destination", to] => {
                assert_eq!(table, Table::Nat);
                journey.packet.to = to.parse().unwrap();
                journey.translated = true;
                Verdict::Accept
            }
            ["SET", "--add-set", set, "src", "--exist"] => {
                assert!(affinity::chain_of(set).is_some(), "{set}");
                Verdict::Go
            }
            ["MASQUERADE", "--random-fully"] => {
                journey.masqueraded = true;
                Verdict::Accept
            }
            [chain] => {
                let ends = self.chain(table, chain, journey, depth + 1).into_iter();
                return ends
                    .map(|(journey, verdict)| match verdict {
                        Verdict::Return => (journey, Verdict::Go),
                        verdict => (journey, verdict),
                    })
                    .collect();
            }
            other => panic!("unknown target {other:?}"),
        };
        vec![(journey, verdict)]
    }

    /// The probability that a rule matches.
    fn matches(&self, table: Table, rule: &Rule, journey: &Journey) -> f64 {
        let mut words = words(rule);
        let mut chance = 1.0;
        let mut is_met = true;
        let mut not = false;
        let packet = &journey.packet;
        let mut is_recent = false;
        while let Some(word) = words.next() {
            let mut value = || words.next().unwrap();
            let met = match word {
                "!" => {
                    not = true;
                    continue;
                }
                "-j" => break,
                "-m" => {
                    let known = [
                        "comment",
                        "tcp",
                        "udp",
                        "sctp",
                        "conntrack",
                        "mark",
                        "addrtype",
                        "statistic",
                        "recent",
                        "set",
                        "bpf",
                    ];
                    let module = value();
                    assert!(known.contains(&module), "unknown match {module}");
                    true
                }
                "--comment" | "--seconds" | "--mask" => {
                    value();
                    true
                }
                "--reap" | "--rsource" | "--set" => true,
                "-s" => is_in(value(), packet.from),
                "-d" => is_in(value(), packet.to.ip()),
                "-i" => {
                    let name = value();
                    packet.interface.is_some_and(|interface| {
                        name.strip_suffix('+')
                            .map_or(interface == name, |prefix| interface.starts_with(prefix))
                    })
                }
                "-p" => packet.protocol.lowercase() == value(),
                "--dport" => {
                    let ports = value();
                    let (from, to) = ports.split_once(':').unwrap_or((ports, ports));
                    (from.parse().unwrap()..=to.parse().unwrap()).contains(&packet.to.port())
                }
                "--ctstate" => value().split(',').any(|state| match state {
                    "NEW" => true,
                    "DNAT" => journey.translated,
                    "RELATED" | "ESTABLISHED" | "INVALID" => false,
                    other => panic!("unknown state {other}"),
                }),
                "--mark" => {
                    let (value, mask) = mark_and_mask(value());
                    journey.mark & mask == value
                }
                "--src-type" => value() == "LOCAL" && self.local.contains(&packet.from),
                "--dst-type" => value() == "LOCAL" && self.local.contains(&packet.to.ip()),
                "--bytecode" => {
                    let family = IpFamily::of(packet.from);
                    let program = format!("\"{}\"", value());
                    assert!(
                        syntax::reaches_itself(family).ends_with(&program),
                        "unknown program {program}"
                    );
                    packet.from == packet.to.ip()
                }
                "--mode" => value() == "random",
                "--probability" => {
                    chance *= value().parse::<f64>().unwrap();
                    true
                }
                "--rcheck" => {
                    is_recent = true;
                    true
                }
                "--match-set" => {
                    let set = value();
                    assert_eq!(words.next(), Some("src"));
                    let (family, chain) = affinity::chain_of(set).expect("a set of clients");
                    assert_eq!(family, IpFamily::of(packet.from));
                    packet.known_to.as_deref() == Some(chain.as_str())
                }
                "--name" => {
                    let name = value();
                    !is_recent || packet.known_to.as_deref() == Some(name)
                }
                other => panic!("unknown word {other:?} in {table} {rule}"),
            };
            is_met &= met != not;
            not = false;
        }
        if is_met { chance } else { 0.0 }
    }
}

fn is_in(net: &str, address: IpAddr) -> bool {
    net.parse::<ipnet::IpNet>().unwrap().contains(&address)
}

fn mark_and_mask(text: &str) -> (u32, u32) {
    let (value, mask) = text.split_once('/').unwrap();
    let number = |text: &str| u32::from_str_radix(text.strip_prefix("0x").unwrap(), 16).unwrap();
    (number(value), number(mask))
}

/// The words of a rule; a quoted text is one word.
fn words(rule: &Rule) -> impl Iterator<Item = &str> {
    let parts = rule.as_str().split('"').enumerate();
    parts.flat_map(|(index, part)| {
        let (quoted, others) = if index % 2 == 1 {
            (Some(part), "")
        } else {
            (None, part)
        };
        quoted.into_iter().chain(others.split_ascii_whitespace())
    })
}
