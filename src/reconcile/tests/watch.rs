// SPDX-License-Identifier: Apache-2.0
//! Rules that other programs change are re-read soon, and only then.

use super::*;
use kpr_core::plan::ruleset::{ChainName, Table};

/// What the kernel shows of changes to rules since they were observed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Watched {
    #[default]
    Unsure,
    /// No audit has to read them.
    Unchanged,
    Changed,
}

const SECOND: Duration = Duration::from_secs(1);

impl Fixture {
    fn observations(&self) -> Vec<ObserveScope> {
        std::mem::take(&mut self.lock().observations)
    }

    /// Another program deletes a chain.
    fn delete_chain(&self, chain: &str) {
        let id = (Table::Nat, ChainName::new(chain).unwrap());
        let mut node = self.lock();
        assert!(node.kernel.state.rules.chains.remove(&id).is_some());
        node.rules = Watched::Changed;
    }
}

#[test]
fn deleted_rules_are_back_within_a_second() {
    let mut fixture = Fixture::programmed();
    fixture.wait(SECOND);
    assert_eq!(fixture.observations(), []);
    let before = fixture.lock().kernel.state.rules.clone();
    fixture.delete_chain("KUBE-MARK-MASQ");
    fixture.wait(SECOND);
    assert_eq!(fixture.observations(), [ObserveScope::Rules]);
    let applied = fixture.applied();
    assert_eq!(applied.len(), 1, "{applied:?}");
    assert_eq!(fixture.lock().kernel.state.rules, before);
    assert_eq!(*fixture.watcher.drift.lock().unwrap(), 1);
    fixture.wait(SECOND);
    assert_eq!(fixture.observations(), []);
}

#[test]
fn repeated_deletions_are_repaired_sooner_than_false_alarms() {
    let mut fixture = Fixture::programmed();
    let before = fixture.lock().kernel.state.rules.clone();
    let slow = (fixture.time.clone(), Duration::from_millis(500));
    fixture.lock().slow = Some(slow);
    let mut repairs = 0;
    for _ in 0..25 {
        if fixture.lock().kernel.state.rules == before {
            fixture.delete_chain("KUBE-MARK-MASQ");
        }
        fixture.wait(SECOND);
        repairs += usize::from(fixture.lock().kernel.state.rules == before);
    }
    // Reading takes half a second; the next read comes two seconds later.
    assert!((8..=14).contains(&repairs), "{repairs}");
}

#[test]
fn repair_that_fails_is_retried() {
    let mut fixture = Fixture::programmed();
    let before = fixture.lock().kernel.state.rules.clone();
    fixture.delete_chain("KUBE-MARK-MASQ");
    let refused = ("edit-rules", Fault::Refused);
    fixture.lock().troubles.push_back(refused);
    fixture.wait(SECOND);
    assert_ne!(fixture.lock().kernel.state.rules, before);
    fixture.wait(SECOND);
    assert_eq!(fixture.lock().kernel.state.rules, before);
}

#[test]
fn changes_go_on_while_rules_are_suspect() {
    let mut fixture = Fixture::programmed();
    fixture.delete_chain("KUBE-MARK-MASQ");
    fixture.scale(&["10.1.0.5"]);
    fixture.wait(SECOND);
    assert_eq!(fixture.observations(), [ObserveScope::Rules]);
    assert_eq!(fixture.applied().len(), 2 + 1);
}

#[test]
fn false_alarms_are_limited_to_a_share_of_the_time() {
    let mut fixture = Fixture::programmed();
    let slow = (fixture.time.clone(), Duration::from_millis(500));
    fixture.lock().slow = Some(slow);
    let mut looks = 0;
    for _ in 0..25 {
        fixture.lock().rules = Watched::Changed;
        fixture.wait(SECOND);
        looks += fixture.observations().len();
    }
    // One at once, one after twenty times its cost, and one is due soon.
    assert!((2..=4).contains(&looks), "{looks}");
    assert_eq!(*fixture.watcher.drift.lock().unwrap(), 0);
}
