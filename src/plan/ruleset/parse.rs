// SPDX-License-Identifier: Apache-2.0
//! PURE: reads the text of `iptables-save`.

use super::{ChainName, Rule, Ruleset, Table};

/// Why a text is no output of `iptables-save`. Lines are counted from 1.
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
        if raw.is_empty() || raw.starts_with('#') {
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
            if let Some(chain) = chain_name(name) {
                ruleset.chains.entry((table, chain)).or_default();
            }
        } else {
            let (name, rule) = rule_line(raw).ok_or_else(|| ParseError::UnknownLine {
                line,
                text: raw.to_owned(),
            })?;
            let Some(chain) = chain_name(name) else {
                continue;
            };
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

/// A chain whose name iptables would not take (nft takes longer ones) is none of ours and passed over.
fn chain_name(name: &str) -> Option<ChainName> {
    ChainName::new(name).ok()
}

/// Splits `[0:0] -A CHAIN RULE` (the counters are there with `-c` only).
fn rule_line(raw: &str) -> Option<(&str, Rule)> {
    let without_counters = match raw.strip_prefix('[') {
        Some(rest) => rest.split_once("] ")?.1,
        None => raw,
    };
    let rest = without_counters.strip_prefix("-A ")?;
    let (name, rule) = rest.split_once(' ').unwrap_or((rest, ""));
    Some((name, Rule::new(rule)))
}

/// The tables of which iptables-nft-save says ``# Table `nat' is incompatible, use 'nft' tool.``: they hold rules that it
/// cannot show, and it shows none of them.
pub fn incompatible_tables(text: &str) -> Vec<Table> {
    text.lines()
        .filter_map(|line| {
            let (name, rest) = line.strip_prefix("# Table `")?.split_once('\'')?;
            rest.contains("is incompatible")
                .then(|| name.parse().ok())?
        })
        .collect()
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
