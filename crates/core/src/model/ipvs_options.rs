// SPDX-License-Identifier: Apache-2.0
//! The settings of a Service for IPVS mode, from its annotations, as typed values.

use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;

use super::{Endpoint, IpFamily, Weights};

/// The settings of one Service. Few Services have any, so a Service only holds a pointer to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IpvsOptions {
    /// Overrides the configured scheduler.
    pub scheduler: Option<Scheduler>,
    /// Whether `sh` and `mh` hash the client's port too; `None`: the scheduler's default.
    pub hashes_port: Option<bool>,
    /// Weights by address; the first range that contains an endpoint's address applies.
    pub weights: Weights,
    /// The weights of other endpoints by where they are.
    pub place_weights: Option<PlaceWeights>,
    /// The weight of all other endpoints.
    pub weight: Option<Weight>,
    /// How long a removed endpoint may keep its connections.
    pub drain_limit: Option<Duration>,
    /// Clients in one network of this prefix length share an endpoint under session affinity.
    pub persistence_ipv4: Option<u8>,
    pub persistence_ipv6: Option<u8>,
    pub forwarding: ForwardingMethod,
    /// How many connections each endpoint takes.
    pub thresholds: Thresholds,
    /// The time in which a new endpoint gets its whole weight. Never zero.
    pub slow_start: Option<Duration>,
    /// Each datagram is scheduled by itself.
    pub one_packet: bool,
    /// Its traffic has metrics of its own: by the operator's choice, not by an annotation.
    pub is_counted: bool,
}

impl IpvsOptions {
    /// The weight of an endpoint. `zone` is that of our node.
    pub fn weight_of(&self, endpoint: &Endpoint, zone: Option<&str>) -> Option<Weight> {
        let by_place = || self.place_weights.map(|weights| weights.of(endpoint, zone));
        let own = endpoint.weight;
        own.or_else(|| self.weights.of(endpoint.address))
            .or_else(by_place)
            .or(self.weight)
    }

    pub const fn persistence_prefix(&self, family: IpFamily) -> Option<u8> {
        match family {
            IpFamily::V4 => self.persistence_ipv4,
            IpFamily::V6 => self.persistence_ipv6,
        }
    }
}

/// A share of the connections, 0 to [`Weight::MAX`]. With 0 an endpoint gets no new connections.
///
/// Stored plus one, so that `Option<Weight>` takes no more memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Weight(NonZeroU16);

impl Weight {
    pub const MAX: u16 = u16::MAX - 1;

    pub const fn new(weight: u16) -> Option<Self> {
        match weight.checked_add(1) {
            Some(higher) => match NonZeroU16::new(higher) {
                Some(higher) => Some(Self(higher)),
                None => None,
            },
            None => None,
        }
    }

    pub const fn get(self) -> u16 {
        self.0.get() - 1
    }
}

impl fmt::Debug for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Weight({})", self.get())
    }
}

/// Weights of endpoints by where they are, as seen from our node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlaceWeights {
    pub same_node: Weight,
    pub same_zone: Weight,
    pub other: Weight,
}

impl PlaceWeights {
    fn of(self, endpoint: &Endpoint, zone: Option<&str>) -> Weight {
        if endpoint.local {
            self.same_node
        } else if zone.is_some() && endpoint.zones.zone.as_deref() == zone {
            self.same_zone
        } else {
            self.other
        }
    }
}

/// The connection limits of a real server. The kernel counts all connections that it tracks, also
/// those that have ended a short time ago.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Thresholds {
    /// At this number it gets no new connections; 0: there is no limit.
    pub upper: u32,
    /// Below this number it gets new ones again; 0: below three quarters of the upper one.
    pub lower: u32,
}

impl Thresholds {
    /// The kernel multiplies them by up to 4, in 32 bits.
    pub const MAX: u32 = 1_000_000_000;

    pub const fn is_unlimited(&self) -> bool {
        self.upper == 0 && self.lower == 0
    }
}

/// How packets from outside get from a VIP to an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum ForwardingMethod {
    /// Network address translation: replies come back through the node.
    #[default]
    Masquerade,
    /// The packet is sent unchanged to the endpoint's link-layer address.
    DirectRouting,
    /// The packet is sent through a tunnel to the endpoint.
    Tunnel(Tunnel),
}

/// An encapsulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tunnel {
    IpIp,
    Gre,
    /// In UDP to this port.
    Gue(NonZeroU16),
}

/// The value of the annotation.
impl fmt::Display for ForwardingMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Masquerade => "masquerade",
            Self::DirectRouting => "direct-routing",
            Self::Tunnel(Tunnel::IpIp) => "ipip",
            Self::Tunnel(Tunnel::Gre) => "gre",
            Self::Tunnel(Tunnel::Gue(_)) => "gue",
        })
    }
}

/// The schedulers of the kernel (`net/netfilter/ipvs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scheduler {
    Rr,
    Wrr,
    Lc,
    Wlc,
    Lblc,
    Lblcr,
    Dh,
    Sh,
    Sed,
    Nq,
    Fo,
    Ovf,
    Mh,
    Twos,
}

impl Scheduler {
    pub const ALL: [Self; 14] = [
        Self::Rr,
        Self::Wrr,
        Self::Lc,
        Self::Wlc,
        Self::Lblc,
        Self::Lblcr,
        Self::Dh,
        Self::Sh,
        Self::Sed,
        Self::Nq,
        Self::Fo,
        Self::Ovf,
        Self::Mh,
        Self::Twos,
    ];

    /// Whether the kernel has a table for each of its virtual servers, of more than a few KiB.
    pub const fn has_table(self) -> bool {
        matches!(self, Self::Mh | Self::Lblc | Self::Lblcr)
    }

    /// The kernel's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rr => "rr",
            Self::Wrr => "wrr",
            Self::Lc => "lc",
            Self::Wlc => "wlc",
            Self::Lblc => "lblc",
            Self::Lblcr => "lblcr",
            Self::Dh => "dh",
            Self::Sh => "sh",
            Self::Sed => "sed",
            Self::Nq => "nq",
            Self::Fo => "fo",
            Self::Ovf => "ovf",
            Self::Mh => "mh",
            Self::Twos => "twos",
        }
    }
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Text that is not the name of a scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown IPVS scheduler")]
pub struct UnknownScheduler;

impl FromStr for Scheduler {
    type Err = UnknownScheduler;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let mut all = Self::ALL.into_iter();
        all.find(|scheduler| scheduler.as_str() == name)
            .ok_or(UnknownScheduler)
    }
}

#[cfg(test)]
mod tests {
    use super::super::slices::merge;
    use super::super::{SliceEndpoint, testing};
    use super::*;

    #[test]
    fn weights_keep_their_value() {
        for weight in [0, 1, 7, Weight::MAX] {
            assert_eq!(Weight::new(weight).map(Weight::get), Some(weight));
        }
        assert_eq!(Weight::new(u16::MAX), None);
    }

    #[test]
    fn no_weight_costs_no_memory() {
        assert_eq!(size_of::<Option<Weight>>(), 2);
        // The size of an endpoint without weights: address, locality, conditions, hints.
        assert_eq!(size_of::<SliceEndpoint>(), 32);
    }

    #[test]
    fn the_first_range_that_contains_an_endpoint_applies() {
        let weight = |n| Weight::new(n).unwrap();
        let options = IpvsOptions {
            weights: Weights::from_iter([
                ("10.0.0.7/32".parse().unwrap(), weight(0)),
                ("10.0.0.0/24".parse().unwrap(), weight(3)),
            ]),
            weight: Some(weight(2)),
            ..IpvsOptions::default()
        };
        let of = |address| {
            let slice = testing::slice("ns/web", "a", vec![testing::endpoint(address)]).port(80);
            let merged = merge(std::iter::once(&slice), IpFamily::V4);
            let endpoint = merged.into_values().flatten().next().unwrap();
            options.weight_of(&endpoint, None).map(Weight::get)
        };
        assert_eq!(of("10.0.0.7"), Some(0));
        assert_eq!(of("10.0.0.8"), Some(3));
        assert_eq!(of("10.0.1.8"), Some(2));
    }

    #[test]
    fn schedulers_have_the_names_of_the_kernel() {
        for scheduler in Scheduler::ALL {
            assert_eq!(scheduler.as_str().parse(), Ok(scheduler));
        }
        assert_eq!("".parse::<Scheduler>(), Err(UnknownScheduler));
    }
}
