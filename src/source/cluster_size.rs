// SPDX-License-Identifier: Apache-2.0
//! An estimate of the number of nodes, from the nodes that endpoints name: nobody needs the right
//! to list Nodes for it. It decides how many nodes speak about what all of them see.

use std::fmt;
use std::hash::{DefaultHasher, Hasher as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const WORDS: u32 = 256;
const BITS: u32 = WORDS * u64::BITS;

/// See the module. Each name sets a bit of its hash, and the number of bits that are left says how
/// many names there were ("A linear-time probabilistic counting algorithm", Whang et al., 1990).
/// Clones share the count, which only grows.
#[derive(Clone)]
pub struct ClusterSize(Arc<[AtomicU64]>);

impl Default for ClusterSize {
    fn default() -> Self {
        Self((0..WORDS).map(|_| AtomicU64::new(0)).collect())
    }
}

impl fmt::Debug for ClusterSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "about {:.0} nodes", self.estimate())
    }
}

impl PartialEq for ClusterSize {
    /// The same count, whatever it is at present.
    fn eq(&self, _other: &Self) -> bool {
        true
    }
}

impl Eq for ClusterSize {}

impl ClusterSize {
    /// An object names this node.
    pub fn saw(&self, node: &str) {
        let bit = hash(&node) % u64::from(BITS);
        let word = usize::try_from(bit / u64::from(u64::BITS));
        let mask = 1 << (bit % u64::from(u64::BITS));
        if let Some(word) = word.ok().and_then(|word| self.0.get(word)) {
            // Written once for each node, read for each endpoint.
            if word.load(Ordering::Relaxed) & mask == 0 {
                word.fetch_or(mask, Ordering::Relaxed);
            }
        }
    }

    /// About as many nodes were named; at least one.
    pub fn estimate(&self) -> f64 {
        let zeros = self
            .0
            .iter()
            .map(|word| word.load(Ordering::Relaxed).count_zeros());
        let zeros = f64::from(zeros.sum::<u32>().max(1));
        let all = f64::from(BITS);
        (all * (all / zeros).ln()).max(1.0)
    }
}

/// A hash that is the same in all processes.
pub(crate) fn hash(value: &impl std::hash::Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_estimate_is_about_right_and_repetitions_do_not_count() {
        for nodes in [1, 3, 100, 5_000] {
            let size = ClusterSize::default();
            for _ in 0..3 {
                (0..nodes).for_each(|node| size.saw(&format!("worker-{node}")));
            }
            let (estimate, nodes) = (size.estimate(), f64::from(nodes));
            assert!(
                (estimate - nodes).abs() <= nodes * 0.05 + 0.5,
                "{nodes}: {estimate}"
            );
        }
        assert!(ClusterSize::default().estimate() <= 1.0);
    }
}
