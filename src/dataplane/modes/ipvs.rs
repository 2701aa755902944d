// SPDX-License-Identifier: Apache-2.0
//! The kernel as IPVS mode uses it: turns plans into messages, and answers into outcomes.
//!
//! Runs of steps of one kind are sent together: all virtual and real servers of a plan in one
//! pipelined batch, all entries of an ipset in few messages, those of all sets of nftables in one
//! transaction, all addresses in one batch.

mod daemons;
mod held;
mod observe;
mod schedulers;
mod sets;
pub mod statistics;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::BufReader;
use std::net::IpAddr;

use crate::dataplane::failure::{failed, outcome};
use crate::dataplane::kernel::{
    AuditDepth, Cost, Host, Kernel, NodeSurroundings, ObserveError, ProcListing, RuleKernel,
    ServerKernel,
};
use crate::dataplane::node::NodeKernel;
use crate::dataplane::surroundings::Listening;
pub use held::Held;
use ipvs_netlink::{Client as IpvsClient, Error as IpvsError, Listing, Operation};
use kpr_core::model::IpFamily;
use kpr_core::model::ipvs_options::Scheduler;
use kpr_core::plan::conntrack::flows::Cleanup;
use kpr_core::plan::ipvs::object::{RealServers, VirtualServerKey};
use kpr_core::plan::ipvs::planner::RealServerOf;
use kpr_core::plan::ipvs::set::SetName;
use kpr_core::plan::ipvs::state::{LinkState, SetState, VirtualServerState};
use kpr_core::plan::ipvs::step::LINK;
use kpr_core::plan::ipvs::{Plan, Planner, State, Step};
use kpr_core::plan::ruleset::{Edit, RuleBatch, Ruleset, Table};
use kpr_core::plan::{Failure, FailureKind, Outcome, Report, prerequisites};
use netlink_pipeline::{KernelError, KernelErrorKind};
use observe::Servers;

/// The kernel's listing of IPVS, by thread: the thread may be in another network namespace than the
/// process.
const LISTING: &str = "/proc/thread-self/net/ip_vs";

/// See the module.
#[derive(Debug)]
pub struct Dataplane {
    ipvs: IpvsClient,
    held: Held,
    /// The index of our link, if it exists.
    link: Option<u32>,
    /// The families that were observed already.
    is_known: BTreeSet<IpFamily>,
    /// What the present audit has listed of families that it has not come to.
    outlined: BTreeMap<IpFamily, Servers>,
    node: NodeKernel,
}

impl Dataplane {
    pub fn new(ipvs: IpvsClient, held: Held, node: NodeKernel) -> Self {
        Self {
            ipvs,
            held,
            link: None,
            is_known: BTreeSet::new(),
            outlined: BTreeMap::new(),
            node,
        }
    }

    fn apply_servers(&mut self, steps: &[&Step]) -> Vec<Outcome> {
        let mut operations: Vec<Operation> = Vec::with_capacity(steps.len());
        let mut outcomes = vec![Outcome::NotTried; steps.len()];
        let mut sent = Vec::with_capacity(steps.len());
        for (index, step) in steps.iter().enumerate() {
            match wire::operation(step) {
                Some(Ok(operation)) => {
                    operations.push(operation);
                    sent.push(index);
                }
                Some(Err(error)) => set(&mut outcomes, index, failed(&error)),
                None => {}
            }
        }
        let results = match self.ipvs.apply(&operations) {
            Ok(results) => results,
            Err(error) => {
                let outcome = failed(&error);
                for index in &sent {
                    set(&mut outcomes, *index, outcome.clone());
                }
                return outcomes;
            }
        };
        for ((index, operation), result) in sent.iter().zip(&operations).zip(results) {
            set(&mut outcomes, *index, server_outcome(operation, result));
        }
        outcomes
    }

    /// Rules of our table are one transaction, the others one `iptables-restore`.
    fn edit_rules(&mut self, batch: &RuleBatch) -> Outcome {
        let is_own = |edit: &&Edit| edit.table() == Table::Own;
        let own: Vec<Edit> = batch.edits.iter().filter(is_own).cloned().collect();
        if own.is_empty() {
            return self.node.edit_rules(batch);
        }
        match self.held.table() {
            Some(table) => outcome(&table.edit(batch.family, &own)),
            None => Outcome::NotTried,
        }
    }

    fn apply_addresses(&mut self, steps: &[&Step]) -> Vec<Outcome> {
        let is_removal = matches!(steps.first(), Some(Step::DeleteAddress { .. }));
        let addresses: Vec<IpAddr> = steps
            .iter()
            .filter_map(|step| match step {
                Step::AddAddress { address } | Step::DeleteAddress { address } => Some(*address),
                _ => None,
            })
            .collect();
        let Some(link) = self.link else {
            let failure = Failure {
                kind: FailureKind::NotFound,
                message: format!("there is no link {LINK}"),
            };
            return vec![Outcome::Failed(failure); steps.len()];
        };
        let result = if is_removal {
            self.node.links.delete_addresses(link, &addresses)
        } else {
            self.node.links.bind_addresses(link, &addresses)
        };
        let failures: BTreeMap<IpAddr, KernelError> = match result {
            Ok(failures) => failures
                .into_iter()
                .map(|f| (f.address, f.refusal))
                .collect(),
            Err(error) => return vec![failed(&error); steps.len()],
        };
        let outcome = |address: &IpAddr| match failures.get(address) {
            Some(error) => refused_address(*address, error),
            None => Outcome::Done,
        };
        addresses.iter().map(outcome).collect()
    }

    /// Applies steps that [`goes_with`] groups.
    fn apply_run(&mut self, steps: &[&Step]) -> Vec<Outcome> {
        match steps {
            [] => Vec::new(),
            [Step::AddAddress { .. } | Step::DeleteAddress { .. }, ..] => {
                self.apply_addresses(steps)
            }
            [first, ..] if is_about_servers(first) => self.apply_servers(steps),
            [first, ..] if is_about_sets(first) => self.held.apply(steps),
            _ => steps.iter().map(|step| self.apply_one(step)).collect(),
        }
    }

    /// Applies a step that is sent by itself.
    fn apply_one(&mut self, step: &Step) -> Outcome {
        match step {
            Step::SetTimeouts(timeouts) => {
                outcome(&self.ipvs.set_timeouts(wire::wire_timeouts(*timeouts)))
            }
            Step::CreateLink => {
                let result = self
                    .node
                    .links
                    .ensure_dummy(LINK)
                    .map(|link| self.link = Some(link.index));
                outcome(&result)
            }
            Step::DeleteLink => {
                let result = self.node.links.delete_dummy(LINK);
                self.link = None;
                outcome(&result)
            }
            Step::StartSyncDaemon { role, daemon } => self.start_daemon(*role, daemon),
            Step::StopSyncDaemon { role } => self.stop_daemon(*role),
            Step::SetSysctl { key, value } => self.node.set_sysctl(key, value),
            Step::EditRules(batch) => self.edit_rules(batch),
            Step::DeleteNftablesTable { family } => NodeKernel::delete_nftables_table(*family),
            Step::DestroyOtherSet { set } => self.held.destroy_other(set),
            Step::DeleteOwnTable { family } => self.held.delete_table(*family),
            // Steps that are sent in runs.
            Step::CreateSet(_)
            | Step::SwapSets { .. }
            | Step::DestroySet { .. }
            | Step::AddEntry { .. }
            | Step::DeleteEntry { .. }
            | Step::ReplaceEntries { .. }
            | Step::AddVirtualServer { .. }
            | Step::SetVirtualServer { .. }
            | Step::DeleteVirtualServer { .. }
            | Step::AddRealServer { .. }
            | Step::SetRealServer { .. }
            | Step::DeleteRealServer { .. }
            | Step::AddAddress { .. }
            | Step::DeleteAddress { .. } => Outcome::NotTried,
        }
    }
}

impl Kernel<Planner> for Dataplane {
    fn observe(&mut self, family: IpFamily) -> Result<State, ObserveError> {
        let mut state = self.observe_rest(family)?;
        let servers = self.observe_servers(family);
        state.virtual_servers = servers.map_err(failed_servers)?;
        state.addresses = self.observe_addresses(family)?;
        let is_first = self.is_known.insert(family);
        // Routes of IPv6 appear some time after we have added their addresses.
        if is_first || family == IpFamily::V4 {
            for lost in self.undelivered(family, &state.addresses)? {
                state.addresses.remove(&lost);
            }
        }
        state.rules = self.observe_rules(family)?;
        state.client_sets = self.held.observe_client_sets(family)?;
        state.has_nftables_table = NodeKernel::has_nftables_table(family)?;
        Ok(state)
    }

    fn apply(&mut self, plan: &Plan) -> Report {
        let in_table = self.held.is_table();
        let goes_with = |first: &Step, step: &Step| goes_with(first, step, in_table);
        prerequisites::apply(plan, goes_with, |steps| self.apply_run(steps))
    }

    fn rules(&mut self) -> Option<&mut dyn RuleKernel> {
        Some(self)
    }

    fn servers(&mut self) -> Option<&mut dyn ServerKernel> {
        Some(self)
    }
}

impl RuleKernel for Dataplane {
    fn observe_rules(&mut self, family: IpFamily) -> Result<Ruleset, ObserveError> {
        let mut rules = self.node.observe_rules(family)?;
        if let Some(table) = self.held.table() {
            let own = table.observe_rules(family);
            let own = own.map_err(|error| ObserveError::new("our nftables table", error))?;
            rules.chains.extend(own.chains);
        }
        Ok(rules)
    }

    fn observe_sets(
        &mut self,
        family: IpFamily,
    ) -> Result<Option<BTreeMap<SetName, SetState>>, ObserveError> {
        match self.held.table() {
            Some(_) => self.held.observe(family).map(Some),
            None => Ok(None),
        }
    }

    fn rules_have_changed(&mut self, family: IpFamily) -> bool {
        match self.held.table() {
            Some(table) => table.has_changed(family),
            None => self.node.rules_have_changed(family),
        }
    }
}

impl Host for Dataplane {
    fn delete_flows(&mut self, cleanup: &Cleanup) -> Result<usize, Failure> {
        self.node.delete_flows(cleanup)
    }

    fn cost(&self) -> Cost {
        let mut cost = self.node.cost();
        cost.add(self.ipvs.socket_stats());
        self.held.stats().for_each(|stats| cost.add(stats));
        cost
    }

    fn surroundings(&mut self) -> Result<NodeSurroundings, ObserveError> {
        self.node.surroundings()
    }

    fn known_surroundings(&mut self) -> Result<NodeSurroundings, ObserveError> {
        self.node.known_surroundings()
    }

    fn listening(&mut self) -> Result<Listening, ObserveError> {
        self.node.listening()
    }
}

impl ServerKernel for Dataplane {
    fn begin_audit(&mut self) {
        self.outlined.clear();
    }

    fn observe_summary(
        &mut self,
        family: IpFamily,
        depth: AuditDepth,
    ) -> Result<State, ObserveError> {
        let mut state = self.observe_rest(family)?;
        let servers = self.outline_servers(family);
        state.virtual_servers = servers.map_err(failed_servers)?;
        if depth == AuditDepth::Everything {
            state.addresses = self.observe_addresses(family)?;
        }
        Ok(state)
    }

    fn observe_link(&mut self, family: IpFamily) -> Result<LinkState, ObserveError> {
        let exists = self.find_link()?.is_some();
        let addresses = self.observe_addresses(family)?;
        Ok(LinkState {
            exists,
            undelivered: self.undelivered(family, &addresses)?,
            addresses,
        })
    }

    fn observe_virtual_servers(
        &mut self,
        keys: &BTreeSet<VirtualServerKey>,
    ) -> Result<BTreeMap<VirtualServerKey, Option<VirtualServerState>>, ObserveError> {
        let failed = |error| ObserveError::new("virtual servers", error);
        let mut states = BTreeMap::new();
        for key in keys {
            let wire_key = wire::service_key(key);
            let present = self.ipvs.service(&wire_key).map_err(failed)?;
            let state = match present {
                Some(found) => Some(VirtualServerState {
                    server: wire::virtual_server(&found.service),
                    real_servers: self.real_servers(&wire_key).map_err(failed)?.into(),
                }),
                None => None,
            };
            states.insert(*key, state);
        }
        Ok(states)
    }

    fn proc_listing(&mut self, family: IpFamily) -> Result<ProcListing, ObserveError> {
        let failed = |error| ObserveError::new("the list of virtual servers", error);
        // The kernel fills one page at a time, however much room there is.
        let file = File::open(LISTING).map_err(|error| failed(error.into()))?;
        let listing = Listing::new(BufReader::new(file)).map_err(failed)?;
        let glimpses = listing
            .map(move |listed| listed.map(|listed| wire::proc_listing(family, &listed)))
            .filter_map(move |proc_listing| proc_listing.map_err(failed).transpose());
        Ok(ProcListing(Box::new(glimpses)))
    }

    fn observe_real_servers(
        &mut self,
        keys: &[VirtualServerKey],
    ) -> Result<BTreeMap<VirtualServerKey, RealServers>, ObserveError> {
        let mut states = BTreeMap::new();
        for key in keys {
            let real_servers = self.real_servers(&wire::service_key(key));
            let real_servers =
                real_servers.map_err(|error| ObserveError::new("real servers", error))?;
            states.insert(*key, real_servers);
        }
        Ok(states)
    }

    fn idle(
        &mut self,
        candidates: &BTreeSet<RealServerOf>,
    ) -> Result<BTreeSet<RealServerOf>, ObserveError> {
        let mut by_server: BTreeMap<VirtualServerKey, BTreeSet<RealServerOf>> = BTreeMap::new();
        for candidate in candidates {
            by_server.entry(candidate.0).or_default().insert(*candidate);
        }
        let mut idle = BTreeSet::new();
        for (vs, mut waiting) in by_server {
            let destinations = self
                .ipvs
                .destinations(&wire::service_key(&vs))
                .map_err(|error| ObserveError::new("connections of draining servers", error))?;
            for status in destinations {
                if status.active_connections + status.inactive_connections > 0 {
                    let (key, _) = wire::real_server(&status.destination);
                    waiting.remove(&(vs, key));
                }
            }
            idle.extend(waiting);
        }
        Ok(idle)
    }

    fn is_scheduler_loaded(&mut self, scheduler: Scheduler) -> bool {
        schedulers::is_loaded(scheduler)
    }

    fn has_scheduler(&mut self, scheduler: Scheduler) -> Result<bool, ObserveError> {
        let name = scheduler
            .as_str()
            .parse()
            .map_err(|error| ObserveError::new("IPVS schedulers", error))?;
        match self.ipvs.try_scheduler(name) {
            Ok(()) => Ok(true),
            Err(IpvsError::SchedulerNotAvailable { .. }) => Ok(false),
            Err(error) => Err(ObserveError::new("IPVS schedulers", error)),
        }
    }
}

fn failed_servers(error: IpvsError) -> ObserveError {
    ObserveError::new("virtual servers", error)
}

fn set(outcomes: &mut [Outcome], index: usize, outcome: Outcome) {
    if let Some(slot) = outcomes.get_mut(index) {
        *slot = outcome;
    }
}

/// Says what the kernel means where its error does not.
fn refused_address(address: IpAddr, error: &KernelError) -> Outcome {
    let is_disabled = error.errno == libc::EACCES || error.kind == KernelErrorKind::Unsupported;
    if !address.is_ipv6() || !is_disabled {
        return failed(error);
    }
    Outcome::Failed(Failure {
        kind: FailureKind::Unsupported,
        message: format!(
            "IPv6 is disabled on {LINK} ({error}); set the sysctl net.ipv6.conf.{LINK}.disable_ipv6 to 0"
        ),
    })
}

/// Says what the kernel lacks where its error does not.
fn refused_server(service: &ipvs_netlink::Service, error: &KernelError) -> Option<Failure> {
    let message = if error.errno == libc::ENOENT {
        let scheduler = &service.scheduler;
        format!("the kernel has no scheduler {scheduler} (module ip_vs_{scheduler})")
    } else if error.errno == libc::EAFNOSUPPORT {
        "the kernel's IPVS does not support this address family (CONFIG_IP_VS_IPV6)".to_owned()
    } else {
        return None;
    };
    Some(Failure {
        kind: FailureKind::Unsupported,
        message: format!("{message}: {error}"),
    })
}

/// Deleting a missing object succeeds.
fn server_outcome(operation: &Operation, result: Result<(), KernelError>) -> Outcome {
    match result {
        Ok(()) => Outcome::Done,
        Err(error)
            if error.kind == KernelErrorKind::NotFound
                && matches!(
                    operation,
                    Operation::DelService(_) | Operation::DelDestination(..)
                ) =>
        {
            Outcome::Done
        }
        Err(error) => {
            let failure = match operation {
                Operation::AddService(service) | Operation::SetService(service) => {
                    refused_server(service, &error)
                }
                _ => None,
            };
            failure.map_or_else(|| failed(&error), Outcome::Failed)
        }
    }
}

const fn is_about_servers(step: &Step) -> bool {
    matches!(
        step,
        Step::AddVirtualServer { .. }
            | Step::SetVirtualServer { .. }
            | Step::DeleteVirtualServer { .. }
            | Step::AddRealServer { .. }
            | Step::SetRealServer { .. }
            | Step::DeleteRealServer { .. }
    )
}

const fn is_about_sets(step: &Step) -> bool {
    matches!(
        step,
        Step::CreateSet(_)
            | Step::AddEntry { .. }
            | Step::DeleteEntry { .. }
            | Step::ReplaceEntries { .. }
            | Step::SwapSets { .. }
            | Step::DestroySet { .. }
    )
}

/// Whether a step can be sent together with the first one of a run. `in_table`: sets are those of
/// nftables.
fn goes_with(first: &Step, step: &Step, in_table: bool) -> bool {
    match (first, step) {
        _ if in_table && is_about_sets(first) => is_about_sets(step),
        (Step::AddEntry { set: a, .. }, Step::AddEntry { set: b, .. })
        | (Step::DeleteEntry { set: a, .. }, Step::DeleteEntry { set: b, .. }) => a == b,
        (Step::AddAddress { .. }, Step::AddAddress { .. })
        | (Step::DeleteAddress { .. }, Step::DeleteAddress { .. }) => true,
        _ => is_about_servers(first) && is_about_servers(step),
    }
}

#[cfg(test)]
mod tests;
