// SPDX-License-Identifier: Apache-2.0
//! A ruleset in the words of `nft` and as operations.

use std::net::Ipv4Addr;
use std::time::Duration;

use nft_netlink::{
    Base, Chain, ChainKey, ChainType, DataType, Element, ElementKey, Expression, Family, Field,
    Hook, KeyType, MetaKey, Operation, Place, Policy, Register, Rule, Set, SetFlags, SetKey, Table,
    TableKey, Value, Verdict, ct_state, nat_flag, network,
};

pub(super) fn table(family: Family) -> TableKey {
    TableKey::new(family, "t".parse().unwrap())
}

pub(super) fn chain(text: &str) -> ChainKey {
    table(Family::Ipv4).chain(text.parse().unwrap())
}

pub(super) fn set(text: &str) -> SetKey {
    table(Family::Ipv4).set(text.parse().unwrap())
}

pub(super) fn v4(text: &str) -> Value {
    text.parse::<Ipv4Addr>().unwrap().into()
}

pub(super) fn service(address: Value, protocol: u8, port: u16) -> Value {
    Value::concatenation([address, Value::protocol(protocol), Value::port(port)])
}

pub(super) fn service_type() -> KeyType {
    KeyType::concatenation(&[DataType::Ipv4Address, DataType::Protocol, DataType::Port])
}

pub(super) fn base(text: &str, chain_type: ChainType, hook: Hook, priority: i32) -> Operation {
    Operation::AddChain(Chain::base(
        chain(text),
        Base::new(chain_type, hook, priority),
    ))
}

pub(super) fn rule(text: &str, steps: impl IntoIterator<Item = Expression>) -> Operation {
    Operation::AddRule(Rule::new(chain(text), steps), Place::Last)
}

/// `ip daddr . meta l4proto . th dport`
pub(super) fn destination() -> Vec<Expression> {
    Field::load_all(&[
        Field::Ipv4Destination,
        Field::Meta(MetaKey::Protocol),
        Field::DestinationPort,
    ])
}

pub(super) fn verdict(verdict: Verdict) -> [Expression; 1] {
    [Expression::verdict(verdict)]
}

/// What `nft` makes of text, as `nft` lists it.
pub(super) const RULESET: &str = r#"
table ip t {
	set services {
		type ipv4_addr . inet_proto . inet_service
		elements = { 10.0.0.1 . tcp . 80, 10.0.0.2 . udp . 53 }
	}
	set sources {
		type ipv4_addr . inet_proto . inet_service . ipv4_addr
		flags interval
		elements = { 10.0.0.1 . tcp . 80 . 192.0.2.0/24 }
	}
	set nets {
		type ipv4_addr
		flags interval
		elements = { 10.0.0.0/8, 192.0.2.7, 255.0.0.0/8 }
	}
	set recent {
		type ipv4_addr
		size 1024
		flags dynamic,timeout
		timeout 1h
	}
	map marks {
		type ipv4_addr . inet_proto . inet_service : mark
		elements = { 10.0.0.1 . tcp . 80 : 0x00000010 }
	}
	map ports {
		type inet_service : verdict
		elements = { 80 : jump web, 81 : drop }
	}
	chain web {
	}
	chain pre {
		type nat hook prerouting priority dstnat; policy accept;
		ip daddr . meta l4proto . th dport @services counter jump web comment "to the web"
		ip daddr . meta l4proto . th dport . ip saddr @sources accept
		ip saddr @nets return
		meta l4proto tcp th dport vmap @ports
		fib daddr type local meta mark set meta mark | 0x00004000
	}
	chain out {
		type filter hook output priority filter - 10; policy drop;
		ct state established,related accept
		meta mark set ip daddr . meta l4proto . th dport map @marks
		meta mark & 0x00004000 == 0x00004000 reject
	}
	chain post {
		type nat hook postrouting priority srcnat; policy accept;
		oifname "eth0" masquerade fully-random
	}
}
"#;

#[expect(clippy::too_many_lines, reason = "a table")]
pub(super) fn ruleset() -> Vec<Operation> {
    let name = |text: &str| text.parse().unwrap();
    let source_type = KeyType::concatenation(&[
        DataType::Ipv4Address,
        DataType::Protocol,
        DataType::Port,
        DataType::Ipv4Address,
    ]);
    let (first, last) = network("192.0.2.0".parse().unwrap(), 24);
    let from = |source| {
        Value::concatenation([v4("10.0.0.1"), Value::protocol(6), Value::port(80), source])
    };
    let mut sources = Field::load_all(&[
        Field::Ipv4Destination,
        Field::Meta(MetaKey::Protocol),
        Field::DestinationPort,
        Field::Ipv4Source,
    ]);
    sources.push(Expression::is_in(name("sources")));
    vec![
        Operation::AddTable(Table::new(table(Family::Ipv4))),
        Operation::AddSet(Set::keys(set("services"), service_type())),
        Operation::AddSet(Set::keys(set("sources"), source_type).with(SetFlags::INTERVAL)),
        Operation::AddSet(Set::keys(set("nets"), DataType::Ipv4Address).with(SetFlags::INTERVAL)),
        Operation::AddSet(Set {
            timeout: Some(Duration::from_secs(3600)),
            size: Some(1024),
            ..Set::keys(set("recent"), DataType::Ipv4Address)
                .with(SetFlags::TIMEOUT | SetFlags::DYNAMIC)
        }),
        Operation::AddSet(Set::map(set("marks"), service_type(), DataType::Mark)),
        Operation::AddSet(Set::verdict_map(set("ports"), DataType::Port)),
        Operation::AddChain(Chain::regular(chain("web"))),
        base("pre", ChainType::Nat, Hook::Prerouting, -100),
        Operation::AddChain(Chain::base(
            chain("out"),
            Base {
                policy: Some(Policy::Drop),
                ..Base::new(ChainType::Filter, Hook::Output, -10)
            },
        )),
        base("post", ChainType::Nat, Hook::Postrouting, 100),
        Operation::AddRule(
            Rule::new(
                chain("pre"),
                destination()
                    .into_iter()
                    .chain([Expression::is_in(name("services")), Expression::counts()])
                    .chain(verdict(Verdict::Jump(name("web")))),
            )
            .commented("to the web"),
            Place::Last,
        ),
        rule("pre", sources.into_iter().chain(verdict(Verdict::Accept))),
        rule(
            "pre",
            [
                Field::Ipv4Source.load(Register::FIRST),
                Expression::is_in(name("nets")),
            ]
            .into_iter()
            .chain(verdict(Verdict::Return)),
        ),
        rule(
            "pre",
            [
                Field::Meta(MetaKey::Protocol).load(Register::FIRST),
                Expression::equals(Value::protocol(6)),
                Field::DestinationPort.load(Register::FIRST),
                Expression::maps(name("ports"), Register::VERDICT),
            ],
        ),
        rule(
            "pre",
            Expression::destination_is_local()
                .into_iter()
                .chain(Expression::marks(0x4000, 0x4000)),
        ),
        rule(
            "out",
            Expression::state_is(ct_state::ESTABLISHED | ct_state::RELATED)
                .into_iter()
                .chain(verdict(Verdict::Accept)),
        ),
        rule(
            "out",
            destination().into_iter().chain([
                Expression::maps(name("marks"), Register::FIRST),
                Expression::sets_mark(),
            ]),
        ),
        rule(
            "out",
            Expression::mark_is(0x4000, 0x4000)
                .into_iter()
                .chain([Expression::rejects_port(Family::Ipv4)]),
        ),
        rule(
            "post",
            [
                Field::Meta(MetaKey::OutputName).load(Register::FIRST),
                Expression::equals(Value::interface("eth0")),
                Expression::masquerades(nat_flag::FULLY_RANDOM),
            ],
        ),
        Operation::AddElements(
            set("services"),
            vec![
                Element::key(service(v4("10.0.0.1"), 6, 80)),
                Element::key(service(v4("10.0.0.2"), 17, 53)),
            ],
        ),
        Operation::AddElements(
            set("sources"),
            vec![Element::key(ElementKey::Ranges {
                first: from(first),
                last: from(last),
            })],
        ),
        Operation::AddElements(
            set("nets"),
            [("10.0.0.0", 8), ("192.0.2.7", 32), ("255.0.0.0", 8)]
                .map(|(address, prefix)| {
                    Element::key(ElementKey::network(address.parse().unwrap(), prefix))
                })
                .into(),
        ),
        Operation::AddElements(
            set("marks"),
            vec![Element::entry(
                service(v4("10.0.0.1"), 6, 80),
                Value::mark(0x10),
            )],
        ),
        Operation::AddElements(
            set("ports"),
            vec![
                Element::entry(Value::port(80), Verdict::Jump(name("web"))),
                Element::entry(Value::port(81), Verdict::Drop),
            ],
        ),
    ]
}
