// SPDX-License-Identifier: Apache-2.0
//! The cost of a round depends on the change alone, however many Services there are, and also while
//! the planner has something to report.

use super::*;

/// This many Services at addresses of their own, one of which claims two addresses that it does not
/// get: one is a pod's, the other another Service's cluster IP.
fn many<P: Planner>(fixture: &mut Fixture<P>, count: usize)
where
    Shared: Kernel<P>,
{
    fixture.known_node();
    let address = |index: usize| {
        format!(
            "10.{}.{}.{}",
            100 + index / 65_536,
            index / 256 % 256,
            index % 256
        )
    };
    let mut services: Vec<_> = (0..count)
        .map(|index| {
            service(&format!("ns/s{index}"))
                .cluster_ips(&[&address(index)])
                .port(80)
        })
        .collect();
    let claimant = service("ns/claimant")
        .cluster_ips(&["10.96.0.1"])
        .port(80)
        .external_ip("10.1.0.5")
        .external_ip(&address(0));
    services.push(claimant);
    services.push(service("ns/web").cluster_ips(&["10.96.0.2"]).port(80));
    fixture.model(Event::ServicesReplaced(services));
    let endpoints = vec![endpoint("10.1.0.5")];
    fixture.model(Event::SlicesReplaced(vec![
        slice("ns/web", "a", endpoints).port(8080),
    ]));
    fixture.work();
}

/// Number of Service ports that a round visits for one changed endpoint of one Service.
fn visits<P: Planner>(fixture: &mut Fixture<P>, visited: fn(&P) -> u64) -> u64
where
    Shared: Kernel<P>,
{
    let planner = |fixture: &Fixture<P>| visited(&fixture.reconciler.served[0].family.planner);
    let before = planner(fixture);
    fixture.time.advance(Duration::from_secs(10));
    fixture.scale(&["10.1.0.5", "10.1.0.6"]);
    fixture.work();
    assert!(fixture.reconciler.runner.failures() == 0);
    planner(fixture) - before
}

#[test]
fn a_round_visits_what_changed_in_ipvs_mode() {
    let of = |count| {
        let mut fixture = Fixture::new();
        many(&mut fixture, count);
        let family = &fixture.reconciler.served[0].family;
        assert_eq!(
            (
                family.conflicts.present().len(),
                family.unmet.present().len()
            ),
            (1, 1)
        );
        visits(&mut fixture, |planner| planner.desired().by_port().visits())
    };
    let (few, many) = (of(100), of(10_000));
    assert_eq!(few, many);
    assert!(few < 20, "{few}");
}

#[test]
fn a_round_visits_what_changed_in_iptables_mode() {
    let of = |count| {
        let mut fixture = Fixture::after(None);
        many(&mut fixture, count);
        let family = &fixture.reconciler.served[0].family;
        assert_eq!(family.conflicts.present().len(), 1);
        visits(&mut fixture, |planner| planner.desired().by_port().visits())
    };
    let (few, many) = (of(100), of(10_000));
    assert_eq!(few, many);
    assert!(few < 20, "{few}");
}
