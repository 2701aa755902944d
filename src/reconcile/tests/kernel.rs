// SPDX-License-Identifier: Apache-2.0
//! A fake node: its kernel, and what tests make of it.

use super::*;
use crate::dataplane::network::Network;

/// What happens to the first attempt of a step of a kind.
pub(super) type Trouble = (&'static str, Fault);

/// A fake kernel with connections, and with failures that tests request.
#[derive(Debug, Default)]
pub(super) struct Node {
    pub(super) kernel: FakeKernel<State>,
    pub(super) addresses: BTreeSet<IpAddr>,
    /// Addresses on our link without their route.
    pub(super) undelivered: BTreeSet<IpAddr>,
    pub(super) gateways: BTreeSet<IpAddr>,
    pub(super) network: Network,
    /// Where sync daemons can run.
    pub(super) sync_link: Option<u32>,
    pub(super) listening: Listening,
    /// Real servers that have connections.
    pub(super) busy: BTreeSet<RealServerOf>,
    pub(super) missing_schedulers: BTreeSet<Scheduler>,
    pub(super) unloaded_schedulers: BTreeSet<Scheduler>,
    pub(super) troubles: VecDeque<Trouble>,
    /// Rules with this text are rejected, with their whole batch.
    pub(super) refused_rules: Option<&'static str>,
    /// Steps with this text are not supported.
    pub(super) unsupported: Option<&'static str>,
    pub(super) is_unreadable: bool,
    pub(super) observations: Vec<ObserveScope>,
    pub(super) shown: Shown,
    /// Virtual servers whose real servers were read.
    pub(super) audited: usize,
    /// How long each such read takes.
    pub(super) slow: Option<(ManualClock, Duration)>,
    pub(super) applied: Vec<String>,
    pub(super) rules: Watched,
    /// Flows of UDP clients.
    pub(super) flows: BTreeSet<Flow>,
    /// Flows cannot be deleted.
    pub(super) keeps_flows: bool,
    /// How often they were listed.
    pub(super) cleanups: usize,
}

/// The loop owns its kernel; tests keep a handle.
pub(super) type Shared = Arc<Mutex<Node>>;

impl Node {
    /// The observed state of the kernel, if it can be read.
    fn observed(&mut self, scope: ObserveScope) -> Result<State, ObserveError> {
        self.observations.push(scope);
        let looks = !matches!(scope, ObserveScope::Summary(_) | ObserveScope::Audit);
        if looks && self.rules == Watched::Changed {
            self.rules = Watched::Unsure;
        }
        if scope == ObserveScope::Rules
            && let Some((hand, pace)) = &self.slow
        {
            hand.advance(*pace);
        }
        if self.is_unreadable {
            let source = Box::new(std::io::Error::other("injected"));
            return Err(ObserveError {
                what: "everything",
                source,
            });
        }
        Ok(self.kernel.state.clone())
    }

    /// The effect of a step.
    fn fault<S: Step>(
        troubles: &mut VecDeque<Trouble>,
        (refused, unsupported): (Option<&str>, Option<&str>),
        step: &S,
    ) -> Option<Fault> {
        if unsupported.is_some_and(|text| step.to_string().contains(text)) {
            return Some(Fault::Unsupported);
        }
        if refused.is_some_and(|text| failures::writes(step, text)) {
            return Some(Fault::Refused);
        }
        let (kind, fault) = *troubles.front()?;
        (step.kind() == kind).then(|| {
            troubles.pop_front();
            fault
        })
    }
}

impl Kernel<ipvs::Planner> for Shared {
    fn observe(&mut self, _family: IpFamily) -> Result<State, ObserveError> {
        self.lock().unwrap().observed(ObserveScope::Everything)
    }

    fn apply(&mut self, plan: &ipvs::Plan) -> Report {
        let node = &mut *self.lock().unwrap();
        node.applied.extend(plan.steps().map(ToString::to_string));
        let refused = (node.refused_rules, node.unsupported);
        let troubles = &mut node.troubles;
        node.kernel
            .apply_with(plan, |step| Node::fault(troubles, refused, step))
    }

    fn rules(&mut self) -> Option<&mut dyn RuleKernel> {
        Some(self)
    }

    fn servers(&mut self) -> Option<&mut dyn ServerKernel> {
        Some(self)
    }
}

impl Kernel<iptables::Planner> for Shared {
    fn observe(&mut self, _family: IpFamily) -> Result<iptables::State, ObserveError> {
        let state = self.lock().unwrap().observed(ObserveScope::Everything)?;
        Ok((&state).into())
    }

    fn apply(&mut self, plan: &iptables::Plan) -> Report {
        let node = &mut *self.lock().unwrap();
        node.applied.extend(plan.steps().map(ToString::to_string));
        let refused = (node.refused_rules, node.unsupported);
        let troubles = &mut node.troubles;
        in_iptables_mode(&mut node.kernel.state, |kernel| {
            kernel.apply_with(plan, |step| Node::fault(troubles, refused, step))
        })
    }

    fn rules(&mut self) -> Option<&mut dyn RuleKernel> {
        Some(self)
    }
}

impl Host for Shared {
    fn delete_flows(&mut self, cleanup: &Cleanup) -> Result<usize, Failure> {
        let mut node = self.lock().unwrap();
        if node.keeps_flows {
            return Err(Failure {
                kind: FailureKind::Busy,
                message: "injected".to_owned(),
            });
        }
        if let Some((hand, pace)) = &node.slow {
            hand.advance(*pace);
        }
        let before = node.flows.len();
        node.flows.retain(|flow| !cleanup.is_stale(flow));
        node.cleanups += 1;
        Ok(before - node.flows.len())
    }

    fn cost(&self) -> Cost {
        Cost::default()
    }

    fn surroundings(&mut self) -> Result<NodeSurroundings, ObserveError> {
        let node = self.lock().unwrap();
        Ok(NodeSurroundings {
            addresses: node.addresses.clone(),
            gateways: node.gateways.clone(),
            network: node.network.clone(),
            sync_link: node.sync_link,
            ..NodeSurroundings::default()
        })
    }

    fn listening(&mut self) -> Result<Listening, ObserveError> {
        Ok(self.lock().unwrap().listening.clone())
    }
}

impl RuleKernel for Shared {
    fn observe_rules(&mut self, _family: IpFamily) -> Result<Ruleset, ObserveError> {
        Ok(self.lock().unwrap().observed(ObserveScope::Rules)?.rules)
    }

    fn observe_settings(
        &mut self,
        _family: IpFamily,
    ) -> Result<Option<iptables::Settings>, ObserveError> {
        let mut node = self.lock().unwrap();
        if node.rules != Watched::Unchanged {
            return Ok(None);
        }
        let state = node.observed(ObserveScope::Audit)?;
        Ok(Some(iptables::State::from(&state).settings))
    }

    fn rules_have_changed(&mut self, _family: IpFamily) -> bool {
        self.lock().unwrap().rules == Watched::Changed
    }
}

impl ServerKernel for Shared {
    fn observe_link(&mut self, _family: IpFamily) -> Result<LinkState, ObserveError> {
        let mut node = self.lock().unwrap();
        let state = node.observed(ObserveScope::Link)?;
        Ok(LinkState {
            exists: state.node.link_exists,
            addresses: state.addresses,
            undelivered: node.undelivered.clone(),
        })
    }

    fn observe_summary(
        &mut self,
        _family: IpFamily,
        depth: AuditDepth,
    ) -> Result<State, ObserveError> {
        let mut state = self
            .lock()
            .unwrap()
            .observed(ObserveScope::Summary(depth))?;
        state.rules = Ruleset::new();
        if depth == AuditDepth::Outline {
            state.addresses.clear();
        }
        for server in state.virtual_servers.values_mut() {
            server.real_servers_mut().clear();
        }
        Ok(state)
    }

    fn observe_virtual_servers(
        &mut self,
        keys: &BTreeSet<VirtualServerKey>,
    ) -> Result<BTreeMap<VirtualServerKey, Option<VirtualServerState>>, ObserveError> {
        Ok(self.lock().unwrap().kernel.virtual_servers(keys))
    }

    fn proc_listing(&mut self, _family: IpFamily) -> Result<ProcListing, ObserveError> {
        let node = self.lock().unwrap();
        let broken = || ObserveError {
            what: "the list",
            source: Box::new(std::io::Error::other("injected")),
        };
        let servers = &node.kernel.state.virtual_servers;
        let all = servers
            .iter()
            .map(|(key, found)| Ok((*key, (*found.real_servers).clone())));
        let glimpses: Vec<_> = match &node.shown {
            Shown::All => all.collect(),
            Shown::Nothing => return Err(broken()),
            Shown::Part(part) => {
                let part = part.iter().cloned().map(Ok);
                part.chain([Err(broken())]).collect()
            }
        };
        Ok(ProcListing(Box::new(glimpses.into_iter())))
    }

    fn observe_real_servers(
        &mut self,
        keys: &[VirtualServerKey],
    ) -> Result<BTreeMap<VirtualServerKey, RealServers>, ObserveError> {
        let mut node = self.lock().unwrap();
        if let Some((hand, pace)) = &node.slow {
            hand.advance(*pace);
        }
        node.audited += keys.len();
        let servers = &node.kernel.state.virtual_servers;
        let of = |key| {
            servers
                .get(key)
                .map(|server| (*server.real_servers).clone())
        };
        Ok(keys
            .iter()
            .map(|key| (*key, of(key).unwrap_or_default()))
            .collect())
    }

    fn idle(
        &mut self,
        candidates: &BTreeSet<RealServerOf>,
    ) -> Result<BTreeSet<RealServerOf>, ObserveError> {
        Ok(candidates
            .difference(&self.lock().unwrap().busy)
            .copied()
            .collect())
    }

    fn is_scheduler_loaded(&mut self, scheduler: Scheduler) -> bool {
        !self
            .lock()
            .unwrap()
            .unloaded_schedulers
            .contains(&scheduler)
    }

    fn has_scheduler(&mut self, scheduler: Scheduler) -> Result<bool, ObserveError> {
        Ok(!self.lock().unwrap().missing_schedulers.contains(&scheduler))
    }
}
