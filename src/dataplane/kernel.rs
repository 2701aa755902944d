// SPDX-License-Identifier: Apache-2.0
//! What the sync loop asks of a kernel: observe, apply, look at connections. [`super::linux`] is
//! the real one, `kpr_core::plan::testing::fake` the one of tests. Implementations decide nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use kpr_core::model::IpFamily;
use kpr_core::model::ipvs_options::Scheduler;
use kpr_core::plan::conntrack::flows::Cleanup;
use kpr_core::plan::ipvs::object::{RealServers, VirtualServerKey};
use kpr_core::plan::ipvs::planner::RealServerOf;
use kpr_core::plan::state::VirtualServerState;
use kpr_core::plan::{Failure, Plan, Report, State};
use netlink_pipeline::SocketStats;

/// Why the kernel could not be observed.
#[derive(Debug, thiserror::Error)]
#[error("cannot observe {what}")]
pub struct ObserveError {
    pub what: &'static str,
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// What to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObserveScope {
    /// All that a plan is about.
    Everything,
    /// What an audit begins with: no iptables rules, which would take a process, and no real
    /// servers, which take a request for each virtual server ([`Kernel::observe_real_servers`]).
    Summary,
    /// iptables rules only.
    Rules,
}

/// Virtual servers with their real servers, as the kernel shows them in passing.
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

/// What talking to the kernel cost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Times that it was asked over netlink and answered, however many messages that took.
    pub round_trips: u64,
    /// Netlink messages in each direction, and their bytes.
    pub messages_sent: u64,
    pub messages_received: u64,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    /// Programs that were started.
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

/// A kernel.
pub trait Kernel: Send {
    /// What it holds of a family.
    fn observe(&mut self, family: IpFamily, scope: ObserveScope) -> Result<State, ObserveError>;

    /// Some virtual servers; `None` for those that do not exist.
    fn observe_virtual_servers(
        &mut self,
        keys: &BTreeSet<VirtualServerKey>,
    ) -> Result<BTreeMap<VirtualServerKey, Option<VirtualServerState>>, ObserveError>;

    /// Real servers at a fraction of what [`Kernel::observe_real_servers`] costs, read as the iterator goes. A virtual
    /// server may be missing or come more than once. One that comes and is as believed need not be looked at; of any
    /// other nothing is known.
    fn proc_listing(&mut self, family: IpFamily) -> Result<ProcListing, ObserveError>;

    /// The real servers of some virtual servers; those of one that does not exist are none.
    fn observe_real_servers(
        &mut self,
        keys: &[VirtualServerKey],
    ) -> Result<BTreeMap<VirtualServerKey, RealServers>, ObserveError>;

    /// Makes the steps in order. What [`kpr_core::plan::Prerequisites`] forbids after a failure is not tried.
    fn apply(&mut self, plan: &Plan) -> Report;

    /// Those of the real servers that have no connections, or are gone.
    fn idle(
        &mut self,
        candidates: &BTreeSet<RealServerOf>,
    ) -> Result<BTreeSet<RealServerOf>, ObserveError>;

    /// Whether somebody else may have changed rules of ours since they were last observed. Reads no rules and starts no
    /// process.
    fn rules_have_changed(&mut self, family: IpFamily) -> bool;

    /// Deletes the flows that must end; says how many there were.
    fn delete_flows(&mut self, cleanup: &Cleanup) -> Result<usize, Failure>;

    fn cost(&self) -> Cost;

    /// Whether it has an IPVS scheduler; it may load it for that.
    fn has_scheduler(&mut self, scheduler: Scheduler) -> Result<bool, ObserveError>;

    /// The addresses of this node on links other than ours, without loopback and link-local ones.
    fn node_addresses(&mut self) -> Result<BTreeSet<IpAddr>, ObserveError>;

    /// The next hops of the default routes.
    fn gateways(&mut self) -> Result<BTreeSet<IpAddr>, ObserveError>;
}

impl fmt::Debug for dyn Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kernel")
    }
}

impl Kernel for Box<dyn Kernel> {
    fn observe(&mut self, family: IpFamily, scope: ObserveScope) -> Result<State, ObserveError> {
        (**self).observe(family, scope)
    }

    fn observe_virtual_servers(
        &mut self,
        keys: &BTreeSet<VirtualServerKey>,
    ) -> Result<BTreeMap<VirtualServerKey, Option<VirtualServerState>>, ObserveError> {
        (**self).observe_virtual_servers(keys)
    }

    fn proc_listing(&mut self, family: IpFamily) -> Result<ProcListing, ObserveError> {
        (**self).proc_listing(family)
    }

    fn observe_real_servers(
        &mut self,
        keys: &[VirtualServerKey],
    ) -> Result<BTreeMap<VirtualServerKey, RealServers>, ObserveError> {
        (**self).observe_real_servers(keys)
    }

    fn apply(&mut self, plan: &Plan) -> Report {
        (**self).apply(plan)
    }

    fn idle(
        &mut self,
        candidates: &BTreeSet<RealServerOf>,
    ) -> Result<BTreeSet<RealServerOf>, ObserveError> {
        (**self).idle(candidates)
    }

    fn rules_have_changed(&mut self, family: IpFamily) -> bool {
        (**self).rules_have_changed(family)
    }

    fn delete_flows(&mut self, cleanup: &Cleanup) -> Result<usize, Failure> {
        (**self).delete_flows(cleanup)
    }

    fn cost(&self) -> Cost {
        (**self).cost()
    }

    fn has_scheduler(&mut self, scheduler: Scheduler) -> Result<bool, ObserveError> {
        (**self).has_scheduler(scheduler)
    }

    fn node_addresses(&mut self) -> Result<BTreeSet<IpAddr>, ObserveError> {
        (**self).node_addresses()
    }

    fn gateways(&mut self) -> Result<BTreeSet<IpAddr>, ObserveError> {
        (**self).gateways()
    }
}
