// SPDX-License-Identifier: Apache-2.0
//! The parts of a node's kernel that every mode uses: links, settings, iptables rules, flows. It
//! works where IPVS and ipset are missing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::client_sets::ClientSets;
use super::conntrack;
use super::exec::Exec;
use super::failure::{Failed as _, outcome};
use super::flows::delete_stale;
use super::iptables::Iptables;
use super::kernel::{Cost, Host, NodeSurroundings, ObserveError};
use super::links::{Address, LinkError, Links, Scope};
use super::network;
use super::nftables;
use super::rules::Rules;
use super::surroundings::{self, Listening};
use super::sysctl::Sysctls;
use kpr_core::model::IpFamily;
use kpr_core::plan::conntrack::flows::Cleanup;
use kpr_core::plan::iptables::Sets;
use kpr_core::plan::ipvs::object::SyncDaemon;
use kpr_core::plan::ipvs::step::LINK;
use kpr_core::plan::ruleset::RuleBatch;
use kpr_core::plan::{Failure, Outcome};

/// The kernel's index of `lo`, the first link of each network namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;

/// See the module.
#[derive(Debug)]
pub struct NodeKernel {
    pub(super) links: Links,
    pub(super) sysctls: Sysctls,
    /// `None` if the kernel gives no access to flows.
    conntrack: Option<conntrack::Client>,
    pub(super) rules: Rules,
    /// The sets of clients that rules of iptables mode match. `None` if the kernel has no ipsets.
    pub(super) client_sets: Option<ClientSets>,
    /// Where connections are exchanged with other nodes, if they are: the interface, and the family
    /// of the multicast group.
    sync: Option<(Arc<str>, IpFamily)>,
    /// The addresses on other links than ours, when they were last listed.
    elsewhere: Option<Vec<Address>>,
    /// Counts the programs that `iptables` starts.
    exec: Arc<dyn Exec>,
}

impl NodeKernel {
    pub fn new(
        links: Links,
        sysctls: Sysctls,
        iptables: BTreeMap<IpFamily, Iptables>,
        exec: Arc<dyn Exec>,
    ) -> Self {
        Self {
            links,
            sysctls,
            conntrack: None,
            rules: Rules::new(iptables),
            client_sets: None,
            sync: None,
            elsewhere: None,
            exec,
        }
    }

    /// The same, with access to flows.
    #[must_use]
    pub fn with_conntrack(self, conntrack: Option<conntrack::Client>) -> Self {
        Self { conntrack, ..self }
    }

    /// The same, with sets of clients.
    #[must_use]
    pub fn with_client_sets(self, client_sets: Option<ClientSets>) -> Self {
        Self {
            client_sets,
            ..self
        }
    }

    /// The same, looking for the interface of sync daemons.
    #[must_use]
    pub fn with_sync(self, daemon: Option<&SyncDaemon>) -> Self {
        let sync = daemon.map(|it| (it.interface.clone(), IpFamily::of(it.group)));
        Self { sync, ..self }
    }

    /// The index of the interface of sync daemons, once they can use it. One without an address
    /// would send from none, for as long as the daemon runs.
    fn sync_link(&mut self) -> Result<Option<u32>, LinkError> {
        let Some((interface, family)) = &self.sync else {
            return Ok(None);
        };
        let Some(link) = self.links.find(interface)?.filter(|link| link.is_up) else {
            return Ok(None);
        };
        let addresses = self.links.addresses_of(link.index, Some(*family))?;
        let is_usable = addresses.iter().any(|it| !it.is_tentative);
        Ok(is_usable.then_some(link.index))
    }

    pub(super) fn set_sysctl(&mut self, key: &str, value: &str) -> Outcome {
        outcome(&self.sysctls.ensure(key, value))
    }

    pub(super) fn edit_rules(&mut self, batch: &RuleBatch) -> Outcome {
        self.rules.apply(batch)
    }

    /// Whether the table of kube-proxy's nftables mode exists.
    pub(super) fn has_nftables_table(family: IpFamily) -> Result<bool, ObserveError> {
        nftables::has_table(family).map_err(|error| ObserveError::new("nftables tables", error))
    }

    /// The sets of clients that exist.
    pub(super) fn observe_client_sets(&mut self, family: IpFamily) -> Result<Sets, ObserveError> {
        let sets = self.client_sets.as_mut();
        let sets = sets.map_or_else(|| Ok(Sets::new()), |sets| sets.observe(family));
        sets.map_err(|error| ObserveError::new("ipsets of clients", error))
    }

    pub(super) fn delete_nftables_table(family: IpFamily) -> Outcome {
        outcome(&nftables::delete_table(family))
    }
}

impl Host for NodeKernel {
    fn delete_flows(&mut self, cleanup: &Cleanup) -> Result<usize, Failure> {
        let conntrack = self.conntrack.as_mut();
        conntrack.map_or(Ok(0), |conntrack| {
            delete_stale(conntrack, cleanup).map_err(|error| error.failure())
        })
    }

    fn cost(&self) -> Cost {
        let mut cost = Cost {
            processes: self.exec.started(),
            ..Cost::default()
        };
        cost.add(self.links.stats());
        if let Some(conntrack) = &self.conntrack {
            cost.add(conntrack.stats());
        }
        if let Some(sets) = &self.client_sets {
            cost.add(sets.stats());
        }
        cost
    }

    fn surroundings(&mut self) -> Result<NodeSurroundings, ObserveError> {
        self.elsewhere = None;
        self.known_surroundings()
    }

    fn known_surroundings(&mut self) -> Result<NodeSurroundings, ObserveError> {
        let addresses = match self.elsewhere.take() {
            Some(addresses) => addresses,
            None => addresses_elsewhere(&mut self.links)?,
        };
        let mut gateways = BTreeSet::new();
        for family in IpFamily::ALL {
            let found = self.links.default_gateways(family);
            let found = found.map_err(|error| ObserveError::new("default routes", error))?;
            gateways.extend(found);
        }
        let network = network::observe(&addresses, &mut self.links, &self.sysctls);
        let sync_link = self.sync_link();
        let around = NodeSurroundings {
            sync_link: sync_link.map_err(|error| ObserveError::new("sync interface", error))?,
            networks: networks(&addresses),
            gateways,
            resolvers: surroundings::resolvers(),
            network: network.map_err(|error| ObserveError::new("links of the node", error))?,
            addresses: addresses.iter().map(|address| address.ip).collect(),
        };
        self.elsewhere = Some(addresses);
        Ok(around)
    }

    fn listening(&mut self) -> Result<Listening, ObserveError> {
        surroundings::listening().map_err(|error| ObserveError::new("listening sockets", error))
    }
}

/// The addresses of this node on links other than ours, without loopback and link-local ones.
pub fn node_addresses(links: &mut Links) -> Result<BTreeSet<IpAddr>, ObserveError> {
    let addresses = addresses_elsewhere(links)?;
    Ok(addresses.iter().map(|address| address.ip).collect())
}

/// The networks of the links of those addresses.
fn networks(addresses: &[Address]) -> BTreeSet<IpNet> {
    // The whole network of an address of the loopback interface is this node.
    let has_neighbours = |address: &&Address| {
        address.link != LOOPBACK && !address.is_host() && address.prefix_len > 0
    };
    let network = |address: &Address| IpNet::new(address.ip, address.prefix_len).ok();
    addresses
        .iter()
        .filter(has_neighbours)
        .filter_map(network)
        .map(|network| network.trunc())
        .collect()
}

fn addresses_elsewhere(links: &mut Links) -> Result<Vec<Address>, ObserveError> {
    let failed = |error| ObserveError::new("addresses of the node", error);
    let mut addresses = links.addresses().map_err(failed)?;
    let ours = links.find(LINK).map_err(failed)?.map(|link| link.index);
    addresses.retain(|address| {
        Some(address.link) != ours
            && address.scope == Scope::Global
            && !address.is_tentative
            && !address.ip.is_loopback()
    });
    Ok(addresses)
}
