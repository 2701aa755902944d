// SPDX-License-Identifier: Apache-2.0
//! PURE: edits of one family's rules that the kernel applies as a whole or not at all.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Serialize, Serializer};

use crate::model::IpFamily;
use crate::plan::ruleset::{ChainId, Edit, Table};

/// Changes of one family's iptables rules that are applied together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleBatch {
    pub family: IpFamily,
    pub edits: Vec<Edit>,
    /// By how much each table grows if no other program writes to it. Empty if unknown.
    pub growth: BTreeMap<Table, Growth>,
    /// It jumps to chains that earlier batches of the plan write, or deletes what only they still
    /// jumped to: not to be tried where one of them failed.
    pub needs_earlier: bool,
}

/// The growth of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Growth {
    pub chains: i64,
    pub rules: i64,
}

impl RuleBatch {
    /// Without knowledge of the present rules.
    pub const fn new(family: IpFamily, edits: Vec<Edit>) -> Self {
        Self {
            family,
            edits,
            growth: BTreeMap::new(),
            needs_earlier: false,
        }
    }

    /// `before`: the number of rules of a chain, if it exists.
    pub fn growing(
        family: IpFamily,
        edits: Vec<Edit>,
        before: impl Fn(&ChainId) -> Option<usize>,
    ) -> Self {
        let count = |rules: usize| i64::try_from(rules).unwrap_or(i64::MAX);
        let mut growth: BTreeMap<Table, Growth> = BTreeMap::new();
        for edit in &edits {
            let before = before(&(edit.table(), edit.chain().clone())).map(count);
            let of_table = growth.entry(edit.table()).or_default();
            match edit {
                Edit::Replace { rules, .. } => {
                    of_table.chains += i64::from(before.is_none());
                    of_table.rules += count(rules.len()) - before.unwrap_or(0);
                }
                Edit::Prepend { .. } | Edit::Append { .. } => of_table.rules += 1,
                Edit::Delete { .. } => of_table.rules -= 1,
                Edit::DeleteChain { .. } => {
                    of_table.chains -= i64::from(before.is_some());
                    of_table.rules -= before.unwrap_or(0);
                }
            }
        }
        Self {
            family,
            edits,
            growth,
            needs_earlier: false,
        }
    }

    /// Truncates the edits to this many.
    pub fn shorten(&mut self, edits: usize) {
        self.edits.truncate(edits);
        self.edits.shrink_to_fit();
    }
}

impl Serialize for RuleBatch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut fields = serializer.serialize_struct("RuleEdits", 2)?;
        fields.serialize_field("family", self.family.as_str())?;
        fields.serialize_field(
            "edits",
            &self
                .edits
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>(),
        )?;
        fields.end()
    }
}

/// One line: the edit, or the number of edits.
impl fmt::Display for RuleBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family, edits, .. } = self;
        match edits.as_slice() {
            [edit] => write!(f, "edit {family} rules: {edit}"),
            edits => write!(f, "edit {family} rules: {} edits", edits.len()),
        }
    }
}
