// SPDX-License-Identifier: Apache-2.0
//! Tables that iptables cannot list: rules are believed as written until somebody touches them.

use super::*;
use crate::plan::mode::RuleBelief as _;
use crate::plan::ruleset::{ChainName, Ruleset};

/// The rules as they can be seen while `nat` cannot be listed, after this chain was touched.
fn seen(whole: &Ruleset, touched: Option<&str>) -> Ruleset {
    let mut seen = whole.clone();
    let mut untouched = seen.chains.keys().filter(|(table, _)| *table == Table::Nat);
    let is_untouched = |chain: &ChainName| Some(chain.as_str()) != touched;
    let names = untouched.by_ref().map(|(_, chain)| chain.clone());
    let names = names.filter(is_untouched).collect();
    seen.unread.insert(Table::Nat, names);
    for ((table, chain), rules) in &mut seen.chains {
        if *table == Table::Nat && table.has_built_in(chain) {
            let jump = |rule: &Rule| Some(Rule::unread_jump(1, rule.target()?));
            *rules = rules.iter().filter_map(jump).collect();
        } else if *table == Table::Nat {
            *rules = vec![Rule::unread()];
        }
    }
    seen
}

#[test]
fn rules_are_believed_as_written_and_repaired_where_touched() {
    let mut proxy = serving_one();
    let whole = proxy.kernel.state.rules.clone();
    proxy.planner.observed_rules(seen(&whole, None));
    assert_eq!(lines(&proxy.planner.plan()), [""; 0]);
    assert_eq!(proxy.planner.unread_tables(), [Table::Nat].into());
    proxy
        .planner
        .observed_rules(seen(&whole, Some("KUBE-SERVICES")));
    let plan = proxy.planner.plan();
    assert_eq!(plan.len(), 1, "{plan}");
    assert!(
        plan.to_string()
            .contains("replace chain nat/KUBE-SERVICES with"),
        "{plan}"
    );
    proxy
        .planner
        .observed_rules(seen(&whole, Some("PREROUTING")));
    let plan = proxy.planner.plan().to_string();
    assert!(plan.contains("  prepend to nat/PREROUTING: "), "{plan}");
    let old = "  delete from nat/PREROUTING: unread 1 -j KUBE-SERVICES";
    assert!(plan.contains(old), "{plan}");
}

#[test]
fn a_start_writes_what_cannot_be_read() {
    let whole = serving_one().kernel.state;
    let state = State {
        rules: seen(&whole.rules, None),
        ..whole.clone()
    };
    let tracker = tracker(
        vec![service("ns/web").port(80)],
        vec![web(vec![endpoint("10.0.1.1")])],
    );
    let mut proxy = Proxy::start(context(IpFamily::V4), tracker, state);
    proxy.sync();
    let rules = &proxy.kernel.state.rules;
    assert_eq!(rules.chains, whole.rules.chains);
}
