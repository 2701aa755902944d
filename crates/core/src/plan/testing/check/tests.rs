// SPDX-License-Identifier: Apache-2.0
//! Each violation is found.

use super::*;
use crate::model::testing::{endpoint, ip, service, slice, tracker};
use crate::plan::ipvs::object::{Forwarding, RealServer};
use crate::plan::ipvs::step::Phase;
use crate::plan::testing::{Proxy, context, rs, tcp};

/// A proxy that serves a load balancer, and the plan that made it.
fn cold_start() -> (Plan, State) {
    let web = service("ns/web")
        .port(80)
        .vip("198.51.100.1")
        .source_range("10.0.0.0/8");
    let endpoints = slice("ns/web", "a", vec![endpoint("10.0.1.1")]).port(8080);
    let tracker = tracker(vec![web], vec![endpoints]);
    let mut proxy = Proxy::start(context(IpFamily::V4), tracker, State::default());
    let plan = proxy.sync();
    (plan, proxy.kernel.state)
}

/// The plan without the steps that contain a text.
fn without(plan: &Plan, text: &str) -> Plan {
    let mut kept = Plan::default();
    for (phase, step) in plan.phases() {
        if !step.to_string().contains(text) {
            kept.push(*phase, step.clone());
        }
    }
    assert!(kept.len() < plan.len(), "no step with {text:?}");
    kept
}

fn breach_of(result: &Result<(), Violation>) -> Option<Breach> {
    match result {
        Err(Violation::Unsafe { breach, .. }) => Some(*breach),
        _ => None,
    }
}

#[test]
fn a_good_plan_passes() {
    let (plan, _) = cold_start();
    assert_eq!(check(&plan, &State::default()), Ok(()));
}

#[test]
fn phases_must_be_in_order() {
    let (plan, _) = cold_start();
    let mut reversed = Plan::default();
    for (phase, step) in plan.phases().iter().rev() {
        reversed.push(*phase, step.clone());
    }
    // The first steps of the reversed plan are rejected, so the order is checked first.
    let mut disordered = Plan::default();
    let (last, first) = (plan.phases().last().unwrap(), &plan.phases()[0]);
    disordered.push(last.0, first.1.clone());
    disordered.push(first.0, plan.phases()[1].1.clone());
    assert!(matches!(
        check(&disordered, &State::default()),
        Err(Violation::Order(_))
    ));
    assert!(check(&reversed, &State::default()).is_err());
}

#[test]
fn steps_that_change_nothing_are_found() {
    let (_, state) = cold_start();
    let mut plan = Plan::default();
    let server = RealServer {
        weight: 1,
        forwarding: Forwarding::Masquerade,
        ..RealServer::default()
    };
    plan.push(
        Phase::Servers,
        Step::SetRealServer {
            vs: tcp("10.96.0.1:80"),
            key: rs("10.0.1.1:8080"),
            server,
        },
    );
    assert!(matches!(check(&plan, &state), Err(Violation::Idle(_))));
}

#[test]
fn steps_that_the_kernel_refuses_are_found() {
    let (plan, _) = cold_start();
    let broken = without(&plan, "create set KUBE-CLUSTER-IP ");
    let refused = check(&broken, &State::default());
    assert!(
        matches!(
            &refused,
            Err(Violation::Refused {
                refusal: Refusal::NotFound,
                ..
            })
        ),
        "{refused:?}"
    );
}

#[test]
fn an_address_without_its_reject_entry_is_found() {
    let (plan, state) = cold_start();
    let broken = without(&plan, "add entry KUBE-IPVS-IPS 10.96.0.1");
    assert_eq!(
        breach_of(&check(&broken, &State::default())),
        Some(Breach::AddressWithoutEntry)
    );
    let mut plan = Plan::default();
    let set = SetId::IpvsIps.name(IpFamily::V4);
    let entry = SetEntry::Ip(ip("10.96.0.1"));
    plan.push(Phase::OldAddressEntries, Step::DeleteEntry { set, entry });
    assert_eq!(
        breach_of(&check(&plan, &state)),
        Some(Breach::AddressWithoutEntry)
    );
}

#[test]
fn objects_before_the_rules_are_found() {
    let (plan, _) = cold_start();
    let broken = without(&plan, "edit IPv4 rules");
    assert_eq!(
        breach_of(&check(&broken, &State::default())),
        Some(Breach::ServerWithoutRules)
    );
    let no_servers = without(&without(&broken, "virtual server"), "real server");
    assert_eq!(
        breach_of(&check(&no_servers, &State::default())),
        Some(Breach::AddressWithoutRules)
    );
}

#[test]
fn a_virtual_server_that_no_set_knows_is_found() {
    let (plan, _) = cold_start();
    let broken = without(&plan, "add entry KUBE-CLUSTER-IP 10.96.0.1");
    assert_eq!(
        breach_of(&check(&broken, &State::default())),
        Some(Breach::ServerWithoutEntry)
    );
}

#[test]
fn a_closed_load_balancer_is_found() {
    let (plan, state) = cold_start();
    let broken = without(&plan, "add entry KUBE-LOAD-BALANCER-SOURCE-CIDR");
    assert_eq!(
        breach_of(&check(&broken, &State::default())),
        Some(Breach::ClosedLoadBalancer)
    );
    let mut plan = Plan::default();
    let set = SetId::LoadBalancerSourceCidr.name(IpFamily::V4);
    let entry = *state.sets[&set].entries.first().unwrap();
    plan.push(Phase::OldEntries, Step::DeleteEntry { set, entry });
    assert_eq!(
        breach_of(&check(&plan, &state)),
        Some(Breach::ClosedLoadBalancer)
    );
}
