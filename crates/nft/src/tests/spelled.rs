// SPDX-License-Identifier: Apache-2.0
//! What `nft` was told in words, as operations.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::{chain, name, set, table};
use crate::{
    Base, Chain, ChainType, Comparison, DataType, Dynset, DynsetOperation, Element, ElementKey,
    Expression, Family, Field, Hook, KeyType, Limit, LimitKind, MetaKey, NetworkBytes, NoTrack,
    Operation, Place, Policy, Register, Reject, RejectKind, Rule, Set, SetFlags, Table, TableKey,
    Value, Verdict, ct_state, nat_flag,
};

fn v4(text: &str) -> Value {
    text.parse::<Ipv4Addr>().unwrap().into()
}

fn v6(text: &str) -> Value {
    text.parse::<Ipv6Addr>().unwrap().into()
}

/// `@nh,120,8` and `@nh,152,8`: the last bytes of both addresses.
const LAST_BYTES: [NetworkBytes; 2] = [
    NetworkBytes {
        offset: 15,
        length: 1,
    },
    NetworkBytes {
        offset: 19,
        length: 1,
    },
];

fn service(address: Value, protocol: u8, port: u16) -> Value {
    Value::concatenation([address, Value::protocol(protocol), Value::port(port)])
}

pub(super) fn service_type(address: DataType) -> KeyType {
    KeyType::concatenation(&[address, DataType::Protocol, DataType::Port])
}

/// `ip daddr . meta l4proto . th dport`
fn destination() -> Vec<Expression> {
    Field::load_all(&[
        Field::Ipv4Destination,
        Field::Meta(MetaKey::Protocol),
        Field::DestinationPort,
    ])
}

fn load(field: Field) -> Expression {
    field.load(Register::FIRST)
}

fn verdict(verdict: Verdict) -> Expression {
    Expression::verdict(verdict)
}

fn base(chain_type: ChainType, hook: Hook, priority: i32, policy: Option<Policy>) -> Base {
    Base {
        policy,
        ..Base::new(chain_type, hook, priority)
    }
}

fn add(chain_name: &str, steps: Vec<Expression>) -> Operation {
    Operation::AddRule(Rule::new(chain(chain_name), steps), Place::Last)
}

/// Each object as `nft` spells it.
#[expect(clippy::too_many_lines, reason = "a table")]
pub(super) fn objects() -> Vec<(&'static str, Operation)> {
    let web = || Verdict::Jump(name("web"));
    let ipv4 = DataType::Ipv4Address;
    let wide = KeyType::concatenation(&[
        DataType::Ipv6Address,
        DataType::Protocol,
        DataType::Port,
        DataType::Ipv6Address,
    ]);
    let range = |first: &str, last: &str| {
        Element::key(ElementKey::Range {
            first: v4(first),
            last: v4(last),
        })
    };
    let ranges = |protocol, first: &str, last: &str| {
        let key = |source| {
            Value::concatenation([
                v6("fd00::1"),
                Value::protocol(protocol),
                Value::port(80),
                v6(source),
            ])
        };
        Element::key(ElementKey::Ranges {
            first: key(first),
            last: key(last),
        })
    };
    vec![
        ("add table ip t", Operation::AddTable(Table::new(table()))),
        (
            "add chain ip t web",
            Operation::AddChain(Chain::regular(chain("web"))),
        ),
        (
            "add chain ip t pre { type nat hook prerouting priority dstnat; policy accept; }",
            Operation::AddChain(Chain::base(
                chain("pre"),
                Base::new(ChainType::Nat, Hook::Prerouting, -100),
            )),
        ),
        (
            "add chain ip t out { type filter hook output priority -10; policy drop; }",
            Operation::AddChain(Chain::base(
                chain("out"),
                base(ChainType::Filter, Hook::Output, -10, Some(Policy::Drop)),
            )),
        ),
        (
            "add chain ip t post { type nat hook postrouting priority srcnat; }",
            Operation::AddChain(Chain::base(
                chain("post"),
                base(ChainType::Nat, Hook::Postrouting, 100, None),
            )),
        ),
        (
            "add set ip t plain { type ipv4_addr . inet_proto . inet_service; }",
            Operation::AddSet(Set::keys(set("plain"), service_type(ipv4))),
        ),
        (
            "add set ip t pairs { typeof @nh,120,8 . @nh,152,8; size 256; }",
            Operation::AddSet(Set {
                size: Some(256),
                ..Set::of_bytes(set("pairs"), &LAST_BYTES)
            }),
        ),
        (
            "add element ip t pairs { 0x7 . 0x7 }",
            Operation::AddElements(
                set("pairs"),
                vec![Element::key(Value::concatenation([
                    Value::new([7]),
                    Value::new([7]),
                ]))],
            ),
        ),
        (
            "add set ip t wide { type ipv6_addr . inet_proto . inet_service . ipv6_addr; flags interval; }",
            Operation::AddSet(Set::keys(set("wide"), wide).with(SetFlags::INTERVAL)),
        ),
        (
            "add set ip t nets { type ipv4_addr; flags interval; }",
            Operation::AddSet(Set::keys(set("nets"), ipv4).with(SetFlags::INTERVAL)),
        ),
        (
            "add set ip t recent { type ipv4_addr; flags timeout, dynamic; timeout 1h; size 1024; }",
            Operation::AddSet(Set {
                timeout: Some(Duration::from_secs(3600)),
                size: Some(1024),
                ..Set::keys(set("recent"), ipv4).with(SetFlags::TIMEOUT | SetFlags::DYNAMIC)
            }),
        ),
        (
            "add map ip t marks { type ipv4_addr . inet_proto . inet_service : mark; }",
            Operation::AddSet(Set::map(set("marks"), service_type(ipv4), DataType::Mark)),
        ),
        (
            "add map ip t ports { type inet_service : verdict; }",
            Operation::AddSet(Set::verdict_map(set("ports"), DataType::Port)),
        ),
        (
            "add element ip t plain { 10.0.0.1 . tcp . 80, 10.0.0.2 . udp . 53 }",
            Operation::AddElements(
                set("plain"),
                vec![
                    Element::key(service(v4("10.0.0.1"), 6, 80)),
                    Element::key(service(v4("10.0.0.2"), 17, 53)),
                ],
            ),
        ),
        (
            "add element ip t wide { fd00::1 . tcp . 80 . fd01::/64, fd00::1 . sctp . 80 . fd02::7 }",
            Operation::AddElements(
                set("wide"),
                vec![
                    ranges(6, "fd01::", "fd01::ffff:ffff:ffff:ffff"),
                    ranges(132, "fd02::7", "fd02::7"),
                ],
            ),
        ),
        (
            "add element ip t recent { 10.0.0.1 timeout 30s comment \"a guest\" }",
            Operation::AddElements(
                set("recent"),
                vec![Element {
                    timeout: Some(Duration::from_secs(30)),
                    comment: Some("a guest".to_owned()),
                    ..Element::key(v4("10.0.0.1"))
                }],
            ),
        ),
        (
            "add element ip t marks { 10.0.0.1 . tcp . 80 : 0x10 }",
            Operation::AddElements(
                set("marks"),
                vec![Element::entry(
                    service(v4("10.0.0.1"), 6, 80),
                    Value::mark(0x10),
                )],
            ),
        ),
        (
            "add element ip t ports { 80 : jump web, 81 : drop, 82 : accept, 83 : return, 84 : continue }",
            Operation::AddElements(
                set("ports"),
                (80..)
                    .zip([
                        web(),
                        Verdict::Drop,
                        Verdict::Accept,
                        Verdict::Return,
                        Verdict::Continue,
                    ])
                    .map(|(port, verdict)| Element::entry(Value::port(port), verdict))
                    .collect(),
            ),
        ),
        (
            "delete element ip t plain { 10.0.0.1 . tcp . 80 }",
            Operation::DeleteElements(
                set("plain"),
                vec![Element::key(service(v4("10.0.0.1"), 6, 80))],
            ),
        ),
        (
            "delete element ip t nets { 10.0.0.0/8 }",
            Operation::DeleteElements(set("nets"), vec![range("10.0.0.0", "10.255.255.255")]),
        ),
        ("flush set ip t plain", Operation::FlushSet(set("plain"))),
        (
            "delete rule ip t out handle 9999",
            Operation::DeleteRule(chain("out"), 9999),
        ),
        ("flush chain ip t out", Operation::FlushChain(chain("out"))),
        ("delete set ip t nets", Operation::DeleteSet(set("nets"))),
        (
            "delete chain ip t out",
            Operation::DeleteChain(chain("out")),
        ),
        ("delete table ip t", Operation::DeleteTable(table())),
    ]
}

/// Each rule as `nft` spells it.
#[expect(clippy::too_many_lines, reason = "a table")]
pub(super) fn rules() -> Vec<(&'static str, Operation)> {
    let ipv6 = TableKey::new(Family::Ipv6, name("t6"));
    let inet = TableKey::new(Family::Inet, name("t46"));
    let mut services = Field::load_all(&[
        Field::Ipv6Destination,
        Field::Meta(MetaKey::Protocol),
        Field::DestinationPort,
    ]);
    services.extend([Expression::is_in(name("services")), verdict(Verdict::Drop)]);
    let mut to_web = destination();
    to_web.extend([
        Expression::is_in(name("plain")),
        Expression::counts(),
        verdict(Verdict::Jump(name("web"))),
    ]);
    let mut elsewhere = destination();
    elsewhere.extend([
        Expression::is_not_in(name("plain")),
        verdict(Verdict::Return),
    ]);
    let mut marked = destination();
    marked.extend([
        Expression::maps(name("marks"), Register::FIRST),
        Expression::sets_mark(),
    ]);
    let mask = Value::new([255, 255, 254, 0]);
    vec![
        (
            "add rule ip t pre ip daddr . meta l4proto . th dport @plain counter jump web comment \"to the web\"",
            Operation::AddRule(
                Rule::new(chain("pre"), to_web).commented("to the web"),
                Place::Last,
            ),
        ),
        (
            "add rule ip t pre ip daddr . meta l4proto . th dport != @plain return",
            add("pre", elsewhere),
        ),
        (
            "insert rule ip t pre ip saddr 10.0.0.1 iifname \"eth0\" accept",
            Operation::AddRule(
                Rule::new(
                    chain("pre"),
                    [
                        load(Field::Ipv4Source),
                        Expression::equals(v4("10.0.0.1")),
                        load(Field::Meta(MetaKey::InputName)),
                        Expression::equals(Value::interface("eth0")),
                        verdict(Verdict::Accept),
                    ],
                ),
                Place::First,
            ),
        ),
        (
            "add rule ip t pre iifname \"veth*\" fib daddr type local drop",
            add(
                "pre",
                [
                    load(Field::Meta(MetaKey::InputName)),
                    Expression::equals(Value::new(*b"veth")),
                ]
                .into_iter()
                .chain(Expression::destination_is_local())
                .chain([verdict(Verdict::Drop)])
                .collect(),
            ),
        ),
        (
            "add rule ip t pre fib saddr type != local return",
            add(
                "pre",
                Expression::source_is_not_local()
                    .into_iter()
                    .chain([verdict(Verdict::Return)])
                    .collect(),
            ),
        ),
        (
            "add rule ip t pre ct state established,related accept",
            add(
                "pre",
                Expression::state_is(ct_state::ESTABLISHED | ct_state::RELATED)
                    .into_iter()
                    .chain([verdict(Verdict::Accept)])
                    .collect(),
            ),
        ),
        (
            "add rule ip t pre ct state new drop",
            add(
                "pre",
                Expression::state_is(ct_state::NEW)
                    .into_iter()
                    .chain([verdict(Verdict::Drop)])
                    .collect(),
            ),
        ),
        (
            "add rule ip t pre meta mark & 0x4000 == 0x4000 accept",
            add(
                "pre",
                Expression::mark_is(0x4000, 0x4000)
                    .into_iter()
                    .chain([verdict(Verdict::Accept)])
                    .collect(),
            ),
        ),
        (
            "add rule ip t pre meta mark set meta mark | 0x4000",
            add("pre", Expression::marks(0x4000, 0x4000).into()),
        ),
        (
            "add rule ip t pre meta mark set ip daddr . meta l4proto . th dport map @marks",
            add("pre", marked),
        ),
        (
            "add rule ip t pre th dport vmap @ports",
            add(
                "pre",
                vec![
                    load(Field::DestinationPort),
                    Expression::maps(name("ports"), Register::VERDICT),
                ],
            ),
        ),
        (
            "add rule ip t pre meta l4proto tcp dnat to 10.1.0.1:8080",
            add(
                "pre",
                vec![
                    load(Field::Meta(MetaKey::Protocol)),
                    Expression::equals(Value::protocol(6)),
                    Expression::loads(Register::word(0), v4("10.1.0.1")),
                    Expression::loads(Register::word(4), Value::port(8080)),
                    Expression::translates_destination(
                        Family::Ipv4,
                        Register::word(0),
                        Some(Register::word(4)),
                    ),
                ],
            ),
        ),
        (
            "add rule ip t pre dnat to ip daddr",
            add(
                "pre",
                vec![
                    load(Field::Ipv4Destination),
                    Expression::translates_destination(Family::Ipv4, Register::FIRST, None),
                ],
            ),
        ),
        (
            "add rule ip t pre ip saddr 10.1.2.0/23 return",
            add(
                "pre",
                vec![
                    load(Field::Ipv4Source),
                    Expression::masks(mask, v4("0.0.0.0")),
                    Expression::equals(v4("10.1.2.0")),
                    verdict(Verdict::Return),
                ],
            ),
        ),
        (
            "add rule ip t pre add @recent { ip saddr timeout 60s }",
            add(
                "pre",
                vec![
                    load(Field::Ipv4Source),
                    Dynset {
                        key: Register::FIRST,
                        data: None,
                        operation: DynsetOperation::Add,
                        timeout: 60_000,
                        set: name("recent"),
                        set_id: None,
                        flags: 0,
                        expression: None,
                        expressions: None,
                    }
                    .into(),
                ],
            ),
        ),
        (
            "add rule ip t out limit rate 10/second burst 5 packets accept",
            add(
                "out",
                vec![
                    Limit {
                        rate: 10,
                        unit: 1,
                        burst: 5,
                        kind: LimitKind::Packets,
                        flags: 0,
                    }
                    .into(),
                    verdict(Verdict::Accept),
                ],
            ),
        ),
        (
            "add rule ip t out notrack",
            add("out", vec![NoTrack {}.into()]),
        ),
        (
            "add rule ip t out reject with icmp port-unreachable",
            add("out", vec![Expression::rejects_port(Family::Ipv4)]),
        ),
        (
            "add rule ip t out reject with tcp reset",
            add(
                "out",
                vec![
                    load(Field::Meta(MetaKey::Protocol)),
                    Expression::equals(Value::protocol(6)),
                    Reject {
                        kind: RejectKind::TcpReset,
                        code: 0,
                    }
                    .into(),
                ],
            ),
        ),
        (
            "add rule ip t out goto web",
            add("out", vec![verdict(Verdict::Goto(name("web")))]),
        ),
        (
            "add rule ip t out th dport 80-90 accept",
            add(
                "out",
                vec![
                    load(Field::DestinationPort),
                    Expression::compares(Comparison::AtLeast, Value::port(80)),
                    Expression::compares(Comparison::AtMost, Value::port(90)),
                    verdict(Verdict::Accept),
                ],
            ),
        ),
        (
            "add rule ip t post @nh,120,8 . @nh,152,8 @pairs fib daddr type != local masquerade",
            add(
                "post",
                Field::load_all(&LAST_BYTES.map(Field::NetworkBytes))
                    .into_iter()
                    .chain([Expression::is_in(name("pairs"))])
                    .chain(Expression::destination_is_not_local())
                    .chain([Expression::masquerades(0)])
                    .collect(),
            ),
        ),
        (
            "add rule ip t post masquerade fully-random",
            add(
                "post",
                vec![Expression::masquerades(nat_flag::FULLY_RANDOM)],
            ),
        ),
        (
            "add rule ip t post oifname \"lo\" masquerade",
            add(
                "post",
                vec![
                    load(Field::Meta(MetaKey::OutputName)),
                    Expression::equals(Value::interface("lo")),
                    Expression::masquerades(0),
                ],
            ),
        ),
        (
            "add rule ip6 t6 filter ip6 daddr . meta l4proto . th dport @services drop",
            Operation::AddRule(Rule::new(ipv6.chain(name("filter")), services), Place::Last),
        ),
        (
            "add rule ip6 t6 filter reject with icmpv6 port-unreachable",
            Operation::AddRule(
                Rule::new(
                    ipv6.chain(name("filter")),
                    [Expression::rejects_port(Family::Ipv6)],
                ),
                Place::Last,
            ),
        ),
        (
            "add rule inet t46 filter reject",
            Operation::AddRule(
                Rule::new(
                    inet.chain(name("filter")),
                    [Expression::rejects_port(Family::Inet)],
                ),
                Place::Last,
            ),
        ),
    ]
}
