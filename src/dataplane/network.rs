// SPDX-License-Identifier: Apache-2.0
//! What the node's own network does to packets of Services, outside of our rules: bridges that
//! bypass iptables, links that drop by reverse path.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::links::{Address, LinkError, Links, Scope};
use super::nftables::publishes_ports;
use super::sysctl::Sysctls;
use kpr_core::model::IpFamily;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// The links that are up and have addresses with a network behind them, by name.
    pub links: BTreeMap<String, NetworkLink>,
    /// The families whose iptables rules packets between two ports of a bridge do not meet.
    pub bridged_past: BTreeSet<IpFamily>,
    /// The module `br_netfilter`, which would change that, is loaded.
    pub has_br_netfilter: bool,
    /// The CNI plugin portmap publishes ports by nftables, before our rules.
    pub publishes_ports: bool,
}

/// A link with a network behind it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkLink {
    /// `bridge`, `veth`, ...; `None` for physical links.
    pub kind: Option<String>,
    pub networks: BTreeSet<IpNet>,
    /// It drops packets whose source is not routed back to it (`rp_filter` is 1).
    pub is_strict: bool,
}

/// Reads it with a few small requests, for links with these addresses.
pub(super) fn observe(
    addresses: &[Address],
    links: &mut Links,
    sysctls: &Sysctls,
) -> Result<Network, LinkError> {
    let mut networks: BTreeMap<u32, BTreeSet<IpNet>> = BTreeMap::new();
    for address in addresses {
        if has_network(address)
            && let Ok(network) = IpNet::new(address.ip, address.prefix_len)
        {
            networks
                .entry(address.link)
                .or_default()
                .insert(network.trunc());
        }
    }
    let value = |key: &str| sysctls.read(key).ok()?.parse::<u8>().ok();
    let reverse_path = |link: &str| value(&format!("net/ipv4/conf/{link}/rp_filter"));
    let for_all = reverse_path("all").unwrap_or(0);
    let mut found = BTreeMap::new();
    for (index, networks) in networks {
        let Some(link) = links.at(index)?.filter(|link| link.is_up) else {
            continue;
        };
        let own = reverse_path(&link.name).unwrap_or(0);
        let network_link = NetworkLink {
            kind: link.kind,
            networks,
            // The larger one counts; 2 is loose.
            is_strict: own.max(for_all) == 1,
        };
        found.insert(link.name, network_link);
    }
    let calls = [
        (IpFamily::V4, value("net/bridge/bridge-nf-call-iptables")),
        (IpFamily::V6, value("net/bridge/bridge-nf-call-ip6tables")),
    ];
    Ok(Network {
        links: found,
        bridged_past: calls
            .into_iter()
            .filter(|(_, value)| value.unwrap_or(0) == 0)
            .map(|(family, _)| family)
            .collect(),
        has_br_netfilter: calls.iter().any(|(_, value)| value.is_some()),
        publishes_ports: publishes_ports(),
    })
}

fn has_network(address: &Address) -> bool {
    address.scope == Scope::Global && !address.is_host() && !address.ip.is_loopback()
}
