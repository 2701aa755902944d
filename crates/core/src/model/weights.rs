// SPDX-License-Identifier: Apache-2.0
//! Weights by address range. Any endpoint may be looked up at any time, so that costs the number of
//! prefix lengths, not the number of ranges.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::IpFamily;
use super::ipvs_options::Weight;

/// Maximum number of ranges that a source reads; the rest is left out.
pub const MAX_RANGES: usize = 1_000;

/// See the module. The first range that contains an address applies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Weights {
    /// With its place in the list.
    by_range: BTreeMap<IpNet, (usize, Weight)>,
    /// Those that occur.
    prefixes: BTreeSet<(IpFamily, u8)>,
}

impl Weights {
    /// The weight of an address, if a range contains it.
    pub fn of(&self, address: IpAddr) -> Option<Weight> {
        let family = IpFamily::of(address);
        let prefixes = self.prefixes.range((family, 0)..=(family, u8::MAX));
        let found = prefixes.filter_map(|(_, length)| {
            let range = IpNet::new(address, *length).ok()?.trunc();
            self.by_range.get(&range)
        });
        let first = found.min_by_key(|(place, _)| *place)?;
        Some(first.1)
    }
}

impl FromIterator<(IpNet, Weight)> for Weights {
    fn from_iter<T: IntoIterator<Item = (IpNet, Weight)>>(ranges: T) -> Self {
        let mut weights = Self::default();
        for (place, (range, weight)) in ranges.into_iter().enumerate() {
            let range = range.trunc();
            weights.by_range.entry(range).or_insert((place, weight));
            let family = IpFamily::of(range.addr());
            weights.prefixes.insert((family, range.prefix_len()));
        }
        weights
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::testing::ip;

    proptest! {
        #[test]
        fn the_first_range_that_contains_an_address_applies(
            ranges in proptest::collection::vec((0..4_u8, 24..=32_u8, 0..9_u16), 0..12),
            address in 0..4_u8,
        ) {
            let ranges: Vec<(IpNet, Weight)> = ranges
                .into_iter()
                .map(|(last, length, weight)| {
                    let address = IpAddr::from([10, 0, 0, last]);
                    (IpNet::new(address, length).unwrap(), Weight::new(weight).unwrap())
                })
                .collect();
            let address = IpAddr::from([10, 0, 0, address]);
            let expected = ranges.iter().find(|(range, _)| range.contains(&address));
            let weights: Weights = ranges.iter().copied().collect();
            prop_assert_eq!(weights.of(address), expected.map(|(_, weight)| *weight));
            prop_assert_eq!(weights.of(ip("fd00::1")), None);
        }
    }
}
