// SPDX-License-Identifier: Apache-2.0
//! PURE: reads the text of `iptables-save`.

use super::{ChainName, InvalidChainName, Rule, Ruleset, Table};

/// Why a text is no output of `iptables-save`. Lines are counted from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("line {line}: {text:?} stands outside of a table")]
    OutsideTable { line: usize, text: String },
    #[error("line {line}: {text:?} is neither a chain nor a rule")]
    UnknownLine { line: usize, text: String },
    #[error("line {line}: not a chain that iptables can have")]
    Chain {
        line: usize,
        #[source]
        source: InvalidChainName,
    },
    #[error("line {line}: rule of chain {chain}, which is not declared")]
    UndeclaredChain { line: usize, chain: ChainName },
    #[error("table {table} is not committed")]
    Uncommitted { table: String },
    #[error("table {table} holds rules that iptables cannot show (made with nft?)")]
    IncompatibleTable { table: Table },
}

/// Where the reader is.
enum State {
    Outside,
    /// Inside a table that we know.
    In(Table),
    /// Inside another one (`security`), whose lines are passed over.
    Unknown(String),
}

pub(super) fn parse(text: &str) -> Result<Ruleset, ParseError> {
    let mut ruleset = Ruleset::new();
    let mut state = State::Outside;
    for (index, raw) in text.lines().enumerate() {
        let line = index + 1;
        let raw = raw.trim_end();
        if raw.is_empty() {
            continue;
        }
        if raw.starts_with('#') {
            if let Some(table) = incompatible_table(raw) {
                return Err(ParseError::IncompatibleTable { table });
            }
            continue;
        }
        if let Some(name) = raw.strip_prefix('*') {
            state = name
                .parse()
                .map_or_else(|_| State::Unknown(name.to_owned()), State::In);
            continue;
        }
        let table = match &state {
            State::Outside => {
                return Err(ParseError::OutsideTable {
                    line,
                    text: raw.to_owned(),
                });
            }
            _ if raw == "COMMIT" => {
                state = State::Outside;
                continue;
            }
            State::Unknown(_) => continue,
            State::In(table) => *table,
        };
        if let Some(declaration) = raw.strip_prefix(':') {
            let name = declaration.split(' ').next().unwrap_or_default();
            let chain = chain_name(name, line)?;
            ruleset.chains.entry((table, chain)).or_default();
        } else {
            let (chain, rule) = rule_line(raw, line)?;
            match ruleset.chains.get_mut(&(table, chain.clone())) {
                Some(rules) => rules.push(rule),
                None => return Err(ParseError::UndeclaredChain { line, chain }),
            }
        }
    }
    match state {
        State::Outside => Ok(ruleset),
        State::In(table) => Err(ParseError::Uncommitted {
            table: table.to_string(),
        }),
        State::Unknown(table) => Err(ParseError::Uncommitted { table }),
    }
}

fn chain_name(name: &str, line: usize) -> Result<ChainName, ParseError> {
    ChainName::new(name).map_err(|source| ParseError::Chain { line, source })
}

/// Splits `[0:0] -A CHAIN RULE` (the counters are there with `-c` only).
fn rule_line(raw: &str, line: usize) -> Result<(ChainName, Rule), ParseError> {
    let unknown = || ParseError::UnknownLine {
        line,
        text: raw.to_owned(),
    };
    let without_counters = match raw.strip_prefix('[') {
        Some(rest) => rest.split_once("] ").ok_or_else(unknown)?.1,
        None => raw,
    };
    let rest = without_counters.strip_prefix("-A ").ok_or_else(unknown)?;
    let (name, rule) = rest.split_once(' ').unwrap_or((rest, ""));
    Ok((chain_name(name, line)?, Rule::new(rule)))
}

/// ``# Table `nat' is incompatible, use 'nft' tool.`` of iptables-nft-save.
fn incompatible_table(comment: &str) -> Option<Table> {
    let name = comment.strip_prefix("# Table `")?;
    let (name, rest) = name.split_once('\'')?;
    if rest.contains("is incompatible") {
        name.parse().ok()
    } else {
        None
    }
}

/// The words of a rule, a quoted text being one word (quotes included).
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
