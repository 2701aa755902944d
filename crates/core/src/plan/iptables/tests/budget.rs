// SPDX-License-Identifier: Apache-2.0
//! One Service cannot ask for more than its budget.

use crate::model::testing::{endpoint_at, service, slice, tracker};
use crate::model::{Budget, Event, IpFamily, Protocol};
use crate::plan::iptables::step::Step;
use crate::plan::iptables::tests::proxy::Proxy;
use crate::plan::mode::Planner as _;
use crate::plan::ruleset::{Edit, Ruleset};
use crate::plan::testing::context;

#[test]
fn a_million_frontends_and_endpoints_are_as_many_rules_as_fit() {
    let mut asked = service("evil/all");
    for port in 1..=1_000 {
        asked = asked.named_port(&format!("p{port}"), Protocol::Tcp, port);
    }
    for n in 0..1_000_u16 {
        let [high, low] = n.to_be_bytes();
        asked = asked.external_ip(&format!("198.18.{high}.{low}"));
    }
    let endpoints = (0..1_000_u16).map(|n| {
        let [high, low] = n.to_be_bytes();
        endpoint_at([10, 0, high, low].into())
    });
    let mut endpoints = slice("evil/all", "a", endpoints.collect());
    for port in 1..=1_000 {
        endpoints = endpoints.named_port(&format!("p{port}"), Protocol::Tcp, 8080);
    }
    let tracker = tracker(vec![asked.clone()], vec![endpoints]);
    let mut proxy = Proxy::start(context(IpFamily::V4), tracker, Ruleset::new());
    let plan = proxy.sync();
    let edits = plan.steps().flat_map(|step| match step {
        Step::EditRules(batch) => batch.edits.as_slice(),
        _ => &[],
    });
    let rules = edits.map(|edit| match edit {
        Edit::Replace { rules, .. } => rules.len(),
        _ => 1,
    });
    // Trees have more nodes than leaves, and each port has chains of its own.
    let rules: usize = rules.sum();
    assert!(rules < 2 * Budget::default().objects, "{rules}");
    assert_eq!(proxy.planner.cuts().unwrap().iter().len(), 1);
    let revision = proxy.planner.revision();
    asked.external_ips.clear();
    asked.ports.truncate(10);
    proxy.take_in([Event::ServiceApplied(asked)]);
    assert_eq!(proxy.planner.cuts().unwrap().iter().len(), 0);
    assert_ne!(proxy.planner.revision(), revision);
}
