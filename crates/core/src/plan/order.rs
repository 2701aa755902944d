// SPDX-License-Identifier: Apache-2.0
//! PURE: jumps of ours that rules of others have overtaken in a built-in chain.
//!
//! Normally a jump stays where it is: an administrator may have put rules before it. But some jumps
//! do nothing for packets that a rule before them takes away.

use crate::plan::leftovers::modes::Modes;
use crate::plan::ruleset::{ChainName, Edit, Rule, Table};

/// Targets that take no packet away, or that refuse it, which an administrator may want.
const HARMLESS: [&str; 26] = [
    "AUDIT",
    "CHECKSUM",
    "CLASSIFY",
    "CONNMARK",
    "CONNSECMARK",
    "CT",
    "DROP",
    "DSCP",
    "HMARK",
    "IDLETIMER",
    "KUBE-FIREWALL",
    "LOG",
    "MARK",
    "NFLOG",
    "NOTRACK",
    "REJECT",
    "RETURN",
    "SECMARK",
    "SET",
    "TCPMSS",
    "TEE",
    "TOS",
    "TRACE",
    "TTL",
    "ULOG",
    "HL",
];

/// Whether a rule that is not ours leads packets to a chain of others, or accepts them.
pub fn may_take(table: Table, rule: &Rule) -> bool {
    let Some(target) = rule.target().filter(|target| !HARMLESS.contains(target)) else {
        return false;
    };
    let id = ChainName::new(target).map(|chain| (table, chain));
    !id.is_ok_and(|id| Modes::of(&id).is_some())
}

/// Whether a rule that is not ours may translate packets to addresses of this node: to published
/// ports of pods and containers (`CNI-HOSTPORT-DNAT`, `DOCKER`, `NETAVARK-HOSTPORT-DNAT`). In IPVS
/// mode the addresses of Services are such addresses.
pub fn may_translate(table: Table, rule: &Rule) -> bool {
    may_take(table, rule) && rule.as_str().contains("-m addrtype --dst-type LOCAL ")
}

/// Whether a rule that is not ours may change the mark of packets.
pub fn may_mark(table: Table, rule: &Rule) -> bool {
    match rule.target() {
        Some("MARK" | "CONNMARK") => true,
        Some("ACCEPT") => false,
        _ => may_take(table, rule),
    }
}

/// The edits that put a jump to the top of its chain if a rule before it takes its packets.
pub fn to_the_top(
    (table, chain, jump): (Table, &ChainName, &Rule),
    present: &[Rule],
    takes: fn(Table, &Rule) -> bool,
) -> Vec<Edit> {
    let Some(at) = present.iter().position(|rule| rule == jump) else {
        return Vec::new();
    };
    let mut before = present.iter().take(at);
    if !before.any(|rule| takes(table, rule)) {
        return Vec::new();
    }
    let (chain, rule) = (chain.clone(), jump.clone());
    vec![
        Edit::Delete {
            table,
            chain: chain.clone(),
            rule: rule.clone(),
        },
        Edit::Prepend { table, chain, rule },
    ]
}

/// Whether the edits only move a rule, of which this is one of the two.
pub fn moves(edits: &[Edit], edit: &Edit) -> bool {
    let key = |edit: &Edit| match edit {
        Edit::Delete { table, chain, rule } => Some((true, *table, chain.clone(), rule.clone())),
        Edit::Prepend { table, chain, rule } => Some((false, *table, chain.clone(), rule.clone())),
        _ => None,
    };
    let Some((is_deletion, table, chain, rule)) = key(edit) else {
        return false;
    };
    let other = Some((!is_deletion, table, chain, rule));
    edits.iter().any(|edit| key(edit) == other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_ports_of_others_may_translate() {
        let may = |rule: &str| may_translate(Table::Nat, &Rule::new(rule));
        for rule in [
            "-m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
            "-m addrtype --dst-type LOCAL -j DOCKER",
            "! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER",
            "-m addrtype --dst-type LOCAL -j NETAVARK-HOSTPORT-DNAT",
            "-p tcp -m addrtype --dst-type LOCAL -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:80",
        ] {
            assert!(may(rule), "{rule}");
        }
        for rule in [
            "-j ACCEPT",
            "-m addrtype --dst-type LOCAL -j RETURN",
            "-m addrtype --dst-type LOCAL -j KUBE-NODE-PORT",
            "-m addrtype --src-type LOCAL -j OTHERS",
            "-j cali-PREROUTING",
        ] {
            assert!(!may(rule), "{rule}");
        }
    }

    #[test]
    fn chains_of_others_and_accepts_take_packets() {
        let may = |rule: &str| may_take(Table::Filter, &Rule::new(rule));
        for rule in [
            "-m comment --comment \"CNI firewall plugin rules\" -j CNI-FORWARD",
            "-j KUBE-ROUTER-FORWARD",
            "-m mark --mark 0x20000/0x20000 -j ACCEPT",
            "-j cali-FORWARD",
        ] {
            assert!(may(rule), "{rule}");
        }
        for rule in [
            "-m conntrack --ctstate NEW -j KUBE-SERVICES",
            "-j KUBE-FIREWALL",
            "-i eth1 -j DROP",
            "-m comment --comment counts",
            "-j LOG --log-prefix \"in \"",
        ] {
            assert!(!may(rule), "{rule}");
        }
    }

    #[test]
    fn a_jump_moves_only_before_what_takes_its_packets() {
        let chain = ChainName::new("PREROUTING").unwrap();
        let jump = Rule::new("-j KUBE-SERVICES");
        let taker = Rule::new("-m addrtype --dst-type LOCAL -j DOCKER");
        let other = Rule::new("-i eth1 -j ACCEPT");
        let edits = |present: &[&Rule]| {
            let present: Vec<Rule> = present.iter().copied().cloned().collect();
            to_the_top((Table::Nat, &chain, &jump), &present, may_translate)
        };
        assert_eq!(edits(&[&jump, &taker]), []);
        assert_eq!(edits(&[&other, &jump, &taker]), []);
        assert_eq!(edits(&[&taker]), [], "a missing jump is another matter");
        let moved = edits(&[&other, &taker, &jump]);
        let texts: Vec<String> = moved.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "delete from nat/PREROUTING: -j KUBE-SERVICES",
                "prepend to nat/PREROUTING: -j KUBE-SERVICES",
            ]
        );
        assert!(moved.iter().all(|edit| moves(&moved, edit)));
        assert!(!moves(&moved[1..], &moved[1]));
    }
}
