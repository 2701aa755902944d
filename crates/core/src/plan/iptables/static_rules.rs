// SPDX-License-Identifier: Apache-2.0
//! PURE: the rules of iptables mode that do not depend on Services: static chains, the rules after
//! the trees, and the jumps from shared chains. Comments and order are kube-proxy's.
//!
//! One jump is not kube-proxy's: `OUTPUT` of `filter` also jumps to `KUBE-EXTERNAL-SERVICES`, so
//! that the node itself gets an immediate error, not a timeout, if an external address has no
//! endpoints.

use crate::model::IpFamily;
use crate::plan::context::{Context, Hairpin};
use crate::plan::iptables::syntax::{self, comment};
use crate::plan::iptables::tree::{Key, TreeId};
use crate::plan::ruleset::{ChainName, Edit, Rule, Table};

/// kubelet has rules in it as well.
pub const SHARED_CHAIN: &str = "KUBE-FIREWALL";

/// The only kernel setting that this mode writes. It lets packets from and to 127.0.0.0/8 leave the
/// node; `KUBE-FIREWALL` then keeps other hosts from abusing that.
pub const ROUTE_LOCALNET: &str = "net/ipv4/conf/all/route_localnet";

/// kube-proxy's names of packet counters: packets that conntrack considers invalid, and those that
/// node ports accept on loopback addresses.
pub const INVALID_DROPPED: &str = "ct_state_invalid_dropped_pkts";
pub const LOCALHOST_ACCEPTED: &str = "localhost_nps_accepted_pkts";

/// The settings for a context: paths under `/proc/sys` and wanted values.
pub fn sysctls(context: &Context) -> Vec<(&'static str, &'static str)> {
    let wanted = context.iptables.localhost_node_ports && context.family == IpFamily::V4;
    wanted
        .then_some((ROUTE_LOCALNET, "1"))
        .into_iter()
        .collect()
}

/// One of our chains with its rules.
pub type Chain = (Table, ChainName, Vec<Rule>);

/// The chains without a tree.
pub fn chains(context: &Context) -> Vec<Chain> {
    let mark = syntax::mark(context.masquerade_mark);
    let chain = |table, name: &str, rules: Vec<String>| {
        let rules = rules.into_iter().map(Rule::new).collect();
        (table, ChainName::composed(name.to_owned()), rules)
    };
    let mut forward = Vec::new();
    if context.iptables.drop_invalid {
        // A reply that conntrack does not know would reach the client with the endpoint's address,
        // and the client would reset the connection.
        let count = if context.iptables.counts_packets {
            syntax::counted(INVALID_DROPPED)
        } else {
            String::new()
        };
        forward.push(format!("-m conntrack --ctstate INVALID {count}-j DROP"));
    }
    forward.push(format!(
        "{} -m mark --mark {mark} -j ACCEPT",
        comment("kubernetes forwarding rules")
    ));
    forward.push(format!(
        "{} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        comment("kubernetes forwarding conntrack rule")
    ));
    let postrouting = vec![
        "-m conntrack --ctstate DNAT -j KUBE-HAIRPIN".to_owned(),
        format!("-m mark ! --mark {mark} -j RETURN"),
        // Cleared again, so that a packet that passes here twice is not masqueraded twice.
        format!("-j MARK --set-xmark {:#x}/0x0", context.masquerade_mark),
        format!(
            "{} -j MASQUERADE --random-fully",
            comment("kubernetes service traffic requiring SNAT")
        ),
    ];
    vec![
        chain(
            Table::Nat,
            "KUBE-MARK-MASQ",
            vec![format!("-j MARK --set-xmark {mark}")],
        ),
        chain(Table::Nat, "KUBE-POSTROUTING", postrouting),
        chain(Table::Filter, "KUBE-FORWARD", forward),
    ]
}

/// The comment of the rule that masquerades a packet whose source is its destination.
pub const REACHES_ITSELF: &str = "masquerade a pod that reaches itself";

/// The rules after the entries of a tree's root.
pub fn behind(tree: TreeId, context: &Context) -> Vec<Rule> {
    match tree {
        TreeId::Services => node_port_jumps(
            context,
            "kubernetes service nodeports; NOTE: this must be the last rule in this chain",
            TreeId::NodePorts,
            TreeId::NodeAddresses,
        ),
        TreeId::RefusedExternal => node_port_jumps(
            context,
            "kubernetes service nodeports without endpoints",
            TreeId::RefusedNodePorts,
            TreeId::RefusedNodeAddresses,
        ),
        TreeId::Hairpin if context.iptables.hairpin == Hairpin::OneRule => {
            vec![Rule::new(format!(
                "{} {} -j KUBE-MARK-MASQ",
                syntax::reaches_itself(context.family),
                comment(REACHES_ITSELF),
            ))]
        }
        _ => Vec::new(),
    }
}

/// The jumps for packets to addresses that accept node ports. On loopback only the node itself is
/// served: `route_localnet` lets a neighbour's packet to 127.0.0.1 in, and packets translated here
/// bypass `KUBE-FIREWALL`.
fn node_port_jumps(
    context: &Context,
    note: &str,
    node_ports: TreeId,
    addresses: TreeId,
) -> Vec<Rule> {
    let (note, target) = (comment(note), node_ports.root());
    let localhost = context.iptables.localhost_node_ports && context.family == IpFamily::V4;
    let local = "-m addrtype --dst-type LOCAL";
    let rules = match (context.iptables.node_ports_everywhere, context.family) {
        (true, IpFamily::V4) if localhost => vec![
            format!("-d 127.0.0.0/8 {note} -m addrtype ! --src-type LOCAL -j RETURN"),
            format!("{note} {local} -j {target}"),
        ],
        (true, IpFamily::V4) => vec![format!("! -d 127.0.0.0/8 {note} {local} -j {target}")],
        (true, IpFamily::V6) => vec![format!("! -d ::1/128 {note} {local} -j {target}")],
        (false, _) => localhost
            .then(|| format!("-d 127.0.0.0/8 {note} -m addrtype --src-type LOCAL -j {target}"))
            .into_iter()
            .chain([format!("{note} -j {}", addresses.root())])
            .collect(),
    };
    rules.into_iter().map(Rule::new).collect()
}

/// The entries of the trees of node addresses: none if node ports are accepted on all addresses.
pub fn node_addresses(context: &Context) -> Vec<(TreeId, Key, Rule)> {
    if context.iptables.node_ports_everywhere {
        return Vec::new();
    }
    let leads = [
        (TreeId::NodeAddresses, TreeId::NodePorts),
        (TreeId::RefusedNodeAddresses, TreeId::RefusedNodePorts),
    ];
    let addresses = &context.node_port_addresses;
    leads
        .into_iter()
        .flat_map(|(tree, to)| {
            addresses.iter().map(move |address| {
                let rule = format!("-d {} -j {}", syntax::host(*address), to.root());
                (tree, Key::new(Some(*address), None), Rule::new(rule))
            })
        })
        .collect()
}

const NEW: &str = "-m conntrack --ctstate NEW ";

/// Table, chain, match, comment, our chain. Each is inserted at the top, so the last one comes
/// first.
const JUMPS: [(Table, &str, &str, &str, &str); 13] = {
    use Table::{Filter, Nat};
    const EXTERNAL: (&str, &str) = (
        "kubernetes externally-visible service portals",
        "KUBE-EXTERNAL-SERVICES",
    );
    const PORTALS: (&str, &str) = ("kubernetes service portals", "KUBE-SERVICES");
    const FIREWALL: (&str, &str) = ("kubernetes load balancer firewall", "KUBE-PROXY-FIREWALL");
    [
        (Filter, "INPUT", NEW, EXTERNAL.0, EXTERNAL.1),
        (Filter, "FORWARD", NEW, EXTERNAL.0, EXTERNAL.1),
        (Filter, "OUTPUT", NEW, EXTERNAL.0, EXTERNAL.1),
        (
            Filter,
            "INPUT",
            "",
            "kubernetes health check service ports",
            "KUBE-NODEPORTS",
        ),
        (Filter, "FORWARD", NEW, PORTALS.0, PORTALS.1),
        (Filter, "OUTPUT", NEW, PORTALS.0, PORTALS.1),
        (
            Filter,
            "FORWARD",
            "",
            "kubernetes forwarding rules",
            "KUBE-FORWARD",
        ),
        (Filter, "INPUT", NEW, FIREWALL.0, FIREWALL.1),
        (Filter, "OUTPUT", NEW, FIREWALL.0, FIREWALL.1),
        (Filter, "FORWARD", NEW, FIREWALL.0, FIREWALL.1),
        (Nat, "OUTPUT", "", PORTALS.0, PORTALS.1),
        (Nat, "PREROUTING", "", PORTALS.0, PORTALS.1),
        (
            Nat,
            "POSTROUTING",
            "",
            "kubernetes postrouting rules",
            "KUBE-POSTROUTING",
        ),
    ]
};

/// The rules in shared chains, each as the edit that creates it, in the order of creation.
pub fn shared(context: &Context) -> Vec<Edit> {
    let mut edits: Vec<Edit> = jumps()
        .into_iter()
        .map(|(table, chain, rule)| Edit::Prepend { table, chain, rule })
        .collect();
    if context.iptables.localhost_node_ports && context.family == IpFamily::V4 {
        edits.push(Edit::Append {
            table: Table::Filter,
            chain: ChainName::composed(SHARED_CHAIN.to_owned()),
            rule: localnet_rule(),
        });
        edits.extend(["INPUT", "OUTPUT"].map(|chain| Edit::Prepend {
            table: Table::Filter,
            chain: ChainName::composed(chain.to_owned()),
            rule: shared_jump(),
        }));
    }
    edits
}

/// The jumps from built-in chains to our chains, in the order in which each is inserted at the top.
pub fn jumps() -> Vec<(Table, ChainName, Rule)> {
    JUMPS
        .into_iter()
        .map(|(table, chain, state, note, target)| {
            let rule = Rule::new(format!("{state}{} -j {target}", comment(note)));
            (table, ChainName::composed(chain.to_owned()), rule)
        })
        .collect()
}

/// Whether a jump leads to a chain that refuses packets and accepts none.
pub fn only_refuses(table: Table, jump: &Rule) -> bool {
    let refusing = [
        "KUBE-SERVICES",
        "KUBE-EXTERNAL-SERVICES",
        "KUBE-PROXY-FIREWALL",
    ];
    table == Table::Filter && jump.target().is_some_and(|to| refusing.contains(&to))
}

/// The rule that keeps other hosts from 127.0.0.0/8 while [`ROUTE_LOCALNET`] is set. kubelet has
/// the same rule.
pub fn localnet_rule() -> Rule {
    Rule::new(format!(
        "! -s 127.0.0.0/8 -d 127.0.0.0/8 {} -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP",
        comment("block incoming localnet connections")
    ))
}

/// The rule of a built-in chain that jumps to [`SHARED_CHAIN`].
pub fn shared_jump() -> Rule {
    Rule::new(format!("-j {SHARED_CHAIN}"))
}
