// SPDX-License-Identifier: Apache-2.0
//! Slow start: the loop wakes up for its steps, and for nothing else.

use super::*;

fn slow() -> Fixture {
    let mut fixture = Fixture::programmed();
    let slow = service("ns/web").port(80).scheduler(Scheduler::Wrr);
    let slow = slow.options(|options| options.slow_start = Some(Duration::from_secs(18)));
    fixture.model(Event::ServiceApplied(slow));
    fixture.scale(&["10.1.0.5"]);
    fixture.work();
    fixture.scale(&["10.1.0.5", "10.1.0.6"]);
    fixture.work();
    assert_eq!(
        fixture.real_servers(),
        [("10.1.0.5:8080", 10), ("10.1.0.6:8080", 1)]
    );
    fixture.applied();
    fixture
}

#[test]
fn steps_are_taken_when_they_are_due() {
    let mut fixture = slow();
    for weight in 2..=10 {
        assert!(fixture.reconciler.pause().unwrap() <= Duration::from_secs(2));
        fixture.wait(Duration::from_secs(2));
        let servers = fixture.real_servers();
        assert_eq!(servers[1], ("10.1.0.6:8080", weight));
        let applied = fixture.applied();
        assert_eq!(applied.len(), 1, "{applied:?}");
    }
    assert_eq!(*fixture.watcher.drift.lock().unwrap(), 0);
    fixture.wait(Duration::from_secs(2));
    assert_eq!(fixture.applied(), Vec::<String>::new());
}
