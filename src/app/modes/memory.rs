// SPDX-License-Identifier: Apache-2.0
//! A third mode, for tests alone: it keeps the ports of Services in memory. It is what shows that a
//! mode is one folder and one line of `modes!`: nothing else in the program knows it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;

use serde::Serialize;

use super::{Opened, Opening};
use crate::dataplane::kernel::{Cost, Host, Kernel, NodeSurroundings, ObserveError};
use crate::reconcile::context::NodeFacts;
use crate::reconcile::runner::Pace;
use crate::reconcile::{Parts, Reconciler};
use kpr_core::model::{IpFamily, ProxyMode, ServiceName, ServicePortName, ServiceView, Tracker};
use kpr_core::plan::by_port::ByPort;
use kpr_core::plan::conntrack::flows::Cleanup;
use kpr_core::plan::mode::Conflict;
use kpr_core::plan::prerequisites::{self, Prerequisites};
use kpr_core::plan::ruleset::InvalidChainName;
use kpr_core::plan::shown::ServiceState;
use kpr_core::plan::unmet::Unmet;
use kpr_core::plan::{Context, Failure, Outcome, Plan, Report};

pub(super) const MODE: ProxyMode = ProxyMode::named("memory");

pub(super) fn open(opening: Opening<'_>) -> anyhow::Result<Opened> {
    let families = vec![IpFamily::V4];
    let sync = Reconciler::new(Parts {
        settings: opening.settings,
        families: families.clone(),
        facts: NodeFacts::default(),
        planner: Planner::new,
        kernel: Memory::default(),
        pace: Pace::Cost,
        previous: None,
        clock: opening.clock,
        observer: opening.observer,
    })?;
    Ok(Opened {
        sync: Box::new(sync),
        families,
    })
}

/// Where a Service port is served.
type State = BTreeMap<ServicePortName, SocketAddr>;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
enum Step {
    Serve(String, SocketAddr, #[serde(skip)] ServicePortName),
    Forget(String, #[serde(skip)] ServicePortName),
}

impl kpr_core::plan::Step for Step {
    type Phase = ();
    type Prerequisites = Nothing;

    fn kind(&self) -> &'static str {
        match self {
            Self::Serve(..) => "serve",
            Self::Forget(..) => "forget",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Serve(port, address, _) => write!(f, "serve {port} at {address}"),
            Self::Forget(port, _) => write!(f, "forget {port}"),
        }
    }
}

/// No step needs another.
#[derive(Debug, Default)]
struct Nothing;

impl Prerequisites for Nothing {
    type Step = Step;

    fn lack(&mut self, (): (), _step: &Step) {}

    fn forbid(&self, _step: &Step) -> bool {
        false
    }
}

#[derive(Debug)]
struct Planner {
    context: Context,
    desired: ByPort<SocketAddr>,
    believed: State,
    dirty: BTreeSet<ServicePortName>,
    is_full: bool,
}

impl Planner {
    #[expect(clippy::unnecessary_wraps, reason = "as planners that have chains")]
    const fn new(context: Context) -> Result<Self, InvalidChainName> {
        Ok(Self {
            context,
            desired: ByPort::new(),
            believed: State::new(),
            dirty: BTreeSet::new(),
            is_full: true,
        })
    }
}

impl kpr_core::plan::Planner for Planner {
    type Step = Step;
    type State = State;

    fn context(&self) -> &Context {
        &self.context
    }

    fn set_context(&mut self, context: Context, tracker: &Tracker) -> Result<(), InvalidChainName> {
        self.context = context;
        self.is_full = true;
        self.update_all(tracker);
        Ok(())
    }

    fn update(&mut self, changed: &ServiceView<'_>, _tracker: &Tracker) {
        let ports = changed.ports.iter();
        let ports = ports.map(|port| (port.name.clone(), SocketAddr::new(port.cluster_ip, port.port)));
        let ports: BTreeMap<_, _> = ports.collect();
        for gone in self.desired.gone(changed.name, &ports) {
            self.desired.remove(&gone);
            self.dirty.insert(gone);
        }
        for (name, address) in ports {
            self.dirty.insert(name.clone());
            self.desired.insert(name, address);
        }
    }

    fn observed(&mut self, state: State) {
        self.believed = state;
        self.is_full = true;
    }

    fn needs_observation(&self) -> bool {
        false
    }

    fn is_pending(&self) -> bool {
        self.is_full || !self.dirty.is_empty()
    }

    fn is_full(&self) -> bool {
        self.is_full
    }

    fn plan(&self) -> Plan<Step> {
        let mut names = self.dirty.clone();
        if self.is_full {
            names.extend(self.desired.iter().map(|(name, _)| name.clone()));
            names.extend(self.believed.keys().cloned());
        }
        let mut plan = Plan::default();
        for name in names {
            let text = name.to_string();
            match (self.desired.get(&name), self.believed.get(&name)) {
                (Some(wanted), present) if present != Some(wanted) => {
                    plan.push((), Step::Serve(text, *wanted, name));
                }
                (None, Some(_)) => plan.push((), Step::Forget(text, name)),
                _ => {}
            }
        }
        plan
    }

    fn settings(&self) -> Plan<Step> {
        Plan::default()
    }

    fn report(&mut self, plan: &Plan<Step>, report: &Report) {
        self.report_part(plan, report);
        if report.is_success() {
            self.dirty.clear();
            self.is_full = false;
        }
    }

    fn report_part(&mut self, plan: &Plan<Step>, report: &Report) {
        for (step, outcome) in plan.steps().zip(&report.outcomes) {
            if *outcome == Outcome::Done {
                make(&mut self.believed, step);
            }
        }
    }

    fn owner(&self, step: &Step) -> Option<&ServicePortName> {
        match step {
            Step::Serve(_, _, name) => {
                let mut wanted = self.desired.iter().map(|(wanted, _)| wanted);
                wanted.find(|wanted| *wanted == name)
            }
            Step::Forget(..) => None,
        }
    }

    fn revision(&self) -> u64 {
        0
    }

    fn conflicts(&self) -> BTreeSet<Conflict> {
        BTreeSet::new()
    }

    fn unmet(&self) -> BTreeSet<(ServicePortName, Unmet)> {
        BTreeSet::new()
    }

    fn no_local_endpoints(&self) -> (usize, usize) {
        (0, 0)
    }

    fn state_of(&self, _service: &ServiceName) -> ServiceState {
        ServiceState::default()
    }
}

fn make(state: &mut State, step: &Step) {
    match step {
        Step::Serve(_, address, name) => {
            state.insert(name.clone(), *address);
        }
        Step::Forget(_, name) => {
            state.remove(name);
        }
    }
}

/// The kernel of this mode.
#[derive(Debug, Default)]
struct Memory(State);

impl Kernel<Planner> for Memory {
    fn observe(&mut self, _family: IpFamily) -> Result<State, ObserveError> {
        Ok(self.0.clone())
    }

    fn apply(&mut self, plan: &Plan<Step>) -> Report {
        prerequisites::apply(
            plan,
            |_, _| true,
            |steps| {
                for step in steps {
                    make(&mut self.0, step);
                }
                vec![Outcome::Done; steps.len()]
            },
        )
    }
}

impl Host for Memory {
    fn delete_flows(&mut self, _cleanup: &Cleanup) -> Result<usize, Failure> {
        Ok(0)
    }

    fn cost(&self) -> Cost {
        Cost::default()
    }

    fn surroundings(&mut self) -> Result<NodeSurroundings, ObserveError> {
        Ok(NodeSurroundings::default())
    }
}

mod tests;
