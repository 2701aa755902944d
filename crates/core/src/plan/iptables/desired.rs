// SPDX-License-Identifier: Apache-2.0
//! PURE: the union of what all Service ports of one family want. If several Service ports claim a
//! frontend, one of them gets it.
//!
//! Replacing the rules of one Service port costs what those rules cost and the depth of the trees,
//! however many others there are. The union does not depend on the order of changes.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{ServiceName, ServicePortName};
use crate::plan::by_port::{ByPort, PortSet, Revision};
use crate::plan::claim::{Claim, Claims, Right};
use crate::plan::context::Context;
use crate::plan::iptables::name::service_bits;
use crate::plan::iptables::port_rules::{Entries, Frontend, PortRules};
use crate::plan::iptables::same_names::{Meaning, SameNames};
use crate::plan::iptables::static_rules;
use crate::plan::iptables::tree::{Prefix, Tree, TreeId};
use crate::plan::ruleset::{ChainName, Rule};
use crate::plan::unmet::Unmet;

/// What may differ from the kernel.
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

/// The desired state of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    by_port: ByPort<PortRules>,
    claims: Claims<Frontend>,
    /// Endpoints on this node: all claimants want the same for them, so no claim loses.
    local_endpoints: Claims<Frontend>,
    /// Addresses of the node that Services claim as external IPs, with a port that is a node port:
    /// the node port is served there.
    yielded: BTreeSet<Frontend>,
    trees: BTreeMap<TreeId, Tree>,
    endpoint_count: usize,
    no_local_internal: PortSet,
    no_local_external: PortSet,
    /// Service ports with external IPs that are somebody's.
    refused: PortSet,
    /// Service ports whose clients lose their session affinity.
    forgetful: PortSet,
    same_names: SameNames,
    /// Revision of `yielded`, of what `refused` and `forgetful` stand for and of `same_names`.
    revision: Revision,
}

impl Desired {
    /// Without any Service: what the node alone contributes to trees.
    pub fn of_node(context: &Context) -> Self {
        let mut desired = Self::default();
        for (id, key, rule) in static_rules::node_addresses(context) {
            let tree = desired.trees.entry(id).or_default();
            // The first plan visits every node of a tree.
            tree.set(key, Some(rule), &mut BTreeSet::new());
        }
        desired
    }

    pub fn by_port(&self) -> &ByPort<PortRules> {
        &self.by_port
    }

    /// The rules of a Service port, also of one that is not served.
    pub fn wanted(&self, name: &ServicePortName) -> Option<&PortRules> {
        let served = self.by_port.get(name);
        served.or_else(|| self.same_names.get(name))
    }

    /// The ports of a Service that are known but not among its present ports.
    pub fn gone(
        &self,
        service: &ServiceName,
        now: &BTreeMap<ServicePortName, PortRules>,
    ) -> Vec<ServicePortName> {
        let mut gone = self.by_port.gone(service, now);
        let others = self.same_names.of(service);
        gone.extend(others.filter(|name| !now.contains_key(*name)).cloned());
        gone
    }

    /// Endpoints of all Service ports, whatever their condition.
    pub fn endpoint_count(&self) -> usize {
        self.endpoint_count
    }

    /// Number of rules that change, more or less, if a Service port gets other rules.
    pub fn size_of_change(&self, name: &ServicePortName, new: Option<&PortRules>) -> usize {
        let old = self.by_port.get(name).map_or(0, PortRules::size);
        match new {
            Some(new) => old.saturating_add(new.size()),
            // Chains are emptied before they are deleted.
            None => old.saturating_mul(2),
        }
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

    /// Replaces the rules of a Service port, and returns the old ones. Without `dirty` the caller
    /// compares everything anyway, which is cheaper than recording what changed.
    pub fn replace(
        &mut self,
        name: &ServicePortName,
        new: Option<PortRules>,
        context: &Context,
        dirty: Option<&mut Dirty>,
    ) -> Option<PortRules> {
        if new.is_some() && self.by_port.get(name) == new.as_ref() {
            return new;
        }
        let bits_of = |name: &ServicePortName| service_bits(&name.to_string(), name.protocol);
        let (bits, is_served) = (bits_of(name), self.by_port.contains_key(name));
        match self.same_names.take_in(bits, name, is_served, new) {
            Meaning::Ordinary(new) => self.exchange_rules(name, new, context, dirty),
            Meaning::Apart(old) => old,
            Meaning::Frees(old, last, rules) => {
                self.revision.bump();
                self.exchange_rules(&last, Some(*rules), context, dirty);
                old
            }
            Meaning::Meets(new) => {
                self.revision.bump();
                let mut others = self.by_port.iter();
                let same = others.find(|(other, _)| bits_of(other) == bits);
                let other = same.map(|(other, _)| other.clone())?;
                drop(others);
                let rules = self.exchange_rules(&other, None, context, dirty)?;
                let both = [(other, rules), (name.clone(), new)];
                self.same_names.part(bits, both);
                None
            }
        }
    }

    fn exchange_rules(
        &mut self,
        name: &ServicePortName,
        new: Option<PortRules>,
        context: &Context,
        mut dirty: Option<&mut Dirty>,
    ) -> Option<PortRules> {
        let old = self.by_port.remove(name);
        let frontends = |of: Option<&PortRules>| {
            of.map_or_else(BTreeMap::new, |port_rules| port_rules.frontends(context))
        };
        let (before, after) = (frontends(old.as_ref()), frontends(new.as_ref()));
        if let Some(dirty) = dirty.as_deref_mut() {
            dirty.service_ports.insert(name.clone());
            // Comments do not affect names.
            let chains = old.as_ref().map(|old| old.chains(context, false));
            let chains = chains.into_iter().flat_map(BTreeMap::into_keys);
            dirty.old_chains.extend(chains);
        }
        if let Some(old) = &old {
            self.endpoint_count -= old.endpoint_count;
        }
        let lacks = |what: fn(&PortRules) -> bool| new.as_ref().is_some_and(what);
        let internal = lacks(PortRules::lacks_local_internal);
        let external = lacks(PortRules::lacks_local_external);
        self.no_local_internal.set(name, internal);
        self.no_local_external.set(name, external);
        let is_short =
            |desired: &Self| desired.refused.contains(name) || desired.forgetful.contains(name);
        let fell_short = is_short(self);
        self.refused
            .set(name, lacks(|new| !new.refused().is_empty()));
        self.forgetful
            .set(name, lacks(|new| new.forgets().is_some()));
        if fell_short || is_short(self) {
            self.revision.bump();
        }
        // A claim to withdraw and a claim to make, where they or the rules differ.
        let places: BTreeSet<Frontend> = before.keys().chain(after.keys()).copied().collect();
        let claim = |of: Option<&PortRules>, at: &BTreeMap<Frontend, Entries>, place: Frontend| {
            of.filter(|_| at.contains_key(&place))
                .map(|of| of.claim(place, name))
        };
        let changes: BTreeMap<Frontend, [Option<Claim>; 2]> = places
            .into_iter()
            .map(|place| {
                let old = claim(old.as_ref(), &before, place);
                (place, [old, claim(new.as_ref(), &after, place)])
            })
            .filter(|(place, [old, new])| old != new || before.get(place) != after.get(place))
            .collect();
        if let Some(new) = new {
            self.endpoint_count += new.endpoint_count;
            self.by_port.insert(name.clone(), new);
        }
        let mut affected: BTreeSet<Frontend> = changes.keys().copied().collect();
        affected.extend(self.at_node_ports(changes.keys(), context));
        let winners: Vec<(Frontend, Option<ServicePortName>)> = affected
            .into_iter()
            .map(|place| (place, self.winner(place, context).cloned()))
            .collect();
        for (place, [old, new]) in changes {
            let claims = self.claims_on(place);
            if let Some(old) = old {
                claims.withdraw(place, &old);
            }
            if let Some(new) = new {
                claims.claim(place, new);
            }
        }
        for (place, old_winner) in winners {
            self.note_yielded(place, context);
            let winner = self.winner(place, context).cloned();
            let was_ours = old_winner.as_ref() == Some(name);
            let is_ours = winner.as_ref() == Some(name);
            if old_winner == winner && !is_ours {
                continue;
            }
            let old_entries = if was_ours {
                before.get(&place).cloned().unwrap_or_default()
            } else {
                self.entries_of(old_winner.as_ref(), place, context)
            };
            let present = if is_ours {
                after.get(&place).cloned().unwrap_or_default()
            } else {
                self.entries_of(winner.as_ref(), place, context)
            };
            self.exchange(place, &old_entries, &present, dirty.as_deref_mut());
        }
        old
    }

    /// The claimed addresses of the node at which node ports among these places are served.
    fn at_node_ports<'a>(
        &self,
        places: impl Iterator<Item = &'a Frontend>,
        context: &Context,
    ) -> Vec<Frontend> {
        let node_ports = places.filter_map(|place| match place {
            Frontend::NodePort(protocol, port) => Some((*protocol, *port)),
            _ => None,
        });
        node_ports
            .flat_map(|(protocol, port)| {
                let addresses = context.node_port_addresses.iter();
                addresses.map(move |address| Frontend::Address(*address, protocol, port))
            })
            .filter(|place| self.claims.contains(place))
            .collect()
    }

    /// Whether an external IP of a Service is not served because a node port is, there.
    fn yields(&self, place: Frontend, context: &Context) -> bool {
        let Some(node_port) = place.node_port(context) else {
            return false;
        };
        self.claims.right(&place) == Some(Right::ExternalIp) && self.claims.contains(&node_port)
    }

    fn note_yielded(&mut self, place: Frontend, context: &Context) {
        let is_news = if self.yields(place, context) {
            self.yielded.insert(place)
        } else {
            self.yielded.remove(&place)
        };
        if is_news || self.yielded.contains(&place) {
            self.revision.bump();
        }
    }

    const fn claims_on(&mut self, frontend: Frontend) -> &mut Claims<Frontend> {
        match frontend {
            Frontend::LocalEndpoint(_) => &mut self.local_endpoints,
            _ => &mut self.claims,
        }
    }

    fn winner(&self, frontend: Frontend, context: &Context) -> Option<&ServicePortName> {
        match frontend {
            Frontend::LocalEndpoint(_) => self.local_endpoints.winner(&frontend),
            _ if self.yields(frontend, context) => None,
            _ => self.claims.winner(&frontend),
        }
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
        old: &Entries,
        present: &Entries,
        mut dirty: Option<&mut Dirty>,
    ) {
        for id in old.keys().chain(present.keys()) {
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

    /// Claims that lost: the frontend, the loser, the winner. Costs what is contested, not the
    /// number of claims.
    pub fn lost(&self) -> impl Iterator<Item = (&Frontend, &ServicePortName, &ServicePortName)> {
        let to_node_ports = self.yielded.iter().filter_map(|place| {
            let Frontend::Address(_, protocol, port) = *place else {
                return None;
            };
            let node_port = Frontend::NodePort(protocol, port);
            let (loser, winner) = (self.claims.winner(place)?, self.claims.winner(&node_port)?);
            (loser != winner).then_some((place, loser, winner))
        });
        // All ports of a Service share the port of its health check.
        let others = self.claims.lost().filter(|(frontend, loser, winner)| {
            !matches!(frontend, Frontend::HealthCheck(_)) || loser.service != winner.service
        });
        others.chain(to_node_ports)
    }

    /// By what the winner goes before a loser of a frontend; `None` if by its age alone.
    pub fn reason(&self, place: &Frontend, loser: &ServicePortName) -> Option<Right> {
        if self.yielded.contains(place) {
            return Some(Right::NodePort);
        }
        self.claims.reason(place, loser)
    }

    /// What Services claim and do not get. Costs the length of the result.
    pub fn unmet(&self) -> BTreeSet<(ServicePortName, Unmet)> {
        let ports = self.refused.iter();
        let ports = ports.filter_map(|name| Some((name, self.by_port.get(name)?)));
        let same = self.same_names.pairs().map(|(name, other)| {
            let other = other.clone();
            (name.clone(), Unmet::SameChains { other })
        });
        ports
            .flat_map(|(name, rules)| {
                rules.refused().iter().map(|(address, holder)| {
                    let unmet = Unmet::NotServed {
                        address: *address,
                        holder: *holder,
                        binds: false,
                    };
                    (name.clone(), unmet)
                })
            })
            .chain(same)
            .chain(self.forgetful.iter().filter_map(|name| {
                let unmet = self.by_port.get(name)?.forgets()?;
                Some((name.clone(), unmet))
            }))
            .collect()
    }

    /// Changes whenever the result of [`Self::lost`] or [`Self::unmet`] may have changed.
    pub const fn revision(&self) -> u64 {
        self.claims.revision() + self.revision.get()
    }

    /// Number of Services with a port that has a Local policy and no endpoint on this node, by
    /// policy: internal, external.
    pub fn no_local_endpoints(&self) -> (usize, usize) {
        (
            self.no_local_internal.services(),
            self.no_local_external.services(),
        )
    }
}
