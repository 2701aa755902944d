// SPDX-License-Identifier: Apache-2.0
//! PURE: iptables rules as values: tables, chains, rules, their text forms, and edits of them.
//!
//! The planner builds and compares rule sets; `dataplane::iptables` reads and writes the text. A
//! [`Rule`] is stored as the exact text that `iptables-save` prints, so that a wanted rule and an
//! observed one are equal if and only if their texts are. Nothing here runs a program.

mod apply;
mod batch;
mod edit;
mod parse;
mod unread;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

pub use batch::{Growth, RuleBatch};
pub use edit::{Edit, Line, Location, batch, locate, render_edits};
pub use parse::{ParseError, Parser, unlisted};
pub use unread::unread_jumps;

/// Maximum length of a chain name in bytes: `XT_EXTENSION_MAXNAMELEN` (29) of
/// `linux/netfilter/x_tables.h` without its NUL.
pub const MAX_CHAIN_NAME_LEN: usize = 28;

/// A table of iptables. The order is that in which packets traverse them and in which a batch
/// writes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    Raw,
    Mangle,
    Nat,
    Filter,
    Security,
    /// None of iptables: the table of our own in nftables, where IPVS mode has its fixed rules in
    /// one. A rule is a line of `nft` (`crate::plan::ipvs::nft_rules`).
    Own,
}

impl Table {
    /// All tables of iptables that we support.
    pub const ALL: [Self; 5] = [
        Self::Raw,
        Self::Mangle,
        Self::Nat,
        Self::Filter,
        Self::Security,
    ];

    /// The name, as in `iptables -t`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Mangle => "mangle",
            Self::Nat => "nat",
            Self::Filter => "filter",
            Self::Security => "security",
            Self::Own => "kube-proxy-rs",
        }
    }

    /// The chains that the kernel itself calls. They can be neither created nor deleted.
    pub const fn built_in_chains(self) -> &'static [&'static str] {
        match self {
            Self::Raw => &["PREROUTING", "OUTPUT"],
            Self::Mangle => &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"],
            Self::Nat => &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"],
            Self::Filter | Self::Security => &["INPUT", "FORWARD", "OUTPUT"],
            Self::Own => &[],
        }
    }

    /// Whether the kernel itself calls `chain` of this table.
    pub fn has_built_in(self, chain: &ChainName) -> bool {
        self.built_in_chains().contains(&chain.as_str())
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The name of an unsupported table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown iptables table {0:?}")]
pub struct UnknownTable(pub String);

impl FromStr for Table {
    type Err = UnknownTable;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|table| table.as_str() == text)
            .ok_or_else(|| UnknownTable(text.to_owned()))
    }
}

/// A chain's name: 1 to [`MAX_CHAIN_NAME_LEN`] printable ASCII characters without blanks, not
/// starting with `-` or `!`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainName(String);

/// Why a text is not a chain name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidChainName {
    #[error("chain name is empty")]
    Empty,
    #[error("chain name {0:?} is longer than {MAX_CHAIN_NAME_LEN} bytes")]
    TooLong(String),
    #[error("chain name {0:?} has a character that iptables does not accept")]
    Character(String),
}

impl ChainName {
    /// Validates a name.
    pub fn new(name: impl Into<String>) -> Result<Self, InvalidChainName> {
        let name = name.into();
        if name.is_empty() {
            return Err(InvalidChainName::Empty);
        }
        if name.len() > MAX_CHAIN_NAME_LEN {
            return Err(InvalidChainName::TooLong(name));
        }
        // A quote would not survive the parser of iptables-restore.
        let accepted = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\'' | b'\\');
        if name.starts_with(['-', '!']) || !name.bytes().all(accepted) {
            return Err(InvalidChainName::Character(name));
        }
        Ok(Self(name))
    }

    /// A name built from parts that are valid in any combination.
    pub fn composed(name: String) -> Self {
        debug_assert!(Self::new(name.clone()).is_ok(), "{name}");
        Self(name)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ChainName {
    type Err = InvalidChainName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

/// One rule, as `iptables-save` prints it without its `-A CHAIN `.
///
/// To be canonical a wanted rule must be spelled as `iptables-save` prints it: options in the order
/// `-s -d -i -o -p`, then the matches, then `-j`; addresses with their prefix length; comments
/// through [`quote`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule(String);

impl Rule {
    /// Takes a rule's text. A control character (it could end the line, and with it the rule)
    /// becomes a blank, and blanks at either end are trimmed.
    pub fn new(text: impl Into<String>) -> Self {
        let mut text = text.into();
        if text.chars().any(char::is_control) {
            text = text.replace(char::is_control, " ");
        }
        let trimmed = text.trim();
        if trimmed.len() == text.len() {
            Self(text)
        } else {
            Self(trimmed.to_owned())
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The chain or target after `-j` or `-g`, if the rule has one.
    pub fn target(&self) -> Option<&str> {
        let mut words = parse::Words::new(&self.0);
        while let Some(word) = words.next() {
            if word == "-j" || word == "-g" {
                return words.next();
            }
        }
        None
    }
}

impl Rule {
    /// The sets that the rule references.
    pub fn sets(&self) -> impl Iterator<Item = &str> {
        let mut words = self.0.split(' ');
        std::iter::from_fn(move || {
            let rest = words.by_ref();
            rest.find(|word| matches!(*word, "--match-set" | "--add-set" | "--del-set"))?;
            words.next()
        })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text argument (a comment) as `iptables-save` prints it: bare if it consists of letters,
/// digits, `_` and `-` only, else in double quotes with `"`, `\` and `'` escaped
/// (`xtables_save_string` of libxtables).
pub fn quote(text: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if !text.is_empty() && text.chars().all(bare) {
        return text.to_owned();
    }
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        if matches!(c, '"' | '\\' | '\'') {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted.push('"');
    quoted
}

/// Identifies a chain by table and name.
pub type ChainId = (Table, ChainName);

/// The rules of any number of chains of one family.
///
/// A chain that is present without rules exists and is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    pub chains: BTreeMap<ChainId, Vec<Rule>>,
    /// Tables whose rules could not be read, with those of their chains that no other program has
    /// touched since they were last believed. What is known of the others is in `chains`.
    pub unread: BTreeMap<Table, BTreeSet<ChainName>>,
}

impl Ruleset {
    pub fn new() -> Self {
        Self::default()
    }

    /// Parses the output of `iptables-save` (or [`Self::render`]), all supported tables of it.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let mut parser = Parser::new(&Table::ALL);
        text.lines().for_each(|line| parser.line(line));
        parser.finish()
    }

    /// The rules of a chain, or `None` if the chain does not exist.
    pub fn rules(&self, table: Table, chain: &ChainName) -> Option<&[Rule]> {
        // The key is a pair of owned values; cloning a short name is cheaper than a second map
        // level.
        self.chains.get(&(table, chain.clone())).map(Vec::as_slice)
    }

    /// Sets the rules of a chain.
    pub fn set(&mut self, table: Table, chain: ChainName, rules: Vec<Rule>) {
        self.chains.insert((table, chain), rules);
    }

    /// All chains of one table, in name order.
    pub fn table(&self, table: Table) -> impl Iterator<Item = (&ChainName, &[Rule])> {
        self.chains
            .iter()
            .filter(move |((of, _), _)| *of == table)
            .map(|((_, chain), rules)| (chain, rules.as_slice()))
    }

    /// Number of rules in all chains.
    pub fn rule_count(&self) -> usize {
        self.chains.values().map(Vec::len).sum()
    }

    /// The input of `iptables-restore --noflush` that creates every chain or replaces its rules.
    ///
    /// It does not flush built-in chains: their rules are appended to the present ones. [`Edit`]
    /// handles single rules of built-in chains.
    pub fn render(&self) -> String {
        let edits: Vec<Edit> = self
            .chains
            .iter()
            .map(|((table, chain), rules)| Edit::Replace {
                table: *table,
                chain: chain.clone(),
                rules: rules.clone(),
            })
            .collect();
        render_edits(&edits)
    }
}

#[cfg(test)]
mod tests;
