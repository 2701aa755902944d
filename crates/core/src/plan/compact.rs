// SPDX-License-Identifier: Apache-2.0
//! PURE: a map in one allocation. Each Service port and each virtual server has one, nearly always
//! of few entries, and a B-tree node has room for eleven. An entry at the end is added at no cost;
//! anywhere else those behind it move.

use std::collections::BTreeMap;

/// See the module. Iterates in key order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompactMap<K, V>(Vec<(K, V)>);

impl<K: Ord, V> CompactMap<K, V> {
    /// Where a key is, or would be.
    fn find(&self, key: &K) -> Result<usize, usize> {
        match self.0.last() {
            Some((last, _)) if last < key => Err(self.0.len()),
            _ => self.0.binary_search_by(|(other, _)| other.cmp(key)),
        }
    }

    pub fn get(&self, key: &K) -> Option<&V> {
        self.0.get(self.find(key).ok()?).map(|(_, value)| value)
    }

    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let index = self.find(key).ok()?;
        self.0.get_mut(index).map(|(_, value)| value)
    }

    pub fn contains_key(&self, key: &K) -> bool {
        self.find(key).is_ok()
    }

    /// Returns the value that the key had.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        match self.find(&key) {
            Ok(index) => {
                let (_, present) = self.0.get_mut(index)?;
                Some(std::mem::replace(present, value))
            }
            Err(index) => {
                self.0.insert(index, (key, value));
                None
            }
        }
    }

    /// Returns the value that the key had.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let index = self.find(key).ok()?;
        Some(self.0.remove(index).1)
    }
}

impl<K, V> CompactMap<K, V> {
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&K, &V)> + Clone {
        self.0.iter().map(|(key, value)| (key, value))
    }

    pub fn keys(&self) -> impl ExactSizeIterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    pub fn values(&self) -> impl ExactSizeIterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    pub fn values_mut(&mut self) -> impl ExactSizeIterator<Item = &mut V> {
        self.0.iter_mut().map(|(_, value)| value)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }
}

impl<K, V> Default for CompactMap<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

/// A B-tree yields its entries in key order and without repetitions.
impl<K, V> From<BTreeMap<K, V>> for CompactMap<K, V> {
    fn from(map: BTreeMap<K, V>) -> Self {
        Self(map.into_iter().collect())
    }
}

/// Of several values of a key the last one stays.
impl<K: Ord, V> FromIterator<(K, V)> for CompactMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut entries: Vec<(K, V)> = entries.into_iter().collect();
        entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        entries.dedup_by(|later, earlier| {
            let is_same = later.0 == earlier.0;
            if is_same {
                std::mem::swap(later, earlier);
            }
            is_same
        });
        entries.shrink_to_fit();
        Self(entries)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_the_map_that_a_b_tree_is(
            first in proptest::collection::vec((0..20_u8, any::<u8>()), 0..20),
            then in proptest::collection::vec((0..20_u8, proptest::option::of(any::<u8>())), 0..40),
        ) {
            let mut compact: CompactMap<u8, u8> = first.iter().copied().collect();
            let mut tree: BTreeMap<u8, u8> = first.into_iter().collect();
            prop_assert_eq!(&CompactMap::from(tree.clone()), &compact);
            for (key, value) in then {
                let (before, wanted) = match value {
                    Some(value) => (compact.insert(key, value), tree.insert(key, value)),
                    None => (compact.remove(&key), tree.remove(&key)),
                };
                prop_assert_eq!(before, wanted);
                prop_assert_eq!(compact.get(&key), tree.get(&key));
                prop_assert!(compact.iter().eq(tree.iter()));
            }
        }
    }
}
