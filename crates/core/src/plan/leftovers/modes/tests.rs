// SPDX-License-Identifier: Apache-2.0
use super::*;
use crate::model::IpFamily;
use crate::plan::ruleset::ChainName;
use crate::plan::testing::context;
use crate::plan::{iptables, ipvs};

fn modes(table: Table, chain: &str) -> Option<Modes> {
    Modes::of(&(table, ChainName::new(chain).unwrap()))
}

#[test]
fn every_chain_that_we_write_is_known() {
    for family in IpFamily::ALL {
        let context = context(family);
        let ipvs = ipvs::static_rules::fixed_rules(&context).unwrap();
        for id in ipvs.chains.chains.keys() {
            assert!(
                matches!(Modes::of(id), Some(Modes::Ipvs | Modes::Both)),
                "{id:?}"
            );
        }
        for (table, chain, _) in iptables::static_rules::chains(&context) {
            let modes = Modes::of(&(table, chain.clone()));
            assert!(
                matches!(modes, Some(Modes::Iptables | Modes::Both)),
                "{chain}"
            );
        }
        for tree in TreeId::ALL {
            let root = modes(tree.table(), tree.root());
            assert!(
                matches!(root, Some(Modes::Iptables | Modes::Both)),
                "{tree:?}"
            );
            let branch = modes(tree.table(), &format!("{}10.96.0.0-16", tree.branch()));
            assert_eq!(branch, Some(Modes::Iptables), "{tree:?}");
        }
    }
}

#[test]
fn chains_of_kube_proxy_are_known() {
    for (table, chain) in [
        (Table::Nat, "KUBE-SEP-7E5UZQT3HT6ASWD5"),
        (Table::Nat, "KUBE-FW-CFP36WQJPWRYV3QI"),
        (Table::Nat, "KUBE-NODEPORTS"),
        (Table::Filter, "KUBE-NODEPORTS"),
        (Table::Filter, "KUBE-EXTERNAL-SERVICES"),
        (Table::Mangle, "KUBE-PROXY-CANARY"),
        (Table::Nat, "KUBE-PROXY-CANARY"),
        (Table::Filter, "KUBE-PROXY-CANARY"),
    ] {
        assert_eq!(modes(table, chain), Some(Modes::Iptables), "{chain}");
    }
}

#[test]
fn chains_of_others_are_not() {
    for (table, chain) in [
        (Table::Filter, "KUBE-FIREWALL"),
        (Table::Mangle, "KUBE-KUBELET-CANARY"),
        (Table::Mangle, "KUBE-IPTABLES-HINT"),
        (Table::Nat, "KUBE-MARK-DROP"),
        (Table::Nat, "KUBE-MINE"),
        // The right name in the wrong table.
        (Table::Mangle, "KUBE-SERVICES"),
        (Table::Filter, "KUBE-SVC-CFP36WQJPWRYV3QI"),
    ] {
        assert_eq!(modes(table, chain), None, "{chain}");
    }
}
