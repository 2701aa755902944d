// SPDX-License-Identifier: Apache-2.0
//! Two Service ports whose chains would have the same names. In tests those are names that are
//! equal up to a `~`.

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;

use crate::model::testing::{endpoint, service, service_name, slice, tracker};
use crate::model::{Event, IpFamily, Service};
use crate::plan::iptables::tests::proxy::Proxy;
use crate::plan::mode::Planner as _;
use crate::plan::ruleset::{Ruleset, Table};
use crate::plan::testing::context;

const NAMES: [&str; 4] = ["tenant/a~1", "tenant/a~2", "tenant/a~3", "victim/web"];

fn some(which: usize) -> Service {
    let ip = format!("10.96.0.{which}");
    service(NAMES[which]).cluster_ips(&[&ip]).port(80)
}

fn start(services: &[usize]) -> Proxy {
    let slices = NAMES.map(|name| slice(name, "a", vec![endpoint("10.1.0.1")]).port(8080));
    let services = services.iter().map(|which| some(*which)).collect();
    let tracker = tracker(services, slices.to_vec());
    Proxy::start(context(IpFamily::V4), tracker, Ruleset::new())
}

fn not_served(proxy: &Proxy) -> BTreeSet<String> {
    let unmet = proxy.planner.unmet().into_iter();
    unmet.map(|(port, _)| port.to_string()).collect()
}

/// The cluster IPs that are served, by their last byte.
fn served(proxy: &Proxy) -> BTreeSet<usize> {
    let rules = proxy.rules(Table::Nat, "KUBE-SERVICES").join("\n");
    let is_there = |which: &usize| rules.contains(&format!("10.96.0.{which}/32"));
    (0..NAMES.len()).filter(is_there).collect()
}

#[test]
fn chains_of_one_name_are_not_written_in_turn() {
    let mut proxy = start(&[0, 1, 3]);
    // It is the end of a round that nothing is left to do.
    proxy.sync();
    assert_eq!(served(&proxy), [3].into());
    assert_eq!(
        not_served(&proxy),
        [NAMES[0], NAMES[1]].map(str::to_owned).into()
    );
    // Nor is there anything when all is compared.
    proxy.planner.observed(proxy.kernel.state.clone());
    assert!(proxy.sync().is_empty());
    let revision = proxy.planner.revision();
    proxy.take_in([Event::ServiceDeleted(service_name(NAMES[0]))]);
    proxy.sync();
    assert_eq!(served(&proxy), [1, 3].into());
    assert_eq!(not_served(&proxy), BTreeSet::new());
    assert_ne!(proxy.planner.revision(), revision);
    proxy.take_in([Event::ServiceDeleted(service_name(NAMES[1]))]);
    proxy.sync();
    assert_eq!(proxy.kernel.state.rules, start_and_sync(&[3]));
}

fn start_and_sync(services: &[usize]) -> Ruleset {
    let mut proxy = start(services);
    proxy.sync();
    proxy.kernel.state.rules
}

proptest! {
    #[test]
    fn who_is_not_served_does_not_depend_on_the_order(
        changes in vec((0..NAMES.len(), any::<bool>(), 1..3_u16), 1..16),
    ) {
        let mut proxy = start(&[]);
        proxy.sync();
        for (which, is_there, port) in changes {
            proxy.take_in([if is_there {
                let mut changed = some(which);
                changed.ports[0].port = port;
                Event::ServiceApplied(changed)
            } else {
                Event::ServiceDeleted(service_name(NAMES[which]))
            }]);
            proxy.sync();
        }
        let tenants = proxy.tracker.services().filter(|it| *it.name.namespace == *"tenant").count();
        prop_assert_eq!(not_served(&proxy).len(), if tenants > 1 { tenants } else { 0 });
        let tracker = tracker(
            proxy.tracker.services().cloned().collect(),
            proxy.tracker.slices().cloned().collect(),
        );
        let mut anew = Proxy::start(context(IpFamily::V4), tracker, Ruleset::new());
        anew.sync();
        prop_assert_eq!(&anew.kernel.state.rules, &proxy.kernel.state.rules);
        prop_assert_eq!(anew.planner.desired(), proxy.planner.desired());
    }
}
