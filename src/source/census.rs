// SPDX-License-Identifier: Apache-2.0
//! Which addresses and pod ranges the Nodes of the cluster have, all of them together.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Update;
use kpr_core::model::address::{parse_cidr, parse_ip};
use kpr_core::model::node_info::NodeClaims;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Census {
    by_name: BTreeMap<Arc<str>, NodeClaims>,
    sent: NodeClaims,
}

impl Census {
    /// Returns whether that is news.
    pub(super) fn set(&mut self, name: &str, claims: NodeClaims) -> bool {
        let is_news = self.by_name.get(name) != Some(&claims);
        if is_news {
            self.by_name.insert(name.into(), claims);
        }
        is_news
    }

    /// Replaces all Nodes by those of a complete list.
    pub(super) fn replace(&mut self, listed: &mut Self) {
        self.by_name = std::mem::take(&mut listed.by_name);
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.by_name.remove(name);
    }

    pub(super) fn clear(&mut self) {
        self.by_name.clear();
    }

    /// What all Nodes have, if that is not what was sent last; at first nothing is.
    pub(super) fn news(&mut self) -> Option<Update> {
        let mut all = NodeClaims::default();
        for claims in self.by_name.values() {
            all.addresses.extend(&claims.addresses);
            all.pod_cidrs.extend(&claims.pod_cidrs);
        }
        if self.sent == all {
            return None;
        }
        self.sent = all.clone();
        Some(Update::Nodes(all))
    }
}

/// What a Node has, from the texts of its object. One that is no address (a host name) is no
/// mistake here: the Node's own proxy says what is wrong with it.
pub(super) fn node_claims<'a>(
    addresses: impl IntoIterator<Item = &'a str>,
    pod_cidrs: impl IntoIterator<Item = &'a str>,
) -> NodeClaims {
    let addresses = addresses.into_iter().filter_map(|text| parse_ip(text).ok());
    let pod_cidrs = pod_cidrs
        .into_iter()
        .filter_map(|text| parse_cidr(text).ok());
    NodeClaims {
        // Nobody gets these anyway, and a Node has them only until it knows better.
        addresses: addresses
            .filter(|ip| !ip.is_unspecified() && !ip.is_loopback())
            .collect(),
        pod_cidrs: pod_cidrs.filter(|range| range.prefix_len() > 0).collect(),
    }
}
