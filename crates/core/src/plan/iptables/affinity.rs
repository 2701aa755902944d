// SPDX-License-Identifier: Apache-2.0
//! PURE: the ipsets that remember which clients have which endpoint: one for each endpoint of a
//! Service port with session affinity. Its entries are addresses of clients, and expire.
//!
//! The kernel itself adds and expires entries, so a set is made, kept and destroyed as a whole.

use std::fmt;

use serde::Serialize;

use crate::model::IpFamily;
use crate::plan::iptables::name;
use crate::plan::ipvs::set::SetName;
use crate::plan::ruleset::ChainName;
use crate::plan::shown::ObjectState;

/// Clients that one endpoint can have (`maxelem`). Whoever can open connections from any number of
/// addresses fills sets, so there is an end to it.
pub const MAX_CLIENTS: u32 = 65_536;

/// Hash buckets of all endpoints of a Service port together, more or less: room for forty thousand
/// clients. The kernel does not let a set grow when a packet adds to it: it holds five clients in a
/// bucket with hardly any loss, and twelve at most.
const BUCKETS: usize = 8_192;

/// Least buckets of a set.
const MIN_BUCKETS: u32 = 128;

/// The length of the hash in names.
const HASH_LEN: usize = 16;

/// What rules can use to remember clients, on this node and in one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientMemory {
    /// ipsets, with `xt_set` for rules.
    pub has_sets: bool,
    /// The number of clients that `xt_recent` remembers of each endpoint, if there is one.
    pub recent: Option<u32>,
}

impl Default for ClientMemory {
    fn default() -> Self {
        Self {
            has_sets: true,
            recent: Some(Self::RECENT_CLIENTS),
        }
    }
}

impl ClientMemory {
    /// `ip_list_tot` of `xt_recent`, unless it was loaded with another.
    pub const RECENT_CLIENTS: u32 = 100;

    /// The best way. `refused`: the kernel refused sets.
    pub const fn way(self, refused: bool) -> Way {
        match self.recent {
            _ if self.has_sets && !refused => Way::Sets,
            Some(clients) => Way::Recent { clients },
            None => Way::None,
        }
    }
}

/// How the rules of a Service port remember its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Sets,
    /// `xt_recent` remembers so many of each endpoint.
    Recent {
        clients: u32,
    },
    None,
}

/// A wanted set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AffinitySet {
    pub set: SetName,
    /// The chain of the endpoint, which was the name of its list of `xt_recent`.
    #[serde(skip)]
    pub chain: ChainName,
    pub family: IpFamily,
    /// Seconds since its last new connection for which a client has the endpoint.
    pub timeout: u32,
    pub buckets: u32,
}

impl AffinitySet {
    /// The set of one of so many endpoints.
    pub fn new(chain: ChainName, family: IpFamily, timeout: u32, endpoints: usize) -> Self {
        let share = BUCKETS.div_ceil(endpoints.max(1)).next_power_of_two();
        let share = u32::try_from(share).unwrap_or(u32::MAX);
        Self {
            set: name_of(&chain, family),
            chain,
            family,
            timeout,
            buckets: share.max(MIN_BUCKETS),
        }
    }

    /// Whether a set of the kernel can be used as it is. One that is much too small was made for
    /// one of many more endpoints.
    pub fn is_met_by(&self, found: &SetState) -> bool {
        found.timeout == Some(self.timeout) && found.buckets >= self.buckets / 4
    }
}

impl fmt::Display for AffinitySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (set, timeout, buckets) = (&self.set, self.timeout, self.buckets);
        write!(f, "{set} timeout {timeout} hashsize {buckets}")
    }
}

/// What is known of a set of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetState {
    /// `None`: it is no set of addresses with time-outs.
    pub timeout: Option<u32>,
    pub buckets: u32,
    /// Rules refer to it. What is in one without is out of date.
    pub is_used: bool,
}

impl SetState {
    /// Of a set of which only the name is known.
    pub const fn unknown() -> Self {
        Self {
            timeout: None,
            buckets: 0,
            is_used: false,
        }
    }

    /// As people see it. The kernel rounds the number of buckets, and it differs by the Service's
    /// past.
    pub const fn shown(&self) -> ObjectState {
        ObjectState::Clients {
            timeout_seconds: self.timeout,
        }
    }
}

impl From<&AffinitySet> for SetState {
    fn from(set: &AffinitySet) -> Self {
        Self {
            timeout: Some(set.timeout),
            buckets: set.buckets,
            is_used: true,
        }
    }
}

/// The name of the set of an endpoint's chain.
pub fn name_of(chain: &ChainName, family: IpFamily) -> SetName {
    SetName::of(chain.as_str(), family)
}

/// The family and the chain of a set that has such a name.
pub fn chain_of(set: &str) -> Option<(IpFamily, ChainName)> {
    let (family, hash) = match set.strip_prefix("KUBE-6-SEP-") {
        Some(hash) => (IpFamily::V6, hash),
        None => (IpFamily::V4, set.strip_prefix(name::ENDPOINT)?),
    };
    let is_hash = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit();
    let is_ours = hash.len() == HASH_LEN && hash.chars().all(is_hash);
    is_ours.then(|| {
        (
            family,
            ChainName::composed(format!("{}{hash}", name::ENDPOINT)),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain() -> ChainName {
        ChainName::new("KUBE-SEP-ABCDEFGHIJ234567").unwrap()
    }

    #[test]
    fn names_lead_back_to_chains() {
        for (family, expected) in [
            (IpFamily::V4, "KUBE-SEP-ABCDEFGHIJ234567"),
            (IpFamily::V6, "KUBE-6-SEP-ABCDEFGHIJ234567"),
        ] {
            let set = name_of(&chain(), family);
            assert_eq!(set.as_str(), expected);
            assert_eq!(chain_of(expected), Some((family, chain())));
        }
        for other in [
            "KUBE-SEP-",
            "KUBE-SEP-abcdefghij234567",
            "KUBE-SEP-ABCDEFGHIJ234567-n",
            "KUBE-CLUSTER-IP",
            "KUBE-6-CLUSTER-IP",
        ] {
            assert_eq!(chain_of(other), None, "{other}");
        }
    }

    #[test]
    fn few_endpoints_have_large_sets() {
        let buckets = |endpoints| AffinitySet::new(chain(), IpFamily::V4, 10, endpoints).buckets;
        let expected = [(1, 8192), (2, 4096), (3, 4096), (10, 1024), (64, 128)];
        for (endpoints, expected) in expected {
            assert_eq!(buckets(endpoints), expected, "{endpoints}");
        }
        assert_eq!(buckets(5_000), MIN_BUCKETS);
        assert_eq!(buckets(0), 8192);
    }

    #[test]
    fn a_set_is_kept_unless_it_is_much_too_small() {
        let wanted = AffinitySet::new(chain(), IpFamily::V4, 10, 1);
        let found = |timeout, buckets| SetState {
            timeout,
            buckets,
            is_used: true,
        };
        assert!(wanted.is_met_by(&found(Some(10), 65_536)));
        assert!(wanted.is_met_by(&found(Some(10), 2_048)));
        assert!(!wanted.is_met_by(&found(Some(10), 1_024)));
        assert!(!wanted.is_met_by(&found(Some(11), 8_192)));
        assert!(!wanted.is_met_by(&found(None, 8_192)));
    }

    #[test]
    fn the_best_way_is_taken() {
        let both = ClientMemory::default();
        assert_eq!(both.way(false), Way::Sets);
        assert_eq!(both.way(true), Way::Recent { clients: 100 });
        let none = ClientMemory {
            has_sets: false,
            recent: None,
        };
        assert_eq!(none.way(false), Way::None);
    }
}
