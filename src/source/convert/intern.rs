// SPDX-License-Identifier: Apache-2.0
//! Interns strings that repeat in many objects (namespaces, zones, port names).

use std::collections::BTreeSet;
use std::sync::Arc;

/// Below this number of entries nothing is dropped.
const MIN_PRUNE: usize = 1024;

/// A pool of shared strings and lists of strings. What no object uses any more is dropped when the
/// pool has doubled.
#[derive(Debug)]
pub(super) struct Interner {
    texts: BTreeSet<Arc<str>>,
    lists: BTreeSet<Arc<[Arc<str>]>>,
    prune_at: usize,
}

impl Default for Interner {
    fn default() -> Self {
        Self {
            texts: BTreeSet::new(),
            lists: BTreeSet::new(),
            prune_at: MIN_PRUNE,
        }
    }
}

impl Interner {
    pub(super) fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return known.clone();
        }
        self.prune();
        let text: Arc<str> = text.into();
        self.texts.insert(text.clone());
        text
    }

    pub(super) fn list<'a>(&mut self, texts: impl Iterator<Item = &'a str>) -> Arc<[Arc<str>]> {
        let list: Vec<Arc<str>> = texts.map(|text| self.text(text)).collect();
        if let Some(known) = self.lists.get(list.as_slice()) {
            return known.clone();
        }
        let list: Arc<[Arc<str>]> = list.into();
        self.lists.insert(list.clone());
        list
    }

    fn prune(&mut self) {
        if self.texts.len() + self.lists.len() < self.prune_at {
            return;
        }
        self.lists.retain(|list| Arc::strong_count(list) > 1);
        self.texts.retain(|text| Arc::strong_count(text) > 1);
        self.prune_at = MIN_PRUNE.max(2 * (self.texts.len() + self.lists.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_and_lists_are_one_allocation() {
        let mut interner = Interner::default();
        assert!(Arc::ptr_eq(&interner.text("a"), &interner.text("a")));
        let first = interner.list(["a", "b"].into_iter());
        let second = interner.list(["a", "b"].into_iter());
        assert!(Arc::ptr_eq(&first, &second));
        assert_eq!(&*first, &[Arc::from("a"), Arc::from("b")]);
    }

    #[test]
    fn what_nobody_uses_is_dropped_in_the_end() {
        let mut interner = Interner::default();
        let kept = interner.text("kept");
        for number in 0..10 * MIN_PRUNE {
            interner.text(&number.to_string());
        }
        assert!(interner.texts.len() <= MIN_PRUNE + 1);
        assert!(Arc::ptr_eq(&kept, &interner.text("kept")));
    }
}
