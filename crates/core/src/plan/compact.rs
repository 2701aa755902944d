// SPDX-License-Identifier: Apache-2.0
//! PURE: a map that is built once, in one allocation of exactly its size. Each Service port has
//! one, nearly always of one to three entries, and a B-tree node has room for eleven.

use std::collections::BTreeMap;

/// See the module. Iterates in key order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompactMap<K, V>(Box<[(K, V)]>);

impl<K: Ord, V> CompactMap<K, V> {
    pub fn get(&self, key: &K) -> Option<&V> {
        let index = self.0.binary_search_by(|(other, _)| other.cmp(key)).ok()?;
        self.0.get(index).map(|(_, value)| value)
    }

    pub fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }
}

impl<K, V> CompactMap<K, V> {
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&K, &V)> {
        self.0.iter().map(|(key, value)| (key, value))
    }

    pub fn keys(&self) -> impl ExactSizeIterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    pub fn values(&self) -> impl ExactSizeIterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<K, V> Default for CompactMap<K, V> {
    fn default() -> Self {
        Self(Box::default())
    }
}

/// A B-tree yields its entries in key order and without repetitions.
impl<K: Ord, V> From<BTreeMap<K, V>> for CompactMap<K, V> {
    fn from(map: BTreeMap<K, V>) -> Self {
        Self(map.into_iter().collect())
    }
}
