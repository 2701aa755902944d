// SPDX-License-Identifier: Apache-2.0
//! PURE: changes of rules, as the input of one `iptables-restore --noflush`, and the mapping from a
//! line of that input back to its edit.

use std::collections::BTreeSet;
use std::{fmt, iter, slice};

use crate::plan::ruleset::{ChainName, Rule, Table};

/// One change. A list of changes becomes one [`batch`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Edit {
    /// Creates or flushes the chain, and appends the rules. A built-in chain is not flushed.
    Replace {
        table: Table,
        chain: ChainName,
        rules: Vec<Rule>,
    },
    /// Inserts the rule at the top of an existing chain.
    Prepend {
        table: Table,
        chain: ChainName,
        rule: Rule,
    },
    /// Appends the rule to an existing chain.
    Append {
        table: Table,
        chain: ChainName,
        rule: Rule,
    },
    /// Deletes the first rule of the chain that equals this one; iptables fails if there is none.
    Delete {
        table: Table,
        chain: ChainName,
        rule: Rule,
    },
    /// Flushes and deletes a chain of ours; iptables fails while a rule outside the batch jumps to
    /// it.
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

impl Edit {
    /// The kernel's number of the rule that it deletes, if nothing else identifies it: iptables
    /// cannot make such an edit.
    pub fn unread_handle(&self) -> Option<u64> {
        match self {
            Self::Delete { rule, .. } => rule.unread_handle(),
            _ => None,
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

/// The input of one `iptables-restore --noflush` that makes all the edits, as one text.
pub fn render_edits(edits: &[Edit]) -> String {
    batch(edits).fold(String::new(), |text, line| text + &line.to_string() + "\n")
}

/// One line of a batch, without a line end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    table: Table,
    content: Content<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content<'a> {
    Table,
    Chain(&'a ChainName),
    /// With the option that sets its position.
    Rule(&'static str, &'a ChainName, &'a Rule),
    DeleteChain(&'a ChainName),
    Commit,
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.content {
            Content::Table => write!(f, "*{}", self.table),
            Content::Chain(chain) => write!(f, ":{chain} - [0:0]"),
            // It matches everything and does nothing. The line must not end with a blank.
            Content::Rule(option, chain, rule) if rule.as_str().is_empty() => {
                write!(f, "{option} {chain}")
            }
            Content::Rule(option, chain, rule) => write!(f, "{option} {chain} {rule}"),
            Content::DeleteChain(chain) => write!(f, "-X {chain}"),
            Content::Commit => f.write_str("COMMIT"),
        }
    }
}

/// The lines of one `iptables-restore --noflush` that makes all the edits, generated one by one:
/// the text of a large batch is many megabytes.
///
/// Tables come in the order of [`Table`], each atomic by itself. Within a table all chains are
/// declared first (a rule may jump to a chain that a later edit creates), then rules are written in
/// the order of the edits, then chains are deleted.
pub fn batch(edits: &[Edit]) -> impl Iterator<Item = Line<'_>> {
    let of = move |table| edits.iter().filter(move |edit| edit.table() == table);
    let tables = Table::ALL.into_iter();
    let tables = tables.filter(move |table| of(*table).next().is_some());
    tables.flat_map(move |table| {
        let mut declared = BTreeSet::new();
        let declarations = of(table).filter_map(move |edit| match edit {
            // A chain to be deleted is declared too: that flushes it, so that chains which jump to
            // each other can be deleted in one batch.
            Edit::Replace { chain, .. } | Edit::DeleteChain { chain, .. } => {
                declared.insert(chain).then_some(Content::Chain(chain))
            }
            _ => None,
        });
        let deletions = of(table).filter_map(|edit| match edit {
            Edit::DeleteChain { chain, .. } => Some(Content::DeleteChain(chain)),
            _ => None,
        });
        iter::once(Content::Table)
            .chain(declarations)
            .chain(of(table).flat_map(rules))
            .chain(deletions)
            .chain([Content::Commit])
            .map(move |content| Line { table, content })
    })
}

/// The rule lines of an edit.
fn rules(edit: &Edit) -> impl Iterator<Item = Content<'_>> {
    let (option, rules) = match edit {
        Edit::Replace { rules, .. } => ("-A", rules.as_slice()),
        Edit::Prepend { rule, .. } => ("-I", slice::from_ref(rule)),
        Edit::Append { rule, .. } => ("-A", slice::from_ref(rule)),
        Edit::Delete { rule, .. } => ("-D", slice::from_ref(rule)),
        Edit::DeleteChain { .. } => ("", &[][..]),
    };
    let lines = rules.iter();
    lines.map(move |rule| Content::Rule(option, edit.chain(), rule))
}

/// The subject of a line of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    pub table: Table,
    /// The chain of the line; `None` for `COMMIT` and the table's own line.
    pub chain: Option<String>,
    /// The line itself.
    pub text: String,
}

/// Finds the subject of line `number` (counted from 1, as iptables-restore does) of the batch of
/// these edits.
pub fn locate(edits: &[Edit], number: usize) -> Option<Location> {
    let line = batch(edits).nth(number.checked_sub(1)?)?;
    let chain = match line.content {
        Content::Chain(chain) | Content::Rule(_, chain, _) | Content::DeleteChain(chain) => {
            Some(chain.to_string())
        }
        Content::Table | Content::Commit => None,
    };
    Some(Location {
        table: line.table,
        chain,
        text: line.to_string(),
    })
}
