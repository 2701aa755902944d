// SPDX-License-Identifier: Apache-2.0
//! Tables that iptables cannot list: chains of ours are believed as written until somebody touches
//! them, and written anew where nothing is known of them.

use std::collections::BTreeSet;

use crate::model::testing::{endpoint, service, slice, tracker};
use crate::model::{Event, IpFamily};
use crate::plan::iptables::State;
use crate::plan::iptables::tests::proxy::{Proxy, name};
use crate::plan::mode::{Planner as _, RuleBelief as _};
use crate::plan::ruleset::{ChainName, Edit, Rule, Ruleset, Table};
use crate::plan::testing::context;

fn start(rules: Ruleset) -> Proxy {
    let services = vec![service("ns/web").cluster_ips(&["10.96.0.1"]).port(80)];
    let slices = vec![slice("ns/web", "a", vec![endpoint("10.1.0.1")]).port(8080)];
    Proxy::start(context(IpFamily::V4), tracker(services, slices), rules)
}

/// The rules as they can be seen while `nat` cannot be listed. `touched`: chains that somebody else
/// may have changed.
fn seen(whole: &Ruleset, touched: &[&str]) -> Ruleset {
    let mut seen = whole.clone();
    let untouched = seen.unread.entry(Table::Nat).or_default();
    let mut number = 100;
    for ((table, chain), rules) in &mut seen.chains {
        if *table != Table::Nat {
            continue;
        }
        if !touched.contains(&chain.as_str()) {
            untouched.insert(chain.clone());
        }
        if table.has_built_in(chain) {
            let mut jump = |rule: &Rule| {
                number += 1;
                Some(Rule::unread_jump(number, rule.target()?))
            };
            *rules = rules.iter().filter_map(&mut jump).collect();
        } else {
            *rules = vec![Rule::unread()];
        }
    }
    seen
}

/// The chains that the next plan writes, and what else it does.
fn edited(proxy: &Proxy) -> (BTreeSet<ChainName>, Vec<String>) {
    let plan = proxy.planner.plan();
    let (mut replaced, mut rest) = (BTreeSet::new(), Vec::new());
    for edit in plan.steps().flat_map(crate::plan::Step::edits) {
        match edit {
            Edit::Replace { chain, .. } => {
                replaced.insert(chain.clone());
            }
            other => rest.push(other.to_string()),
        }
    }
    (replaced, rest)
}

#[test]
fn what_was_written_is_believed_and_what_was_touched_is_written() {
    let mut proxy = start(Ruleset::new());
    proxy.sync();
    let whole = proxy.kernel.state.rules.clone();
    for _ in 0..2 {
        let state = State {
            rules: seen(&whole, &[]),
            settings: proxy.kernel.state.settings.clone(),
            ..State::default()
        };
        proxy.planner.observed(state);
        assert_eq!(edited(&proxy), (BTreeSet::new(), vec![]));
        assert_eq!(proxy.planner.unread_tables(), [Table::Nat].into());
    }
    proxy
        .planner
        .observed_rules(seen(&whole, &["KUBE-SERVICES", "PREROUTING"]));
    let (replaced, rest) = edited(&proxy);
    assert_eq!(replaced, [name("KUBE-SERVICES")].into());
    // The jump is written before the one of which too little is known goes.
    let [prepend, delete] = rest.as_slice() else {
        panic!("{rest:?}");
    };
    assert!(
        prepend.starts_with("prepend to nat/PREROUTING: "),
        "{prepend}"
    );
    assert!(
        delete.starts_with("delete from nat/PREROUTING: unread "),
        "{delete}"
    );
    assert!(delete.ends_with(" -j KUBE-SERVICES"), "{delete}");
    // A change is one as ever.
    proxy.planner.observed_rules(whole.clone());
    proxy.planner.observed_rules(seen(&whole, &[]));
    proxy.take_in([Event::SliceApplied(
        slice("ns/web", "a", vec![endpoint("10.1.0.2")]).port(8080),
    )]);
    let (replaced, rest) = edited(&proxy);
    assert_eq!(
        (replaced.len(), rest.len()),
        (1, 0),
        "{replaced:?} {rest:?}"
    );
}

#[test]
fn chains_of_which_nothing_is_known_are_made_anew() {
    let mut fresh = start(Ruleset::new());
    fresh.sync();
    let wanted = fresh.kernel.state.rules.clone();
    // What an earlier process left, with a Service that is gone.
    let mut found = wanted.clone();
    found.set(
        Table::Nat,
        name("KUBE-SVC-GONE"),
        vec![Rule::new("-j ACCEPT")],
    );
    let foreign = Rule::new("-j FOREIGN");
    let prerouting = found.chains.get_mut(&(Table::Nat, name("PREROUTING")));
    prerouting.unwrap().push(foreign);
    let mut proxy = start(seen(&found, &[]));
    proxy.sync();
    let rules = &proxy.kernel.state.rules;
    let chains = |rules: &Ruleset| {
        rules
            .table(Table::Nat)
            .map(|(c, _)| c.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(chains(rules), chains(&wanted));
    for (chain, wanted) in wanted.table(Table::Nat) {
        let found = rules.rules(Table::Nat, chain).unwrap();
        // Foreign rules stay.
        let ours: Vec<&Rule> = found.iter().filter(|rule| !rule.is_unread()).collect();
        assert_eq!(ours, wanted.iter().collect::<Vec<_>>(), "{chain}");
        let left = found.iter().filter(|rule| rule.is_unread());
        assert!(left.clone().all(|rule| rule.target() == Some("FOREIGN")));
        assert_eq!(left.count(), usize::from(chain.as_str() == "PREROUTING"));
    }
}
