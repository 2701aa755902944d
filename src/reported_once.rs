// SPDX-License-Identifier: Apache-2.0
//! Conditions that last are reported when they appear and when they end, not in between.

use std::collections::BTreeSet;

/// The conditions that were reported and are still present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportedOnce<T>(BTreeSet<T>);

/// What [`ReportedOnce::update`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference<T> {
    /// Present now, not before: to be reported.
    pub new: BTreeSet<T>,
    /// Present before, not any more.
    pub gone: BTreeSet<T>,
}

impl<T> Default for ReportedOnce<T> {
    fn default() -> Self {
        Self(BTreeSet::new())
    }
}

impl<T: Ord + Clone> ReportedOnce<T> {
    /// Takes all present conditions; returns those that appeared and those that ended since the
    /// last call.
    pub fn update(&mut self, present: BTreeSet<T>) -> Difference<T> {
        let difference = Difference {
            new: &present - &self.0,
            gone: &self.0 - &present,
        };
        self.0 = present;
        difference
    }

    /// The conditions of the last call.
    pub const fn present(&self) -> &BTreeSet<T> {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_is_new_once_and_gone_once() {
        let mut reported = ReportedOnce::default();
        let first = reported.update([1, 2].into());
        assert_eq!((first.new, first.gone), ([1, 2].into(), [].into()));
        let same = reported.update([1, 2].into());
        assert!(same.new.is_empty() && same.gone.is_empty());
        let next = reported.update([2, 3].into());
        assert_eq!((next.new, next.gone), ([3].into(), [1].into()));
        assert_eq!(*reported.present(), [2, 3].into());
        assert_eq!(reported.update([1].into()).new, [1].into());
    }
}
