// SPDX-License-Identifier: Apache-2.0
//! What the kernel counts of virtual and real servers, for people and for metrics. Read apart from
//! the sync loop, which needs none of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::net::SocketAddr;

use super::{LISTING, wire};
use crate::dataplane::sysctl::Sysctls;
use ipvs_netlink::{
    Client, Connections, Error, ListedConnection, ListedKey, Listing, ListingError, Protocol, Stats,
};
use kpr_core::model::{self, IpFamily};
use kpr_core::plan::ipvs::object::{RealServerKey, VirtualServerKey};
use kpr_core::plan::ipvs::sysctl::RUN_ESTIMATION;

/// The kernel's list of connections.
const CONNECTIONS: &str = "/proc/thread-self/net/ip_vs_conn";

/// A real server as the kernel lists it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    pub weight: u32,
    pub active: u64,
    pub inactive: u64,
}

/// The real servers of each virtual server, as the kernel lists them.
pub type Servers = BTreeMap<VirtualServerKey, BTreeMap<RealServerKey, Listed>>;

/// Lists all servers with their connections, which are as of now. A virtual server of a mark
/// without real servers is missing: the list does not tell its family.
pub fn servers() -> Result<Servers, ListingError> {
    let mut servers = Servers::new();
    for service in Listing::new(BufReader::new(File::open(LISTING)?))? {
        let service = service?;
        let first = service.destinations.first();
        let family = first.map(|first| IpFamily::of(first.key.address));
        let key = match service.key {
            ListedKey::Address {
                protocol,
                address,
                port,
            } => wire::protocol(protocol).map(|protocol| VirtualServerKey::Address {
                address,
                port,
                protocol,
            }),
            ListedKey::Mark(mark) => family.map(|family| VirtualServerKey::Mark { mark, family }),
            _ => None,
        };
        let Some(key) = key else {
            continue;
        };
        let listed = service.destinations.into_iter().map(|listed| {
            let key = RealServerKey {
                address: listed.key.address,
                port: listed.key.port,
            };
            let listed = Listed {
                weight: listed.weight,
                active: listed.active_connections.into(),
                inactive: listed.inactive_connections.into(),
            };
            (key, listed)
        });
        servers.entry(key).or_default().extend(listed);
    }
    Ok(servers)
}

/// Whether the kernel does not add up its counters. Not every kernel has the setting.
pub fn are_frozen() -> bool {
    let setting = Sysctls::new("/proc/sys").read(RUN_ESTIMATION);
    setting.is_ok_and(|value| value == "0")
}

/// The counters of the kernel, which adds them up every two seconds.
#[derive(Debug)]
pub struct Counters(Client);

impl Counters {
    pub fn open() -> Result<Self, Error> {
        Client::open().map(Self)
    }

    /// Those of all virtual servers, in one dump.
    pub fn of_servers(&mut self) -> Result<BTreeMap<VirtualServerKey, Stats>, Error> {
        let found = self.0.services()?.into_iter();
        let known = found.filter_map(|found| {
            let key = wire::virtual_server_key(&found.service.key)?;
            Some((key, found.stats))
        });
        Ok(known.collect())
    }

    /// The real servers of one virtual server with their connections, which are as of now.
    pub fn listed(
        &mut self,
        key: &VirtualServerKey,
    ) -> Result<BTreeMap<RealServerKey, Listed>, Error> {
        let found = self.0.destinations(&wire::service_key(key))?.into_iter();
        let listed = found.map(|found| {
            let (key, _) = wire::real_server(&found.destination);
            let listed = Listed {
                weight: found.destination.weight,
                active: found.active_connections.into(),
                inactive: found.inactive_connections.into(),
            };
            (key, listed)
        });
        Ok(listed.collect())
    }

    /// Those of the real servers of one virtual server.
    pub fn of_real_servers(
        &mut self,
        key: &VirtualServerKey,
    ) -> Result<BTreeMap<RealServerKey, Stats>, Error> {
        let found = self.0.destinations(&wire::service_key(key))?.into_iter();
        let stats = found.map(|found| (wire::real_server(&found.destination).0, found.stats));
        Ok(stats.collect())
    }
}

/// A connection that IPVS remembers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    pub client: SocketAddr,
    pub destination: SocketAddr,
    pub protocol: model::Protocol,
    pub endpoint: SocketAddr,
    pub state: String,
    pub seconds_left: u64,
}

/// Calls `each` for every connection. What persistence remembers of clients is none.
pub fn connections(each: &mut dyn FnMut(Connection)) -> Result<(), ListingError> {
    for connection in Connections::new(BufReader::new(File::open(CONNECTIONS)?))? {
        if let Some(connection) = shown(connection?) {
            each(connection);
        }
    }
    Ok(())
}

fn shown(listed: ListedConnection) -> Option<Connection> {
    let socket = |(address, port)| SocketAddr::new(address, port);
    let protocol = listed
        .protocol
        .and_then(|protocol: Protocol| wire::protocol(protocol))?;
    let is_template = listed.client.1 == 0;
    (!is_template).then(|| Connection {
        client: socket(listed.client),
        destination: socket(listed.service),
        protocol,
        endpoint: socket(listed.destination),
        state: listed.state,
        seconds_left: listed.seconds_left,
    })
}
