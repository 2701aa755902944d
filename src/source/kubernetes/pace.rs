// SPDX-License-Identifier: Apache-2.0
//! Rate limit of repeated requests. A server (or a balancer in front of it) that accepts a watch
//! and ends it at once would otherwise be asked again without a pause.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Requests allowed at once: an initial list has several pages.
const BURST: u32 = 20;
/// After that, one in this time.
const INTERVAL: Duration = Duration::from_secs(1);

/// The request rate of each path.
#[derive(Clone, Debug, Default)]
pub(super) struct Pace {
    paths: Arc<Mutex<BTreeMap<String, Bucket>>>,
}

/// A token bucket.
#[derive(Debug)]
struct Bucket {
    /// When the bucket will be full again.
    full_at: Instant,
}

impl Pace {
    /// Waits until `path` may be requested.
    pub(super) async fn wait(&self, path: &str) {
        sleep_until(self.reserve(path, Instant::now())).await;
    }

    fn reserve(&self, path: &str, now: Instant) -> Instant {
        // A bucket is whole whatever a thread that panicked did.
        let mut paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
        // Paths are those of the watched kinds and of written events; full buckets say nothing.
        paths.retain(|_, bucket| bucket.full_at > now);
        let bucket = paths
            .entry(path.to_owned())
            .or_insert(Bucket { full_at: now });
        bucket.full_at += INTERVAL;
        // So far ahead of the clock, the burst is used up.
        let debt = bucket.full_at.saturating_duration_since(now);
        now + debt.saturating_sub(INTERVAL * BURST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_free_and_the_rest_is_paced() {
        let (pace, now) = (Pace::default(), Instant::now());
        for _ in 0..BURST {
            assert_eq!(pace.reserve("/services", now), now);
        }
        assert_eq!(pace.reserve("/services", now), now + INTERVAL);
        assert_eq!(pace.reserve("/services", now), now + 2 * INTERVAL);
        assert_eq!(pace.reserve("/endpointslices", now), now);
    }

    #[test]
    fn a_pause_gives_the_burst_back() {
        let (pace, now) = (Pace::default(), Instant::now());
        for _ in 0..BURST {
            pace.reserve("/services", now);
        }
        let later = now + INTERVAL * BURST;
        for _ in 0..BURST {
            assert_eq!(pace.reserve("/services", later), later);
        }
        assert_eq!(pace.reserve("/services", later), later + INTERVAL);
    }
}
