// SPDX-License-Identifier: Apache-2.0
//! What the kernel has in our table, in the planner's words.
//!
//! A rule is read by guessing: what its steps may mean is written again, and is what they mean if
//! that is the same. So nothing is taken for a rule of ours that does anything else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use kpr_core::model::{IpFamily, Protocol};
use kpr_core::plan::ipvs::nft_rules::{
    Action, Base, Bits, Chain, Hook, Key, Kind, Line, MarkOf, Match, Rule,
};
use kpr_core::plan::ipvs::set::{SetEntry, SetId, SetType};
use kpr_core::plan::ruleset;
use nft_netlink as nft;
use nft_netlink::{ChainType, Data, Element, ElementKey, Expression, Policy, Value};

use super::encode::{add_action, add_match};

/// The entry that an element stands for; `None` for one that we never add.
pub(super) fn entry(family: IpFamily, set_type: SetType, element: &Element) -> Option<SetEntry> {
    let (first, last) = match &element.key {
        ElementKey::Value(value) => (value, value),
        ElementKey::Ranges { first, last } => (first, last),
        _ => return None,
    };
    let mut parts = Parts(first.as_bytes());
    Some(match set_type {
        SetType::BitmapPort => SetEntry::Port(parts.port()?),
        SetType::HashIp => SetEntry::Ip(parts.address(family)?),
        SetType::HashIpPort => {
            let (address, protocol, port) = parts.frontend(family)?;
            SetEntry::IpPort(address, protocol, port)
        }
        SetType::HashIpPortMark => {
            let (address, protocol, port) = parts.frontend(family)?;
            let Some(Data::Value(value)) = &element.data else {
                return None;
            };
            SetEntry::IpPortMark(address, protocol, port, number(value)?)
        }
        SetType::HashIpPortIp => {
            let (address, protocol, port) = parts.frontend(family)?;
            SetEntry::IpPortIp(address, protocol, port, parts.address(family)?)
        }
        SetType::HashIpPortNet => {
            let frontend = parts.frontend(family)?;
            let mut highest = Parts(last.as_bytes());
            if highest.frontend(family)? != frontend {
                return None;
            }
            let network = network(parts.address(family)?, highest.address(family)?)?;
            let (address, protocol, port) = frontend;
            SetEntry::IpPortNet(address, protocol, port, network)
        }
    })
}

/// The rest of a key.
struct Parts<'a>(&'a [u8]);

impl Parts<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (part, rest) = self.0.split_first_chunk::<N>()?;
        let padding = N.next_multiple_of(4) - N;
        self.0 = rest.get(padding..).unwrap_or_default();
        Some(*part)
    }

    fn address(&mut self, family: IpFamily) -> Option<IpAddr> {
        Some(match family {
            IpFamily::V4 => Ipv4Addr::from(self.take::<4>()?).into(),
            IpFamily::V6 => Ipv6Addr::from(self.take::<16>()?).into(),
        })
    }

    fn port(&mut self) -> Option<u16> {
        self.take::<2>().map(u16::from_be_bytes)
    }

    fn frontend(&mut self, family: IpFamily) -> Option<(IpAddr, Protocol, u16)> {
        let address = self.address(family)?;
        let [protocol] = self.take::<1>()?;
        Some((address, Protocol::from_number(protocol)?, self.port()?))
    }
}

/// The network of which these are the first and the last address.
fn network(first: IpAddr, last: IpAddr) -> Option<IpNet> {
    let bits = match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => (first.to_bits() ^ last.to_bits()).leading_zeros(),
        (IpAddr::V6(first), IpAddr::V6(last)) => (first.to_bits() ^ last.to_bits()).leading_zeros(),
        _ => return None,
    };
    let network = IpNet::new(first, u8::try_from(bits).ok()?).ok()?;
    (network.network() == first && network.broadcast() == last).then_some(network)
}

/// A number of the machine, such as a mark.
fn number(value: &Value) -> Option<u32> {
    let bytes = value.as_bytes().try_into().ok()?;
    Some(u32::from_ne_bytes(bytes))
}

/// The first line of a base chain. One that we do not write equals no wanted line.
pub(super) fn base(base: &nft::Base, family: IpFamily) -> ruleset::Rule {
    let kind = match &base.chain_type {
        ChainType::Filter => Some(Kind::Filter),
        ChainType::Nat => Some(Kind::Nat),
        ChainType::Route => Some(Kind::Route),
        _ => None,
    };
    let hook = match base.hook {
        nft::Hook::Prerouting => Some(Hook::Prerouting),
        nft::Hook::Input => Some(Hook::Input),
        nft::Hook::Forward => Some(Hook::Forward),
        nft::Hook::Output => Some(Hook::Output),
        nft::Hook::Postrouting => Some(Hook::Postrouting),
        _ => None,
    };
    let accepts = base.policy == Some(Policy::Accept);
    let line = kind.zip(hook).filter(|_| accepts).map(|(kind, hook)| {
        let priority = base.priority;
        let base = Base {
            kind,
            hook,
            priority,
        };
        Line::Base(base).shown(family)
    });
    ruleset::Rule::new(line.unwrap_or_else(|| "type unknown".to_owned()))
}

/// The line of a rule. One that we do not write equals no wanted line.
pub(super) fn rule(family: IpFamily, found: &nft::RuleStatus) -> ruleset::Rule {
    let line = read(family, &found.rule).map(|rule| Line::Rule(rule).shown(family));
    ruleset::Rule::new(line.unwrap_or_else(|| format!("unknown rule, handle {}", found.handle)))
}

fn read(family: IpFamily, found: &nft::Rule) -> Option<Rule> {
    let steps: Vec<Expression> = found
        .expressions
        .iter()
        .map(Expression::canonical)
        .collect();
    let mut rest = steps.as_slice();
    let mut matches = Vec::new();
    loop {
        if let Some(action) = actions(family, rest).find(|action| is_action(family, *action, rest))
        {
            return Some(Rule {
                matches,
                action,
                comment: found.comment.clone(),
            });
        }
        let (condition, length) = conditions(family, rest).find_map(|condition| {
            let mut written = Vec::new();
            add_match(&mut written, family, &condition).ok()?;
            rest.starts_with(&written)
                .then_some((condition, written.len()))
        })?;
        matches.push(condition);
        rest = rest.get(length..).filter(|_| length > 0)?;
    }
}

fn is_action(family: IpFamily, action: Action, steps: &[Expression]) -> bool {
    let mut written = Vec::new();
    let is_written = add_action(&mut written, family, action).is_ok();
    is_written
        && written
            .iter()
            .map(Expression::canonical)
            .eq(steps.iter().cloned())
}

/// What is in the next steps.
struct Found {
    set: Option<SetId>,
    mask: Option<Value>,
    xor: Option<Value>,
    compared: Option<(Value, bool)>,
    loaded: Option<Value>,
}

impl Found {
    fn of(family: IpFamily, steps: &[Expression]) -> Self {
        let set = steps.iter().find_map(|step| match step {
            Expression::Lookup(lookup) => Some(lookup.set.as_str()),
            _ => None,
        });
        let of_name = |name: &str| {
            let mut all = SetId::ALL.into_iter();
            all.find(|id| id.name(family).as_str() == name)
        };
        let compared = steps
            .iter()
            .position(|step| matches!(step, Expression::Cmp(_)));
        let bitwise =
            steps
                .iter()
                .take(compared.unwrap_or(steps.len()))
                .find_map(|step| match step {
                    Expression::Bitwise(bitwise) => Some(bitwise),
                    _ => None,
                });
        let value = |data: &Data| match data {
            Data::Value(value) => Some(value.clone()),
            _ => None,
        };
        let compared = compared.and_then(|at| match steps.get(at) {
            Some(Expression::Cmp(cmp)) => {
                Some((value(&cmp.data)?, cmp.comparison == nft::Comparison::Equal))
            }
            _ => None,
        });
        let loaded = steps.iter().find_map(|step| match step {
            Expression::Immediate(immediate) => Some(&immediate.data),
            _ => None,
        });
        Self {
            loaded: loaded.and_then(value),
            set: set.and_then(of_name),
            mask: bitwise.and_then(|bitwise| value(bitwise.mask.as_ref()?)),
            xor: bitwise.and_then(|bitwise| value(bitwise.xor.as_ref()?)),
            compared,
        }
    }

    /// A network with which an address is compared.
    fn network(&self, family: IpFamily) -> Option<(IpNet, bool)> {
        let (value, is) = self.compared.as_ref()?;
        let ones = |bytes: &[u8]| bytes.iter().map(|byte| byte.count_ones()).sum::<u32>();
        let bits = match &self.mask {
            Some(mask) => ones(mask.as_bytes()),
            None => u32::try_from(value.as_bytes().len()).ok()?.checked_mul(8)?,
        };
        let mut bytes = value.as_bytes().to_vec();
        let length = match family {
            IpFamily::V4 => 4,
            IpFamily::V6 => 16,
        };
        bytes.resize(length, 0);
        let address = Parts(&bytes).address(family)?;
        Some((IpNet::new(address, u8::try_from(bits).ok()?).ok()?, *is))
    }

    fn interface(&self) -> Option<Match> {
        let (value, is) = self.compared.as_ref()?;
        let is_whole = value.as_bytes().ends_with(&[0]);
        let name = String::from_utf8(value.as_bytes().to_vec()).ok()?;
        let name = name.trim_end_matches('\0').parse().ok()?;
        Some(if is_whole {
            Match::Interface(name, *is)
        } else {
            Match::InterfacePrefix(name, *is)
        })
    }

    fn marks(&self) -> impl Iterator<Item = Match> {
        let mask = self.mask.as_ref().map_or(Some(u32::MAX), number);
        let compared = self.compared.as_ref();
        let compared = compared.and_then(|(value, is)| Some((number(value)?, *is)));
        let found = mask.zip(compared);
        let of = [MarkOf::Packet, MarkOf::Connection].into_iter();
        of.filter_map(move |of| {
            let (mask, (value, is)) = found?;
            Some(Match::Mark {
                of,
                mask,
                value,
                is,
            })
        })
    }

    fn bits(&self) -> Option<Bits> {
        Some(Bits {
            keep: number(self.mask.as_ref()?)?,
            flip: number(self.xor.as_ref()?)?,
        })
    }
}

/// What the next steps may ask.
fn conditions(family: IpFamily, steps: &[Expression]) -> impl Iterator<Item = Match> {
    let found = Found::of(family, steps);
    let lookups = found.set.into_iter();
    let lookups = lookups.flat_map(|set| Key::ALL.map(|key| Match::In(set, key)));
    let network = found.network(family);
    let network = network.map(|(network, is)| Match::Source(network, is));
    let marks: Vec<Match> = found.marks().collect();
    let others = network.into_iter().chain(found.interface()).chain(marks);
    Match::PLAIN.into_iter().chain(lookups).chain(others)
}

/// What the remaining steps may do.
fn actions(family: IpFamily, steps: &[Expression]) -> impl Iterator<Item = Action> {
    let found = Found::of(family, steps);
    let jumps = Chain::ALL.map(Action::Jump);
    let bits = found.bits();
    let saving = found.set.zip(bits);
    Action::PLAIN
        .into_iter()
        .chain(jumps)
        .chain(bits.map(Action::Mark))
        .chain(bits.map(Action::RestoreMark))
        .chain(found.loaded.as_ref().and_then(number).map(Action::SetMark))
        .chain(found.set.map(Action::MapMark))
        .chain(saving.map(|(set, bits)| Action::SaveAndMapMark(set, bits)))
}
