// SPDX-License-Identifier: Apache-2.0
//! Whether the proxy keeps up. Written by the loop and by the watch of this Node, read by the
//! servers.
//!
//! A family is unhealthy while a change has been waiting for at least twice the sync period. A
//! round that fails with no change waiting does not count, nor does any change before the first
//! round, which waits until everything was listed. All families are unhealthy while the loop itself
//! gives no sign of life, or does not take in what the source has sent, for that long.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Serialize, Serializer};

use crate::clock::Clock;
use kpr_core::model::net::IpFamily;

/// The proxy's health. Clones share it.
#[derive(Clone, Debug)]
pub struct ProxyHealth {
    clock: Clock,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// A change that waits that long makes its family unhealthy.
    limit: Duration,
    families: BTreeMap<IpFamily, Family>,
    /// The first round has begun.
    is_ready: bool,
    /// When the loop last gave a sign of life; none before it runs.
    alive: Option<Duration>,
    inputs: Inputs,
    node_eligible: bool,
    shutting_down: bool,
}

/// What the source has sent to the loop.
#[derive(Debug, Default)]
struct Inputs {
    sent: u64,
    taken: u64,
    /// Since when the loop has not taken one that it could have.
    waiting: Option<Duration>,
}

/// Monotonic times of the oldest change that waits for a round, and of the oldest one that the
/// round in flight took. Apart, so that a change that arrives during a round is not taken for done
/// with it.
#[derive(Clone, Copy, Debug)]
struct Family {
    last_updated: Timestamp,
    waiting: Option<Duration>,
    in_round: Option<Duration>,
}

impl Family {
    fn oldest(&self) -> Option<Duration> {
        [self.in_round, self.waiting].into_iter().flatten().min()
    }
}

/// The health at one moment, as the servers print it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthStatus {
    /// Now if the answer is good, else when a family last succeeded.
    #[serde(serialize_with = "time_or_zero")]
    pub last_updated: Option<Timestamp>,
    /// Now.
    #[serde(serialize_with = "time")]
    pub current_time: Timestamp,
    /// Whether load balancers may send new connections to this node; absent in `/livez`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_eligible: Option<bool>,
    /// Whether all families keep up. Says nothing about eligibility.
    pub healthy: bool,
    /// Each family that has started, by its name.
    pub status: BTreeMap<&'static str, FamilyStatus>,
}

impl HealthStatus {
    /// Whether the answer is 200, not 503.
    pub fn is_good(&self) -> bool {
        self.healthy && self.node_eligible != Some(false)
    }
}

/// The health of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FamilyStatus {
    /// When a round last succeeded, or the loop started.
    #[serde(serialize_with = "time")]
    pub last_updated: Timestamp,
    /// Whether no change has been waiting for too long.
    pub healthy: bool,
}

impl ProxyHealth {
    /// The health of a proxy that has not started. It is not eligible until its Node is known.
    pub fn new(clock: Clock, sync_period: Duration) -> Self {
        let health = Self {
            clock,
            state: Arc::default(),
        };
        health.set_sync_period(sync_period);
        health
    }

    /// Rounds are that far apart at most from here on.
    pub fn set_sync_period(&self, sync_period: Duration) {
        self.state().limit = sync_period.saturating_mul(2);
    }

    /// The loop gives a sign of life: it turned, or got on with its round.
    pub fn loop_is_alive(&self) {
        let now = self.clock.monotonic();
        self.state().alive = Some(now);
    }

    /// The source is about to send an input to the loop.
    pub fn input_sent(&self) {
        let now = self.clock.monotonic();
        let inputs = &mut self.state().inputs;
        inputs.sent += 1;
        inputs.waiting.get_or_insert(now);
    }

    /// The loop took an input of the source.
    pub fn input_taken(&self) {
        let now = self.clock.monotonic();
        let inputs = &mut self.state().inputs;
        inputs.taken += 1;
        inputs.waiting = (inputs.taken < inputs.sent).then_some(now);
    }

    /// The loop of a family starts.
    pub fn started(&self, family: IpFamily) {
        let now = self.clock.now();
        let fresh = Family {
            last_updated: now,
            waiting: None,
            in_round: None,
        };
        self.state().families.insert(family, fresh);
    }

    /// Everything was listed, and the first round begins.
    pub fn ready(&self) {
        let now = self.clock.monotonic();
        let mut state = self.state();
        state.is_ready = true;
        for family in state.families.values_mut() {
            family.waiting.get_or_insert(now);
        }
    }

    /// A change waits for a round. Before the first one it waits for the source, not for us.
    pub fn change_queued(&self, family: IpFamily) {
        let now = self.clock.monotonic();
        let mut state = self.state();
        if state.is_ready
            && let Some(family) = state.families.get_mut(&family)
        {
            family.waiting.get_or_insert(now);
        }
    }

    /// A round begins; it takes all changes that wait.
    pub fn round_started(&self, family: IpFamily) {
        self.with(family, |family| {
            family.in_round = family.oldest();
            family.waiting = None;
        });
    }

    /// The round succeeded: what it took is done.
    pub fn round_succeeded(&self, family: IpFamily) {
        let now = self.clock.now();
        self.with(family, |family| {
            family.last_updated = now;
            family.in_round = None;
        });
    }

    /// The round failed: what it took waits on, since it was queued.
    pub fn round_failed(&self, family: IpFamily) {
        self.with(family, |family| {
            family.waiting = family.oldest();
            family.in_round = None;
        });
    }

    /// What the Node object says: false while it is unknown, deleted, being deleted or marked by
    /// the autoscaler.
    pub fn set_node_eligible(&self, eligible: bool) {
        self.state().node_eligible = eligible;
    }

    /// The proxy is about to exit: load balancers must drain this node.
    pub fn set_shutting_down(&self) {
        self.state().shutting_down = true;
    }

    /// For `/healthz`: keeps up, and the node is eligible.
    pub fn healthz(&self) -> HealthStatus {
        let state = self.state();
        let eligible = state.node_eligible && !state.shutting_down;
        self.status(&state, Some(eligible))
    }

    /// For `/livez`: keeps up.
    pub fn livez(&self) -> HealthStatus {
        self.status(&self.state(), None)
    }

    /// For the health checks of Services: keeps up and goes on.
    pub fn is_serving(&self) -> bool {
        let state = self.state();
        !state.shutting_down && self.status(&state, None).healthy
    }

    fn status(&self, state: &State, node_eligible: Option<bool>) -> HealthStatus {
        let now = self.clock.monotonic();
        let is_late = |since: Duration| now.saturating_sub(since) >= state.limit;
        let signs = [state.alive, state.inputs.waiting];
        let hangs = state.alive.is_some() && signs.into_iter().flatten().any(is_late);
        let status: BTreeMap<_, _> = state
            .families
            .iter()
            .map(|(name, family)| {
                let healthy = !hangs && !family.oldest().is_some_and(is_late);
                (
                    name.as_str(),
                    FamilyStatus {
                        last_updated: family.last_updated,
                        healthy,
                    },
                )
            })
            .collect();
        let current_time = self.clock.now();
        let mut answer = HealthStatus {
            last_updated: status.values().map(|family| family.last_updated).max(),
            current_time,
            node_eligible,
            healthy: !hangs && status.values().all(|family| family.healthy),
            status,
        };
        if answer.is_good() {
            answer.last_updated = Some(current_time);
        }
        answer
    }

    /// Changes of a family that has not started are nothing to be late with.
    fn with(&self, family: IpFamily, change: impl FnOnce(&mut Family)) {
        if let Some(family) = self.state().families.get_mut(&family) {
            change(family);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is whole after every statement, also if a thread died.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// RFC 3339 with as many digits as needed, like Go's `RFC3339Nano`.
fn time<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(time)
}

#[expect(clippy::ref_option, reason = "serde's signature")]
fn time_or_zero<S: Serializer>(
    value: &Option<Timestamp>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => time(value, serializer),
        // Go's zero time.
        None => serializer.serialize_str("0001-01-01T00:00:00Z"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    const PERIOD: Duration = Duration::from_secs(30);
    const LIMIT: Duration = Duration::from_mins(1);
    const TICK: Duration = Duration::from_nanos(1);
    const JUST_IN_TIME: Duration = LIMIT.saturating_sub(TICK);

    fn health() -> (ProxyHealth, ManualClock) {
        let (clock, hand) = Clock::manual("2026-01-01T00:00:00Z".parse().unwrap());
        (ProxyHealth::new(clock, PERIOD), hand)
    }

    fn started() -> (ProxyHealth, ManualClock) {
        let (health, hand) = health();
        health.started(IpFamily::V4);
        health.started(IpFamily::V6);
        health.set_node_eligible(true);
        health.ready();
        for family in IpFamily::ALL {
            health.round_started(family);
            health.round_succeeded(family);
        }
        (health, hand)
    }

    #[test]
    fn a_proxy_that_has_not_started_is_healthy_and_not_eligible() {
        let (health, _) = health();
        let status = health.healthz();
        assert!(status.healthy && !status.is_good());
        assert_eq!(status.status, BTreeMap::new());
        assert_eq!(status.last_updated, None);
        assert!(health.livez().is_good());
        assert!(health.is_serving());
    }

    #[test]
    fn changes_before_the_first_round_are_nothing_to_be_late_with() {
        let (health, hand) = health();
        health.change_queued(IpFamily::V4);
        health.started(IpFamily::V4);
        health.change_queued(IpFamily::V4);
        hand.advance(LIMIT * 10);
        assert!(health.livez().healthy);
        health.ready();
        health.round_started(IpFamily::V4);
        health.round_failed(IpFamily::V4);
        hand.advance(JUST_IN_TIME);
        assert!(health.livez().healthy);
        hand.advance(TICK);
        assert!(!health.livez().healthy);
    }

    #[test]
    fn a_change_makes_unhealthy_after_exactly_twice_the_period() {
        let (health, hand) = started();
        health.change_queued(IpFamily::V4);
        hand.advance(JUST_IN_TIME);
        assert!(health.livez().healthy);
        hand.advance(TICK);
        let status = health.livez();
        assert!(!status.healthy && !status.is_good());
        assert!(!status.status["IPv4"].healthy);
        assert!(status.status["IPv6"].healthy);
        assert!(!health.is_serving());
    }

    #[test]
    fn the_oldest_change_counts() {
        let (health, hand) = started();
        health.change_queued(IpFamily::V4);
        hand.advance(JUST_IN_TIME);
        health.change_queued(IpFamily::V4);
        hand.advance(TICK);
        assert!(!health.livez().healthy);
    }

    #[test]
    fn silence_is_healthy_for_ever() {
        let (health, hand) = started();
        hand.advance(LIMIT * 1000);
        assert!(health.livez().healthy);
    }

    #[test]
    fn a_loop_that_gives_no_sign_of_life_makes_all_families_unhealthy() {
        let (health, hand) = started();
        health.loop_is_alive();
        hand.advance(JUST_IN_TIME);
        assert!(health.livez().is_good());
        hand.advance(TICK);
        let status = health.livez();
        assert!(!status.is_good() && !health.is_serving());
        assert!(status.status.values().all(|family| !family.healthy));
        health.loop_is_alive();
        assert!(health.livez().is_good());
    }

    #[test]
    fn a_loop_that_turns_and_takes_nothing_in_is_unhealthy() {
        let (health, hand) = started();
        let turn_for = |time: Duration| {
            hand.advance(time);
            health.loop_is_alive();
        };
        health.input_sent();
        turn_for(JUST_IN_TIME);
        health.input_sent();
        health.input_taken();
        turn_for(JUST_IN_TIME);
        assert!(health.livez().is_good(), "it gets on");
        turn_for(TICK);
        assert!(!health.livez().is_good());
        health.input_taken();
        turn_for(LIMIT);
        assert!(health.livez().is_good());
    }

    #[test]
    fn what_is_sent_before_the_loop_runs_is_not_late() {
        let (health, hand) = started();
        health.input_sent();
        hand.advance(LIMIT);
        assert!(health.livez().is_good());
    }

    #[test]
    fn success_ends_the_waiting_of_what_the_round_took() {
        let (health, hand) = started();
        health.change_queued(IpFamily::V4);
        hand.advance(LIMIT);
        health.round_started(IpFamily::V4);
        assert!(!health.livez().healthy);
        health.round_succeeded(IpFamily::V4);
        let status = health.livez();
        assert!(status.healthy);
        assert_eq!(
            status.status["IPv4"].last_updated.to_string(),
            "2026-01-01T00:01:00Z"
        );
        assert_eq!(
            status.status["IPv6"].last_updated.to_string(),
            "2026-01-01T00:00:00Z"
        );
    }

    #[test]
    fn a_change_during_a_round_waits_for_the_next() {
        let (health, hand) = started();
        health.change_queued(IpFamily::V4);
        health.round_started(IpFamily::V4);
        hand.advance(Duration::from_secs(1));
        health.change_queued(IpFamily::V4);
        health.round_succeeded(IpFamily::V4);
        hand.advance(JUST_IN_TIME);
        assert!(health.livez().healthy);
        hand.advance(TICK);
        assert!(!health.livez().healthy);
    }

    #[test]
    fn a_change_waits_through_failed_rounds() {
        let (health, hand) = started();
        health.change_queued(IpFamily::V4);
        for _ in 0..3 {
            hand.advance(LIMIT / 4);
            health.round_started(IpFamily::V4);
            health.round_failed(IpFamily::V4);
        }
        hand.advance((LIMIT / 4).saturating_sub(TICK));
        assert!(health.livez().healthy);
        hand.advance(TICK);
        assert!(!health.livez().healthy);
    }

    #[test]
    fn a_round_that_fails_with_nothing_waiting_is_no_reason() {
        let (health, hand) = started();
        health.round_started(IpFamily::V4);
        health.round_failed(IpFamily::V4);
        hand.advance(LIMIT * 2);
        assert!(health.livez().healthy);
    }

    #[test]
    fn an_ineligible_node_fails_healthz_only() {
        let (health, _) = started();
        health.set_node_eligible(false);
        let status = health.healthz();
        assert!(!status.is_good() && status.healthy);
        assert!(health.livez().is_good());
        assert!(health.is_serving());
        health.set_node_eligible(true);
        assert!(health.healthz().is_good());
    }

    #[test]
    fn a_proxy_that_ends_sends_load_balancers_away_but_lives() {
        let (health, _) = started();
        health.set_shutting_down();
        assert!(!health.healthz().is_good());
        assert!(health.livez().is_good());
        assert!(!health.is_serving());
    }

    #[test]
    fn the_time_of_day_is_no_measure_of_waiting() {
        let (health, hand) = started();
        health.change_queued(IpFamily::V4);
        hand.set_now("2030-01-01T00:00:00Z".parse().unwrap());
        assert!(health.livez().healthy);
    }

    #[test]
    fn the_answer_is_kube_proxys_json() {
        let (health, hand) = started();
        hand.advance(Duration::from_millis(1500));
        assert_eq!(
            serde_json::to_string(&health.healthz()).unwrap(),
            r#"{"lastUpdated":"2026-01-01T00:00:01.5Z","currentTime":"2026-01-01T00:00:01.5Z","nodeEligible":true,"healthy":true,"status":{"IPv4":{"lastUpdated":"2026-01-01T00:00:00Z","healthy":true},"IPv6":{"lastUpdated":"2026-01-01T00:00:00Z","healthy":true}}}"#
        );
        health.round_succeeded(IpFamily::V6);
        health.set_node_eligible(false);
        hand.advance(Duration::from_nanos(7));
        assert_eq!(
            serde_json::to_string(&health.healthz()).unwrap(),
            r#"{"lastUpdated":"2026-01-01T00:00:01.5Z","currentTime":"2026-01-01T00:00:01.500000007Z","nodeEligible":false,"healthy":true,"status":{"IPv4":{"lastUpdated":"2026-01-01T00:00:00Z","healthy":true},"IPv6":{"lastUpdated":"2026-01-01T00:00:01.5Z","healthy":true}}}"#
        );
        assert!(
            !serde_json::to_string(&health.livez())
                .unwrap()
                .contains("nodeEligible")
        );
    }
}
