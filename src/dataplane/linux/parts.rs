// SPDX-License-Identifier: Apache-2.0
//! What the kernels of both modes do alike: addresses of the node, costs.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::unobserved;
use crate::dataplane::conntrack;
use crate::dataplane::kernel::{Cost, ObserveError};
use crate::dataplane::links::{Address, Links, Scope};
use crate::dataplane::netlink::SocketStats;
use crate::model::IpFamily;
use crate::plan::conntrack::flows::Cleanup;
use crate::plan::step::LINK;

pub(super) fn cost_of(sockets: &[SocketStats]) -> Cost {
    let mut cost = Cost::default();
    for stats in sockets {
        cost.round_trips += stats.round_trips;
        cost.messages_sent += stats.messages_sent;
        cost.messages_received += stats.messages_received;
        cost.bytes_sent += stats.bytes_sent;
        cost.bytes_received += stats.bytes_received;
    }
    cost
}

pub(super) fn delete_flows(
    conntrack: Option<&mut conntrack::Client>,
    cleanup: &Cleanup,
) -> Result<usize, conntrack::Error> {
    conntrack.map_or(Ok(0), |conntrack| conntrack.delete_stale(cleanup))
}

pub(super) fn conntrack_stats(conntrack: Option<&conntrack::Client>) -> SocketStats {
    conntrack.map_or_else(SocketStats::default, conntrack::Client::stats)
}

/// The addresses of this node on links other than ours, without loopback and link-local ones.
pub fn node_addresses(links: &mut Links) -> Result<BTreeSet<IpAddr>, ObserveError> {
    let failed = |error| unobserved("addresses of the node", error);
    let addresses = links.addresses().map_err(failed)?;
    let ours = links.find(LINK).map_err(failed)?.map(|link| link.index);
    let counts = |address: &&Address| {
        Some(address.link) != ours
            && address.scope == Scope::Global
            && !address.is_tentative
            && !address.ip.is_loopback()
    };
    Ok(addresses
        .iter()
        .filter(counts)
        .map(|address| address.ip)
        .collect())
}

/// The next hops of the default routes.
pub(super) fn gateways(links: &mut Links) -> Result<BTreeSet<IpAddr>, ObserveError> {
    let mut gateways = BTreeSet::new();
    for family in IpFamily::ALL {
        let found = links.default_gateways(family);
        let found = found.map_err(|error| unobserved("default routes", error))?;
        gateways.extend(found.iter().map(|gateway| gateway.ip));
    }
    Ok(gateways)
}
