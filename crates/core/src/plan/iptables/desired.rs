// SPDX-License-Identifier: Apache-2.0
//! PURE: the union of all by_port of one family. Where two Service ports claim one frontend, one of them has it.
//!
//! Replacing one port_rules costs what that port_rules costs and the depth of the trees, however many others there are.
//! The union does not depend on the order of changes.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{Protocol, ServiceName, ServicePortName};
use crate::plan::claim::Claim;
use crate::plan::context::Context;
use crate::plan::iptables::port_rules::{Entries, Frontend, PortRules};
use crate::plan::iptables::static_rules;
use crate::plan::iptables::tree::{Prefix, Tree, TreeId};
use crate::plan::ruleset::{ChainName, Rule};

/// What may not be as the kernel has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    pub nodes: BTreeMap<TreeId, BTreeSet<Prefix>>,
    /// Service ports whose chains changed.
    pub service_ports: BTreeSet<ServicePortName>,
    /// Chains that one of them had.
    pub old_chains: BTreeSet<ChainName>,
}

impl Dirty {
    pub fn is_empty(&self) -> bool {
        self.nodes.values().all(BTreeSet::is_empty)
            && self.service_ports.is_empty()
            && self.old_chains.is_empty()
    }
}

/// Two Service ports claim one frontend; the second does not get it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conflict {
    pub loser: ServicePortName,
    pub winner: ServicePortName,
    pub frontend: Frontend,
}

/// What one family wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    by_port: BTreeMap<ServicePortName, PortRules>,
    /// Sorted. Nearly all have one, and a tree of one element is the size of eleven.
    claims: BTreeMap<Frontend, Vec<Claim>>,
    /// Those with more than one claim, without endpoints, which all claimants want alike.
    contested: BTreeSet<Frontend>,
    trees: BTreeMap<TreeId, Tree>,
    endpoint_count: usize,
    no_local_internal: BTreeSet<ServicePortName>,
    no_local_external: BTreeSet<ServicePortName>,
}

impl Desired {
    /// Without any Service: what the node alone puts into trees.
    pub fn of_node(context: &Context) -> Self {
        let mut desired = Self::default();
        for (id, key, rule) in static_rules::node_addresses(context) {
            let tree = desired.trees.entry(id).or_default();
            // The first plan looks at every node of a tree.
            tree.set(key, Some(rule), &mut BTreeSet::new());
        }
        desired
    }

    pub fn by_port(&self) -> &BTreeMap<ServicePortName, PortRules> {
        &self.by_port
    }

    /// Endpoints of all Service ports, whatever their condition.
    pub fn endpoint_count(&self) -> usize {
        self.endpoint_count
    }

    /// The rules of a node of a tree; `None` if there is no such node.
    pub fn node(&self, tree: TreeId, prefix: Prefix, context: &Context) -> Option<Vec<Rule>> {
        match self.trees.get(&tree) {
            Some(rules) => rules.rules(tree, prefix, context.family),
            None => (prefix == Prefix::ROOT).then(Vec::new),
        }
    }

    /// All nodes of a tree; at least the root.
    pub fn nodes(&self, tree: TreeId) -> BTreeSet<Prefix> {
        let tree = self.trees.get(&tree);
        tree.map_or_else(|| BTreeSet::from([Prefix::ROOT]), Tree::nodes)
    }

    /// The ports of a Service that have a port_rules.
    pub fn ports_of<'a>(
        &'a self,
        service: &'a ServiceName,
    ) -> impl Iterator<Item = &'a ServicePortName> + use<'a> {
        // The smallest possible name of a port of this Service.
        let first = ServicePortName {
            service: service.clone(),
            port: "".into(),
            protocol: Protocol::Tcp,
        };
        self.by_port
            .range(first..)
            .map(|(name, _)| name)
            .take_while(move |name| name.service == *service)
    }

    /// Replaces the port_rules of a Service port, and hands out the former one. Without `dirty` the caller looks at
    /// everything anyway, which is cheaper than to note what changed.
    pub fn replace(
        &mut self,
        name: &ServicePortName,
        new: Option<PortRules>,
        context: &Context,
        mut dirty: Option<&mut Dirty>,
    ) -> Option<PortRules> {
        if self.by_port.get(name) == new.as_ref() {
            return new;
        }
        let old = self.by_port.remove(name);
        let frontends = |of: Option<&PortRules>| {
            of.map_or_else(BTreeMap::new, |port_rules| port_rules.frontends(context))
        };
        let (before, after) = (frontends(old.as_ref()), frontends(new.as_ref()));
        let rights = |of: &PortRules| (of.service_port.created, of.service_port.cluster_ip);
        let same_claims = old.as_ref().map(rights) == new.as_ref().map(rights);
        if let Some(dirty) = dirty.as_deref_mut() {
            dirty.service_ports.insert(name.clone());
            // Comments change no names.
            let chains = old.as_ref().map(|old| old.chains(context, false));
            let chains = chains.into_iter().flat_map(BTreeMap::into_keys);
            dirty.old_chains.extend(chains);
        }
        if let Some(old) = &old {
            self.endpoint_count -= old.endpoint_count;
        }
        set_member(
            &mut self.no_local_internal,
            name,
            new.as_ref(),
            PortRules::lacks_local_internal,
        );
        set_member(
            &mut self.no_local_external,
            name,
            new.as_ref(),
            PortRules::lacks_local_external,
        );
        if let Some(new) = new {
            self.endpoint_count += new.endpoint_count;
            self.by_port.insert(name.clone(), new);
        }
        let all: BTreeSet<Frontend> = before.keys().chain(after.keys()).copied().collect();
        for frontend in all {
            let (had, has) = (before.get(&frontend), after.get(&frontend));
            if same_claims && had == has {
                continue;
            }
            let former_winner = self.winner(frontend).cloned();
            if had.is_some()
                && let Some(old) = &old
            {
                self.withdraw(frontend, &old.claim(frontend, name));
            }
            if has.is_some()
                && let Some(new) = self.by_port.get(name)
            {
                let claim = new.claim(frontend, name);
                self.claim(frontend, claim);
            }
            let winner = self.winner(frontend).cloned();
            let was_ours = former_winner.as_ref() == Some(name);
            let is_ours = winner.as_ref() == Some(name);
            if !was_ours && !is_ours {
                continue;
            }
            let former = if was_ours {
                had.cloned().unwrap_or_default()
            } else {
                self.entries_of(former_winner.as_ref(), frontend, context)
            };
            let present = if is_ours {
                has.cloned().unwrap_or_default()
            } else {
                self.entries_of(winner.as_ref(), frontend, context)
            };
            self.exchange(frontend, &former, &present, dirty.as_deref_mut());
        }
        old
    }

    fn winner(&self, frontend: Frontend) -> Option<&ServicePortName> {
        self.claims.get(&frontend)?.first().map(Claim::name)
    }

    fn entries_of(
        &self,
        name: Option<&ServicePortName>,
        frontend: Frontend,
        context: &Context,
    ) -> Entries {
        name.and_then(|name| self.by_port.get(name))
            .and_then(|port_rules| port_rules.frontends(context).remove(&frontend))
            .unwrap_or_default()
    }

    fn exchange(
        &mut self,
        frontend: Frontend,
        former: &Entries,
        present: &Entries,
        mut dirty: Option<&mut Dirty>,
    ) {
        for id in former.keys().chain(present.keys()) {
            let tree = self.trees.entry(*id).or_default();
            let (key, rule) = (frontend.key(), present.get(id).cloned());
            match dirty.as_deref_mut() {
                Some(dirty) => tree.set(key, rule, dirty.nodes.entry(*id).or_default()),
                None => tree.put(key, rule),
            }
            if tree.is_empty() {
                self.trees.remove(id);
            }
        }
    }

    fn claim(&mut self, frontend: Frontend, claim: Claim) {
        let claims = self.claims.entry(frontend).or_default();
        if let Err(index) = claims.binary_search(&claim) {
            claims.reserve_exact(1);
            claims.insert(index, claim);
        }
        if claims.len() > 1 && !matches!(frontend, Frontend::LocalEndpoint(_)) {
            self.contested.insert(frontend);
        }
    }

    fn withdraw(&mut self, frontend: Frontend, claim: &Claim) {
        if let Some(claims) = self.claims.get_mut(&frontend) {
            claims.retain(|other| other != claim);
            if claims.len() < 2 {
                self.contested.remove(&frontend);
            }
            if claims.is_empty() {
                self.claims.remove(&frontend);
            }
        }
    }

    /// Claims that lost. Costs what is contested, not what there is.
    pub fn conflicts(&self) -> BTreeSet<Conflict> {
        let mut conflicts = BTreeSet::new();
        for frontend in &self.contested {
            let claims = self.claims.get(frontend).into_iter().flatten();
            let mut claimants = claims.map(Claim::name);
            if let Some(winner) = claimants.next() {
                // All ports of a Service share the port of its health check.
                let shared = matches!(frontend, Frontend::HealthCheck(_));
                let lost = |loser: &ServicePortName| !shared || loser.service != winner.service;
                let losers = claimants.filter(|loser| lost(loser));
                conflicts.extend(losers.map(|loser| Conflict {
                    loser: loser.clone(),
                    winner: winner.clone(),
                    frontend: *frontend,
                }));
            }
        }
        conflicts
    }

    /// Number of Services with a port that has a Local policy and no endpoint on this node, by policy: internal,
    /// external.
    pub fn no_local_endpoints(&self) -> (usize, usize) {
        (
            count_services(&self.no_local_internal),
            count_services(&self.no_local_external),
        )
    }
}

fn set_member(
    members: &mut BTreeSet<ServicePortName>,
    name: &ServicePortName,
    port_rules: Option<&PortRules>,
    lacks: impl Fn(&PortRules) -> bool,
) {
    if port_rules.is_some_and(lacks) {
        members.insert(name.clone());
    } else {
        members.remove(name);
    }
}

/// The ports of one Service are neighbours.
fn count_services(names: &BTreeSet<ServicePortName>) -> usize {
    let mut last = None;
    names
        .iter()
        .filter(|name| last.replace(&name.service) != Some(&name.service))
        .count()
}
