// SPDX-License-Identifier: Apache-2.0
//! PURE: finds the rule for a packet's destination in few steps.
//!
//! A [`Tree`] is a sorted map from [`Key`] (address, protocol, port) to rule, and its chains are a
//! view of it: a node with at most [`LEAF`] keys lists them; a larger one branches on the digit
//! after the longest prefix that its keys share. Digits have fixed positions, or a new key would
//! move all boundaries. So the chains are a function of the set of keys alone, and adding or
//! removing a key changes only the nodes on its path and their children.
//!
//! A rule that jumps to a child may match more than the child holds: a packet that finds nothing
//! there returns and continues.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::model::{IpFamily, Protocol};
use crate::plan::iptables::name;
use crate::plan::ruleset::{ChainName, Rule, Table};

/// Maximum number of keys that a node lists. The roots have a few more rules; together they stay
/// below 32.
pub const LEAF: usize = 24;

/// Number of bits that a branch examines: at most 16 children.
const DIGIT: u8 = 4;

/// Number of bits of the longest address.
const ADDRESS_BITS: u8 = 128;
/// More than needed, so that ports begin with a digit.
const PROTOCOL_BITS: u8 = 4;
/// Number of bits of a whole key; the rest is 0.
const KEY_BITS: u8 = ADDRESS_BITS + PROTOCOL_BITS + 16;

/// A destination as a string of bits: address, protocol, port. Parts that a tree does not use are
/// 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Left aligned.
    address: u128,
    /// Protocol and port, left aligned.
    rest: u32,
}

impl Key {
    pub fn new(address: Option<IpAddr>, service: Option<(Protocol, u16)>) -> Self {
        let address = match address {
            Some(IpAddr::V4(ip)) => u128::from(ip.to_bits()) << 96,
            Some(IpAddr::V6(ip)) => ip.to_bits(),
            None => 0,
        };
        let rest = service.map_or(0, |(protocol, port)| {
            (protocol_code(protocol) << 28) | (u32::from(port) << 12)
        });
        Self { address, rest }
    }

    /// Number of leading bits that two keys share.
    fn common(self, other: Self) -> u8 {
        let (address, rest) = (self.address ^ other.address, self.rest ^ other.rest);
        let bits = if address == 0 {
            u32::from(ADDRESS_BITS) + rest.leading_zeros()
        } else {
            address.leading_zeros()
        };
        u8::try_from(bits).map_or(KEY_BITS, |bits| bits.min(KEY_BITS))
    }

    fn masks(len: u8) -> (u128, u32) {
        let address = u128::MAX.checked_shl(u32::from(ADDRESS_BITS.saturating_sub(len)));
        let rest = u32::MAX.checked_shl(32 - u32::from(len.saturating_sub(ADDRESS_BITS)).min(32));
        (address.unwrap_or(0), rest.unwrap_or(0))
    }

    fn first(self, len: u8) -> Self {
        let (address, rest) = Self::masks(len);
        Self {
            address: self.address & address,
            rest: self.rest & rest,
        }
    }

    fn last(self, len: u8) -> Self {
        let (address, rest) = Self::masks(len);
        Self {
            address: self.address | !address,
            rest: self.rest | !rest,
        }
    }

    /// The key with the digit set at `at`, which must be 0 there.
    fn with_digit(mut self, at: u8, digit: u8) -> Self {
        for bit in 0..DIGIT {
            if digit >> (DIGIT - 1 - bit) & 1 == 1 {
                let at = at + bit;
                if at < ADDRESS_BITS {
                    self.address |= 1 << (ADDRESS_BITS - 1 - at);
                } else {
                    self.rest |= 1_u32
                        .checked_shl(31_u32.saturating_sub(u32::from(at - ADDRESS_BITS)))
                        .unwrap_or(0);
                }
            }
        }
        self
    }
}

const fn protocol_code(protocol: Protocol) -> u32 {
    match protocol {
        Protocol::Tcp => 0,
        Protocol::Udp => 1,
        Protocol::Sctp => 2,
    }
}

/// The keys that begin with some bits. Identifies a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    /// All bits after the first `len` are 0.
    key: Key,
    len: u8,
}

impl Prefix {
    /// All keys: the root.
    pub const ROOT: Self = Self {
        key: Key {
            address: 0,
            rest: 0,
        },
        len: 0,
    };

    /// How many bits all its keys share.
    pub const fn bits(self) -> u8 {
        self.len
    }

    fn new(key: Key, len: u8) -> Self {
        Self {
            key: key.first(len),
            len,
        }
    }

    fn contains(self, key: Key) -> bool {
        key.first(self.len) == self.key
    }

    /// The address part, in trees of addresses: address and prefix length.
    fn address(self, family: IpFamily) -> (IpAddr, u8) {
        let len = self.len.min(family.host_prefix_len());
        let address = match family {
            IpFamily::V4 => {
                let bits = u32::try_from(self.key.address >> 96).unwrap_or_default();
                IpAddr::V4(Ipv4Addr::from_bits(bits))
            }
            IpFamily::V6 => IpAddr::V6(Ipv6Addr::from_bits(self.key.address)),
        };
        (address, len)
    }

    /// The protocol, and the ports unless all match; `None` if the prefix does not fix the
    /// protocol.
    fn service(self) -> Option<(Protocol, Option<(u16, u16)>)> {
        let port_bits = self.len.checked_sub(ADDRESS_BITS + PROTOCOL_BITS)?;
        let protocol = Protocol::ALL
            .into_iter()
            .find(|protocol| protocol_code(*protocol) == self.key.rest >> 28)?;
        let port = |rest: u32| u16::try_from((rest >> 12) & 0xffff).unwrap_or_default();
        let ports =
            (port_bits > 0).then(|| (port(self.key.rest), port(self.key.last(self.len).rest)));
        Some((protocol, ports))
    }
}

/// The trees of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TreeId {
    /// `nat`: addresses to the chains of Service ports.
    Services,
    /// `nat`: node ports to the chains of Service ports.
    NodePorts,
    /// `nat`: the node's addresses that accept node ports, to [`Self::NodePorts`]; unused if all
    /// do.
    NodeAddresses,
    /// `nat`: endpoints on this node, to masquerade a pod that connects to itself.
    Hairpin,
    /// `filter`: cluster IPs that reject or drop.
    Refused,
    /// `filter`: external addresses that reject or drop.
    RefusedExternal,
    /// `filter`: node ports that reject or drop.
    RefusedNodePorts,
    /// `filter`: like [`Self::NodeAddresses`], to [`Self::RefusedNodePorts`].
    RefusedNodeAddresses,
    /// `filter`: health check node ports.
    HealthChecks,
    /// `filter`: load balancers with source ranges.
    Firewall,
}

impl TreeId {
    pub const ALL: [Self; 10] = [
        Self::Services,
        Self::NodePorts,
        Self::NodeAddresses,
        Self::Hairpin,
        Self::Refused,
        Self::RefusedExternal,
        Self::RefusedNodePorts,
        Self::RefusedNodeAddresses,
        Self::HealthChecks,
        Self::Firewall,
    ];

    pub const fn table(self) -> Table {
        match self {
            Self::Services | Self::NodePorts | Self::NodeAddresses | Self::Hairpin => Table::Nat,
            _ => Table::Filter,
        }
    }

    /// The root chain.
    pub const fn root(self) -> &'static str {
        match self {
            Self::Services | Self::Refused => "KUBE-SERVICES",
            Self::NodePorts | Self::HealthChecks => "KUBE-NODEPORTS",
            Self::NodeAddresses | Self::RefusedNodeAddresses => "KUBE-NODE-ADDRESSES",
            Self::Hairpin => "KUBE-HAIRPIN",
            Self::RefusedExternal => "KUBE-EXTERNAL-SERVICES",
            Self::RefusedNodePorts => "KUBE-EXTERNAL-NODEPORTS",
            Self::Firewall => "KUBE-PROXY-FIREWALL",
        }
    }

    /// The prefix of the names of all other nodes. Where nodes jump to chains of Service ports
    /// these are prefixes of kube-proxy's: a kube-proxy that takes over from us flushes and deletes
    /// such chains if it does not know them. If it kept them, it could not delete the chains of a
    /// Service that they jump to, and all its writes would fail.
    pub const fn branch(self) -> &'static str {
        match self {
            Self::Services => name::CLUSTER,
            Self::Refused => "KUBE-DST-",
            Self::NodePorts => name::EXTERNAL,
            Self::NodeAddresses | Self::RefusedNodeAddresses => "KUBE-NAD-",
            Self::Hairpin => "KUBE-HPN-",
            Self::RefusedExternal => "KUBE-XDS-",
            Self::RefusedNodePorts => "KUBE-XNP-",
            Self::HealthChecks => "KUBE-HCP-",
            Self::Firewall => "KUBE-PFW-",
        }
    }

    /// Whether the tree has the node's addresses: it is empty if node ports are accepted on all
    /// addresses.
    pub const fn is_of_node_addresses(self) -> bool {
        matches!(self, Self::NodeAddresses | Self::RefusedNodeAddresses)
    }

    const fn has_addresses(self) -> bool {
        !matches!(
            self,
            Self::NodePorts | Self::RefusedNodePorts | Self::HealthChecks
        )
    }

    /// The chain of a node: readable where the name has room for it, else a hash.
    pub fn chain(self, prefix: Prefix, family: IpFamily) -> ChainName {
        if prefix == Prefix::ROOT {
            return ChainName::composed(self.root().to_owned());
        }
        let branch = self.branch();
        let name = if self.has_addresses() {
            let (address, len) = prefix.address(family);
            if prefix.len <= 32 && family == IpFamily::V4 {
                format!("{branch}{address}-{len}")
            } else {
                let text = format!("{address}/{} {}", prefix.len, prefix.key.rest);
                // Must not be mistaken for the chain of a Service port.
                format!("{branch}to-{}", name::hash(&[&text]))
            }
        } else {
            match prefix.service() {
                Some((protocol, ports)) => {
                    let (from, to) = ports.unwrap_or((0, u16::MAX));
                    format!("{branch}{}-{from}-{to}", protocol.lowercase())
                }
                None => format!("{branch}{}", prefix.len),
            }
        };
        ChainName::composed(name)
    }

    /// The rule that jumps to a node.
    fn jump(self, prefix: Prefix, family: IpFamily) -> Rule {
        let mut words: Vec<String> = Vec::new();
        if self.has_addresses() {
            let (address, len) = prefix.address(family);
            if len > 0 {
                words.push(format!("-d {address}/{len}"));
            }
        }
        if let Some((protocol, ports)) = prefix.service() {
            let protocol = protocol.lowercase();
            words.push(format!("-p {protocol}"));
            match ports {
                Some((from, to)) if from == to => {
                    words.push(format!("-m {protocol} --dport {from}"));
                }
                Some((from, to)) => {
                    words.push(format!("-m {protocol} --dport {from}:{to}"));
                }
                None => {}
            }
        }
        words.push(format!("-j {}", self.chain(prefix, family)));
        Rule::new(words.join(" "))
    }
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    rules: BTreeMap<Key, Rule>,
}

/// The content of a node.
enum Item<'a> {
    Rule(&'a Rule),
    Node(Prefix),
}

impl Tree {
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Sets or removes the rule of a key, and adds the nodes that this may change to `dirty`.
    pub fn set(&mut self, key: Key, rule: Option<Rule>, dirty: &mut BTreeSet<Prefix>) {
        if self.rules.get(&key) == rule.as_ref() {
            return;
        }
        self.visit_near(key, dirty);
        self.put(key, rule);
        self.visit_near(key, dirty);
    }

    /// Sets or removes the rule of a key.
    pub fn put(&mut self, key: Key, rule: Option<Rule>) {
        match rule {
            Some(rule) => self.rules.insert(key, rule),
            None => self.rules.remove(&key),
        };
    }

    /// The rules of a node; `None` if there is no such node. The root always exists.
    pub fn rules(&self, id: TreeId, prefix: Prefix, family: IpFamily) -> Option<Vec<Rule>> {
        let items = self.items(self.find(prefix)?);
        Some(
            items
                .into_iter()
                .map(|item| match item {
                    Item::Rule(rule) => rule.clone(),
                    Item::Node(child) => id.jump(child, family),
                })
                .collect(),
        )
    }

    /// All nodes.
    pub fn nodes(&self) -> BTreeSet<Prefix> {
        let mut nodes = BTreeSet::from([Prefix::ROOT]);
        let mut todo = vec![Prefix::ROOT];
        while let Some(node) = todo.pop() {
            for item in self.items(node) {
                if let Item::Node(child) = item
                    && nodes.insert(child)
                {
                    todo.push(child);
                }
            }
        }
        nodes
    }

    /// The node of this prefix, if it is one.
    fn find(&self, wanted: Prefix) -> Option<Prefix> {
        let mut node = Prefix::ROOT;
        while node != wanted {
            node = self.child_towards(node, wanted.key)?;
            if node.len > wanted.len {
                return None;
            }
        }
        Some(node)
    }

    /// The child of a node in which a key would be found.
    fn child_towards(&self, node: Prefix, key: Key) -> Option<Prefix> {
        self.items(node).into_iter().find_map(|item| match item {
            Item::Node(child) if child.contains(key) => Some(child),
            _ => None,
        })
    }

    /// The nodes on the path to a key, and their children.
    fn visit_near(&self, key: Key, visited: &mut BTreeSet<Prefix>) {
        let mut node = Some(Prefix::ROOT);
        while let Some(at) = node {
            visited.insert(at);
            node = None;
            for item in self.items(at) {
                if let Item::Node(child) = item {
                    visited.insert(child);
                    if child.contains(key) {
                        node = Some(child);
                    }
                }
            }
        }
    }

    fn within(&self, prefix: Prefix) -> impl DoubleEndedIterator<Item = (&Key, &Rule)> {
        self.rules.range(prefix.key..=prefix.key.last(prefix.len))
    }

    fn items(&self, node: Prefix) -> Vec<Item<'_>> {
        if self.within(node).nth(LEAF).is_none() {
            return self
                .within(node)
                .map(|(_, rule)| Item::Rule(rule))
                .collect();
        }
        let Some(at) = self.shared(node) else {
            return Vec::new();
        };
        (0..1 << DIGIT)
            .filter_map(|digit| {
                let slot = Prefix {
                    key: at.key.with_digit(at.len, digit),
                    len: at.len + DIGIT,
                };
                let (_, only) = self.within(slot).next()?;
                if self.within(slot).nth(1).is_none() {
                    return Some(Item::Rule(only));
                }
                self.shared(slot).map(Item::Node)
            })
            .collect()
    }

    /// The longest prefix of whole digits that all keys within a prefix share; `None` if there are
    /// no keys.
    fn shared(&self, within: Prefix) -> Option<Prefix> {
        let mut keys = self.within(within).map(|(key, _)| *key);
        let first = keys.next()?;
        let last = keys.next_back().unwrap_or(first);
        Some(Prefix::new(first, first.common(last) / DIGIT * DIGIT))
    }
}
