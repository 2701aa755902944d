// SPDX-License-Identifier: Apache-2.0
//! How long removed real servers wait for their connections.

use super::*;
use crate::events::{Regarding, reason};
use crate::reconcile::drain::MAX_DRAINING;

fn waiting() -> RealServerOf {
    (web(), rs("10.1.0.6:8080"))
}

/// One of two endpoints is removed while it has connections.
fn draining() -> Fixture {
    let mut fixture = Fixture::programmed();
    fixture.lock().busy.insert(waiting());
    fixture.scale(&["10.1.0.5"]);
    fixture.work();
    assert_eq!(
        fixture.real_servers(),
        [("10.1.0.5:8080", 1), ("10.1.0.6:8080", 0)]
    );
    fixture
}

const LIMIT: Duration = Duration::from_hours(1);
/// One period less.
const ALMOST: Duration = Duration::from_secs(3_599);

#[test]
fn connections_are_cut_at_the_limit() {
    let mut fixture = draining();
    fixture.wait(ALMOST);
    assert_eq!(fixture.real_servers().len(), 2);
    fixture.wait(DRAIN_PERIOD);
    assert_eq!(fixture.real_servers(), [("10.1.0.5:8080", 1)]);
}

#[test]
fn a_service_says_how_long_and_may_change_its_mind() {
    let mut fixture = draining();
    let limited = |seconds| {
        let service = service("ns/web").port(80);
        Event::ServiceApplied(service.drain_limit(Duration::from_secs(seconds)))
    };
    fixture.model(limited(60));
    fixture.wait(Duration::from_secs(50));
    assert_eq!(fixture.real_servers().len(), 2);
    fixture.model(limited(10));
    fixture.wait(DRAIN_PERIOD);
    assert_eq!(fixture.real_servers(), [("10.1.0.5:8080", 1)]);
}

#[test]
fn a_limit_of_nothing_cuts_at_once() {
    let mut fixture = Fixture::programmed();
    fixture.lock().busy.insert(waiting());
    let service = service("ns/web").port(80).drain_limit(Duration::ZERO);
    fixture.model(Event::ServiceApplied(service));
    fixture.scale(&["10.1.0.5"]);
    fixture.work();
    assert_eq!(fixture.real_servers(), [("10.1.0.5:8080", 1)]);
}

#[test]
fn an_endpoint_that_returned_meanwhile_has_the_whole_limit_again() {
    let mut fixture = draining();
    fixture.wait(ALMOST);
    fixture.scale(&["10.1.0.5", "10.1.0.6"]);
    fixture.work();
    fixture.scale(&["10.1.0.5"]);
    fixture.work();
    fixture.wait(ALMOST);
    assert_eq!(fixture.real_servers().len(), 2);
    fixture.wait(DRAIN_PERIOD);
    assert_eq!(fixture.real_servers().len(), 1);
}

#[test]
fn a_service_that_is_made_anew_keeps_its_servers() {
    let mut fixture = draining();
    fixture.model(Event::ServiceDeleted(service_name("ns/web")));
    fixture.work();
    fixture.model(Event::ServiceApplied(service("ns/web").port(80)));
    fixture.work();
    fixture.wait(LIMIT);
    assert_eq!(fixture.real_servers(), [("10.1.0.5:8080", 1)]);
    fixture.wait(LIMIT);
    assert_eq!(fixture.real_servers(), [("10.1.0.5:8080", 1)]);
}

#[test]
fn what_an_earlier_process_left_waits_the_whole_limit() {
    let mut fixture = Fixture::new();
    fixture.lock().kernel = draining().lock().kernel.clone();
    fixture.lock().busy.insert(waiting());
    fixture.known_node();
    fixture.model(Event::ServicesReplaced(vec![service("ns/web").port(80)]));
    let slice = slice("ns/web", "a", vec![endpoint("10.1.0.5")]).port(8080);
    fixture.model(Event::SlicesReplaced(vec![slice]));
    fixture.work();
    fixture.wait(ALMOST);
    assert_eq!(fixture.real_servers().len(), 2);
    fixture.wait(DRAIN_PERIOD);
    assert_eq!(fixture.real_servers().len(), 1);
}

#[test]
fn a_scheduler_that_appears_is_used_after_the_next_audit() {
    let mut fixture = Fixture::programmed();
    fixture.lock().missing_schedulers.insert(Scheduler::Mh);
    let scheduler = |fixture: &Fixture| {
        let node = fixture.lock();
        let server = &node.kernel.state.virtual_servers[&web()].server;
        server.scheduler.to_string()
    };
    let service = service("ns/web").port(80).scheduler(Scheduler::Mh);
    fixture.model(Event::ServiceApplied(service));
    fixture.work();
    assert_eq!(scheduler(&fixture), "rr");
    let is_there = |fixture: &Fixture| fixture.watcher.capabilities.lock().unwrap()["ip_vs_mh"];
    assert!(!is_there(&fixture));
    let events = std::mem::take(&mut *fixture.watcher.events.lock().unwrap());
    let [event] = &events[..] else {
        panic!("wanted one event, got {events:?}")
    };
    assert_eq!(event.reason, reason::SETTING_NOT_POSSIBLE);
    assert_eq!(event.regarding, Regarding::Service(service_name("ns/web")));
    assert!(event.note.contains("ip_vs_mh"), "{}", event.note);
    fixture.lock().missing_schedulers.clear();
    fixture.wait(Duration::from_secs(30));
    assert_eq!(scheduler(&fixture), "mh");
    assert!(is_there(&fixture));
}

#[test]
fn a_scheduler_that_is_not_loaded_is_not_probed_for_a_service() {
    let mut fixture = Fixture::programmed();
    fixture.lock().unloaded_schedulers.insert(Scheduler::Mh);
    let scheduler = |fixture: &Fixture| {
        let node = fixture.lock();
        let server = &node.kernel.state.virtual_servers[&web()].server;
        server.scheduler.to_string()
    };
    let service = service("ns/web").port(80).scheduler(Scheduler::Mh);
    fixture.model(Event::ServiceApplied(service));
    fixture.work();
    assert_eq!(scheduler(&fixture), "rr");
    let is_probed = |fixture: &Fixture| {
        let capabilities = fixture.watcher.capabilities.lock().unwrap();
        capabilities.contains_key("ip_vs_mh")
    };
    assert!(!is_probed(&fixture));
    let events = std::mem::take(&mut *fixture.watcher.events.lock().unwrap());
    let [event] = &events[..] else {
        panic!("wanted one event, got {events:?}")
    };
    assert_eq!(event.reason, reason::SETTING_NOT_POSSIBLE);
    assert!(
        event.note.contains("--service-schedulers"),
        "{}",
        event.note
    );
    fixture.wait(Duration::from_secs(30));
    assert!(!is_probed(&fixture));
    // The operator loads it.
    fixture.lock().unloaded_schedulers.clear();
    fixture.wait(Duration::from_secs(30));
    assert_eq!(scheduler(&fixture), "mh");
}

#[test]
fn of_too_many_draining_servers_the_oldest_are_cut() {
    let mut fixture = Fixture::programmed();
    let address = |n: usize| {
        let [high, low] = u16::try_from(n).unwrap().to_be_bytes();
        format!("10.2.{high}.{low}")
    };
    let more = MAX_DRAINING + 3;
    for n in 0..more {
        let leaving = rs(&format!("{}:8080", address(n)));
        fixture.lock().busy.insert((web(), leaving));
    }
    let first: Vec<String> = (0..9).map(address).collect();
    let second: Vec<String> = (9..more).map(address).collect();
    for addresses in [&first, &second, &vec!["10.1.0.5".to_owned()]] {
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        fixture.scale(&addresses);
        fixture.work();
        fixture.wait(DRAIN_PERIOD);
    }
    let servers = fixture.real_servers();
    let draining = servers.iter().filter(|(_, weight)| *weight == 0);
    let draining: BTreeSet<&str> = draining.map(|(server, _)| *server).collect();
    assert_eq!(draining.len(), MAX_DRAINING);
    assert!(
        second
            .iter()
            .all(|address| draining.contains(&*format!("{address}:8080")))
    );
}

#[test]
fn removed_endpoint_goes_when_its_connections_have_ended() {
    let mut fixture = Fixture::programmed();
    let leaving = (web(), rs("10.1.0.6:8080"));
    fixture.lock().busy.insert(leaving);
    fixture.scale(&["10.1.0.5"]);
    fixture.work();
    assert_eq!(
        fixture.real_servers(),
        [("10.1.0.5:8080", 1), ("10.1.0.6:8080", 0)]
    );
    fixture.wait(Duration::from_secs(10));
    assert_eq!(fixture.real_servers().len(), 2);
    fixture.lock().busy.clear();
    fixture.wait(Duration::from_secs(1));
    assert_eq!(fixture.real_servers(), [("10.1.0.5:8080", 1)]);
}

#[test]
fn idle_endpoint_goes_at_once() {
    let mut fixture = Fixture::programmed();
    fixture.scale(&["10.1.0.5"]);
    fixture.work();
    assert_eq!(fixture.real_servers(), [("10.1.0.5:8080", 1)]);
}

#[test]
fn a_virtual_server_is_not_looked_at_for_each_endpoint_of_a_burst() {
    let mut fixture = Fixture::programmed();
    fixture.scale(&["10.1.0.5"]);
    fixture.work();
    fixture.scale(&["10.1.0.5", "10.1.0.6"]);
    fixture.work();
    fixture.scale(&["10.1.0.5"]);
    fixture.work();
    assert_eq!(
        fixture.real_servers(),
        [("10.1.0.5:8080", 1), ("10.1.0.6:8080", 0)]
    );
    fixture.wait(DRAIN_PERIOD);
    assert_eq!(fixture.real_servers(), [("10.1.0.5:8080", 1)]);
}

#[test]
fn deleted_service_leaves_nothing_behind() {
    let mut fixture = Fixture::programmed();
    fixture.lock().busy.insert((web(), rs("10.1.0.6:8080")));
    fixture.model(Event::ServiceDeleted(service_name("ns/web")));
    fixture.work();
    fixture.work();
    assert_eq!(fixture.real_servers(), [("10.1.0.6:8080", 0)]);
    fixture.lock().busy.clear();
    fixture.wait(Duration::from_secs(1));
    fixture.work();
    let node = fixture.lock();
    assert_eq!(node.kernel.state.virtual_servers.len(), 0);
    assert_eq!(node.kernel.state.addresses.len(), 0);
    assert!(
        node.kernel
            .state
            .sets
            .values()
            .all(|set| set.entries.is_empty())
    );
}
