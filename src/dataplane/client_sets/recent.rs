// SPDX-License-Identifier: Apache-2.0
//! What `xt_recent` remembers: clients, with the tick of the kernel at which each was last seen.

use std::time::Duration;

use ipset_netlink::{Entry, SetEntry};
use kpr_core::model::IpFamily;
use kpr_core::plan::iptables::affinity::AffinitySet;
use nix::time::{ClockId, clock_getres, clock_gettime};
use tracing::debug;

/// One list for each name that rules use, by thread: the thread may be in another network namespace
/// than the process.
const LISTS: &str = "/proc/thread-self/net/xt_recent";

/// The counter starts so many seconds before its lower half overflows (`INITIAL_JIFFIES`).
const BEFORE_OVERFLOW: u64 = 300;

const NANOS: u64 = 1_000_000_000;

/// The clients that still have the endpoint of a set, as its entries. None if there is no list.
pub(super) fn clients(set: &AffinitySet) -> Vec<SetEntry> {
    let list = match std::fs::read_to_string(format!("{LISTS}/{}", set.chain)) {
        Ok(list) if !list.is_empty() => list,
        _ => return Vec::new(),
    };
    if let Some(ticks) = Ticks::now() {
        entries(&list, set, ticks)
    } else {
        debug!("cannot tell the kernel's ticks, clients of xt_recent get another endpoint");
        Vec::new()
    }
}

/// The kernel's counter of ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ticks {
    now: u64,
    per_second: u64,
}

impl Ticks {
    /// The coarse clock advances with each tick, and the counter with the monotonic clock.
    fn now() -> Option<Self> {
        let tick = Duration::from(clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).ok()?);
        let time = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).ok()?);
        Self::of(tick, time)
    }

    fn of(tick: Duration, time: Duration) -> Option<Self> {
        let tick = u64::try_from(tick.as_nanos()).ok()?;
        let per_second = NANOS.checked_add(tick / 2)?.checked_div(tick)?;
        let passed = time.as_nanos() * u128::from(per_second) / u128::from(NANOS);
        let start = (1_u64 << 32).checked_sub(BEFORE_OVERFLOW.checked_mul(per_second)?)?;
        Some(Self {
            now: start.checked_add(u64::try_from(passed).ok()?)?,
            per_second,
        })
    }

    fn seconds_since(self, tick: u64) -> u64 {
        self.now.saturating_sub(tick) / self.per_second.max(1)
    }
}

/// Lines are `src=10.1.0.9 ttl: 64 last_seen: 4295081469 oldest_pkt: 1 4295081469`.
fn entries(list: &str, set: &AffinitySet, ticks: Ticks) -> Vec<SetEntry> {
    let client = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let address = words.next()?.strip_prefix("src=")?.parse().ok()?;
        words.find(|word| *word == "last_seen:")?;
        let age = ticks.seconds_since(words.next()?.parse().ok()?);
        let left = u64::from(set.timeout).checked_sub(age)?;
        let left = u32::try_from(left).ok().filter(|left| *left > 0)?;
        (IpFamily::of(address) == set.family).then(|| SetEntry {
            timeout: Some(left),
            ..Entry::Ip(address).into()
        })
    };
    list.lines().filter_map(client).collect()
}

#[cfg(test)]
mod tests {
    use kpr_core::plan::ruleset::ChainName;

    use super::*;

    /// The counter of a kernel of 250 Hz, 772.6 s after its start.
    const TICKS: Ticks = Ticks {
        now: 4_295_085_446,
        per_second: 250,
    };

    #[test]
    fn ticks_follow_the_monotonic_clock() {
        let ticks = |hz: u64| Ticks::of(Duration::from_nanos(NANOS / hz), Duration::from_mins(5));
        for hz in [100, 250, 300, 1_000] {
            let expected = Ticks {
                now: 1 << 32,
                per_second: hz,
            };
            assert_eq!(ticks(hz), Some(expected));
        }
        assert_eq!(Ticks::of(Duration::ZERO, Duration::from_secs(1)), None);
        assert_eq!(
            Ticks::of(Duration::from_millis(4), Duration::from_millis(772_600)),
            Some(TICKS)
        );
    }

    #[test]
    fn clients_have_what_is_left_to_them() {
        let chain = ChainName::new("KUBE-SEP-ABCDEFGHIJ234567").unwrap();
        let set = |family| AffinitySet::new(chain.clone(), family, 100, 1);
        let seen = |seconds: u64| TICKS.now - seconds * 250;
        let list = format!(
            "src=10.1.0.9 ttl: 64 last_seen: {} oldest_pkt: 1 {}\n\
             src=10.1.0.10 ttl: 0 last_seen: {} oldest_pkt: 3 1, 2, 3\n\
             src=10.1.0.11 ttl: 0 last_seen: {} oldest_pkt: 1 1\n\
             src=10.1.0.12 ttl: 0 last_seen: {} oldest_pkt: 1 1\n\
             src=fd00:0000:0000:0000:0000:0000:0000:0001 ttl: 0 last_seen: {} oldest_pkt: 1 1\n\
             what is this\n",
            seen(0),
            seen(0),
            seen(30),
            seen(100),
            TICKS.now + 5,
            seen(99),
        );
        let found = |family| {
            let entries = entries(&list, &set(family), TICKS).into_iter();
            entries.map(|it| it.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(
            found(IpFamily::V4),
            [
                "10.1.0.9 timeout 100",
                "10.1.0.10 timeout 70",
                "10.1.0.12 timeout 100"
            ]
        );
        assert_eq!(found(IpFamily::V6), ["fd00::1 timeout 1"]);
    }
}
