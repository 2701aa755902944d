// SPDX-License-Identifier: Apache-2.0
//! Changes, and the requests that they are.

use std::fmt;

use netlink_pipeline::Request;
use netlink_pipeline::attribute::AttributeTooLong;

use crate::chain::Chain;
use crate::element::{self, Element};
use crate::message::{Command, Message, header};
use crate::rule::{Rule, RuleAttribute, rules_of};
use crate::set::Set;
use crate::table::{ChainKey, SetKey, Table, TableKey};
use crate::wire::Wire as _;

// include/uapi/linux/netlink.h
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;

// enum nft_set_elem_list_attributes
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;

/// A message about elements is closed when it is this long: the list is an attribute, which ends at
/// 64 KiB, and the longest element (two keys, a name, a comment) takes less than 1 KiB.
const FULL_MESSAGE: usize = 60_000;

/// Where a rule comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// Behind all rules of its chain.
    #[default]
    Last,
    /// Before all rules of its chain.
    First,
    /// Behind the rule with this handle.
    After(u64),
    /// Before the rule with this handle.
    Before(u64),
    /// In place of the rule with this handle.
    Instead(u64),
}

/// A change. [`Client::apply`](crate::Client::apply) makes many of them at once or none.
///
/// Adding a table, chain, set or element that is there already is success if the two are alike;
/// deleting one that is not there is refused. The common way to begin from nothing is to add the
/// table, delete it and add it again in one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// Adds a table.
    AddTable(Table),
    /// Deletes a table with all that is in it.
    DeleteTable(TableKey),
    /// Adds a chain. Adding a base chain again sets its policy.
    AddChain(Chain),
    /// Deletes a chain that is empty and that no rule or element jumps to.
    DeleteChain(ChainKey),
    /// Deletes all rules of a chain.
    FlushChain(ChainKey),
    /// Adds a rule.
    AddRule(Rule, Place),
    /// Deletes the rule with a handle.
    DeleteRule(ChainKey, u64),
    /// Adds a set or map.
    AddSet(Set),
    /// Deletes a set or map that no rule uses, with its elements.
    DeleteSet(SetKey),
    /// Deletes all elements of a set or map.
    FlushSet(SetKey),
    /// Adds elements. One that is there with other data is refused.
    AddElements(SetKey, Vec<Element>),
    /// Deletes elements by their keys.
    DeleteElements(SetKey, Vec<Element>),
}

/// A verb and its object.
impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddTable(table) => write!(f, "add table {}", table.key),
            Self::DeleteTable(table) => write!(f, "delete table {table}"),
            Self::AddChain(chain) => write!(f, "add chain {}", chain.key),
            Self::DeleteChain(chain) => write!(f, "delete chain {chain}"),
            Self::FlushChain(chain) => write!(f, "flush chain {chain}"),
            Self::AddRule(rule, _) => write!(f, "add rule to {}", rule.chain),
            Self::DeleteRule(chain, handle) => write!(f, "delete rule {chain} handle {handle}"),
            Self::AddSet(set) => write!(f, "add set {}", set.key),
            Self::DeleteSet(set) => write!(f, "delete set {set}"),
            Self::FlushSet(set) => write!(f, "flush set {set}"),
            Self::AddElements(set, elements) => {
                write!(f, "add {} elements to {set}", elements.len())
            }
            Self::DeleteElements(set, elements) => {
                write!(f, "delete {} elements of {set}", elements.len())
            }
        }
    }
}

/// A request of an operation.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) request: Request,
    /// Of a request about elements: the index of the first one.
    pub(crate) first_element: usize,
}

impl Operation {
    /// The messages that it is, in order: one, or several if there are many elements. `set_id` is
    /// the number of a set that it adds, which no other set of the transaction may have.
    pub fn to_requests(&self, set_id: u32) -> Result<Vec<Request>, AttributeTooLong> {
        let parts = self.parts(set_id)?;
        Ok(parts.into_iter().map(|part| part.request).collect())
    }

    pub(crate) fn parts(&self, set_id: u32) -> Result<Vec<Part>, AttributeTooLong> {
        let of_table = |key: &TableKey, command| {
            Message::new(command, key.family, key.to_attributes()).request(0)
        };
        let of_set = |key: &SetKey, command| {
            Message::new(command, key.table.family, key.to_attributes()).request(0)
        };
        let request = match self {
            Self::AddTable(table) => {
                let attributes = table.to_attributes();
                Message::new(Command::NewTable, table.key.family, attributes).request(0)?
            }
            Self::DeleteTable(key) => of_table(key, Command::DeleteTable)?,
            Self::AddChain(chain) => {
                let family = chain.key.table.family;
                Message::new(Command::NewChain, family, chain.to_attributes())
                    .request(NLM_F_CREATE)?
            }
            Self::DeleteChain(key) => {
                let family = key.table.family;
                Message::new(Command::DeleteChain, family, key.to_attributes()).request(0)?
            }
            Self::FlushChain(chain) => {
                Message::new(Command::DeleteRule, chain.table.family, rules_of(chain)).request(0)?
            }
            Self::AddRule(rule, place) => add_rule(rule, *place)?,
            Self::DeleteRule(chain, handle) => {
                let mut attributes = rules_of(chain);
                attributes.push(RuleAttribute::Handle(*handle));
                Message::new(Command::DeleteRule, chain.table.family, attributes).request(0)?
            }
            Self::AddSet(set) => {
                let family = set.key.table.family;
                Message::new(Command::NewSet, family, set.to_attributes(set_id))
                    .request(NLM_F_CREATE)?
            }
            Self::DeleteSet(key) => of_set(key, Command::DeleteSet)?,
            // What names no elements is about all of them.
            Self::FlushSet(set) => elements_message(set, Command::DeleteElements, |_| {})?,
            Self::AddElements(set, elements) => {
                return elements_parts(set, elements, Command::NewElements);
            }
            Self::DeleteElements(set, elements) => {
                return elements_parts(set, elements, Command::DeleteElements);
            }
        };
        Ok(vec![Part {
            request,
            first_element: 0,
        }])
    }

    /// The elements that it is about.
    pub(crate) fn elements(&self) -> &[Element] {
        match self {
            Self::AddElements(_, elements) | Self::DeleteElements(_, elements) => elements,
            _ => &[],
        }
    }
}

fn add_rule(rule: &Rule, place: Place) -> Result<Request, AttributeTooLong> {
    let mut attributes = rule.to_attributes();
    // Behind table and chain, where nft has it.
    let mut add = |attribute| attributes.insert(2, attribute);
    let flags = match place {
        Place::Last => NLM_F_CREATE | NLM_F_APPEND,
        Place::First => NLM_F_CREATE,
        Place::After(handle) => {
            add(RuleAttribute::Position(handle));
            NLM_F_CREATE | NLM_F_APPEND
        }
        Place::Before(handle) => {
            add(RuleAttribute::Position(handle));
            NLM_F_CREATE
        }
        Place::Instead(handle) => {
            add(RuleAttribute::Handle(handle));
            NLM_F_REPLACE
        }
    };
    Message::new(Command::NewRule, rule.chain.table.family, attributes).request(flags)
}

/// A message about elements, written without a detour: there may be a hundred thousand.
fn elements_message(
    set: &SetKey,
    command: Command,
    fill: impl FnOnce(&mut netlink_pipeline::attribute::Writer),
) -> Result<Request, AttributeTooLong> {
    let mut writer = header(set.table.family, 0);
    set.table.name.write(NFTA_SET_ELEM_LIST_TABLE, &mut writer);
    set.name.write(NFTA_SET_ELEM_LIST_SET, &mut writer);
    fill(&mut writer);
    Ok(Request {
        kind: Message::kind(command),
        flags: if command == Command::NewElements {
            NLM_F_CREATE
        } else {
            0
        },
        payload: writer.finish()?,
    })
}

fn elements_parts(
    set: &SetKey,
    elements: &[Element],
    command: Command,
) -> Result<Vec<Part>, AttributeTooLong> {
    let mut parts = Vec::new();
    let mut rest = elements.iter().enumerate().peekable();
    while let Some((first_element, _)) = rest.peek().copied() {
        let request = elements_message(set, command, |writer| {
            writer.nested(NFTA_SET_ELEM_LIST_ELEMENTS, |list| {
                while list.len() < FULL_MESSAGE {
                    let Some((_, element)) = rest.next() else {
                        break;
                    };
                    for attributes in element.to_attributes() {
                        element::write(&attributes, list);
                    }
                }
            });
        })?;
        parts.push(Part {
            request,
            first_element,
        });
    }
    Ok(parts)
}
