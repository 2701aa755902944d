// SPDX-License-Identifier: Apache-2.0
//! Services take turns: one that is so large that its changes take the loop's time may have a part
//! of that time only, however often it changes. All others are never kept waiting.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kpr_core::model::{ServiceName, ServiceView};

/// Number of objects from which on a Service is large. Its changes take some tens of milliseconds.
const LARGE: usize = 5_000;

/// The changes of a large Service may use one part in this many of the time.
const SHARE: u32 = 10;

/// Longest wait for a turn.
const MOST: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// When large Services have their next turn.
    next: BTreeMap<ServiceName, Duration>,
    /// Those of them that have changed.
    waiting: BTreeSet<ServiceName>,
}

/// Whether the changes of a Service are expensive.
pub(super) fn is_large(service: &ServiceView<'_>) -> bool {
    let ports = service.ports.iter();
    let objects = ports.map(|port| {
        let endpoints = service.endpoints_of(port).len();
        port.frontend_count().saturating_mul(1 + endpoints)
    });
    objects.fold(0, usize::saturating_add) > LARGE
}

impl Turns {
    /// Takes those out of a round's changes that must wait, and adds those that have waited.
    pub(super) fn admit(&mut self, changed: &mut BTreeSet<ServiceName>, now: Duration) {
        self.next.retain(|_, next| *next > now);
        changed.append(&mut self.waiting);
        if !self.next.is_empty() {
            let next = &self.next;
            self.waiting = changed
                .extract_if(.., |name| next.contains_key(name))
                .collect();
        }
    }

    /// A round with changes of these large Services took so long.
    pub(super) fn follow(&mut self, large: BTreeSet<ServiceName>, cost: Duration, end: Duration) {
        let next = end + cost.saturating_mul(SHARE).min(MOST);
        self.next.extend(large.into_iter().map(|name| (name, next)));
    }

    /// When a Service that waits has its turn.
    pub(super) fn due(&self) -> Option<Duration> {
        let waiting = self.waiting.iter();
        waiting
            .map(|name| self.next.get(name).copied().unwrap_or_default())
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kpr_core::model::testing::service_name;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn names(names: &[&str]) -> BTreeSet<ServiceName> {
        names.iter().map(|name| service_name(name)).collect()
    }

    #[test]
    fn a_large_service_waits_and_others_do_not() {
        let mut turns = Turns::default();
        let admit = |turns: &mut Turns, changed: &[&str], now| {
            let mut changed = names(changed);
            turns.admit(&mut changed, now);
            changed
        };
        assert_eq!(admit(&mut turns, &["ns/all"], ms(0)), names(&["ns/all"]));
        turns.follow(names(&["ns/all"]), ms(30), ms(30));
        assert_eq!(turns.due(), None);
        assert_eq!(
            admit(&mut turns, &["ns/all", "ns/web"], ms(100)),
            names(&["ns/web"])
        );
        assert_eq!(turns.due(), Some(ms(330)));
        assert_eq!(admit(&mut turns, &["ns/web"], ms(200)), names(&["ns/web"]));
        assert_eq!(admit(&mut turns, &[], ms(330)), names(&["ns/all"]));
        assert_eq!(turns.due(), None);
        assert_eq!(admit(&mut turns, &["ns/all"], ms(331)), names(&["ns/all"]));
    }

    #[test]
    fn nobody_waits_for_long() {
        let mut turns = Turns::default();
        turns.follow(names(&["ns/all"]), ms(60_000), ms(60_000));
        turns.admit(&mut names(&["ns/all"]), ms(60_000));
        assert_eq!(turns.due(), Some(ms(65_000)));
    }
}
