// SPDX-License-Identifier: Apache-2.0
//! PURE: changes of rules, as the input of one `iptables-restore --noflush`, and the way back from a line of that input.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};

use super::{ChainName, Rule, Table};

/// One change. A list of them becomes one batch with [`render_edits`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Edit {
    /// Creates the chain, or empties it, and appends the rules. A built-in chain is not emptied.
    Replace {
        table: Table,
        chain: ChainName,
        rules: Vec<Rule>,
    },
    /// Puts the rule first in an existing chain.
    Prepend {
        table: Table,
        chain: ChainName,
        rule: Rule,
    },
    /// Puts the rule last in an existing chain.
    Append {
        table: Table,
        chain: ChainName,
        rule: Rule,
    },
    /// Deletes the first rule of the chain that equals this one; refused by iptables when there is none.
    Delete {
        table: Table,
        chain: ChainName,
        rule: Rule,
    },
    /// Empties and deletes a chain of ours; refused by iptables while a rule outside the batch jumps to it.
    DeleteChain { table: Table, chain: ChainName },
}

impl Edit {
    pub const fn table(&self) -> Table {
        match self {
            Self::Replace { table, .. }
            | Self::Prepend { table, .. }
            | Self::Append { table, .. }
            | Self::Delete { table, .. }
            | Self::DeleteChain { table, .. } => *table,
        }
    }

    pub const fn chain(&self) -> &ChainName {
        match self {
            Self::Replace { chain, .. }
            | Self::Prepend { chain, .. }
            | Self::Append { chain, .. }
            | Self::Delete { chain, .. }
            | Self::DeleteChain { chain, .. } => chain,
        }
    }
}

impl fmt::Display for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replace {
                table,
                chain,
                rules,
            } => {
                let plural = if rules.len() == 1 { "" } else { "s" };
                let count = rules.len();
                write!(f, "replace chain {table}/{chain} with {count} rule{plural}")
            }
            Self::Prepend { table, chain, rule } => write!(f, "prepend to {table}/{chain}: {rule}"),
            Self::Append { table, chain, rule } => write!(f, "append to {table}/{chain}: {rule}"),
            Self::Delete { table, chain, rule } => write!(f, "delete from {table}/{chain}: {rule}"),
            Self::DeleteChain { table, chain } => write!(f, "delete chain {table}/{chain}"),
        }
    }
}

/// The input of one `iptables-restore --noflush` that makes all the edits.
///
/// Tables come in the order of [`Table`], each atomic by itself. Within a table all chains are declared first (a rule may
/// jump to a chain that a later edit makes), then rules are written in the order of the edits, then chains deleted.
pub fn render_edits(edits: &[Edit]) -> String {
    let mut text = String::new();
    for table in Table::ALL {
        let edits = || edits.iter().filter(move |edit| edit.table() == table);
        if edits().next().is_none() {
            continue;
        }
        push_line(&mut text, format_args!("*{table}"));
        let mut declared = BTreeSet::new();
        for edit in edits() {
            // A chain that is to be deleted is declared too: that empties it, so that chains which jump to each other
            // can go in one batch.
            if let Edit::Replace { chain, .. } | Edit::DeleteChain { chain, .. } = edit
                && declared.insert(chain)
            {
                push_line(&mut text, format_args!(":{chain} - [0:0]"));
            }
        }
        for edit in edits() {
            match edit {
                Edit::Replace { chain, rules, .. } => {
                    for rule in rules {
                        push_line(&mut text, format_args!("-A {chain} {rule}"));
                    }
                }
                Edit::Prepend { chain, rule, .. } => {
                    push_line(&mut text, format_args!("-I {chain} {rule}"));
                }
                Edit::Append { chain, rule, .. } => {
                    push_line(&mut text, format_args!("-A {chain} {rule}"));
                }
                Edit::Delete { chain, rule, .. } => {
                    push_line(&mut text, format_args!("-D {chain} {rule}"));
                }
                Edit::DeleteChain { .. } => {}
            }
        }
        for edit in edits() {
            if let Edit::DeleteChain { chain, .. } = edit {
                push_line(&mut text, format_args!("-X {chain}"));
            }
        }
        push_line(&mut text, format_args!("COMMIT"));
    }
    text
}

fn push_line(text: &mut String, line: fmt::Arguments<'_>) {
    // An empty rule (it matches everything and does nothing) would leave a blank at the end of the line.
    let start = text.len();
    // Writing into a String cannot fail.
    if text.write_fmt(line).is_ok() && text[start..].ends_with(' ') {
        text.pop();
    }
    text.push('\n');
}

/// What a line of a batch is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    pub table: Table,
    /// The chain of the line; `None` for `COMMIT` and the table's own line.
    pub chain: Option<String>,
    /// The line itself.
    pub text: String,
}

/// Finds what line `number` (counted from 1, as iptables-restore counts) of a batch is about.
pub fn locate(batch: &str, number: usize) -> Option<Location> {
    let mut table = None;
    for (index, line) in batch.lines().enumerate().take(number) {
        if let Some(name) = line.strip_prefix('*') {
            table = name.parse().ok();
        }
        if index + 1 == number {
            let chain = match line.as_bytes().first() {
                Some(b':') => line.get(1..).and_then(|rest| rest.split(' ').next()),
                Some(b'-') => line.split(' ').nth(1),
                _ => None,
            };
            return Some(Location {
                table: table?,
                chain: chain.map(str::to_owned),
                text: line.to_owned(),
            });
        }
    }
    None
}
