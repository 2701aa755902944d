// SPDX-License-Identifier: Apache-2.0
//! What the loop tells metrics and health. It never waits for them.

use std::fmt;
use std::time::Duration;

use super::health_checks::HealthChecks;
use super::loopback_ports::Wanted;
use crate::dataplane::kernel::Cost;
use crate::events::Event;
use kpr_core::model::{Changes, IpFamily, NodeInfo};
use kpr_core::plan::{Drift, Plan, Report};

/// A finished round of one family.
#[derive(Debug)]
pub struct Round<'a> {
    pub family: IpFamily,
    pub duration: Duration,
    /// The whole state was compared, not only what changed.
    pub is_full: bool,
    pub succeeded: bool,
    /// The changes that were taken in.
    pub changes: &'a Changes,
    /// Service ports with a Local policy and no endpoint here: internal, external.
    pub no_local_endpoints: (usize, usize),
    /// Service ports whose rules the kernel refused.
    pub quarantined: usize,
    /// Tables `nat` and `filter`, where the mode counts rules: those that are ours, those that the round wrote.
    pub rules: Option<((usize, usize), (usize, usize))>,
}

/// Is told what happens. All calls but the first two come from the loop's thread and must not block.
pub trait Observer: Send + Sync {
    /// Which iptables was chosen at start, and why.
    fn iptables_backend(&self, _backend: &'static str, _reason: &'static str) {}

    /// Whether the kernel has something that was looked for.
    fn kernel_capability(&self, _name: &str, _available: bool) {}

    /// A round was asked for.
    fn queued(&self, _family: IpFamily) {}

    /// Changes wait for a round.
    fn pending(&self, _changes: &Changes) {}

    /// The tracker's changes were taken in by a round.
    fn changes_taken(&self, _changes: &Changes) {}

    /// Number of Services and of EndpointSlices, when a round has taken changes in.
    fn known(&self, _services: usize, _endpoint_slices: usize) {}

    fn round_started(&self, _family: IpFamily) {}

    fn applied(&self, _family: IpFamily, _plan: &Plan, _report: &Report) {}

    /// The kernel was not as believed.
    fn drift(&self, _family: IpFamily, _drift: &Drift) {}

    /// Stale flows were looked for, and so many deleted.
    fn flows_cleaned(&self, _family: IpFamily, _duration: Duration, _deleted: usize) {}

    fn round(&self, _round: &Round<'_>) {}

    /// Number of addresses that Services claim and that are somebody's.
    fn unbound_addresses(&self, _family: IpFamily, _addresses: usize) {}

    /// Number of real servers that are waited for.
    fn draining(&self, _servers: usize) {}

    /// What talking to the kernel cost since the start.
    fn cost(&self, _cost: &Cost) {}

    fn node(&self, _node: Option<&NodeInfo>) {}

    /// What load balancers may ask about in one family, after a round that succeeded.
    fn health_checks(&self, _checks: &HealthChecks) {}

    /// Which node ports one family wants on its loopback address, after a round that succeeded. Told when it changes.
    fn loopback_ports(&self, _wanted: &Wanted) {}

    /// Something that operators should hear of; who says it has logged it.
    fn event(&self, _event: Event) {}
}

/// An observer that looks away.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unobserved;

impl Observer for Unobserved {}

impl fmt::Debug for dyn Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observer")
    }
}
