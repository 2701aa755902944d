// SPDX-License-Identifier: Apache-2.0
//! PURE: parses the output of `iptables-save`.

use std::collections::BTreeSet;

use crate::plan::ruleset::{ChainName, Rule, Ruleset, Table};

/// Why a text is not output of `iptables-save`. Lines are counted from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("line {line}: {text:?} stands outside of a table")]
    OutsideTable { line: usize, text: String },
    #[error("line {line}: {text:?} is neither a chain nor a rule")]
    UnknownLine { line: usize, text: String },
    #[error("line {line}: rule of chain {chain}, which is not declared")]
    UndeclaredChain { line: usize, chain: ChainName },
    #[error("table {table} is not committed")]
    Uncommitted { table: String },
}

/// The position of the parser.
#[derive(Debug)]
enum State {
    Outside,
    /// Inside a wanted table.
    In(Table),
    /// Inside another table.
    PassedOver(String),
}

/// Parses the output of `iptables-save` (or of [`Ruleset::render`]) line by line: that of a large
/// cluster is many megabytes. Counters, comments, policies and unwanted tables are skipped.
#[derive(Debug)]
pub struct Parser<'a> {
    tables: &'a [Table],
    ruleset: Ruleset,
    state: State,
    /// Number of lines read.
    count: usize,
    /// The first error.
    error: Option<ParseError>,
}

impl<'a> Parser<'a> {
    pub fn new(tables: &'a [Table]) -> Self {
        Self {
            tables,
            ruleset: Ruleset::new(),
            state: State::Outside,
            count: 0,
            error: None,
        }
    }

    /// Takes in the next line. [`Self::finish`] returns the error of an invalid one.
    pub fn line(&mut self, line: &str) {
        self.count += 1;
        if self.error.is_none() {
            self.error = self.take(line.trim_end()).err();
        }
    }

    /// The parsed rules, or the first error.
    pub fn finish(self) -> Result<Ruleset, ParseError> {
        match (self.error, self.state) {
            (Some(error), _) => Err(error),
            (None, State::Outside) => Ok(self.ruleset),
            (None, State::In(table)) => Err(ParseError::Uncommitted {
                table: table.to_string(),
            }),
            (None, State::PassedOver(table)) => Err(ParseError::Uncommitted { table }),
        }
    }

    fn take(&mut self, raw: &str) -> Result<(), ParseError> {
        if raw.is_empty() {
            return Ok(());
        }
        if raw.starts_with('#') {
            let table = unlisted(raw).and_then(|name| name.parse().ok());
            let table = table.filter(|table| self.tables.contains(table));
            self.ruleset
                .unread
                .extend(table.map(|table| (table, BTreeSet::new())));
            return Ok(());
        }
        if let Some(name) = raw.strip_prefix('*') {
            let known = name.parse().ok();
            self.state = match known.filter(|table| self.tables.contains(table)) {
                Some(table) => State::In(table),
                None => State::PassedOver(name.to_owned()),
            };
            return Ok(());
        }
        let line = self.count;
        let table = match &self.state {
            State::Outside => {
                return Err(ParseError::OutsideTable {
                    line,
                    text: raw.to_owned(),
                });
            }
            _ if raw == "COMMIT" => {
                self.state = State::Outside;
                return Ok(());
            }
            State::PassedOver(_) => return Ok(()),
            State::In(table) => *table,
        };
        if let Some(declaration) = raw.strip_prefix(':') {
            let name = declaration.split(' ').next().unwrap_or_default();
            if let Some(chain) = chain_name(name) {
                self.ruleset.chains.entry((table, chain)).or_default();
            }
            return Ok(());
        }
        let (name, rule) = rule_line(raw).ok_or_else(|| ParseError::UnknownLine {
            line,
            text: raw.to_owned(),
        })?;
        if let Some(chain) = chain_name(name) {
            match self.ruleset.chains.get_mut(&(table, chain.clone())) {
                Some(rules) => rules.push(rule),
                None => return Err(ParseError::UndeclaredChain { line, chain }),
            }
        }
        Ok(())
    }
}

/// A chain whose name iptables does not accept (nft allows longer ones) is foreign and skipped.
fn chain_name(name: &str) -> Option<ChainName> {
    ChainName::new(name).ok()
}

/// Splits `[0:0] -A CHAIN RULE` (only `-c` prints the counters).
fn rule_line(raw: &str) -> Option<(&str, Rule)> {
    let without_counters = match raw.strip_prefix('[') {
        Some(rest) => rest.split_once("] ")?.1,
        None => raw,
    };
    let rest = without_counters.strip_prefix("-A ")?;
    let (name, rule) = rest.split_once(' ').unwrap_or((rest, ""));
    Some((name, Rule::new(rule)))
}

/// The table that a line says cannot be listed: iptables-nft-save prints ``# Table `nat' is
/// incompatible, use 'nft' tool.`` for one with rules that it cannot print, and none of its rules.
pub fn unlisted(line: &str) -> Option<&str> {
    let (name, rest) = line.strip_prefix("# Table `")?.split_once('\'')?;
    rest.contains("is incompatible").then_some(name)
}

/// The words of a rule; a quoted text is one word (quotes included).
pub(super) struct Words<'a> {
    rest: &'a str,
}

impl<'a> Words<'a> {
    pub(super) const fn new(text: &'a str) -> Self {
        Self { rest: text }
    }
}

impl<'a> Iterator for Words<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let text = self.rest.trim_start();
        if text.is_empty() {
            return None;
        }
        let mut quoted = false;
        let mut escaped = false;
        let mut end = text.len();
        for (at, c) in text.char_indices() {
            if escaped {
                escaped = false;
                continue;
            }
            match c {
                '\\' => escaped = true,
                '"' => quoted = !quoted,
                ' ' if !quoted => {
                    end = at;
                    break;
                }
                _ => {}
            }
        }
        let (word, rest) = text.split_at(end);
        self.rest = rest;
        Some(word)
    }
}
