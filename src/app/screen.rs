// SPDX-License-Identifier: Apache-2.0
//! How commands print to a terminal: colours where they are wanted, as many columns as there are.

use std::fmt::Display;
use std::io::IsTerminal as _;

/// What a word means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colour {
    Good,
    Bad,
    Doubtful,
    Dim,
    Bold,
}

impl Colour {
    const fn code(self) -> &'static str {
        match self {
            Self::Good => "32",
            Self::Bad => "31",
            Self::Doubtful => "33",
            Self::Dim => "2",
            Self::Bold => "1",
        }
    }
}

/// Whether colours are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Paint(bool);

impl Paint {
    pub(super) const PLAIN: Self = Self(false);
    #[cfg(test)]
    pub(super) const COLOURED: Self = Self(true);

    /// Colours on a terminal, unless `NO_COLOR` is set (no-color.org) or it is a dumb one.
    pub(super) fn for_stdout() -> Self {
        let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self(std::io::stdout().is_terminal() && !is_set("NO_COLOR") && !is_dumb)
    }

    pub(super) fn with(self, colour: Colour, text: impl Display) -> String {
        if self.0 {
            format!("\x1b[{}m{text}\x1b[0m", colour.code())
        } else {
            text.to_string()
        }
    }
}

/// Columns and lines of the terminal at stdout; `None` if it is none.
pub(super) fn size() -> Option<(usize, usize)> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    let is_known = size.ws_col > 0 && size.ws_row > 0;
    is_known.then(|| (size.ws_col.into(), size.ws_row.into()))
}

/// A table whose columns are as wide as they have to be.
#[derive(Debug)]
pub(super) struct Table<const N: usize> {
    head: [&'static str; N],
    /// Columns of text stand on the left, numbers on the right.
    text_columns: usize,
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// The first `text_columns` columns are text, the others numbers.
    pub(super) const fn new(head: [&'static str; N], text_columns: usize) -> Self {
        Self {
            head,
            text_columns,
            rows: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, row: [String; N]) {
        self.rows.push(row);
    }

    /// The lines, the heading first. A column that nothing is in is left out, and as many columns
    /// from `least_wanted` as must be, until a line fits into `width`.
    pub(super) fn lines(&self, width: Option<usize>, least_wanted: &[usize]) -> Vec<String> {
        let head = self.head.map(str::to_owned);
        let rows = || std::iter::once(&head).chain(&self.rows);
        let cells = |column: usize| rows().filter_map(move |row| row.get(column));
        let is_empty = |column: usize| cells(column).skip(1).all(String::is_empty);
        let mut widths: Vec<(usize, usize)> = (0..N)
            .filter(|column| self.rows.is_empty() || !is_empty(*column))
            .map(|column| {
                let width = cells(column).map(|cell| cell.chars().count()).max();
                (column, width.unwrap_or_default())
            })
            .collect();
        for unwanted in least_wanted {
            let total: usize = widths.iter().map(|(_, width)| width + 2).sum();
            if width.is_none_or(|width| total <= width + 2) {
                break;
            }
            widths.retain(|(column, _)| column != unwanted);
        }
        let line = |row: &[String; N]| {
            let cells = widths.iter().filter_map(|(column, width)| {
                let cell = row.get(*column)?;
                Some(if *column < self.text_columns {
                    format!("{cell:width$}")
                } else {
                    format!("{cell:>width$}")
                })
            });
            let line = cells.collect::<Vec<_>>().join("  ");
            cut(line.trim_end(), width)
        };
        rows().map(line).collect()
    }
}

/// The beginning of a line that fits into so many columns.
pub(super) fn cut(line: &str, width: Option<usize>) -> String {
    let Some(width) = width.filter(|width| line.chars().count() > *width) else {
        return line.to_owned();
    };
    let mut beginning: String = line.chars().take(width.saturating_sub(1)).collect();
    beginning.push('…');
    beginning
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table<4> {
        let mut table = Table::new(["NAME", "SERVER", "NOTE", "CONNS"], 3);
        for (name, connections) in [("shop/web:http", "12"), ("a/b", "3")] {
            let cells = [name, "TCP 10.96.0.1:80", "", connections];
            table.add(cells.map(str::to_owned));
        }
        table
    }

    #[test]
    fn columns_are_aligned_and_empty_ones_left_out() {
        assert_eq!(
            table().lines(None, &[]),
            [
                "NAME           SERVER            CONNS",
                "shop/web:http  TCP 10.96.0.1:80     12",
                "a/b            TCP 10.96.0.1:80      3",
            ]
        );
    }

    #[test]
    fn a_narrow_terminal_gets_the_wanted_columns() {
        let narrow = table().lines(Some(24), &[1]);
        assert_eq!(narrow[1], "shop/web:http     12");
        let narrower = table().lines(Some(10), &[1]);
        assert_eq!(narrower[1], "shop/web:…");
        assert_eq!(cut("ünï", Some(3)), "ünï");
        assert_eq!(cut("ünïc", Some(3)), "ün…");
    }

    #[test]
    fn colours_are_only_where_they_are_wanted() {
        assert_eq!(Paint::PLAIN.with(Colour::Bad, "no"), "no");
        assert_eq!(Paint::COLOURED.with(Colour::Bad, "no"), "\x1b[31mno\x1b[0m");
    }
}
