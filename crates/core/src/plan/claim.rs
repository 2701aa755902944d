// SPDX-License-Identifier: Apache-2.0
//! PURE: which Service port gets an address and port, or a node port, that several of them claim.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use serde::Serialize;

use crate::model::{ServicePort, ServicePortName};
use crate::plan::by_port::Revision;

/// A claim of a Service port on one place. The smallest claim wins, so the winner does not depend
/// on the order of changes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    by: Right,
    /// Among claims by the same right, a younger Service never takes a place from an older one.
    created: i64,
    name: ServicePortName,
}

/// By what a Service port claims a place, the best first: what the cluster allocated, before what
/// any user may write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Right {
    /// The API server allocated the address to the Service.
    ClusterIp,
    /// A controller of load balancers wrote the address into the Service's status.
    LoadBalancer,
    /// The API server allocated the port to the Service, on every node.
    NodePort,
    /// Any Service may list any address in `spec.externalIPs`.
    #[default]
    ExternalIp,
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ClusterIp => "its cluster IP",
            Self::LoadBalancer => "the address of its load balancer",
            Self::NodePort => "its node port",
            Self::ExternalIp => "its external IP",
        })
    }
}

impl Right {
    /// The best right of a Service port to an address, at the Service's own port.
    pub fn of(service_port: &ServicePort, address: IpAddr) -> Self {
        if address == service_port.cluster_ip {
            Self::ClusterIp
        } else if service_port
            .load_balancer_vips
            .binary_search(&address)
            .is_ok()
        {
            Self::LoadBalancer
        } else {
            Self::ExternalIp
        }
    }
}

impl Claim {
    pub fn new(by: Right, created: i64, name: ServicePortName) -> Self {
        Self { by, created, name }
    }

    pub const fn by(&self) -> Right {
        self.by
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

    /// By what the winner of a place claims it.
    pub fn right(&self, place: &K) -> Option<Right> {
        self.by_place.get(place)?.first().map(Claim::by)
    }

    /// By what the winner goes before a loser of a place; `None` if by its age alone.
    pub fn reason(&self, place: &K, loser: &ServicePortName) -> Option<Right> {
        let claims = self.by_place.get(place)?;
        let (winner, loser) = (
            claims.first()?,
            claims.iter().find(|claim| claim.name == *loser)?,
        );
        (winner.by != loser.by).then_some(winner.by)
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

#[cfg(test)]
mod tests;
