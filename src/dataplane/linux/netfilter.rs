// SPDX-License-Identifier: Apache-2.0
//! The kernel as iptables mode uses it: rules and one setting. It works where IPVS and ipset are missing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::flows::delete_stale;
use super::rules::Rules;
use super::{outcome, unobserved};
use crate::dataplane::conntrack;
use crate::dataplane::exec::Exec;
use crate::dataplane::failure::Failed as _;
use crate::dataplane::iptables::Iptables;
use crate::dataplane::kernel::{Cost, Kernel, ObserveError, ObserveScope, ProcListing};
use crate::dataplane::links::{Address, Links, Scope};
use crate::dataplane::nftables;
use crate::dataplane::sysctl::Sysctls;
use kpr_core::model::IpFamily;
use kpr_core::model::ipvs_options::Scheduler;
use kpr_core::plan::conntrack::flows::Cleanup;
use kpr_core::plan::iptables::static_rules::ROUTE_LOCALNET;
use kpr_core::plan::ipvs::object::{RealServers, VirtualServerKey};
use kpr_core::plan::ipvs::planner::RealServerOf;
use kpr_core::plan::ruleset::Ruleset;
use kpr_core::plan::state::{NodeState, VirtualServerState};
use kpr_core::plan::step::{LINK, Phase};
use kpr_core::plan::{Failure, Outcome, Plan, Prerequisites, Report, State, Step};

/// See the module.
#[derive(Debug)]
pub struct Netfilter {
    pub(super) links: Links,
    pub(super) sysctls: Sysctls,
    /// Where the kernel lets us look at flows.
    conntrack: Option<conntrack::Client>,
    rules: Rules,
    /// Counts the programs that `iptables` starts.
    exec: Arc<dyn Exec>,
}

impl Netfilter {
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
            exec,
        }
    }

    /// The same, with a way to look at flows.
    #[must_use]
    pub fn with_conntrack(self, conntrack: Option<conntrack::Client>) -> Self {
        Self { conntrack, ..self }
    }

    pub(super) fn observe_rules(&mut self, family: IpFamily) -> Result<Ruleset, ObserveError> {
        let rules = self.rules.observe(family);
        rules.map_err(|error| unobserved("iptables rules", error))
    }

    /// A setting or rules; steps of IPVS mode are not tried.
    pub(super) fn apply_one(&mut self, step: &Step) -> Outcome {
        match step {
            Step::SetSysctl { key, value } => outcome(&self.sysctls.ensure(key, value)),
            Step::EditRules(edits) => self.rules.apply(edits),
            Step::DeleteNftablesTable { family } => outcome(&nftables::delete_table(*family)),
            _ => Outcome::NotTried,
        }
    }
}

impl Kernel for Netfilter {
    fn observe(&mut self, family: IpFamily, scope: ObserveScope) -> Result<State, ObserveError> {
        let rules = match scope {
            ObserveScope::Everything | ObserveScope::Rules => self.observe_rules(family)?,
            ObserveScope::Summary => Ruleset::new(),
        };
        // A setting that cannot be read is missing from the state; writing it will say why.
        let sysctls = self
            .sysctls
            .read(ROUTE_LOCALNET)
            .map(|value| (ROUTE_LOCALNET, value));
        Ok(State {
            node: NodeState {
                sysctls: sysctls.into_iter().collect(),
                ..NodeState::default()
            },
            rules,
            has_nftables_table: scope == ObserveScope::Everything && has_nftables_table(family)?,
            ..State::default()
        })
    }

    /// There are none.
    fn observe_virtual_servers(
        &mut self,
        keys: &BTreeSet<VirtualServerKey>,
    ) -> Result<BTreeMap<VirtualServerKey, Option<VirtualServerState>>, ObserveError> {
        Ok(keys.iter().map(|key| (*key, None)).collect())
    }

    /// There are none.
    fn proc_listing(&mut self, _family: IpFamily) -> Result<ProcListing, ObserveError> {
        Ok(ProcListing(Box::new(std::iter::empty())))
    }

    /// There are none.
    fn observe_real_servers(
        &mut self,
        _keys: &[VirtualServerKey],
    ) -> Result<BTreeMap<VirtualServerKey, RealServers>, ObserveError> {
        Ok(BTreeMap::new())
    }

    fn apply(&mut self, plan: &Plan) -> Report {
        let mut lacking = Prerequisites::default();
        let mut outcomes = Vec::with_capacity(plan.len());
        for (phase, step) in plan.phases() {
            let outcome = if lacking.forbid(step) {
                Outcome::NotTried
            } else {
                self.apply_one(step)
            };
            if outcome != Outcome::Done {
                lacking.lack(step);
            }
            let is_broken = *phase == Phase::Rules && outcome != Outcome::Done;
            outcomes.push(outcome);
            if is_broken {
                break;
            }
        }
        outcomes.resize(plan.len(), Outcome::NotTried);
        Report { outcomes }
    }

    fn idle(
        &mut self,
        candidates: &BTreeSet<RealServerOf>,
    ) -> Result<BTreeSet<RealServerOf>, ObserveError> {
        Ok(candidates.clone())
    }

    fn rules_have_changed(&mut self, family: IpFamily) -> bool {
        self.rules.have_changed(family)
    }

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
        cost
    }

    /// Nobody asks for one in this mode.
    fn has_scheduler(&mut self, _scheduler: Scheduler) -> Result<bool, ObserveError> {
        Ok(true)
    }

    fn node_addresses(&mut self) -> Result<BTreeSet<IpAddr>, ObserveError> {
        node_addresses(&mut self.links)
    }

    fn gateways(&mut self) -> Result<BTreeSet<IpAddr>, ObserveError> {
        let mut gateways = BTreeSet::new();
        for family in IpFamily::ALL {
            let found = self.links.default_gateways(family);
            let found = found.map_err(|error| unobserved("default routes", error))?;
            gateways.extend(found);
        }
        Ok(gateways)
    }
}

/// Whether the table of kube-proxy's nftables mode is there.
pub(super) fn has_nftables_table(family: IpFamily) -> Result<bool, ObserveError> {
    nftables::has_table(family).map_err(|error| unobserved("nftables tables", error))
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
