// SPDX-License-Identifier: Apache-2.0
//! PURE: the chains that choose among the endpoints of a Service port.

use std::net::SocketAddr;

use super::{Chains, Texts};
use crate::model::IpFamily;
use crate::plan::iptables::affinity::{self, Way};
use crate::plan::iptables::syntax::{self, comment};
use crate::plan::ruleset::{ChainName, Rule};

/// Maximum number of endpoints that a chain lists, and of parts that longer lists are split into. A
/// new connection traverses 8 rules of a chain on average.
const SPREAD: usize = 16;

/// Levels of split lists: as many as fit into the name of a chain.
const MAX_SPREAD_DEPTH: usize = 2;

/// Writes `KUBE-SVC-*` or `KUBE-SVL-*` with all chains that they jump to.
pub(super) struct EndpointWriter<'a> {
    pub(super) texts: &'a Texts<'a>,
    /// The name of the chain.
    pub(super) base: String,
    pub(super) with_comments: bool,
}

impl EndpointWriter<'_> {
    pub(super) fn write(
        &self,
        endpoints: &[SocketAddr],
        mut rules: Vec<Rule>,
        chains: &mut Chains,
    ) {
        if let Some((timeout, way)) = self.texts.port_rules.affinity() {
            // A client with affinity returns to its endpoint; all others are spread.
            for endpoint in endpoints {
                let chain = self.endpoint_chain(*endpoint);
                let (known, remember) = self.remembering(*endpoint, &chain, timeout, way);
                let known = format!("{}{known} -j {chain}", self.note(*endpoint));
                rules.push(Rule::new(known));
                chains.insert(chain, remember);
            }
        }
        self.spread(endpoints, "", rules, chains);
    }

    /// The match of the clients of an endpoint, and the rules of its chain, which remember another.
    fn remembering(
        &self,
        endpoint: SocketAddr,
        chain: &ChainName,
        timeout: u32,
        way: Way,
    ) -> (String, Vec<Rule>) {
        if way == Way::Sets {
            let set = affinity::name_of(chain, self.texts.context.family);
            // A client that a full set does not take is spread again.
            let add = Rule::new(format!("-j SET --add-set {set} src --exist"));
            let known = format!("-m set --match-set {set} src");
            return (known, vec![add, self.translation(endpoint, "")]);
        }
        let clients = self.clients(chain);
        let set = format!("-m recent --set {clients} ");
        let known = format!("-m recent --rcheck --seconds {timeout} --reap {clients}");
        (known, vec![self.translation(endpoint, &set)])
    }

    /// Every endpoint is equally likely.
    fn spread(
        &self,
        endpoints: &[SocketAddr],
        path: &str,
        mut rules: Vec<Rule>,
        chains: &mut Chains,
    ) {
        let all = endpoints.len();
        if all <= SPREAD || path.len() >= MAX_SPREAD_DEPTH {
            rules.extend(
                endpoints
                    .iter()
                    .enumerate()
                    .map(|(index, endpoint)| self.choice(*endpoint, all - index)),
            );
        } else {
            let mut rest = endpoints;
            for part in 0..SPREAD {
                // The first ones are longer by one if the division leaves a remainder.
                let len = all / SPREAD + usize::from(part < all % SPREAD);
                let (now, later) = rest.split_at(len.min(rest.len()));
                let path = format!("{path}{part:X}");
                rules.push(Rule::new(format!(
                    "{}-j {}-{path}",
                    syntax::chance(now.len(), rest.len()),
                    self.base
                )));
                self.spread(now, &path, Vec::new(), chains);
                rest = later;
            }
        }
        let name = if path.is_empty() {
            self.base.clone()
        } else {
            format!("{}-{path}", self.base)
        };
        chains.insert(ChainName::composed(name), rules);
    }

    /// The rule that picks one of the remaining endpoints at random.
    fn choice(&self, endpoint: SocketAddr, left: usize) -> Rule {
        let chance = syntax::chance(1, left);
        if self.texts.port_rules.affinity().is_some() {
            let chain = self.endpoint_chain(endpoint);
            return Rule::new(format!("{}{chance}-j {chain}", self.note(endpoint)));
        }
        self.translation(endpoint, &chance)
    }

    fn translation(&self, endpoint: SocketAddr, matches: &str) -> Rule {
        Rule::new(format!(
            "-p {} {}{matches}-j DNAT --to-destination {endpoint}",
            self.texts.port_rules.protocol().lowercase(),
            self.note(endpoint),
        ))
    }

    fn endpoint_chain(&self, endpoint: SocketAddr) -> ChainName {
        self.texts.endpoint_chain(endpoint)
    }

    /// `xt_recent`'s list of an endpoint's clients.
    fn clients(&self, chain: &ChainName) -> String {
        let mask = match self.texts.context.family {
            IpFamily::V4 => "255.255.255.255",
            IpFamily::V6 => "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        };
        format!("--name {chain} --mask {mask} --rsource")
    }

    fn note(&self, endpoint: SocketAddr) -> String {
        if self.with_comments {
            let note = comment(&format!("{} -> {endpoint}", self.texts.name));
            format!("{note} ")
        } else {
            String::new()
        }
    }
}
