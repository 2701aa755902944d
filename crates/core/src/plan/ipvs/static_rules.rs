// SPDX-License-Identifier: Apache-2.0
//! PURE: the static iptables rules of IPVS mode. They match sets only, so a change of a Service
//! never affects them. Chains, comments and order are kube-proxy's (facts: its ipvs mode), spelled
//! as `iptables-save` prints them.
//!
//! Differences from kube-proxy:
//! - node ports are matched by address and port, so that a Service's port on another address is not
//!   mistaken for one;
//! - the port of a health check is open at the load-balancer addresses of its own Service only;
//! - rules for empty sets exist from the start, because rules are written once;
//! - no rule asks for bridge ports (`physdev`): that match loads `br_netfilter`, and from then on
//!   the packets of all bridges of the machine meet iptables, those of virtual machines too. It
//!   makes no difference to ours, since a packet to a Service is accepted by the next rule;
//! - kube-proxy has one rule per load-balancer address in `KUBE-IPVS-OUT-FILTER` of `filter` to
//!   drop the node's own packets that no source range admits. One rule in `mangle` OUTPUT, where
//!   such a packet still has the address of the virtual server, does it for all of them.

use crate::model::IpFamily;
use crate::model::node::LocalDetector;
use crate::plan::context::{Context, IpvsRules};
use crate::plan::ipvs::mark::MarkRange;
use crate::plan::ipvs::set::SetId;
use crate::plan::ipvs::{nft_rules, pass};
use crate::plan::order;
use crate::plan::ruleset::{
    ChainName, Edit, InvalidChainName, Rule, Ruleset, Table, quote, unread_jumps,
};

/// Our chains, and the jumps to them from built-in chains in the order in which each is inserted at
/// the top.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FixedRules {
    pub chains: Ruleset,
    pub jumps: Vec<(Table, ChainName, Rule)>,
}

/// Chain, jump and rule texts of a family.
struct Texts<'a> {
    context: &'a Context,
}

impl Texts<'_> {
    fn set(&self, set: SetId, directions: &str) -> String {
        format!(
            "-m set --match-set {} {directions}",
            set.name(self.context.family)
        )
    }

    /// Comment and match, in the form that most rules have.
    fn noted(&self, set: SetId, directions: &str) -> String {
        format!(
            "-m comment --comment {} {}",
            quote(set.comment()),
            self.set(set, directions)
        )
    }

    fn mark(&self) -> String {
        format!("{0:#x}/{0:#x}", self.context.masquerade_mark)
    }

    /// `KUBE-SERVICES`: what to masquerade. Of packets to a cluster IP only those that are not from
    /// a local pod are masqueraded; if local traffic cannot be detected, only those that the node
    /// itself sends from the cluster IP.
    fn cluster_ip_masquerade(&self) -> String {
        let set = SetId::ClusterIp;
        let to_mark = "-j KUBE-MARK-MASQ";
        if self.context.masquerade_all {
            return format!("{} {to_mark}", self.noted(set, "dst,dst"));
        }
        let to_it = self.noted(set, "dst,dst");
        match &self.context.local_detector {
            LocalDetector::Cidr(cidr) => format!("! -s {cidr} {to_it} {to_mark}"),
            LocalDetector::BridgeInterface(name) => format!("! -i {name} {to_it} {to_mark}"),
            LocalDetector::InterfacePrefix(prefix) => format!("! -i {prefix}+ {to_it} {to_mark}"),
            LocalDetector::None => format!("{} {to_mark}", self.noted(set, "src,dst")),
        }
    }

    fn services(&self) -> Vec<String> {
        let loopback = match self.context.family {
            IpFamily::V4 => "127.0.0.0/8",
            IpFamily::V6 => "::1/128",
        };
        let from_outside = "-m addrtype ! --src-type LOCAL -j ACCEPT";
        let to_this_node = "-m addrtype --dst-type LOCAL -j ACCEPT";
        let external = self.noted(SetId::ExternalIp, "dst,dst");
        let external_local = self.noted(SetId::ExternalIpLocal, "dst,dst");
        vec![
            // Other rules of mangle OUTPUT may come after ours.
            format!("-m addrtype --src-type LOCAL {}", self.marks_alone()),
            format!("-s {loopback} -j RETURN"),
            format!(
                "{} -j KUBE-LOAD-BALANCER",
                self.noted(SetId::LoadBalancer, "dst,dst")
            ),
            self.cluster_ip_masquerade(),
            format!("{external} -j KUBE-MARK-MASQ"),
            format!("{external} {from_outside}"),
            format!("{external} {to_this_node}"),
            format!("{external_local} {from_outside}"),
            format!("{external_local} {to_this_node}"),
            "-m addrtype --dst-type LOCAL -j KUBE-NODE-PORT".to_owned(),
            format!("{} -j ACCEPT", self.set(SetId::ClusterIp, "dst,dst")),
            format!("{} -j ACCEPT", self.set(SetId::LoadBalancer, "dst,dst")),
        ]
    }

    fn node_port(&self) -> Vec<String> {
        let local = self.noted(SetId::NodePortLocal, "dst,dst");
        let all = self.noted(SetId::NodePort, "dst,dst");
        vec![
            format!("{local} -j RETURN"),
            format!("{all} -j KUBE-MARK-MASQ"),
        ]
    }

    fn postrouting(&self) -> Vec<String> {
        let mark = self.mark();
        vec![
            format!(
                "{} -j MASQUERADE",
                self.noted(SetId::LoopBack, "dst,dst,src")
            ),
            // The node's own packets to endpoints on this node: `KUBE-IPVS-UNMARK` sees the others.
            format!(
                "-m mark {} -m addrtype --src-type LOCAL -j MASQUERADE --random-fully",
                self.exact_mark()
            ),
            format!("-m mark ! --mark {mark} -j RETURN"),
            // Cleared again, so that a packet that passes here twice is not masqueraded twice.
            format!(
                "-j MARK --set-xmark {:#x}/0x0",
                self.context.masquerade_mark
            ),
            format!(
                "-m comment --comment {} -j MASQUERADE --random-fully",
                quote("kubernetes service traffic requiring SNAT")
            ),
        ]
    }

    fn forward(&self) -> Vec<String> {
        vec![
            format!(
                "-m comment --comment {} -m mark --mark {} -j ACCEPT",
                quote("kubernetes forwarding rules"),
                self.mark()
            ),
            format!(
                "-m comment --comment {} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
                quote("kubernetes forwarding conntrack rule")
            ),
        ]
    }

    fn source_ranges(&self) -> Vec<String> {
        vec![
            format!(
                "{} -j RETURN",
                self.noted(SetId::LoadBalancerSourceCidr, "dst,dst,src")
            ),
            format!(
                "{} -j RETURN",
                self.noted(SetId::LoadBalancerSourceIp, "dst,dst,src")
            ),
            "-j DROP".to_owned(),
        ]
    }

    /// Ports of the host must not be reachable through an address of a Service.
    fn ipvs_filter(&self) -> Vec<String> {
        vec![
            self.no_local_endpoints(),
            format!("{} -j RETURN", self.set(SetId::LoadBalancer, "dst,dst")),
            format!("{} -j RETURN", self.set(SetId::ClusterIp, "dst,dst")),
            format!("{} -j RETURN", self.set(SetId::ExternalIp, "dst,dst")),
            format!("{} -j RETURN", self.set(SetId::ExternalIpLocal, "dst,dst")),
            // Balancers that pass packets through probe at the address that they balance.
            format!("{} -j RETURN", self.noted(SetId::HealthCheckVip, "dst,dst")),
            refusal(self.context.family).as_str().to_owned(),
        ]
    }

    fn marks(&self) -> MarkRange {
        MarkRange::beside(self.context.masquerade_mark)
    }

    /// Matches a mark of [`Self::policy_marks`], whatever bits others have set.
    fn policy_mark(&self) -> String {
        format!("--mark {0:#x}/{0:#x}", self.marks().marker())
    }

    /// Matches such a mark without any bit of others.
    fn exact_mark(&self) -> String {
        format!(
            "--mark {:#x}/{:#x}",
            self.marks().value(),
            self.marks().mask()
        )
    }

    /// Takes the bits of others out of the mark.
    fn clear_foreign(&self) -> String {
        format!("-j MARK --set-xmark 0x0/{:#x}", self.marks().foreign())
    }

    /// Takes the bits of others out of the marks of packets that have one of ours, where nothing
    /// comes between this and IPVS.
    fn marks_alone(&self) -> String {
        format!(
            "-m mark {} {} {}",
            self.policy_mark(),
            self.noted(SetId::LocalPolicyMark, "dst,dst"),
            self.clear_foreign()
        )
    }

    /// Bits of others where our mark is about to be set wait in the connection's mark, beside the
    /// marker that shows whose it is.
    fn save_slot(&self) -> Vec<String> {
        let marker = self.marks().marker();
        vec![
            save_mark(self.marks().slots(), u32::MAX),
            format!("-j CONNMARK --set-xmark {marker:#x}/{marker:#x}"),
        ]
    }

    /// Table `security`, after all filters and right before IPVS, which compares the whole mark.
    /// Bits that others have set until here go to the connection's mark, if that is not in use.
    fn before_ipvs(&self) -> Vec<String> {
        let foreign = self.marks().foreign();
        vec![
            format!("-m mark ! {} -j RETURN", self.policy_mark()),
            format!("-m mark {} -j RETURN", self.exact_mark()),
            // After `KUBE-IPVS-SAVE`.
            format!(
                "-m connmark {} {}",
                self.exact_mark(),
                save_mark(foreign, foreign)
            ),
            format!(
                "-m connmark --mark 0x0 {}",
                save_mark(foreign | self.marks().marker(), u32::MAX)
            ),
            self.clear_foreign(),
        ]
    }

    /// The packet comes from IPVS, translated: nobody behind it shall see our mark, but the bits
    /// that it had before.
    fn after_ipvs(&self) -> Vec<String> {
        let is_saved = format!("-m connmark {}", self.policy_mark());
        let others = !self.marks().marker();
        vec![
            format!("-j MARK --set-xmark 0x0/{:#x}", !self.marks().foreign()),
            format!(
                "{is_saved} -j CONNMARK --restore-mark --nfmask {others:#x} --ctmask {others:#x}"
            ),
            format!("{is_saved} -j CONNMARK --set-xmark 0x0/0xffffffff"),
            // Until now there was no room for the bit.
            format!(
                "-m conntrack --ctstate NEW -m addrtype --src-type LOCAL -j MARK --set-xmark {}",
                self.mark()
            ),
        ]
    }

    /// Pods and the node reach all endpoints of a Service whose external policy is Local. Their
    /// packets use the virtual server of the mark, which the kernel tries before that of the
    /// address.
    fn policy_marks(&self) -> Vec<String> {
        let set = SetId::LocalPolicyMark;
        let name = set.name(self.context.family);
        let mark = format!(
            "{} -j SET --map-set {name} dst,dst --map-mark",
            self.noted(set, "dst,dst")
        );
        let from_pod = match &self.context.local_detector {
            LocalDetector::Cidr(cidr) => Some(format!("-s {cidr} ")),
            LocalDetector::BridgeInterface(name) => Some(format!("-i {name} ")),
            LocalDetector::InterfacePrefix(prefix) => Some(format!("-i {prefix}+ ")),
            LocalDetector::None => None,
        };
        let mut rules = Vec::new();
        if self.context.has_security_table
            && let Some(from) = &from_pod
        {
            rules.push(format!(
                "{from}-m mark ! --mark 0x0/{:#x} -m connmark --mark 0x0 {} -j KUBE-IPVS-SAVE",
                self.marks().slots(),
                self.noted(set, "dst,dst")
            ));
        }
        rules.extend(
            from_pod
                .into_iter()
                .chain(["-m addrtype --src-type LOCAL ".to_owned()])
                .map(|from| format!("{from}{mark}")),
        );
        if !self.context.has_security_table {
            rules.push(self.marks_alone());
        }
        let to_pass = format!(
            "-m conntrack --ctdir REPLY -m comment --comment {} -j KUBE-IPVS-PASS",
            quote(pass::COMMENT)
        );
        rules.push(format!(
            "-p tcp -m tcp --tcp-flags SYN,ACK SYN,ACK {to_pass}"
        ));
        rules.push(format!("-p udp {to_pass}"));
        rules
    }

    /// The mark of [`pass`], whatever others have set: nobody looks behind IPVS.
    fn pass(&self) -> Vec<String> {
        let mark = self.marks().pass();
        let rule = |set| {
            let to_it = self.noted(set, "dst,dst");
            format!("{to_it} -j MARK --set-xmark {mark:#x}/0xffffffff")
        };
        pass::SETS.map(rule).to_vec()
    }

    /// There are endpoints, but the policy admits none. Packets with the mark are not affected.
    fn no_local_endpoints(&self) -> String {
        format!(
            "-m conntrack --ctstate NEW -m mark ! {} {} -j DROP",
            self.policy_mark(),
            self.noted(SetId::NoLocalEndpoints, "dst,dst")
        )
    }

    fn firewall(&self, new_only: bool) -> Vec<String> {
        let state = if new_only {
            "-m conntrack --ctstate NEW "
        } else {
            ""
        };
        let set = self.noted(SetId::LoadBalancerFw, "dst,dst");
        vec![format!("{state}{set} -j KUBE-SOURCE-RANGES-FIREWALL")]
    }

    fn chains(&self) -> Vec<(Table, &'static str, Vec<String>)> {
        let mark = self.mark();
        let mut out = self.firewall(true);
        if self.context.has_security_table {
            out.insert(
                0,
                format!("-m mark {} -j KUBE-IPVS-UNMARK", self.exact_mark()),
            );
        }
        out.push("-j KUBE-IPVS-MARK".to_owned());
        if self.context.has_security_table {
            out.push(self.marks_alone());
        }
        out.push(self.no_local_endpoints());
        let mut chains = Vec::new();
        if self.context.has_security_table {
            chains.push((Table::Mangle, "KUBE-IPVS-SAVE", self.save_slot()));
            chains.push((Table::Mangle, "KUBE-IPVS-UNMARK", self.after_ipvs()));
            chains.push((Table::Security, "KUBE-IPVS-MARK", self.before_ipvs()));
        }
        chains.extend([
            // The first packet only: adding a range does not affect open connections.
            (Table::Mangle, "KUBE-IPVS-OUT-FILTER", out),
            (Table::Mangle, "KUBE-IPVS-PASS", self.pass()),
            (Table::Mangle, "KUBE-IPVS-MARK", self.policy_marks()),
            (
                Table::Mangle,
                "KUBE-SOURCE-RANGES-FIREWALL",
                self.source_ranges(),
            ),
            (
                Table::Nat,
                "KUBE-MARK-MASQ",
                vec![format!("-j MARK --set-xmark {mark}")],
            ),
            (Table::Nat, "KUBE-SERVICES", self.services()),
            (
                Table::Nat,
                "KUBE-LOAD-BALANCER",
                vec![
                    format!(
                        "{} -j RETURN",
                        self.noted(SetId::LoadBalancerLocal, "dst,dst")
                    ),
                    "-j KUBE-MARK-MASQ".to_owned(),
                ],
            ),
            (Table::Nat, "KUBE-NODE-PORT", self.node_port()),
            (Table::Nat, "KUBE-POSTROUTING", self.postrouting()),
            (Table::Filter, "KUBE-FORWARD", self.forward()),
            (
                Table::Filter,
                "KUBE-NODE-PORT",
                vec![format!(
                    "{} -j ACCEPT",
                    self.noted(SetId::HealthCheckNodePort, "dst")
                )],
            ),
            (Table::Filter, "KUBE-PROXY-FIREWALL", self.firewall(true)),
            (
                Table::Filter,
                "KUBE-SOURCE-RANGES-FIREWALL",
                self.source_ranges(),
            ),
            (Table::Filter, "KUBE-IPVS-FILTER", self.ipvs_filter()),
            (Table::Filter, "KUBE-IPVS-OUT-FILTER", Vec::new()),
        ]);
        chains
    }
}

/// Rejects packets to an address on our link that are for no Service.
pub fn refusal(family: IpFamily) -> Rule {
    let reject = match family {
        IpFamily::V4 => "icmp-port-unreachable",
        IpFamily::V6 => "icmp6-port-unreachable",
    };
    let set = SetId::IpvsIps.name(family);
    Rule::new(format!(
        "-m conntrack --ctstate NEW -m set --match-set {set} dst -j REJECT --reject-with {reject}"
    ))
}

/// Replaces the bits `of_connection` of the connection's mark by the bits `of_packet` of the
/// packet's.
fn save_mark(of_packet: u32, of_connection: u32) -> String {
    format!("-j CONNMARK --save-mark --nfmask {of_packet:#x} --ctmask {of_connection:#x}")
}

/// Table, built-in chain, comment, our chain.
const JUMPS: [(Table, &str, &str, &str); 12] = [
    (
        Table::Nat,
        "OUTPUT",
        "kubernetes service portals",
        "KUBE-SERVICES",
    ),
    (
        Table::Nat,
        "PREROUTING",
        "kubernetes service portals",
        "KUBE-SERVICES",
    ),
    (
        Table::Nat,
        "POSTROUTING",
        "kubernetes postrouting rules",
        "KUBE-POSTROUTING",
    ),
    (
        Table::Filter,
        "FORWARD",
        "kubernetes forwarding rules",
        "KUBE-FORWARD",
    ),
    (
        Table::Filter,
        "INPUT",
        "kubernetes health check rules",
        "KUBE-NODE-PORT",
    ),
    (
        Table::Filter,
        "INPUT",
        "kube-proxy firewall rules",
        "KUBE-PROXY-FIREWALL",
    ),
    (
        Table::Filter,
        "FORWARD",
        "kube-proxy firewall rules",
        "KUBE-PROXY-FIREWALL",
    ),
    (
        Table::Filter,
        "INPUT",
        "kubernetes ipvs access filter",
        "KUBE-IPVS-FILTER",
    ),
    (
        Table::Filter,
        "OUTPUT",
        "kubernetes ipvs access filter",
        "KUBE-IPVS-OUT-FILTER",
    ),
    (
        Table::Mangle,
        "OUTPUT",
        "kubernetes ipvs access filter",
        "KUBE-IPVS-OUT-FILTER",
    ),
    // The last chain before IPVS.
    (
        Table::Security,
        "INPUT",
        "kubernetes external traffic policy of pods",
        "KUBE-IPVS-MARK",
    ),
    // After routing, so that no foreign policy routing sees the mark.
    (
        Table::Mangle,
        "INPUT",
        "kubernetes external traffic policy of pods",
        "KUBE-IPVS-MARK",
    ),
];

/// The rules for a context, as it says they are held. The names are constants, so this fails only
/// if one of them is not a valid chain name, which a test excludes.
pub fn fixed_rules(context: &Context) -> Result<FixedRules, InvalidChainName> {
    if context.ipvs_rules == IpvsRules::Nftables {
        return nft_rules::fixed_rules(context);
    }
    let mut chains = Ruleset::new();
    for (table, chain, rules) in (Texts { context }).chains() {
        chains.set(
            table,
            ChainName::new(chain)?,
            rules.into_iter().map(Rule::new).collect(),
        );
    }
    let mut jumps = jumps();
    jumps.retain(|(table, ..)| *table != Table::Security || context.has_security_table);
    Ok(FixedRules { chains, jumps })
}

/// The jumps from built-in chains, in the order in which each is inserted at the top.
pub fn jumps() -> Vec<(Table, ChainName, Rule)> {
    JUMPS
        .into_iter()
        .map(|(table, chain, comment, target)| {
            let rule = Rule::new(format!(
                "-m comment --comment {} -j {target}",
                quote(comment)
            ));
            (table, ChainName::composed(chain.to_owned()), rule)
        })
        .collect()
}

/// The edits that turn the present rules into the wanted ones. A jump that exists anywhere in its
/// chain is left in place, as an administrator may have put rules before it; except where others
/// translate packets to local addresses, which those of Services are.
pub fn edits(wanted: &FixedRules, present: &Ruleset) -> Vec<Edit> {
    let mut edits: Vec<Edit> = wanted
        .chains
        .chains
        .iter()
        .filter(|((table, chain), rules)| present.rules(*table, chain) != Some(rules.as_slice()))
        .map(|((table, chain), rules)| Edit::Replace {
            table: *table,
            chain: chain.clone(),
            rules: rules.clone(),
        })
        .collect();
    // Nothing of others belongs there.
    let extra = present.table(Table::Own).map(|(chain, _)| chain.clone());
    let extra = extra.filter(|chain| wanted.chains.rules(Table::Own, chain).is_none());
    edits.extend(extra.map(|chain| Edit::DeleteChain {
        table: Table::Own,
        chain,
    }));
    for (table, chain, rule) in &wanted.jumps {
        let found = present.rules(*table, chain);
        if !found.is_some_and(|rules| rules.contains(rule)) {
            let jump = Edit::Prepend {
                table: *table,
                chain: chain.clone(),
                rule: rule.clone(),
            };
            let old = unread_jumps(found, &jump);
            edits.push(jump);
            edits.extend(old);
        }
    }
    for (table, chain, rule) in &wanted.jumps {
        let takes: fn(Table, &Rule) -> bool = match (table, chain.as_str()) {
            (Table::Nat, "PREROUTING" | "OUTPUT") => order::may_translate,
            // It knows packets behind IPVS by marks that nobody has changed yet.
            (Table::Mangle, "OUTPUT") => order::may_mark,
            _ => continue,
        };
        let present = present.rules(*table, chain).unwrap_or_default();
        edits.extend(order::to_the_top((*table, chain, rule), present, takes));
    }
    edits
}

#[cfg(test)]
mod tests;
