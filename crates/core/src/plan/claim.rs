// SPDX-License-Identifier: Apache-2.0
//! PURE: which Service port gets an address and port, or a node port, that several of them claim.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::ServicePortName;
use crate::plan::by_port::Revision;

/// A claim of a Service port on one place. The smallest claim wins, so the winner does not depend
/// on the order of changes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    by: Right,
    /// A younger Service never takes a place from an older one.
    created: i64,
    name: ServicePortName,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Right {
    /// The cluster allocated the address to the Service.
    ClusterIp,
    /// Any Service may list any external address, even the cluster IP of another Service.
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

/// All claims, the winner of each place first. The result does not depend on the order of changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims<K> {
    /// Sorted. Nearly all places have one claim, and a B-tree of one element is the size of eleven.
    by_place: BTreeMap<K, Vec<Claim>>,
    /// Places with more than one claim.
    contested: BTreeSet<K>,
    /// Revision of `contested` and of the claims on its places.
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

    /// The winner of a place.
    pub fn winner(&self, place: &K) -> Option<&ServicePortName> {
        self.claimants(place).next()
    }

    /// The claimants of a place, the winner first.
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

    /// The claimants of the places within bounds, with repetitions.
    pub fn claimants_within(&self, first: K, last: K) -> impl Iterator<Item = &ServicePortName> {
        let within = self.by_place.range(first..=last);
        within.flat_map(|(_, claims)| claims).map(Claim::name)
    }

    /// Each loser of a contested place, with the winner. Costs what is contested, not the number of
    /// claims.
    pub fn lost(&self) -> impl Iterator<Item = (&K, &ServicePortName, &ServicePortName)> {
        self.contested.iter().flat_map(|place| {
            let winner = self.winner(place);
            let losers = self.claimants(place).skip(1);
            losers.filter_map(move |loser| Some((place, loser, winner?)))
        })
    }

    /// Changes whenever the result of [`Self::lost`] may have changed.
    pub const fn revision(&self) -> u64 {
        self.revision.get()
    }
}
