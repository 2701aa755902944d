// SPDX-License-Identifier: Apache-2.0
//! Steps that fail, answers that are lost, a kernel that cannot be read.

use super::*;

#[test]
fn failed_step_is_retried_after_a_pause() {
    let mut fixture = Fixture::programmed();
    fixture
        .lock()
        .troubles
        .push_back(("add-real-server", Fault::Refused));
    fixture.scale(&["10.1.0.5", "10.1.0.6", "10.1.0.7"]);
    fixture.work();
    assert_eq!(fixture.real_servers().len(), 2);
    fixture.wait(Duration::from_millis(499));
    assert_eq!(fixture.real_servers().len(), 2);
    fixture.wait(Duration::from_millis(1));
    assert_eq!(fixture.real_servers().len(), 3);
}

#[test]
fn other_changes_do_not_wait_for_a_retry() {
    let mut fixture = Fixture::programmed();
    fixture
        .lock()
        .troubles
        .push_back(("set-virtual-server", Fault::Refused));
    fixture.model(Event::ServiceApplied(
        service("ns/web").port(80).affinity(60),
    ));
    fixture.work();
    fixture.model(Event::ServiceApplied(
        service("ns/new").cluster_ips(&["10.96.9.9"]).port(1),
    ));
    fixture.work();
    assert!(
        fixture
            .lock()
            .kernel
            .state
            .virtual_servers
            .contains_key(&tcp("10.96.9.9:1"))
    );
}

#[test]
fn step_with_a_lost_answer_is_observed_and_not_repeated() {
    let mut fixture = Fixture::programmed();
    fixture
        .lock()
        .troubles
        .push_back(("add-real-server", Fault::AnswerLost));
    fixture.scale(&["10.1.0.5", "10.1.0.6", "10.1.0.7"]);
    fixture.work();
    fixture.lock().applied.clear();
    fixture.wait(Duration::from_secs(1));
    assert_eq!(fixture.applied(), Vec::<String>::new());
    assert_eq!(fixture.real_servers().len(), 3);
}

#[test]
fn failed_rules_are_observed_again_before_they_are_retried() {
    let mut fixture = Fixture::new();
    fixture
        .lock()
        .troubles
        .push_back(("edit-rules", Fault::Partial));
    fixture.known_node();
    fixture.model(Event::ServicesReplaced(vec![service("ns/web").port(80)]));
    fixture.model(Event::SlicesReplaced(vec![]));
    fixture.work();
    assert!(
        fixture.lock().kernel.state.addresses.is_empty(),
        "no address is added without its rules"
    );
    fixture.wait(Duration::from_secs(1));
    assert_eq!(
        fixture.lock().observations,
        [ObserveScope::Everything, ObserveScope::Everything]
    );
    assert!(!fixture.lock().kernel.state.addresses.is_empty());
}

#[test]
fn unreadable_kernel_is_retried_and_nothing_is_changed_meanwhile() {
    let mut fixture = Fixture::new();
    fixture.lock().is_unreadable = true;
    fixture.known_node();
    fixture.model(Event::ServicesReplaced(vec![service("ns/web").port(80)]));
    fixture.model(Event::SlicesReplaced(vec![]));
    fixture.work();
    assert_eq!(fixture.applied(), Vec::<String>::new());
    fixture.lock().is_unreadable = false;
    fixture.wait(Duration::from_secs(1));
    assert!(
        fixture
            .lock()
            .kernel
            .state
            .virtual_servers
            .contains_key(&web())
    );
}
