// SPDX-License-Identifier: Apache-2.0
//! PURE: lines of the table in the words of `nft`, both ways.

use std::fmt;

use super::{Action, Base, Bits, Chain, Hook, Key, Kind, Line, MarkOf, Match, Rule};
use super::{EQUAL_BYTES, address_bytes};
use crate::model::IpFamily;
use crate::plan::ipvs::set::{SetId, SetType};

const KINDS: [(Kind, &str); 3] = [
    (Kind::Filter, "filter"),
    (Kind::Nat, "nat"),
    (Kind::Route, "route"),
];

const HOOKS: [(Hook, &str); 5] = [
    (Hook::Prerouting, "prerouting"),
    (Hook::Input, "input"),
    (Hook::Forward, "forward"),
    (Hook::Output, "output"),
    (Hook::Postrouting, "postrouting"),
];

/// The word of a value.
fn word<T: PartialEq>(of: &[(T, &'static str)], value: &T) -> &'static str {
    let found = of.iter().find(|(known, _)| known == value);
    found.map_or("", |(_, word)| word)
}

/// The value of a word.
fn value<T: Copy>(of: &[(T, &str)], word: &str) -> Option<T> {
    let found = of.iter().find(|(_, known)| *known == word);
    found.map(|(value, _)| *value)
}

pub(super) const fn ip(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "ip",
        IpFamily::V6 => "ip6",
    }
}

/// Set or map, and the types of its key and value.
pub(super) fn types(set: SetId, family: IpFamily) -> (&'static str, String) {
    let address = match family {
        IpFamily::V4 => "ipv4_addr",
        IpFamily::V6 => "ipv6_addr",
    };
    let port = format!("{address} . inet_proto . inet_service");
    match set.set_type() {
        SetType::HashIp => ("set", address.to_owned()),
        SetType::HashIpPort => ("set", port),
        SetType::HashIpPortMark => ("map", format!("{port} : mark")),
        SetType::HashIpPortIp | SetType::HashIpPortNet => ("set", format!("{port} . {address}")),
        SetType::BitmapPort => ("set", "inet_service".to_owned()),
    }
}

fn set_named(name: &str, family: IpFamily) -> Option<SetId> {
    SetId::ALL
        .into_iter()
        .find(|set| set.name(family).as_str() == name)
}

impl Line {
    /// The line as `nft` reads it.
    pub fn shown(&self, family: IpFamily) -> String {
        match self {
            Self::Base(base) => base.to_string(),
            Self::Rule(rule) => rule.shown(family),
        }
    }

    /// Reads what [`Self::shown`] writes; `None` for anything else.
    pub fn parse(text: &str, family: IpFamily) -> Option<Self> {
        match Base::parse(text) {
            Some(base) => Some(Self::Base(base)),
            None => Rule::parse(text, family).map(Self::Rule),
        }
    }
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, hook) = (word(&KINDS, &self.kind), word(&HOOKS, &self.hook));
        let priority = self.priority;
        write!(
            f,
            "type {kind} hook {hook} priority {priority}; policy accept;"
        )
    }
}

impl Base {
    fn parse(text: &str) -> Option<Self> {
        let text = text.strip_suffix("; policy accept;")?;
        let (kind, rest) = text.strip_prefix("type ")?.split_once(" hook ")?;
        let (hook, priority) = rest.split_once(" priority ")?;
        Some(Self {
            kind: value(&KINDS, kind)?,
            hook: value(&HOOKS, hook)?,
            priority: priority.parse().ok()?,
        })
    }
}

impl Key {
    fn shown(self, family: IpFamily) -> String {
        let ip = ip(family);
        let port = "meta l4proto . th dport";
        match self {
            Self::Destination => format!("{ip} daddr . {port}"),
            Self::SourceAndPort => format!("{ip} saddr . {port}"),
            Self::DestinationAndSource => format!("{ip} daddr . {port} . {ip} saddr"),
            Self::Address => format!("{ip} daddr"),
            Self::TcpPort => "tcp dport".to_owned(),
        }
    }
}

impl MarkOf {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Packet => "meta mark",
            Self::Connection => "ct mark",
        }
    }
}

/// A byte of the IP header, whose offset `nft` counts in bits.
pub(super) fn byte(offset: u8) -> String {
    format!("@nh,{},8", u16::from(offset) * 8)
}

fn to_itself(family: IpFamily) -> String {
    let lookups = address_bytes(family).map(|(source, destination)| {
        let [source, destination] = [source, destination].map(byte);
        format!("{source} . {destination} @{EQUAL_BYTES}")
    });
    lookups.collect::<Vec<_>>().join(" ")
}

const NOT: &str = "!= ";

/// Takes a condition that may be negated.
fn negated(text: &str) -> (bool, &str) {
    text.strip_prefix(NOT)
        .map_or((true, text), |rest| (false, rest))
}

/// A number as [`number`] reads it.
fn shown_number(number: u32) -> String {
    format!("{number:#010x}")
}

fn number(text: &str) -> Option<u32> {
    u32::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// The first word and the rest.
fn first_word(text: &str) -> (&str, &str) {
    text.split_once(' ').unwrap_or((text, ""))
}

impl Match {
    fn shown(&self, family: IpFamily) -> String {
        let not = |is: &bool| if *is { "" } else { NOT };
        match self {
            Self::In(set, key) => format!("{} @{}", key.shown(family), set.name(family)),
            Self::Source(network, is) => format!("{} saddr {}{network}", ip(family), not(is)),
            Self::Interface(name, is) => format!("iifname {}\"{name}\"", not(is)),
            Self::InterfacePrefix(prefix, is) => format!("iifname {}\"{prefix}*\"", not(is)),
            Self::SourceLocal(is) => format!("fib saddr type {}local", not(is)),
            Self::DestinationLocal(is) => format!("fib daddr type {}local", not(is)),
            Self::ToItself => to_itself(family),
            Self::New => "ct state new".to_owned(),
            Self::Answer => "ct direction reply".to_owned(),
            Self::SynAck => "tcp flags & (syn | ack) == syn | ack".to_owned(),
            Self::Datagram => "meta l4proto udp".to_owned(),
            Self::Mark {
                of,
                mask,
                value,
                is,
            } => {
                let name = of.as_str();
                let equal = if *is { "==" } else { "!=" };
                let value = shown_number(*value);
                match *mask {
                    u32::MAX => format!("{name} {equal} {value}"),
                    bits => format!("{name} & {} {equal} {value}", shown_number(bits)),
                }
            }
        }
    }

    /// Reads a condition at the beginning of a text, and returns what follows it.
    fn parse(text: &str, family: IpFamily) -> Option<(Self, &str)> {
        for key in Key::ALL {
            let looked_up = text
                .strip_prefix(&key.shown(family))
                .and_then(|it| it.strip_prefix(" @"));
            if let Some(rest) = looked_up {
                let (name, rest) = first_word(rest);
                return Some((Self::In(set_named(name, family)?, key), rest));
            }
        }
        if let Some(rest) = text.strip_prefix(ip(family)) {
            let (is, rest) = negated(rest.strip_prefix(" saddr ")?);
            let (network, rest) = first_word(rest);
            return Some((Self::Source(network.parse().ok()?, is), rest));
        }
        if let Some(rest) = text.strip_prefix("iifname ") {
            let (is, rest) = negated(rest);
            let (name, rest) = rest.strip_prefix('"')?.split_once('"')?;
            let rest = rest.strip_prefix(' ').unwrap_or(rest);
            let condition = match name.strip_suffix('*') {
                Some(prefix) => Self::InterfacePrefix(prefix.parse().ok()?, is),
                None => Self::Interface(name.parse().ok()?, is),
            };
            return Some((condition, rest));
        }
        for condition in Self::PLAIN {
            if let Some(rest) = text.strip_prefix(&condition.shown(family)) {
                return Some((condition, rest.strip_prefix(' ').unwrap_or(rest)));
            }
        }
        let of = [MarkOf::Packet, MarkOf::Connection]
            .into_iter()
            .find(|of| text.starts_with(of.as_str()))?;
        let mut rest = text.strip_prefix(of.as_str())?.strip_prefix(' ')?;
        let mut mask = u32::MAX;
        if let Some(masked) = rest.strip_prefix("& ") {
            let (text, behind) = first_word(masked);
            mask = number(text)?;
            rest = behind;
        }
        let (equal, rest) = first_word(rest);
        let is = match equal {
            "==" => true,
            "!=" => false,
            _ => return None,
        };
        let (text, rest) = first_word(rest);
        let value = number(text)?;
        let condition = Self::Mark {
            of,
            mask,
            value,
            is,
        };
        Some((condition, rest))
    }
}

impl Bits {
    /// Behind the mark that is changed.
    fn shown(self) -> String {
        let (keep, flip) = (shown_number(self.keep), shown_number(self.flip));
        if self.keep == !self.flip {
            format!("| {flip}")
        } else if self.keep == u32::MAX {
            format!("^ {flip}")
        } else if self.flip == 0 {
            format!("& {keep}")
        } else {
            format!("& {keep} ^ {flip}")
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split(' ').collect();
        match *words.as_slice() {
            ["|", bits] => Some(Self::set(number(bits)?)),
            ["^", bits] => Some(Self {
                keep: u32::MAX,
                flip: number(bits)?,
            }),
            ["&", keep] => Some(Self {
                keep: number(keep)?,
                flip: 0,
            }),
            ["&", keep, "^", flip] => Some(Self {
                keep: number(keep)?,
                flip: number(flip)?,
            }),
            _ => None,
        }
    }
}

impl Action {
    fn shown(self, family: IpFamily) -> String {
        match self {
            Self::Jump(chain) => format!("jump {}", chain.name()),
            Self::Return => "return".to_owned(),
            Self::Accept => "accept".to_owned(),
            Self::Drop => "drop".to_owned(),
            Self::Reject => match family {
                IpFamily::V4 => "reject with icmp port-unreachable".to_owned(),
                IpFamily::V6 => "reject with icmpv6 port-unreachable".to_owned(),
            },
            Self::Mark(bits) => format!("meta mark set meta mark {}", bits.shown()),
            Self::SetMark(mark) => format!("meta mark set {}", shown_number(mark)),
            Self::RestoreMark(bits) => format!("meta mark set ct mark {}", bits.shown()),
            Self::ForgetMark => format!("ct mark set {}", shown_number(0)),
            Self::MapMark(set) => format!(
                "meta mark set {} map @{}",
                Key::Destination.shown(family),
                set.name(family)
            ),
            Self::SaveAndMapMark(set, bits) => format!(
                "ct mark set meta mark {} {}",
                bits.shown(),
                Self::MapMark(set).shown(family)
            ),
            Self::Masquerade { random: true } => "masquerade fully-random".to_owned(),
            Self::Masquerade { random: false } => "masquerade".to_owned(),
            Self::Keep => format!("dnat to {}", Key::Address.shown(family)),
        }
    }

    fn parse(text: &str, family: IpFamily) -> Option<Self> {
        if let Some(action) = Self::PLAIN
            .into_iter()
            .find(|action| action.shown(family) == text)
        {
            return Some(action);
        }
        if let Some(name) = text.strip_prefix("jump ") {
            return Chain::named(name).map(Self::Jump);
        }
        if let Some(rest) = text.strip_prefix("ct mark set meta mark ") {
            let (bits, map) = rest.split_once(" meta mark set ")?;
            let bits = Bits::parse(bits)?;
            return match Self::parse(&format!("meta mark set {map}"), family)? {
                Self::MapMark(set) => Some(Self::SaveAndMapMark(set, bits)),
                _ => None,
            };
        }
        let rest = text.strip_prefix("meta mark set ")?;
        if let Some(bits) = rest.strip_prefix("meta mark ") {
            return Bits::parse(bits).map(Self::Mark);
        }
        if let Some(bits) = rest.strip_prefix("ct mark ") {
            return Bits::parse(bits).map(Self::RestoreMark);
        }
        if let Some(mark) = number(rest) {
            return Some(Self::SetMark(mark));
        }
        let name = rest
            .strip_prefix(&Key::Destination.shown(family))?
            .strip_prefix(" map @")?;
        set_named(name, family).map(Self::MapMark)
    }
}

impl Rule {
    fn shown(&self, family: IpFamily) -> String {
        let mut words: Vec<String> = self.matches.iter().map(|it| it.shown(family)).collect();
        words.push(self.action.shown(family));
        let comment = self.comment.as_ref();
        words.extend(comment.map(|comment| format!("comment \"{comment}\"")));
        words.join(" ")
    }

    fn parse(text: &str, family: IpFamily) -> Option<Self> {
        let (mut rest, comment) = match text.split_once(" comment \"") {
            Some((rest, comment)) => (rest, Some(comment.strip_suffix('"')?.to_owned())),
            None => (text, None),
        };
        let mut matches = Vec::new();
        loop {
            if let Some(action) = Action::parse(rest, family) {
                return Some(Self {
                    matches,
                    action,
                    comment,
                });
            }
            let (condition, behind) = Match::parse(rest, family)?;
            matches.push(condition);
            rest = behind;
        }
    }
}
