// SPDX-License-Identifier: Apache-2.0
//! The kernel interface of the sync loop: observe, apply, count connections. Each mode has its own
//! implementation ([`super::modes`]); `kpr_core::plan::testing::fake` is the one for tests.
//! Implementations make no decisions.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::network::Network;
use super::surroundings::Listening;
use kpr_core::model::IpFamily;
use kpr_core::model::ipvs_options::Scheduler;
use kpr_core::plan::conntrack::flows::Cleanup;
use kpr_core::plan::ipvs::object::{RealServers, VirtualServerKey};
use kpr_core::plan::ipvs::planner::RealServerOf;
use kpr_core::plan::ipvs::set::SetName;
use kpr_core::plan::ipvs::state::{LinkState, SetState, VirtualServerState};
use kpr_core::plan::ruleset::Ruleset;
use kpr_core::plan::{Failure, Plan, Planner, Report, iptables, ipvs};
use netlink_pipeline::SocketStats;

/// Why the kernel could not be observed.
#[derive(Debug, thiserror::Error)]
#[error("cannot observe {what}")]
pub struct ObserveError {
    pub what: &'static str,
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl ObserveError {
    pub(super) fn new(
        what: &'static str,
        error: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        let source = Box::new(error);
        Self { what, source }
    }
}

/// Virtual servers with their real servers, read from a kernel listing as it is iterated.
pub struct ProcListing(pub Box<dyn Iterator<Item = Result<ListedServer, ObserveError>> + Send>);

/// See [`ProcListing`].
pub type ListedServer = (VirtualServerKey, RealServers);

impl Iterator for ProcListing {
    type Item = Result<ListedServer, ObserveError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next()
    }
}

impl fmt::Debug for ProcListing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProcListing")
    }
}

/// What talking to the kernel has cost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Netlink round trips, however many messages each carries.
    pub round_trips: u64,
    /// Netlink messages in each direction, and their bytes.
    pub messages_sent: u64,
    pub messages_received: u64,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    /// Number of programs started.
    pub processes: u64,
}

impl Cost {
    pub(super) fn add(&mut self, socket: SocketStats) {
        self.round_trips += socket.round_trips;
        self.messages_sent += socket.messages_sent;
        self.messages_received += socket.messages_received;
        self.bytes_sent += socket.bytes_sent;
        self.bytes_received += socket.bytes_received;
    }
}

/// How much of the kernel an audit reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditDepth {
    /// What few requests show: virtual servers without their real servers, sets, settings.
    Outline,
    /// Addresses and real servers, too.
    Everything,
}

/// What a node has besides Services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeSurroundings {
    /// The addresses on links other than ours, without loopback and link-local ones.
    pub addresses: BTreeSet<IpAddr>,
    /// The networks in which the node has neighbours, by the addresses of its links.
    pub networks: BTreeSet<IpNet>,
    /// The next hops of the default routes.
    pub gateways: BTreeSet<IpAddr>,
    /// The DNS servers that the node asks.
    pub resolvers: BTreeSet<IpAddr>,
    /// What the node's network does outside of our rules.
    pub network: Network,
    /// The index of the interface on which connections are exchanged with other nodes, if it is
    /// there and up and has an address.
    pub sync_link: Option<u32>,
}

/// The kernel of a node, independent of the mode.
pub trait Host: Send {
    /// Deletes the stale flows; returns how many there were.
    fn delete_flows(&mut self, cleanup: &Cleanup) -> Result<usize, Failure>;

    fn cost(&self) -> Cost;

    /// Reads what is around the node's Services with few requests: addresses are listed once,
    /// because those of Services are among them.
    fn surroundings(&mut self) -> Result<NodeSurroundings, ObserveError>;

    /// The same with the addresses as they were when they were last listed, as long as nothing has
    /// notified of a change.
    fn known_surroundings(&mut self) -> Result<NodeSurroundings, ObserveError> {
        self.surroundings()
    }

    /// Where processes of this node listen.
    fn listening(&mut self) -> Result<Listening, ObserveError> {
        Ok(Listening::new())
    }
}

/// A kernel as one mode uses it: observes the state that the mode's planner compares, and executes
/// its plans.
pub trait Kernel<P: Planner>: Host {
    /// Observes everything that a plan of this family may change.
    fn observe(&mut self, family: IpFamily) -> Result<P::State, ObserveError>;

    /// Applies the steps in order, following [`kpr_core::plan::prerequisites::apply`].
    fn apply(&mut self, plan: &Plan<P::Step>) -> Report;

    /// Its iptables rules, in modes that write any.
    fn rules(&mut self) -> Option<&mut dyn RuleKernel> {
        None
    }

    /// Its virtual servers, in modes that have any.
    fn servers(&mut self) -> Option<&mut dyn ServerKernel> {
        None
    }
}

/// A kernel with our iptables rules.
pub trait RuleKernel {
    fn observe_rules(&mut self, family: IpFamily) -> Result<Ruleset, ObserveError>;

    /// The sets that those rules match, if whoever changes rules may change them alike, unnoticed
    /// by anything else.
    fn observe_sets(
        &mut self,
        _family: IpFamily,
    ) -> Result<Option<BTreeMap<SetName, SetState>>, ObserveError> {
        Ok(None)
    }

    /// What an audit compares while nothing indicates that another program changed our rules;
    /// `None` if the audit has to read them, and in modes whose audits never do.
    fn observe_settings(
        &mut self,
        _family: IpFamily,
    ) -> Result<Option<iptables::Settings>, ObserveError> {
        Ok(None)
    }

    /// Whether another program may have changed our rules since they were last observed. Reads no
    /// rules and starts no process.
    fn rules_have_changed(&mut self, family: IpFamily) -> bool;
}

/// A kernel with the operations of IPVS mode.
pub trait IpvsKernel: Kernel<ipvs::Planner> + ServerKernel {}

impl<K: Kernel<ipvs::Planner> + ServerKernel> IpvsKernel for K {}

impl fmt::Debug for dyn IpvsKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IpvsKernel")
    }
}

/// A kernel with IPVS.
pub trait ServerKernel {
    /// An audit begins: what the kernel lists for all families at once is read once in it.
    fn begin_audit(&mut self) {}

    /// The first part of an audit: no rules, which would take a process, no real servers, which
    /// take a request for each virtual server ([`Self::observe_real_servers`]), and in an outline
    /// no addresses.
    fn observe_summary(
        &mut self,
        family: IpFamily,
        depth: AuditDepth,
    ) -> Result<ipvs::State, ObserveError>;

    /// Our link and its addresses.
    fn observe_link(&mut self, family: IpFamily) -> Result<LinkState, ObserveError>;

    /// Some virtual servers; `None` for those that do not exist.
    fn observe_virtual_servers(
        &mut self,
        keys: &BTreeSet<VirtualServerKey>,
    ) -> Result<BTreeMap<VirtualServerKey, Option<VirtualServerState>>, ObserveError>;

    /// Real servers at a fraction of the cost of [`Self::observe_real_servers`], read as the
    /// iterator advances. A virtual server may be missing or appear more than once. One that
    /// appears and matches belief needs no further check; of any other nothing is known.
    fn proc_listing(&mut self, family: IpFamily) -> Result<ProcListing, ObserveError>;

    /// The real servers of some virtual servers; empty for one that does not exist.
    fn observe_real_servers(
        &mut self,
        keys: &[VirtualServerKey],
    ) -> Result<BTreeMap<VirtualServerKey, RealServers>, ObserveError>;

    /// Those of the real servers that have no connections, or no longer exist.
    fn idle(
        &mut self,
        candidates: &BTreeSet<RealServerOf>,
    ) -> Result<BTreeSet<RealServerOf>, ObserveError>;

    /// Whether the kernel has an IPVS scheduler at present; loads nothing.
    fn is_scheduler_loaded(&mut self, scheduler: Scheduler) -> bool;

    /// Whether the kernel has an IPVS scheduler; this may load its module.
    fn has_scheduler(&mut self, scheduler: Scheduler) -> Result<bool, ObserveError>;
}
