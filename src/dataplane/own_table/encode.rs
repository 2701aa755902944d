// SPDX-License-Identifier: Apache-2.0
//! The planner's sets, entries and rules as messages of nftables.

use ipnet::IpNet;
use kpr_core::model::{IpFamily, Protocol};
use kpr_core::plan::ipvs::nft_rules::{
    self, Action, BYTES, Base, Bits, EQUAL_BYTES, Hook, Key, Kind, MarkOf, Match, Rule, TABLE,
};
use kpr_core::plan::ipvs::set::{SetEntry, SetId, SetName, SetType};
use nft_netlink as nft;
use nft_netlink::{
    ChainType, Comparison, Ct, CtKey, DataType, Element, ElementKey, Expression, Family, Field,
    InvalidName, KeyType, Meta, MetaKey, NetworkBytes, Register, SetFlags, SetKey, TableKey, Value,
    Verdict, ct_state, nat_flag, network,
};

/// `TCPHDR_SYN`, `TCPHDR_ACK`
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
/// `IP_CT_DIR_REPLY`
const REPLY: u8 = 1;

/// Behind the longest key: two addresses of IPv6, protocol and port take ten words.
const SCRATCH: u32 = 12;

/// Names that are constants are valid, which a test checks.
type Named<T> = Result<T, InvalidName>;

pub(super) const fn wire_family(family: IpFamily) -> Family {
    match family {
        IpFamily::V4 => Family::Ipv4,
        IpFamily::V6 => Family::Ipv6,
    }
}

/// Our table of a family.
pub fn table(family: IpFamily) -> Named<TableKey> {
    Ok(TableKey::new(wire_family(family), TABLE.parse()?))
}

/// A set of our table.
pub fn set_key(family: IpFamily, name: &SetName) -> Named<SetKey> {
    Ok(table(family)?.set(name.as_str().parse()?))
}

/// One of our sets, without elements.
pub fn set(family: IpFamily, name: &SetName, set_type: SetType) -> Named<nft::Set> {
    let key = set_key(family, name)?;
    let address = match family {
        IpFamily::V4 => DataType::Ipv4Address,
        IpFamily::V6 => DataType::Ipv6Address,
    };
    let port = KeyType::concatenation(&[address, DataType::Protocol, DataType::Port]);
    let source = KeyType::concatenation(&[address, DataType::Protocol, DataType::Port, address]);
    Ok(match set_type {
        SetType::HashIp => nft::Set::keys(key, address),
        SetType::HashIpPort => nft::Set::keys(key, port),
        SetType::HashIpPortMark => nft::Set::map(key, port, DataType::Mark),
        SetType::HashIpPortIp => nft::Set::keys(key, source),
        SetType::HashIpPortNet => nft::Set::keys(key, source).with(SetFlags::INTERVAL),
        SetType::BitmapPort => nft::Set::keys(key, DataType::Port),
    })
}

/// The set of pairs of equal bytes, without them.
pub fn equal_bytes(family: IpFamily) -> Named<nft::Set> {
    let key = table(family)?.set(EQUAL_BYTES.parse()?);
    let first = nft_rules::address_bytes(family).next();
    Ok(nft::Set {
        size: Some(u32::from(BYTES)),
        ..nft::Set::of_bytes(key, &address_byte(first.unwrap_or_default()))
    })
}

/// All pairs of equal bytes.
pub fn pairs() -> impl Iterator<Item = Element> {
    (0..=u8::MAX).map(|byte| {
        let byte = || Value::new([byte]);
        Element::key(Value::concatenation([byte(), byte()]))
    })
}

fn address_byte((source, destination): (u8, u8)) -> [NetworkBytes; 2] {
    [source, destination].map(|offset| NetworkBytes {
        offset: offset.into(),
        length: 1,
    })
}

/// The element that stands for an entry.
pub fn element(entry: &SetEntry) -> Element {
    let key = |address: std::net::IpAddr, protocol: u8, port, source: Option<Value>| {
        let parts = [address.into(), Value::protocol(protocol), Value::port(port)];
        Value::concatenation(parts.into_iter().chain(source))
    };
    match *entry {
        SetEntry::Ip(address) => Element::key(Value::from(address)),
        SetEntry::Port(port) => Element::key(Value::port(port)),
        SetEntry::IpPort(address, protocol, port) => {
            Element::key(key(address, protocol.number(), port, None))
        }
        SetEntry::IpPortMark(address, protocol, port, mark) => Element::entry(
            key(address, protocol.number(), port, None),
            Value::mark(mark),
        ),
        SetEntry::IpPortIp(address, protocol, port, source) => {
            Element::key(key(address, protocol.number(), port, Some(source.into())))
        }
        SetEntry::IpPortNet(address, protocol, port, source) => {
            let (first, last) = network(source.addr(), source.prefix_len());
            let key = |source| key(address, protocol.number(), port, Some(source));
            Element::key(ElementKey::Ranges {
                first: key(first),
                last: key(last),
            })
        }
    }
}

/// Where a base chain is.
pub(super) fn base(base: Base) -> nft::Base {
    let kind = match base.kind {
        Kind::Filter => ChainType::Filter,
        Kind::Nat => ChainType::Nat,
        Kind::Route => ChainType::Route,
    };
    let hook = match base.hook {
        Hook::Prerouting => nft::Hook::Prerouting,
        Hook::Input => nft::Hook::Input,
        Hook::Forward => nft::Hook::Forward,
        Hook::Output => nft::Hook::Output,
        Hook::Postrouting => nft::Hook::Postrouting,
    };
    nft::Base::new(kind, hook, base.priority)
}

/// What a rule does, step by step.
pub(super) fn steps(family: IpFamily, rule: &Rule) -> Named<Vec<Expression>> {
    let mut steps = Vec::new();
    for condition in &rule.matches {
        add_match(&mut steps, family, condition)?;
    }
    add_action(&mut steps, family, rule.action)?;
    Ok(steps)
}

const fn source(family: IpFamily) -> Field {
    match family {
        IpFamily::V4 => Field::Ipv4Source,
        IpFamily::V6 => Field::Ipv6Source,
    }
}

const fn destination(family: IpFamily) -> Field {
    match family {
        IpFamily::V4 => Field::Ipv4Destination,
        IpFamily::V6 => Field::Ipv6Destination,
    }
}

fn load(field: Field) -> Expression {
    field.load(Register::FIRST)
}

const fn mark(of: MarkOf) -> Field {
    match of {
        MarkOf::Packet => Field::Meta(MetaKey::Mark),
        MarkOf::Connection => Field::Ct(CtKey::Mark),
    }
}

/// Loads the key of a lookup.
fn add_key(steps: &mut Vec<Expression>, family: IpFamily, key: Key) {
    let (source, destination) = (source(family), destination(family));
    let (protocol, port) = (Field::Meta(MetaKey::Protocol), Field::DestinationPort);
    let fields = match key {
        Key::Destination => vec![destination, protocol, port],
        Key::SourceAndPort => vec![source, protocol, port],
        Key::DestinationAndSource => vec![destination, protocol, port, source],
        Key::Address => vec![destination],
        Key::TcpPort => {
            add_protocol(steps, Protocol::Tcp);
            vec![port]
        }
    };
    steps.extend(Field::load_all(&fields));
}

fn add_protocol(steps: &mut Vec<Expression>, protocol: Protocol) {
    steps.push(load(Field::Meta(MetaKey::Protocol)));
    steps.push(Expression::equals(Value::protocol(protocol.number())));
}

fn set_name(set: SetId, family: IpFamily) -> Named<nft::Name> {
    set.name(family).as_str().parse()
}

const fn comparison(is: bool) -> Comparison {
    if is {
        Comparison::Equal
    } else {
        Comparison::NotEqual
    }
}

pub(super) fn add_match(
    steps: &mut Vec<Expression>,
    family: IpFamily,
    condition: &Match,
) -> Named<()> {
    match condition {
        Match::In(set, key) => {
            add_key(steps, family, *key);
            steps.push(Expression::is_in(set_name(*set, family)?));
        }
        Match::Source(network, is) => {
            steps.push(load(source(family)));
            add_network(steps, *network, *is);
        }
        Match::Interface(name, is) => {
            steps.push(load(Field::Meta(MetaKey::InputName)));
            let name = Value::interface(&name.to_string());
            steps.push(Expression::compares(comparison(*is), name));
        }
        Match::InterfacePrefix(prefix, is) => {
            steps.push(load(Field::Meta(MetaKey::InputName)));
            let prefix = Value::new(prefix.to_string());
            steps.push(Expression::compares(comparison(*is), prefix));
        }
        Match::SourceLocal(true) => steps.extend(Expression::source_is_local()),
        Match::SourceLocal(false) => steps.extend(Expression::source_is_not_local()),
        Match::DestinationLocal(true) => steps.extend(Expression::destination_is_local()),
        Match::DestinationLocal(false) => steps.extend(Expression::destination_is_not_local()),
        Match::ToItself => {
            for pair in nft_rules::address_bytes(family) {
                steps.extend(Field::load_all(
                    &address_byte(pair).map(Field::NetworkBytes),
                ));
                steps.push(Expression::is_in(EQUAL_BYTES.parse()?));
            }
        }
        Match::New => steps.extend(Expression::state_is(ct_state::NEW)),
        Match::Answer => {
            steps.push(load(Field::Ct(CtKey::Direction)));
            steps.push(Expression::equals(Value::new([REPLY])));
        }
        Match::SynAck => {
            add_protocol(steps, Protocol::Tcp);
            steps.push(load(Field::TcpFlags));
            steps.push(Expression::masks(Value::new([SYN | ACK]), Value::new([0])));
            steps.push(Expression::equals(Value::new([SYN | ACK])));
        }
        Match::Datagram => add_protocol(steps, Protocol::Udp),
        Match::Mark {
            of,
            mask,
            value,
            is,
        } => {
            steps.push(load(mark(*of)));
            if *mask != u32::MAX {
                steps.push(Expression::masks(Value::mark(*mask), Value::mark(0)));
            }
            steps.push(Expression::compares(comparison(*is), Value::mark(*value)));
        }
    }
    Ok(())
}

/// Goes on if the address in the first register is (or is not) in a network.
fn add_network(steps: &mut Vec<Expression>, of: IpNet, is: bool) {
    let (first, _) = network(of.addr(), of.prefix_len());
    if of.prefix_len() == of.max_prefix_len() {
        steps.push(Expression::compares(comparison(is), first));
        return;
    }
    let none = vec![0; first.as_bytes().len()];
    steps.push(Expression::masks(of.netmask().into(), Value::new(none)));
    steps.push(Expression::compares(comparison(is), first));
}

/// Loads a mark, changed.
fn add_changed_mark(steps: &mut Vec<Expression>, of: MarkOf, bits: Bits) {
    let (keep, flip) = (Value::mark(bits.keep), Value::mark(bits.flip));
    steps.push(load(mark(of)));
    steps.push(Expression::masks(keep, flip));
}

fn sets_connection_mark() -> Expression {
    Ct {
        key: CtKey::Mark,
        destination: None,
        direction: None,
        source: Some(Register::FIRST),
    }
    .into()
}

fn sets_mark_from(register: Register) -> Expression {
    Meta {
        key: MetaKey::Mark,
        destination: None,
        source: Some(register),
    }
    .into()
}

pub(super) fn add_action(
    steps: &mut Vec<Expression>,
    family: IpFamily,
    action: Action,
) -> Named<()> {
    match action {
        Action::Jump(chain) => {
            let to = chain.name().parse()?;
            steps.push(Expression::verdict(Verdict::Jump(to)));
        }
        Action::Return => steps.push(Expression::verdict(Verdict::Return)),
        Action::Accept => steps.push(Expression::verdict(Verdict::Accept)),
        Action::Drop => steps.push(Expression::verdict(Verdict::Drop)),
        Action::Reject => steps.push(Expression::rejects_port(wire_family(family))),
        Action::Mark(bits) => {
            add_changed_mark(steps, MarkOf::Packet, bits);
            steps.push(Expression::sets_mark());
        }
        Action::SetMark(mark) => {
            steps.push(Expression::loads(Register::FIRST, Value::mark(mark)));
            steps.push(Expression::sets_mark());
        }
        Action::RestoreMark(bits) => {
            add_changed_mark(steps, MarkOf::Connection, bits);
            steps.push(Expression::sets_mark());
        }
        Action::ForgetMark => {
            steps.push(Expression::loads(Register::FIRST, Value::mark(0)));
            steps.push(sets_connection_mark());
        }
        Action::MapMark(set) => {
            add_key(steps, family, Key::Destination);
            let name = set_name(set, family)?;
            steps.push(Expression::maps(name, Register::FIRST));
            steps.push(Expression::sets_mark());
        }
        // The map is asked first: nothing is saved where it has no mark. `nft` lists it all the
        // same, in the order of its words.
        Action::SaveAndMapMark(set, bits) => {
            let found = Register::word(SCRATCH);
            add_key(steps, family, Key::Destination);
            steps.push(Expression::maps(set_name(set, family)?, found));
            add_changed_mark(steps, MarkOf::Packet, bits);
            steps.push(sets_connection_mark());
            steps.push(sets_mark_from(found));
        }
        Action::Masquerade { random } => {
            let flags = if random { nat_flag::FULLY_RANDOM } else { 0 };
            steps.push(Expression::masquerades(flags));
        }
        Action::Keep => {
            add_key(steps, family, Key::Address);
            steps.push(Expression::translates_destination(
                wire_family(family),
                Register::FIRST,
                None,
            ));
        }
    }
    Ok(())
}
