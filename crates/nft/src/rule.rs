// SPDX-License-Identifier: Apache-2.0
//! Rules.

use netlink_pipeline::attribute::{DecodeError, Unknown};
use netlink_pipeline::find_attribute;

use crate::expression::Expression;
use crate::family::Family;
use crate::name::Name;
use crate::table::{ChainKey, TableKey};
use crate::user_data;
use crate::wire::{Nft, missing};

netlink_pipeline::attributes! {
    /// An attribute of a rule.
    pub enum RuleAttribute {
        /// `NFTA_RULE_TABLE`
        Table(Name) = 1 NFTA_RULE_TABLE as Nft,
        /// `NFTA_RULE_CHAIN`
        Chain(Name) = 2 NFTA_RULE_CHAIN as Nft,
        /// `NFTA_RULE_HANDLE`
        Handle(u64) = 3 NFTA_RULE_HANDLE as Nft,
        /// `NFTA_RULE_EXPRESSIONS`
        Expressions(Vec<Expression>) = 4 NFTA_RULE_EXPRESSIONS as Nft,
        /// `NFTA_RULE_COMPAT`: of rules of iptables-nft; not decoded.
        Compat(Unknown) = 5 NFTA_RULE_COMPAT,
        /// `NFTA_RULE_POSITION`: the handle of the rule next to which it comes; in answers, of the
        /// one before it.
        Position(u64) = 6 NFTA_RULE_POSITION as Nft,
        /// `NFTA_RULE_USERDATA`: comment and others of `nft`.
        UserData(Vec<u8>) = 7 NFTA_RULE_USERDATA as Nft,
        /// `NFTA_RULE_ID`: its number in the transaction that creates it.
        Id(u32) = 9 NFTA_RULE_ID as Nft,
    }
}

/// A rule of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The chain.
    pub chain: ChainKey,
    /// What it does, step by step.
    pub expressions: Vec<Expression>,
    /// What `nft` shows behind it; the kernel keeps 127 bytes.
    pub comment: Option<String>,
}

impl Rule {
    /// A rule without a comment.
    pub fn new(chain: ChainKey, expressions: impl IntoIterator<Item = Expression>) -> Self {
        Self {
            chain,
            expressions: expressions.into_iter().collect(),
            comment: None,
        }
    }

    /// The same rule with a comment.
    #[must_use]
    pub fn commented(mut self, comment: impl Into<String>) -> Self {
        self.comment = Some(comment.into());
        self
    }

    /// Whether another rule does the same: all but what was counted, and what the kernel infers by
    /// itself, is equal.
    pub fn does_what(&self, other: &Self) -> bool {
        let steps = |rule: &Self| -> Vec<Expression> {
            rule.expressions.iter().map(Expression::canonical).collect()
        };
        self.chain == other.chain && self.comment == other.comment && steps(self) == steps(other)
    }

    /// What describes it on the wire.
    pub fn to_attributes(&self) -> Vec<RuleAttribute> {
        let mut attributes = rules_of(&self.chain);
        attributes.push(RuleAttribute::Expressions(self.expressions.clone()));
        attributes.extend(
            self.comment
                .as_deref()
                .map(|comment| RuleAttribute::UserData(user_data::comment(comment))),
        );
        attributes
    }
}

/// What stands for all rules of a chain.
pub(crate) fn rules_of(chain: &ChainKey) -> Vec<RuleAttribute> {
    vec![
        RuleAttribute::Table(chain.table.name.clone()),
        RuleAttribute::Chain(chain.name.clone()),
    ]
}

/// What the kernel says of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RuleStatus {
    /// What would create it.
    pub rule: Rule,
    /// The kernel's number of it.
    pub handle: u64,
}

impl RuleStatus {
    /// Reads the answer about a rule of a family.
    pub fn from_attributes(
        family: Family,
        attributes: &[RuleAttribute],
    ) -> Result<Self, DecodeError> {
        let table =
            find_attribute!(attributes, RuleAttribute::Table).ok_or(missing("NFTA_RULE_TABLE"))?;
        let chain =
            find_attribute!(attributes, RuleAttribute::Chain).ok_or(missing("NFTA_RULE_CHAIN"))?;
        let handle = find_attribute!(attributes, RuleAttribute::Handle)
            .ok_or(missing("NFTA_RULE_HANDLE"))?;
        let expressions = find_attribute!(attributes, RuleAttribute::Expressions);
        let comment = find_attribute!(attributes, RuleAttribute::UserData)
            .and_then(|bytes| user_data::comment_of(bytes));
        Ok(Self {
            rule: Rule {
                chain: TableKey::new(family, table.clone()).chain(chain.clone()),
                expressions: expressions.cloned().unwrap_or_default(),
                comment,
            },
            handle: *handle,
        })
    }
}
