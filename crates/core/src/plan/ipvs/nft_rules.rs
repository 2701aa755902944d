// SPDX-License-Identifier: Apache-2.0
//! PURE: the fixed rules of IPVS mode as an nftables table of our own: what
//! [`static_rules`](super::static_rules) says in the words of iptables, with the same sets under
//! the same names.
//!
//! Base chains are where iptables has its tables (mangle -150, nat -100 and 100, filter 0, security
//! 50), or right before, so that they lie around IPVS's own hooks (-99 and -98 in OUTPUT, 98 and 99
//! in INPUT) as those do. As values of [`Ruleset`] they are chains of [`Table::Own`], whose rules
//! are lines of `nft` ([`Line`]); the first line of a base chain says where it is.
//!
//! Differences from the iptables rules, each for a reason of the kernel:
//! - Accepting ends the way through our table only, not through those of others: what another table
//!   drops stays dropped. So there is nothing like `KUBE-FORWARD`, which only accepts.
//! - nftables cannot take over some bits of a mark from a map (before Linux 6.13). Packets get
//!   their mark where nothing of others comes between it and IPVS, as a whole, and what others had
//!   set goes to the connection's mark in the same rule.
//! - What a pod sends to itself is seen by its addresses, not by a set of the endpoints on this
//!   node, so that an endpoint changes nothing here. nftables cannot compare two registers (before
//!   Linux 6.13), but it can look up their bytes in the set of pairs of equal ones.
//! - Where nat rules of iptables accept, ours translate the destination to itself, before others
//!   do: a connection is translated once, so that no chain of another table sees it, such as the
//!   one in which the CNI plugin portmap publishes ports on all local addresses.

mod lines;
mod text;

use std::fmt;

use ipnet::IpNet;

use crate::model::IpFamily;
use crate::model::node::{InterfaceName, LocalDetector};
use crate::plan::context::{Context, IpvsRules};
use crate::plan::ipvs::mark::MarkRange;
use crate::plan::ipvs::set::{SetId, SetType};
use crate::plan::ipvs::static_rules::FixedRules;
use crate::plan::ruleset::{self, ChainName, Edit, InvalidChainName, Ruleset, Table};
use lines::Lines;

/// The name of our table in either family.
pub const TABLE: &str = "kube-proxy-rs";

/// The set of all pairs of equal bytes, by which two addresses are compared. It never changes.
pub const EQUAL_BYTES: &str = "equal-bytes";

/// Pairs in [`EQUAL_BYTES`].
pub const BYTES: u16 = 256;

/// Where the bytes of both addresses are in the IP header: offsets of source and destination, from
/// the last pair on, which tells most addresses apart.
pub fn address_bytes(family: IpFamily) -> impl Iterator<Item = (u8, u8)> {
    let (source, length) = match family {
        IpFamily::V4 => (12, 4),
        IpFamily::V6 => (8, 16),
    };
    (source..source + length)
        .rev()
        .map(move |offset| (offset, offset + length))
}

/// A place in the way of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

/// What the rules of a base chain may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Filter,
    Nat,
    /// Packets whose mark has changed are routed again.
    Route,
}

/// What makes a chain a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    pub kind: Kind,
    pub hook: Hook,
    /// `enum nf_ip_hook_priorities`.
    pub priority: i32,
}

/// Which fields of a packet are looked up in a set, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// Destination address, protocol and destination port.
    Destination,
    /// Source address, protocol and destination port.
    SourceAndPort,
    /// Destination address, protocol, destination port and source address.
    DestinationAndSource,
    /// Destination address.
    Address,
    /// Destination port of TCP.
    TcpPort,
}

impl Match {
    /// Those that name nothing.
    pub const PLAIN: [Self; 9] = [
        Self::SourceLocal(true),
        Self::SourceLocal(false),
        Self::DestinationLocal(true),
        Self::DestinationLocal(false),
        Self::ToItself,
        Self::New,
        Self::Answer,
        Self::SynAck,
        Self::Datagram,
    ];
}

impl Key {
    pub const ALL: [Self; 5] = [
        Self::Destination,
        Self::SourceAndPort,
        Self::DestinationAndSource,
        Self::Address,
        Self::TcpPort,
    ];
}

/// Whose mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarkOf {
    Packet,
    Connection,
}

/// A condition of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    In(SetId, Key),
    /// The source is (or is not) in a network.
    Source(IpNet, bool),
    /// The incoming interface has (or has not) this name.
    Interface(InterfaceName, bool),
    /// The name of the incoming interface begins (or does not begin) so.
    InterfacePrefix(InterfaceName, bool),
    /// The source is (or is not) an address of this node.
    SourceLocal(bool),
    /// The destination is (or is not) an address of this node.
    DestinationLocal(bool),
    /// Source and destination are the same address.
    ToItself,
    /// The packet begins a connection.
    New,
    /// The packet goes to who began its connection.
    Answer,
    /// TCP with SYN and ACK.
    SynAck,
    /// UDP
    Datagram,
    /// The bits of a mark under a mask are (or are not) these.
    Mark {
        of: MarkOf,
        mask: u32,
        value: u32,
        is: bool,
    },
}

/// What becomes of the bits of a mark: some are kept, then some are flipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bits {
    pub keep: u32,
    pub flip: u32,
}

impl Bits {
    /// These bits are set, the others stay.
    pub const fn set(bits: u32) -> Self {
        Self {
            keep: !bits,
            flip: bits,
        }
    }
}

/// What a rule does with packets that meet all of its conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Jump(Chain),
    Return,
    Accept,
    Drop,
    /// Answers that the port is unreachable.
    Reject,
    /// Changes bits of the packet's mark.
    Mark(Bits),
    /// Sets the packet's mark.
    SetMark(u32),
    /// The packet's mark becomes that of its connection, changed so.
    RestoreMark(Bits),
    /// The connection's mark becomes 0.
    ForgetMark,
    /// Sets the mark to what a set has for the packet; without an entry the next rule follows.
    MapMark(SetId),
    /// The same, and the mark that the packet had until then, changed so, becomes that of the
    /// connection.
    SaveAndMapMark(SetId, Bits),
    Masquerade {
        random: bool,
    },
    /// Translates the destination to itself, so that nobody else translates it.
    Keep,
}

impl Action {
    /// Those that name no chain, set or bits of a mark.
    pub const PLAIN: [Self; 8] = [
        Self::Return,
        Self::Accept,
        Self::Drop,
        Self::Reject,
        Self::ForgetMark,
        Self::Masquerade { random: true },
        Self::Masquerade { random: false },
        Self::Keep,
    ];
}

/// A rule: conditions, an action and a comment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub matches: Vec<Match>,
    pub action: Action,
    pub comment: Option<String>,
}

/// A line of a chain, in the words of `nft`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    Base(Base),
    Rule(Rule),
}

/// The chains of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Chain {
    MarkMasquerade,
    LoadBalancer,
    NodePort,
    Services,
    Pass,
    PolicyMarks,
    SourceRanges,
    Unserved,
    AfterIpvs,
    Prerouting,
    OutputMark,
    OutputServices,
    InputFilter,
    InputMark,
    ForwardFilter,
    Postrouting,
}

impl Chain {
    /// In an order in which each comes after those it jumps to.
    pub const ALL: [Self; 16] = [
        Self::MarkMasquerade,
        Self::LoadBalancer,
        Self::NodePort,
        Self::Services,
        Self::Pass,
        Self::PolicyMarks,
        Self::SourceRanges,
        Self::Unserved,
        Self::AfterIpvs,
        Self::Prerouting,
        Self::OutputMark,
        Self::OutputServices,
        Self::InputFilter,
        Self::InputMark,
        Self::ForwardFilter,
        Self::Postrouting,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::MarkMasquerade => "mark-masquerade",
            Self::LoadBalancer => "load-balancer",
            Self::NodePort => "node-port",
            Self::Services => "services",
            Self::Pass => "pass",
            Self::PolicyMarks => "policy-marks",
            Self::SourceRanges => "source-ranges",
            Self::Unserved => "unserved",
            Self::AfterIpvs => "after-ipvs",
            Self::Prerouting => "prerouting",
            Self::OutputMark => "output-mark",
            Self::OutputServices => "output-services",
            Self::InputFilter => "input-filter",
            Self::InputMark => "input-mark",
            Self::ForwardFilter => "forward-filter",
            Self::Postrouting => "postrouting",
        }
    }

    /// The chain of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|chain| chain.name() == name)
    }

    /// Where packets come to it by themselves.
    pub const fn base(self) -> Option<Base> {
        // NF_IP_PRI_MANGLE, _NAT_DST, _FILTER, _SECURITY, _NAT_SRC
        let (kind, hook, priority) = match self {
            // Before those of others, which are at -100: of one priority the chain that was made
            // last comes first.
            Self::Prerouting => (Kind::Nat, Hook::Prerouting, -101),
            Self::OutputMark => (Kind::Route, Hook::Output, -150),
            Self::OutputServices => (Kind::Nat, Hook::Output, -101),
            Self::InputFilter => (Kind::Filter, Hook::Input, 0),
            // The last chain before IPVS; and after routing, so that no foreign policy routing sees
            // the mark.
            Self::InputMark => (Kind::Filter, Hook::Input, 50),
            Self::ForwardFilter => (Kind::Filter, Hook::Forward, 0),
            Self::Postrouting => (Kind::Nat, Hook::Postrouting, 100),
            _ => return None,
        };
        Some(Base {
            kind,
            hook,
            priority,
        })
    }

    /// Its lines for a context.
    pub fn lines(self, context: &Context) -> Vec<Line> {
        let base = self.base().map(Line::Base);
        let rules = Lines { context }.rules(self).into_iter().map(Line::Rule);
        base.into_iter().chain(rules).collect()
    }
}

/// The rules for a context. The names are constants, so this fails only if one of them is not a
/// valid chain name, which a test excludes.
pub fn fixed_rules(context: &Context) -> Result<FixedRules, InvalidChainName> {
    let mut chains = Ruleset::new();
    for chain in Chain::ALL {
        let lines = chain.lines(context);
        let lines = lines.iter().map(|line| line.shown(context.family));
        let rules = lines.map(ruleset::Rule::new).collect();
        chains.set(Table::Own, ChainName::new(chain.name())?, rules);
    }
    Ok(FixedRules {
        chains,
        jumps: Vec::new(),
    })
}

/// The edits that leave nothing of our table but what rejects packets to an address on our link
/// that are for no Service.
pub fn guard_edits(present: &Ruleset, family: IpFamily) -> Vec<Edit> {
    let kept = Chain::InputFilter;
    let lines = kept.base().map(Line::Base);
    let lines = lines.into_iter().chain([Line::Rule(lines::refusal())]);
    let wanted: Vec<ruleset::Rule> = lines
        .map(|line| ruleset::Rule::new(line.shown(family)))
        .collect();
    let table = Table::Own;
    let of_table = present.table(table);
    of_table
        .filter_map(|(chain, rules)| {
            let chain = chain.clone();
            if chain.as_str() != kept.name() {
                return Some(Edit::DeleteChain { table, chain });
            }
            (rules != wanted).then(|| Edit::Replace {
                table,
                chain,
                rules: wanted.clone(),
            })
        })
        .collect()
}

/// The table of a context, in the words of `nft`: for people and for tests.
#[derive(Debug)]
pub struct Shown<'a>(pub &'a Context);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = self.0.family;
        writeln!(f, "table {} {TABLE} {{", text::ip(family))?;
        for set in SetId::of(IpvsRules::Nftables) {
            let (word, types) = text::types(set, family);
            writeln!(f, "\t{word} {} {{\n\t\ttype {types}", set.name(family))?;
            if set.set_type() == SetType::HashIpPortNet {
                writeln!(f, "\t\tflags interval")?;
            }
            writeln!(f, "\t}}")?;
        }
        let (source, destination) = address_bytes(family).next().unwrap_or_default();
        let [source, destination] = [source, destination].map(text::byte);
        writeln!(
            f,
            "\tset {EQUAL_BYTES} {{\n\t\ttypeof {source} . {destination}"
        )?;
        let pairs: Vec<String> = (0..BYTES).map(|byte| format!("{byte} . {byte}")).collect();
        writeln!(
            f,
            "\t\tsize {BYTES}\n\t\telements = {{ {} }}\n\t}}",
            pairs.join(", ")
        )?;
        for chain in Chain::ALL {
            writeln!(f, "\tchain {} {{", chain.name())?;
            for line in chain.lines(self.0) {
                writeln!(f, "\t\t{}", line.shown(family))?;
            }
            writeln!(f, "\t}}")?;
        }
        writeln!(f, "}}")
    }
}

/// The network in which loopback addresses are.
fn loopback(family: IpFamily) -> Option<IpNet> {
    match family {
        IpFamily::V4 => "127.0.0.0/8",
        IpFamily::V6 => "::1/128",
    }
    .parse()
    .ok()
}

#[cfg(test)]
mod tests;
