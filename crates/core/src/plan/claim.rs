// SPDX-License-Identifier: Apache-2.0
//! PURE: who gets what several Service ports want for themselves: an address and port, a node port.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::ServicePortName;
use crate::plan::by_port::Revision;

/// A claim of a Service port on one place. The smallest wins: the same one after any order of
/// changes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    by: Right,
    /// Nobody takes over what an older Service has.
    created: i64,
    name: ServicePortName,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Right {
    /// The cluster gave the address to the Service.
    ClusterIp,
    /// Whoever may write a Service can name any external address, also another Service's cluster
    /// IP.
    Other,
}

impl Claim {
    pub fn new(is_cluster_ip: bool, created: i64, name: ServicePortName) -> Self {
        let by = if is_cluster_ip {
            Right::ClusterIp
        } else {
            Right::Other
        };
        Self { by, created, name }
    }

    pub fn name(&self) -> &ServicePortName {
        &self.name
    }
}

/// Who claims what, the winner of each place first. Does not depend on the order of changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims<K> {
    /// Sorted. Nearly all have one, and a tree of one element is the size of eleven.
    by_place: BTreeMap<K, Vec<Claim>>,
    /// Those with more than one claim.
    contested: BTreeSet<K>,
    /// How often `contested`, or a claim on what is in it, changed.
    revision: Revision,
}

impl<K> Default for Claims<K> {
    fn default() -> Self {
        Self {
            by_place: BTreeMap::new(),
            contested: BTreeSet::new(),
            revision: Revision::default(),
        }
    }
}

impl<K: Ord + Copy> Claims<K> {
    pub fn claim(&mut self, place: K, claim: Claim) {
        let claims = self.by_place.entry(place).or_default();
        if let Err(index) = claims.binary_search(&claim) {
            claims.reserve_exact(1);
            claims.insert(index, claim);
        }
        if claims.len() > 1 {
            self.contested.insert(place);
            self.revision.bump();
        }
    }

    pub fn withdraw(&mut self, place: K, claim: &Claim) {
        let Some(claims) = self.by_place.get_mut(&place) else {
            return;
        };
        if claims.len() > 1 {
            self.revision.bump();
        }
        claims.retain(|other| other != claim);
        if claims.len() < 2 {
            self.contested.remove(&place);
        }
        if claims.is_empty() {
            self.by_place.remove(&place);
        }
    }

    /// Who has a place.
    pub fn winner(&self, place: &K) -> Option<&ServicePortName> {
        self.claimants(place).next()
    }

    /// Who claims a place, the winner first.
    pub fn claimants(&self, place: &K) -> impl Iterator<Item = &ServicePortName> {
        self.by_place
            .get(place)
            .into_iter()
            .flatten()
            .map(Claim::name)
    }

    pub fn contains(&self, place: &K) -> bool {
        self.by_place.contains_key(place)
    }

    pub fn places(&self) -> impl Iterator<Item = &K> {
        self.by_place.keys()
    }

    /// Those who claim a place within bounds, with repetitions.
    pub fn claimants_within(&self, first: K, last: K) -> impl Iterator<Item = &ServicePortName> {
        let within = self.by_place.range(first..=last);
        within.flat_map(|(_, claims)| claims).map(Claim::name)
    }

    /// Contested places, each with a loser and the winner. Costs what is contested, not what there
    /// is.
    pub fn lost(&self) -> impl Iterator<Item = (&K, &ServicePortName, &ServicePortName)> {
        self.contested.iter().flat_map(|place| {
            let winner = self.winner(place);
            let losers = self.claimants(place).skip(1);
            losers.filter_map(move |loser| Some((place, loser, winner?)))
        })
    }

    /// Changes whenever [`Self::lost`] may have.
    pub const fn revision(&self) -> u64 {
        self.revision.get()
    }
}
