// SPDX-License-Identifier: Apache-2.0
//! Where following a kind stands, and what to do after a failure.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::encoding::Encoding;
use super::failure::Failure;
use super::request::Freshness;

/// How long plain lists are asked for where streamed ones do not come.
const STREAM_AGAIN: Duration = Duration::from_mins(30);
/// How long JSON is asked for where protobuf does not come.
const PROTOBUF_AGAIN: Duration = Duration::from_mins(30);
/// The first pause after a failure; it doubles up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(200);
/// As client-go's: every node asks, for each kind.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// A server may wish for more, up to this.
const MAX_RETRY_AFTER: Duration = Duration::from_mins(5);
/// After this many refusals in a row the kind is listed again, and the newest of it: the server may
/// not know the version that was seen, for example after a restore.
const MAX_REFUSALS: u32 = 3;
/// The same for a kind that the server need not have: a server that has just started may refuse
/// what it allows as soon as it has read its roles.
const MAX_OPTIONAL_REFUSALS: u32 = 5;
/// Of the failures in a row the first is logged, then one in this time.
const LOG_INTERVAL: Duration = Duration::from_mins(1);

/// What was asked for last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    Watch,
    StreamedList,
    PlainList,
}

/// What to do after a failure, before the next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Remedy {
    AtOnce,
    AfterPause,
    /// The kind is not there.
    Absent,
}

/// What is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needs {
    /// The list of the version that was seen is complete: a watch goes on from there.
    Changes,
    List,
    /// The newest one, of whatever version.
    NewestList,
}

#[derive(Debug)]
pub(super) struct State {
    kind: &'static str,
    optional: bool,
    /// What the operator wishes.
    wished: Encoding,
    /// What is asked for now.
    encoding: Encoding,
    /// Until then JSON is asked for.
    protobuf_again: Option<Instant>,
    attempt: Attempt,
    /// The newest version that was seen.
    seen: Option<String>,
    needs: Needs,
    /// Until then no list is asked for as a stream.
    stream_again: Option<Instant>,
    /// The server sends bookmarks: silence has a meaning.
    has_bookmarks: bool,
    /// The attempt was answered.
    is_open: bool,
    /// In a row, of any kind.
    failures: u32,
    /// In a row, by a server that answered.
    refusals: u32,
    logged: Option<Instant>,
}

impl State {
    pub(super) fn new(kind: &'static str, optional: bool, wished: Encoding) -> Self {
        Self {
            kind,
            optional,
            wished,
            encoding: wished,
            protobuf_again: None,
            attempt: Attempt::StreamedList,
            seen: None,
            needs: Needs::List,
            stream_again: None,
            has_bookmarks: false,
            is_open: false,
            failures: 0,
            refusals: 0,
            logged: None,
        }
    }

    /// What to ask for next. With a watch goes the version to go on from.
    pub(super) fn next(&mut self, now: Instant) -> (Attempt, String) {
        self.is_open = false;
        self.encoding = match self.protobuf_again {
            Some(again) if now < again => Encoding::Json,
            _ => self.wished,
        };
        self.attempt = if self.needs == Needs::Changes {
            Attempt::Watch
        } else if self.stream_again.is_none_or(|again| now >= again) {
            Attempt::StreamedList
        } else {
            Attempt::PlainList
        };
        (self.attempt, self.seen.clone().unwrap_or_default())
    }

    /// The form to ask for.
    pub(super) fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// How new a list must be.
    pub(super) fn freshness(&self) -> Freshness {
        match &self.seen {
            _ if self.needs == Needs::NewestList => Freshness::Newest,
            Some(seen) if !seen.is_empty() => Freshness::NotOlderThan(seen.clone()),
            _ => Freshness::Any,
        }
    }

    /// The server took the request.
    pub(super) fn opened(&mut self) {
        self.is_open = true;
    }

    /// A list is complete. Not taken if it is older than what was seen, unless that is the newest
    /// that the server has: it was restored from a backup.
    pub(super) fn listed(&mut self, version: String) -> Result<(), Failure> {
        if let Some(seen) = self.seen.as_ref().filter(|seen| is_older(&version, seen)) {
            if self.needs != Needs::NewestList {
                return Err(Failure::Older {
                    version,
                    seen: seen.clone(),
                });
            }
            warn!(
                kind = self.kind,
                version, seen, "API server went back to an older version"
            );
        }
        self.seen = Some(version);
        self.needs = Needs::Changes;
        self.attempt = Attempt::Watch;
        self.succeeded();
        Ok(())
    }

    /// The watch is at this version.
    pub(super) fn at(&mut self, version: Option<&str>) {
        if let Some(version) = version.filter(|version| !version.is_empty()) {
            self.seen = Some(version.to_owned());
        }
    }

    pub(super) fn bookmarked(&mut self, version: &str) {
        self.has_bookmarks = true;
        self.at(Some(version));
    }

    /// The server said something of use.
    pub(super) fn succeeded(&mut self) {
        if self.failures > 0 {
            let failures = self.failures;
            info!(kind = self.kind, failures, "watch recovered");
        }
        self.failures = 0;
        self.refusals = 0;
        self.logged = None;
    }

    pub(super) fn failed(&mut self, failure: &Failure, now: Instant) -> Remedy {
        let is_streamed = self.attempt == Attempt::StreamedList;
        match failure {
            Failure::Renewed => return Remedy::AtOnce,
            // The next request shows whether the server is alive; its silence may mean nothing.
            Failure::Silent(limit) if self.attempt == Attempt::Watch => {
                if self.has_bookmarks {
                    let seconds = limit.as_secs();
                    warn!(
                        kind = self.kind,
                        seconds, "watch is silent, starting it again"
                    );
                }
                return Remedy::AtOnce;
            }
            Failure::Silent(_) | Failure::Endless if is_streamed => self.list_plainly(now),
            Failure::Silent(_) | Failure::Endless | Failure::Broken(_) => {}
            Failure::Malformed(_) => {
                if self.refused(is_streamed, now) && self.encoding == Encoding::Protobuf {
                    self.speak_json(now);
                }
            }
            Failure::Older { .. } => {
                self.refused(false, now);
            }
            Failure::Refused { code, .. } => match code {
                // What was there once is there: the server is not itself yet. A role may be from
                // before the kind existed.
                403 | 404 if self.optional && self.seen.is_none() => {
                    self.refusals += 1;
                    if self.refusals >= MAX_OPTIONAL_REFUSALS {
                        self.refusals = 0;
                        return Remedy::Absent;
                    }
                }
                410 => {
                    // A list that is too old by the time it was asked for.
                    self.needs = match self.needs {
                        Needs::Changes => Needs::List,
                        _ => self.newest(),
                    };
                }
                // It should answer in JSON, which is asked for too; something between does not.
                406 | 415 if self.encoding == Encoding::Protobuf => self.speak_json(now),
                // `sendInitialEvents` is not known, or not allowed.
                400 | 422 if is_streamed => self.list_plainly(now),
                // May be about the version. Other refusals (no role yet, too many requests) pass,
                // and lists from all nodes would make them last.
                400 | 422 | 504 => {
                    self.refused(false, now);
                }
                _ => {}
            },
        }
        Remedy::AfterPause
    }

    /// Counts an answer that may be about the version, and gives that up after some. Returns
    /// whether these were too many.
    fn refused(&mut self, is_streamed: bool, now: Instant) -> bool {
        self.refusals += 1;
        let are_too_many = self.refusals >= MAX_REFUSALS;
        if are_too_many {
            self.refusals = 0;
            self.needs = self.newest();
            if is_streamed {
                self.list_plainly(now);
            }
        }
        are_too_many
    }

    fn speak_json(&mut self, now: Instant) {
        info!(
            kind = self.kind,
            "API server does not send protobuf, asking for JSON instead"
        );
        self.protobuf_again = Some(now + PROTOBUF_AGAIN);
    }

    fn newest(&self) -> Needs {
        match self.seen {
            Some(_) => Needs::NewestList,
            None => Needs::List,
        }
    }

    fn list_plainly(&mut self, now: Instant) {
        info!(
            kind = self.kind,
            "API server does not stream lists, listing instead"
        );
        self.stream_again = Some(now + STREAM_AGAIN);
    }

    /// How long to wait before the next attempt.
    pub(super) fn pause(&mut self, failure: &Failure, random: u64) -> Duration {
        let own = pause(self.failures, random);
        self.failures += 1;
        match failure {
            Failure::Refused {
                retry_after: Some(wished),
                ..
            } => {
                // Not all nodes at once.
                let spread = pause(u32::MAX, random) / 10;
                own.max((*wished).min(MAX_RETRY_AFTER) + spread)
            }
            _ => own,
        }
    }

    pub(super) fn log(&mut self, failure: &Failure, pause: Duration, now: Instant) {
        let (kind, failures) = (self.kind, self.failures);
        let retry_ms = pause.as_millis();
        // A watch also ends when a server restarts; only a failure to start it again is a warning.
        let is_news = !self.is_open
            || self.attempt != Attempt::Watch
            || matches!(failure, Failure::Malformed(_) | Failure::Older { .. });
        let is_due = self
            .logged
            .is_none_or(|logged| now.duration_since(logged) >= LOG_INTERVAL);
        if is_news && is_due {
            self.logged = Some(now);
            warn!(kind, failures, retry_ms, error = %failure, "watch failed");
        } else {
            debug!(kind, failures, retry_ms, error = %failure, "watch failed");
        }
    }
}

/// Versions are numbers that grow, in every API server that says so at all.
fn is_older(version: &str, seen: &str) -> bool {
    match (version.parse::<u64>(), seen.parse::<u64>()) {
        (Ok(version), Ok(seen)) => version < seen,
        _ => false,
    }
}

/// Between half and all of a time that doubles with each failure, so that the nodes of a cluster
/// do not ask at the same moment.
fn pause(failures: u32, random: u64) -> Duration {
    let doubled = MIN_PAUSE.saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX));
    let longest = doubled.min(MAX_PAUSE);
    let millis = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX);
    longest / 2 + Duration::from_millis(random % (millis / 2 + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(code: u16) -> Failure {
        Failure::Refused {
            code,
            message: "no".to_owned(),
            retry_after: None,
        }
    }

    fn listed(version: &str) -> State {
        let mut state = State::new("Service", false, Encoding::default());
        state.listed(version.to_owned()).unwrap();
        state
    }

    #[tokio::test(start_paused = true)]
    async fn an_optional_kind_is_absent_only_if_it_never_was_there_and_stays_refused() {
        let now = Instant::now();
        let mut state = State::new("ServiceCIDR", true, Encoding::default());
        for _ in 1..MAX_OPTIONAL_REFUSALS {
            assert_eq!(state.failed(&refusal(403), now), Remedy::AfterPause);
        }
        assert_eq!(state.failed(&refusal(403), now), Remedy::Absent);
        state.listed("1".to_owned()).unwrap();
        for code in [403, 404] {
            for _ in 0..2 * MAX_OPTIONAL_REFUSALS {
                assert_eq!(state.failed(&refusal(code), now), Remedy::AfterPause);
            }
        }
        let mut other = State::new("Service", false, Encoding::default());
        for _ in 0..2 * MAX_OPTIONAL_REFUSALS {
            assert_eq!(other.failed(&refusal(404), now), Remedy::AfterPause);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_may_be_about_the_version_makes_a_list_necessary() {
        let now = Instant::now();
        for (code, relists) in [
            (403, false),
            (429, false),
            (503, false),
            (400, true),
            (504, true),
        ] {
            let mut state = listed("7");
            for _ in 0..MAX_REFUSALS {
                assert_eq!(state.next(now).0, Attempt::Watch, "{code}");
                state.failed(&refusal(code), now);
            }
            assert_eq!(state.next(now).0 != Attempt::Watch, relists, "{code}");
            assert_eq!(state.freshness() == Freshness::Newest, relists, "{code}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_older_list_is_taken_only_if_the_server_has_nothing_else() {
        let now = Instant::now();
        let mut state = listed("7");
        state.failed(&refusal(410), now);
        for _ in 0..MAX_REFUSALS {
            assert_eq!(state.next(now), (Attempt::StreamedList, "7".to_owned()));
            assert_eq!(state.freshness(), Freshness::NotOlderThan("7".to_owned()));
            let failure = state.listed("5".to_owned()).unwrap_err();
            assert_eq!(state.failed(&failure, now), Remedy::AfterPause);
        }
        assert_eq!(state.freshness(), Freshness::Newest);
        state.listed("5".to_owned()).unwrap();
        assert_eq!(state.next(now), (Attempt::Watch, "5".to_owned()));
    }

    #[tokio::test(start_paused = true)]
    async fn streamed_lists_are_tried_again_later() {
        let now = Instant::now();
        for failure in [
            refusal(400),
            refusal(422),
            Failure::Endless,
            Failure::Silent(Duration::from_secs(30)),
        ] {
            let mut state = State::new("Service", false, Encoding::default());
            assert_eq!(state.next(now).0, Attempt::StreamedList);
            assert_eq!(state.failed(&failure, now), Remedy::AfterPause);
            assert_eq!(state.next(now).0, Attempt::PlainList, "{failure}");
            // A plain list has no other form.
            state.failed(&failure, now);
            assert_eq!(state.next(now).0, Attempt::PlainList, "{failure}");
            assert_eq!(state.next(now + STREAM_AGAIN).0, Attempt::StreamedList);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_server_says_how_long_to_wait() {
        let mut state = State::new("Service", false, Encoding::default());
        let after = |seconds| Failure::Refused {
            code: 429,
            message: String::new(),
            retry_after: Some(Duration::from_secs(seconds)),
        };
        for random in [0, 7_777_777, u64::MAX] {
            let paused = state.pause(&after(60), random).as_secs();
            assert!((60..=63).contains(&paused), "{paused}");
        }
        let paused = state.pause(&after(1_000_000), 0).as_secs();
        assert_eq!(paused, 301, "there is a limit");
    }

    #[test]
    fn pauses_grow_to_a_limit_and_differ() {
        assert_eq!(pause(0, 0), MIN_PAUSE / 2);
        assert_eq!(pause(0, 100), MIN_PAUSE);
        assert_eq!(pause(1, 0), MIN_PAUSE);
        assert_eq!(pause(40, 0), MAX_PAUSE / 2);
        for failures in 0..100 {
            for random in [0, 1, 7_777_777, u64::MAX] {
                assert!(pause(failures, random) <= MAX_PAUSE);
            }
        }
    }
}
