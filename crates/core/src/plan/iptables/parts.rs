// SPDX-License-Identifier: Apache-2.0
//! PURE: the order of the changes of chains in a plan, and parts of it that are batches of their
//! own.
//!
//! What a rule jumps to is written before it, and deleted after it: chains of Service ports, then
//! the trees from the leaves to the root, then what leads to these. So after each part every packet
//! finds its way, through a mix of old and new chains: each of them is complete in itself.
//!
//! nft makes the parts worth it: its cost grows faster than the batch. legacy exchanges whole
//! tables, and a second batch would cost as much as the first one.

use std::cmp::Reverse;

use crate::model::ServicePortName;
use crate::plan::iptables::name;
use crate::plan::iptables::tree::{Prefix, TreeId};
use crate::plan::ruleset::{ChainName, Edit};

/// Where in a plan a change has its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Chains that chains of Service ports jump to.
    Base,
    /// Chains of a Service port.
    ServicePort,
    /// Nodes of trees, children first. Trees in the order in which one jumps to another.
    Tree(u8, Reverse<u8>),
    /// What jumps to trees, and single rules of shared chains.
    Entrance,
    /// Chains that nothing jumps to any more.
    Old,
}

impl Place {
    /// That of a node.
    pub fn of_node(tree: TreeId, prefix: Prefix) -> Self {
        let order = match tree {
            TreeId::Hairpin
            | TreeId::NodePorts
            | TreeId::RefusedNodePorts
            | TreeId::HealthChecks
            | TreeId::Firewall => 0,
            // Jump to node ports.
            TreeId::NodeAddresses | TreeId::RefusedNodeAddresses => 1,
            // Jump to node ports or node addresses.
            TreeId::Services | TreeId::RefusedExternal | TreeId::Refused => 2,
        };
        Self::Tree(order, Reverse(prefix.bits()))
    }
}

/// Sorts the chains of a Service port in the order in which they may be written one by one.
pub fn level(chain: &ChainName) -> (u8, Reverse<usize>) {
    let begins = |prefix: &str| chain.as_str().starts_with(prefix);
    let level = if begins(name::ENDPOINT) {
        0
    } else if begins(name::CLUSTER) || begins(name::LOCAL) {
        1
    } else if begins(name::EXTERNAL) {
        2
    } else {
        3
    };
    // The parts of a long list of endpoints have the longer names.
    (level, Reverse(chain.as_str().len()))
}

/// A change of one chain.
#[derive(Debug)]
pub struct ChainEdit {
    pub place: Place,
    /// The Service port that the chain belongs to.
    pub owner: Option<ServicePortName>,
    pub edit: Edit,
    /// Number of rules that it adds and takes away.
    pub rules: usize,
}

/// A batch.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Part {
    pub edits: Vec<Edit>,
    /// It jumps to chains of earlier parts, or deletes what they jumped to.
    pub needs_earlier: bool,
}

/// Cuts changes into parts of about this many rules.
pub fn parts(mut edits: Vec<ChainEdit>, limit: usize) -> Vec<Part> {
    // Stable: the rest of the order matters, too.
    edits.sort_by_key(|change| {
        let is_old = change.place == Place::Old;
        (is_old, change.edit.table(), change.place)
    });
    let is_old = |change: &ChainEdit| change.place == Place::Old;
    let old = edits.split_off(edits.partition_point(|change| !is_old(change)));
    let mut parts = Parts::new(limit);
    let mut edits = edits.into_iter().peekable();
    while let Some(first) = edits.next() {
        let owner = first.owner.clone();
        let mut together = vec![first];
        // The chains of one Service port change at once, unless they are too many even alone.
        while owner.is_some()
            && let Some(next) = edits.next_if(|next| next.owner == owner)
        {
            together.push(next);
        }
        parts.push(together);
    }
    parts.cut();
    let size: usize = old.iter().map(size).sum();
    if size > limit {
        // They may jump to each other: none of them, once all are empty.
        for ChainEdit { edit, rules, .. } in &old {
            let (table, chain) = (edit.table(), edit.chain().clone());
            parts.push(vec![ChainEdit {
                place: Place::Old,
                owner: None,
                edit: Edit::Replace {
                    table,
                    chain,
                    rules: Vec::new(),
                },
                rules: *rules,
            }]);
        }
        parts.cut();
    }
    for change in old {
        parts.push(vec![change]);
    }
    parts.cut();
    parts.done
}

/// A chain costs something even without rules.
const fn size(change: &ChainEdit) -> usize {
    change.rules.saturating_add(1)
}

struct Parts {
    limit: usize,
    done: Vec<Part>,
    next: Part,
    size: usize,
}

impl Parts {
    fn new(limit: usize) -> Self {
        Self {
            limit,
            done: Vec::new(),
            next: Part::default(),
            size: 0,
        }
    }

    /// Adds changes that belong together.
    fn push(&mut self, changes: Vec<ChainEdit>) {
        let sum = changes.iter().map(size).sum();
        if self.size.saturating_add(sum) > self.limit {
            self.cut();
        }
        for change in changes {
            let size = size(&change);
            if self.size.saturating_add(size) > self.limit {
                self.cut();
            }
            self.size = self.size.saturating_add(size);
            let is_first = matches!(change.place, Place::Base | Place::ServicePort);
            self.next.needs_earlier |= !is_first;
            self.next.edits.push(change.edit);
        }
    }

    fn cut(&mut self) {
        if !self.next.edits.is_empty() {
            self.done.push(std::mem::take(&mut self.next));
        }
        self.size = 0;
    }
}
