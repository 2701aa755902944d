// SPDX-License-Identifier: Apache-2.0
//! Steps that fail, answers that are lost, a kernel that cannot be read.

use super::*;

/// Whether the step writes a rule with this text.
pub(super) fn writes(step: &impl Step, text: &str) -> bool {
    let has_it = |edit: &Edit| match edit {
        Edit::Replace { rules, .. } => rules.iter().any(|rule| rule.as_str().contains(text)),
        _ => false,
    };
    step.edits().iter().any(has_it)
}

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

/// `ns/web`, and `ns/other`, whose address the kernel refuses.
fn with_a_refused_address() -> Fixture {
    let mut fixture = Fixture::programmed();
    fixture.lock().unsupported = Some("add address 10.96.9.9 ");
    let other = service("ns/other").cluster_ips(&["10.96.9.9"]).port(80);
    fixture.model(Event::ServiceApplied(other));
    fixture.work();
    fixture
}

impl Fixture {
    fn last_round(&self) -> (bool, usize) {
        *self.watcher.rounds.lock().unwrap().last().unwrap()
    }
}

#[test]
fn what_the_kernel_refuses_of_one_service_is_set_aside() {
    let mut fixture = with_a_refused_address();
    // It may be the belief that is wrong, so it is tried again first.
    assert_eq!(fixture.reconciler.runner.failures(), 1);
    fixture.wait(Duration::from_secs(1));
    assert_eq!(fixture.last_round(), (true, 1));
    assert_eq!(fixture.reconciler.runner.failures(), 0);
    let servers = &fixture.lock().kernel.state.virtual_servers.clone();
    assert!(servers.contains_key(&tcp("10.96.9.9:80")));
    let notes: Vec<String> = std::mem::take(&mut *fixture.watcher.events.lock().unwrap())
        .into_iter()
        .map(|event| event.note)
        .collect();
    assert_eq!(
        notes,
        ["port ns/other: the kernel refuses to add address 10.96.9.9 to kube-ipvs0: injected"]
    );
}

#[test]
fn what_is_set_aside_keeps_nothing_else_waiting() {
    let mut fixture = with_a_refused_address();
    fixture.wait(Duration::from_secs(1));
    fixture.lock().applied.clear();
    fixture.scale(&["10.1.0.5"]);
    fixture.work();
    assert_eq!(fixture.last_round(), (true, 1));
    assert!(
        !fixture
            .applied()
            .iter()
            .any(|step| step.contains("address"))
    );
    assert_eq!(fixture.real_servers(), [("10.1.0.5:8080", 1)]);
}

#[test]
fn what_is_set_aside_is_tried_again_by_audits_and_is_no_drift() {
    let mut fixture = with_a_refused_address();
    fixture.wait(Duration::from_secs(1));
    fixture.lock().applied.clear();
    for _ in 0..2 {
        fixture.wait(Duration::from_secs(31));
        fixture.finish_audit();
        assert_eq!(
            std::mem::take(&mut fixture.lock().applied),
            ["add address 10.96.9.9 to kube-ipvs0"]
        );
        assert_eq!(fixture.last_round(), (true, 1));
    }
    assert_eq!(*fixture.watcher.drift.lock().unwrap(), 0);
    fixture.lock().unsupported = None;
    fixture.wait(Duration::from_secs(31));
    fixture.finish_audit();
    assert_eq!(fixture.last_round(), (true, 0));
    assert!(
        fixture
            .lock()
            .kernel
            .state
            .addresses
            .contains(&ip("10.96.9.9"))
    );
}

#[test]
fn everything_that_depends_on_a_refused_object_waits_with_it() {
    for text in [
        "add virtual server TCP 10.96.9.9:80 ",
        "add entry KUBE-IPVS-IPS 10.96.9.9",
        "add entry KUBE-CLUSTER-IP 10.96.9.9,",
    ] {
        let mut fixture = Fixture::programmed();
        fixture.lock().unsupported = Some(text);
        let other = service("ns/other").cluster_ips(&["10.96.9.9"]).port(80);
        fixture.model(Event::ServiceApplied(other));
        let slice = slice("ns/other", "b", vec![endpoint("10.1.0.9")]).port(8080);
        fixture.model(Event::SliceApplied(slice));
        fixture.work();
        fixture.wait(Duration::from_secs(1));
        assert_eq!(fixture.last_round(), (true, 1), "{text}");
        fixture.model(Event::ServiceDeleted(service_name("ns/other")));
        fixture.work();
        assert_eq!(fixture.last_round(), (true, 0), "{text}");
    }
}
