// SPDX-License-Identifier: Apache-2.0
//! Watches one kind of object: the initial list, then its changes, through every failure of the
//! server. `kube`'s watcher resumes and relists; this adds back-off between attempts, the fallback
//! for servers that cannot stream lists, and an exit from states that the watcher does not leave.

use std::error::Error as StdError;
use std::fmt::Debug;
use std::hash::{BuildHasher, RandomState};
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::watcher::{self, Event, InitialListStrategy, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::{Instrument, debug, info, info_span, warn};

use super::super::{Closed, Update, send};

/// The first pause after a failure; it doubles up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(200);
/// Short, because a restarted server should be used soon; every node asks, so not too short.
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// A list of which nothing arrives for this long does not come. If it was to be streamed, the
/// server may not know how.
const SILENCE: Duration = Duration::from_secs(30);
/// After this many refusals in a row the kind is listed again: the server may not know the resource
/// version to resume from, for example after a restore.
const MAX_REFUSALS: u32 = 3;
/// The same for a kind that the server need not have: a server that has just started may refuse
/// what it allows as soon as it has read its roles.
const MAX_OPTIONAL_REFUSALS: u32 = 5;
/// How often to ask again for a kind that the server does not have.
const ABSENT_INTERVAL: Duration = Duration::from_mins(5);
/// Of consecutive failures, one in this many is logged: about one in a minute.
const LOG_EVERY: u32 = 16;

/// What to follow.
pub(super) struct Watched<K> {
    pub(super) kind: &'static str,
    pub(super) api: Api<K>,
    pub(super) config: watcher::Config,
    /// The server may not have this kind.
    pub(super) optional: bool,
}

/// What becomes of the objects of a kind.
pub(super) trait Handler<K> {
    /// Takes in an event; says what to send.
    fn handle(&mut self, event: Event<K>) -> Option<Update>;

    /// The server does not have this kind.
    fn absent(&mut self) -> Option<Update> {
        None
    }
}

/// Where following stands between two events.
struct Progress {
    kind: &'static str,
    /// The list is complete.
    listed: bool,
    /// Some list was complete once.
    ever_listed: bool,
    /// In a row, of any kind.
    failures: u32,
    /// In a row, by a server that answered.
    refusals: u32,
}

/// What to do after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Remedy {
    /// Go on with the same watch.
    Resume,
    /// Start over with a list.
    Relist,
    /// Start over with a list that is not streamed.
    List,
    /// The kind is not there.
    Absent,
}

/// Follows a kind until the receiver is gone.
pub(super) async fn follow<K, U>(
    watched: Watched<K>,
    mut handler: impl Handler<K>,
    updates: &mpsc::Sender<U>,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    U: From<Update>,
{
    let span = info_span!("watch", kind = watched.kind);
    let following = follow_or_closed(watched, &mut handler, updates).instrument(span);
    tokio::select! {
        _closed = following => {}
        () = updates.closed() => {}
    }
}

async fn follow_or_closed<K, U>(
    mut watched: Watched<K>,
    handler: &mut impl Handler<K>,
    updates: &mpsc::Sender<U>,
) -> Result<(), Closed>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    U: From<Update>,
{
    let mut progress = Progress {
        kind: watched.kind,
        listed: false,
        ever_listed: false,
        failures: 0,
        refusals: 0,
    };
    // One object at a time, instead of a page or a whole list in memory.
    watched.config.initial_list_strategy = InitialListStrategy::StreamingList;
    loop {
        progress.listed = false;
        let remedy = match attempt(&watched, handler, updates, &mut progress).await? {
            Remedy::Resume => continue,
            remedy => remedy,
        };
        match remedy {
            Remedy::Absent => {
                if let Some(update) = handler.absent() {
                    send(updates, update).await?;
                }
                tokio::time::sleep(ABSENT_INTERVAL).await;
            }
            Remedy::List => {
                info!(
                    kind = watched.kind,
                    "API server does not stream lists, listing instead"
                );
                watched.config.initial_list_strategy = InitialListStrategy::ListWatch;
            }
            Remedy::Relist | Remedy::Resume => {}
        }
    }
}

/// One watcher, from its list to the failure that needs another.
async fn attempt<K, U>(
    watched: &Watched<K>,
    handler: &mut impl Handler<K>,
    updates: &mpsc::Sender<U>,
    progress: &mut Progress,
) -> Result<Remedy, Closed>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    U: From<Update>,
{
    let streaming = watched.config.initial_list_strategy == InitialListStrategy::StreamingList;
    let mut stream = pin!(watcher(watched.api.clone(), watched.config.clone()));
    loop {
        let next = if progress.listed {
            stream.next().await
        } else {
            match timeout(SILENCE, stream.next()).await {
                Ok(next) => next,
                Err(_elapsed) => return Ok(Remedy::List),
            }
        };
        match next {
            Some(Ok(event)) => {
                progress.succeeded(&event);
                if let Some(update) = handler.handle(event) {
                    send(updates, update).await?;
                }
            }
            Some(Err(error)) => {
                let remedy = progress.remedy(&error, streaming, watched.optional);
                if remedy == Remedy::Absent || remedy == Remedy::List {
                    let error = describe(&error);
                    info!(
                        kind = watched.kind,
                        error,
                        ?remedy,
                        "API server does not serve this watch"
                    );
                    return Ok(remedy);
                }
                progress.failed(&error).await;
                if remedy == Remedy::Relist {
                    return Ok(remedy);
                }
            }
            // The watcher never ends by itself.
            None => return Ok(Remedy::Relist),
        }
    }
}

impl Progress {
    fn succeeded<K>(&mut self, event: &Event<K>) {
        // The begin of a streamed list only says that the server took the request.
        if matches!(event, Event::Init) {
            return;
        }
        self.listed |= matches!(event, Event::InitDone);
        self.ever_listed |= self.listed;
        if self.failures > 0 && !matches!(event, Event::InitApply(_)) {
            info!(
                kind = self.kind,
                failures = self.failures,
                "watch recovered"
            );
            self.failures = 0;
        }
        self.refusals = 0;
    }

    fn remedy(&mut self, error: &watcher::Error, streaming: bool, optional: bool) -> Remedy {
        use watcher::Error;
        let refused = match error {
            Error::InitialListFailed(kube::Error::Api(status))
            | Error::WatchStartFailed(kube::Error::Api(status)) => Some(status.code),
            _ => None,
        };
        self.refusals = refused.map_or(self.refusals, |_| self.refusals + 1);
        match refused {
            // What was there once is there: the server is not itself yet. A role may be from before
            // the kind existed.
            Some(404 | 403) if optional && !self.ever_listed => {
                if self.refusals < MAX_OPTIONAL_REFUSALS {
                    return Remedy::Resume;
                }
                Remedy::Absent
            }
            // `sendInitialEvents` is not known, or not allowed.
            Some(400 | 422) if streaming && !self.listed => Remedy::List,
            Some(410) => Remedy::Relist,
            // Other refusals (no role yet, too many requests) pass, and lists from all nodes would
            // make them last.
            Some(400 | 422 | 504) if self.listed && self.refusals >= MAX_REFUSALS => {
                self.refusals = 0;
                Remedy::Relist
            }
            // An object that cannot be read would be missed for ever.
            None if self.listed && is_garbage(error) => Remedy::Relist,
            _ => Remedy::Resume,
        }
    }

    /// Logs a failure and waits before the next attempt.
    async fn failed(&mut self, error: &watcher::Error) {
        let pause = pause(self.failures, RandomState::new().hash_one(()));
        self.failures += 1;
        let (kind, failures) = (self.kind, self.failures);
        let retry_ms = pause.as_millis();
        // A watch also ends when a server restarts; only a failure to start it again is a warning.
        let is_news = !matches!(
            error,
            watcher::Error::WatchFailed(_) | watcher::Error::WatchError(_)
        ) || is_garbage(error);
        if is_news && (failures == 1 || failures.is_multiple_of(LOG_EVERY)) {
            warn!(kind, failures, retry_ms, error = %describe(error), "watch failed");
        } else {
            debug!(kind, failures, retry_ms, error = %describe(error), "watch failed");
        }
        tokio::time::sleep(pause).await;
    }
}

/// Something arrived that is no event. `kube` takes any JSON object for a bare `Status`.
fn is_garbage(error: &watcher::Error) -> bool {
    matches!(
        error,
        watcher::Error::WatchFailed(kube::Error::SerdeError(_) | kube::Error::Api(_))
    )
}

/// Between half and all of a time that doubles with each failure, so that the nodes of a cluster
/// do not ask at the same moment.
fn pause(failures: u32, random: u64) -> Duration {
    let doubled = MIN_PAUSE.saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX));
    let longest = doubled.min(MAX_PAUSE);
    let millis = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX);
    longest / 2 + Duration::from_millis(random % (millis / 2 + 1))
}

/// An error with its causes. `kube`'s errors repeat the texts of their causes, and say a refusal
/// twice: each is said once here.
fn describe(error: &watcher::Error) -> String {
    let mut text = String::new();
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = next {
        next = error.source();
        if let Some(kube::Error::Api(status)) = error.downcast_ref() {
            // Their own texts hold those of their causes, among other things.
            return format!("the server refuses: {} ({})", status.message, status.code);
        }
        let own = error.to_string();
        let own = match next.map(ToString::to_string) {
            Some(cause) => own
                .strip_suffix(&cause)
                .unwrap_or(&own)
                .trim_end_matches(": "),
            None => &own,
        }
        .to_owned();
        if !own.is_empty() && !text.contains(&own) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&own);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u16) -> Box<kube::core::Status> {
        kube::core::Status {
            code,
            message: "no".to_owned(),
            ..kube::core::Status::default()
        }
        .boxed()
    }

    fn progress() -> Progress {
        Progress {
            kind: "ServiceCIDR",
            listed: false,
            ever_listed: false,
            failures: 0,
            refusals: 0,
        }
    }

    fn refusal(code: u16) -> watcher::Error {
        watcher::Error::WatchStartFailed(kube::Error::Api(status(code)))
    }

    #[test]
    fn a_refusal_is_described_in_short() {
        assert_eq!(describe(&refusal(403)), "the server refuses: no (403)");
    }

    #[test]
    fn a_failed_connection_is_described_with_its_cause_once() {
        let cause = std::io::Error::other("connection refused");
        let error = watcher::Error::WatchFailed(kube::Error::ReadEvents(cause));
        assert_eq!(
            describe(&error),
            "watch stream failed: Error reading events stream: connection refused"
        );
    }

    #[test]
    fn an_optional_kind_is_absent_only_if_it_never_was_there_and_stays_refused() {
        let mut progress = progress();
        for _ in 1..MAX_OPTIONAL_REFUSALS {
            assert_eq!(progress.remedy(&refusal(403), true, true), Remedy::Resume);
        }
        assert_eq!(progress.remedy(&refusal(403), true, true), Remedy::Absent);
        progress.ever_listed = true;
        assert_eq!(progress.remedy(&refusal(403), true, true), Remedy::Resume);
        assert_eq!(progress.remedy(&refusal(404), true, true), Remedy::Resume);
    }

    #[test]
    fn only_what_may_be_about_the_version_makes_a_list_necessary() {
        for (code, relists) in [
            (403, false),
            (429, false),
            (503, false),
            (400, true),
            (504, true),
        ] {
            let mut progress = Progress {
                listed: true,
                ..progress()
            };
            let mut remedy = || progress.remedy(&refusal(code), true, false);
            let remedies: Vec<_> = (0..MAX_REFUSALS).map(|_| remedy()).collect();
            assert_eq!(remedies.contains(&Remedy::Relist), relists, "{code}");
        }
    }

    #[test]
    fn other_kinds_are_never_absent() {
        let mut progress = progress();
        for _ in 0..2 * MAX_OPTIONAL_REFUSALS {
            assert_eq!(progress.remedy(&refusal(404), true, false), Remedy::Resume);
        }
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
