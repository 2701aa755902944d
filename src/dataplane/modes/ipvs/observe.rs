// SPDX-License-Identifier: Apache-2.0
//! Reads the state of the kernel, kind by kind, in the planner's types. Changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::{Dataplane, wire};
use crate::dataplane::kernel::ObserveError;
use crate::dataplane::links::Link;
use ipnet::IpNet;
use ipvs_netlink::{Error as IpvsError, ServiceKey};
use kpr_core::model::IpFamily;
use kpr_core::plan::ipvs::object::{RealServers, VirtualServerKey};
use kpr_core::plan::ipvs::state::{NodeState, State, VirtualServerState};
use kpr_core::plan::ipvs::step::LINK;
use kpr_core::plan::ipvs::sysctl;

/// Virtual servers, and their real servers if they were read.
pub(super) type Servers = BTreeMap<VirtualServerKey, VirtualServerState>;

impl Dataplane {
    /// Sets and what both families share.
    pub(super) fn observe_rest(&mut self, family: IpFamily) -> Result<State, ObserveError> {
        Ok(State {
            node: self.observe_node()?,
            sets: self.held.observe(family)?,
            other_sets: self.held.observe_other(family)?,
            has_own_table: self.held.has_table(family)?,
            ..State::default()
        })
    }

    /// With their real servers, which take a request for each virtual server.
    pub(super) fn observe_servers(&mut self, family: IpFamily) -> Result<Servers, IpvsError> {
        let mut states = self.list_servers()?.remove(&family).unwrap_or_default();
        for (key, state) in &mut states {
            state.real_servers = self.real_servers(&wire::service_key(key))?.into();
        }
        Ok(states)
    }

    /// Without their real servers. The kernel lists both families, so that the other one has been
    /// read, too, when an audit comes to it.
    pub(super) fn outline_servers(&mut self, family: IpFamily) -> Result<Servers, IpvsError> {
        if let Some(servers) = self.outlined.remove(&family) {
            return Ok(servers);
        }
        self.outlined = self.list_servers()?;
        Ok(self.outlined.remove(&family).unwrap_or_default())
    }

    fn list_servers(&mut self) -> Result<BTreeMap<IpFamily, Servers>, IpvsError> {
        let mut listed: BTreeMap<IpFamily, Servers> = IpFamily::ALL
            .into_iter()
            .map(|family| (family, Servers::new()))
            .collect();
        for status in self.ipvs.services()? {
            let Some(key) = wire::virtual_server_key(&status.service.key) else {
                continue;
            };
            let state = VirtualServerState {
                server: wire::virtual_server(&status.service),
                real_servers: Arc::default(),
            };
            listed.entry(key.family()).or_default().insert(key, state);
        }
        Ok(listed)
    }

    pub(super) fn real_servers(&mut self, key: &ServiceKey) -> Result<RealServers, IpvsError> {
        let destinations = self.ipvs.destinations(key)?;
        Ok(destinations
            .iter()
            .map(|found| wire::real_server(&found.destination))
            .collect())
    }

    pub(super) fn observe_node(&mut self) -> Result<NodeState, ObserveError> {
        let timeouts = self
            .ipvs
            .timeouts()
            .map_err(|error| ObserveError::new("IPVS timeouts", error))?;
        let link = self.find_link()?;
        let alias = link.as_ref().and_then(|link| link.alias.as_deref());
        let daemons = self.observe_daemons(alias)?;
        // An unreadable setting is missing from the state; writing it will report the error.
        let sysctls = sysctl::KEYS
            .into_iter()
            .filter_map(|key| Some((key, self.node.sysctls.read(key).ok()?)))
            .collect();
        Ok(NodeState {
            link_exists: link.is_some(),
            sysctls,
            timeouts: wire::timeouts(timeouts),
            daemons,
        })
    }

    /// Finds our link, if it exists.
    pub(super) fn find_link(&mut self) -> Result<Option<Link>, ObserveError> {
        let link = self.node.links.find(LINK);
        let link = link.map_err(|error| ObserveError::new("links", error))?;
        self.link = link.as_ref().map(|link| link.index);
        Ok(link)
    }

    /// Those of our addresses to which no packet is delivered: another link had them too, and took
    /// their route along when it went.
    pub(super) fn undelivered(
        &mut self,
        family: IpFamily,
        addresses: &BTreeSet<IpAddr>,
    ) -> Result<BTreeSet<IpAddr>, ObserveError> {
        if addresses.is_empty() {
            return Ok(BTreeSet::new());
        }
        let routes = self.node.links.local_routes(family);
        let routes = routes.map_err(|error| ObserveError::new("local routes", error))?;
        let (hosts, nets): (Vec<IpNet>, Vec<IpNet>) = routes
            .into_iter()
            .partition(|route| route.prefix_len() == route.max_prefix_len());
        let hosts: BTreeSet<IpAddr> = hosts.iter().map(IpNet::addr).collect();
        let is_lost = |address: &&IpAddr| !nets.iter().any(|net| net.contains(*address));
        Ok(addresses
            .difference(&hosts)
            .filter(is_lost)
            .copied()
            .collect())
    }

    pub(super) fn observe_addresses(
        &mut self,
        family: IpFamily,
    ) -> Result<BTreeSet<IpAddr>, ObserveError> {
        let Some(link) = self.link else {
            return Ok(BTreeSet::new());
        };
        let addresses = self
            .node
            .links
            .addresses_of(link, Some(family))
            .map_err(|error| ObserveError::new("addresses of the link", error))?;
        // Addresses other than host addresses are not ours.
        Ok(addresses
            .iter()
            .filter(|address| address.is_host())
            .map(|address| address.ip)
            .collect())
    }
}
