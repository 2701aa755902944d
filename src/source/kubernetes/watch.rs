// SPDX-License-Identifier: Apache-2.0
//! Follows one kind of object: the initial list, then its changes, through every failure of the
//! server. No object, and no state of the server or of what is between, ends it or lets it wait
//! longer than the limits below.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use kube::runtime::watcher::Event;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{Instrument, info, info_span};

use super::super::{Closed, Observer, Update, send};
use super::client::Connection;
use super::encoding::Encoding;
use super::event::{Change, event};
use super::failure::Failure;
use super::object::{Decode, Object, decode_item, metadata};
use super::pieces::{Incoming, Items};
use super::request::{Selection, get};
use super::state::{Attempt, Remedy, State};

/// A list of which nothing arrives for this long does not come.
const LIST_SILENCE: Duration = Duration::from_secs(30);
/// A streamed list that has not ended by then is asked for as a plain one: the server may take the
/// request for a watch.
const STREAMED_LIST: Duration = Duration::from_mins(1);
/// The same for a plain list, which has no other form to fall back to.
const PLAIN_LIST: Duration = Duration::from_mins(5);
/// A watch that says nothing for this long is asked for anew. API servers send a bookmark each
/// minute.
const WATCH_SILENCE: Duration = Duration::from_secs(150);

/// How often to ask again for a kind that the server does not have.
const ABSENT_INTERVAL: Duration = Duration::from_mins(5);
/// What to follow.
pub(super) struct Watched {
    pub(super) kind: &'static str,
    pub(super) selection: Selection,
    /// The server may not have this kind.
    pub(super) optional: bool,
}

/// What becomes of the objects of a kind.
pub(super) trait Handler<K> {
    /// Takes in an event; says what to send.
    fn handle(&mut self, event: Event<Object<K>>) -> Option<Update>;

    /// The server does not have this kind.
    fn absent(&mut self) -> Option<Update> {
        None
    }
}

/// What to follow, and with what.
pub(super) struct Following {
    pub(super) watched: Watched,
    pub(super) connection: Connection,
    /// What to ask for.
    pub(super) encoding: Encoding,
    pub(super) observer: Arc<dyn Observer>,
}

/// Follows a kind until the receiver is gone.
pub(super) async fn follow<K: Decode, U: From<Update>>(
    following: Following,
    handler: impl Handler<K>,
    updates: &mpsc::Sender<U>,
) {
    let Following {
        watched,
        connection,
        encoding,
        observer,
    } = following;
    let span = info_span!("watch", kind = watched.kind);
    let mut follower = Follower {
        connection,
        observer,
        handler,
        updates,
        objects: std::marker::PhantomData,
        state: State::new(watched.kind, watched.optional, encoding),
        watched,
    };
    tokio::select! {
        _closed = follower.run().instrument(span) => {}
        () = updates.closed() => {}
    }
}

/// Why following stops for now.
enum Stop {
    Closed,
    Failed(Failure),
}

impl From<Closed> for Stop {
    fn from(_: Closed) -> Self {
        Self::Closed
    }
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

struct Follower<'a, K, H, U> {
    watched: Watched,
    connection: Connection,
    observer: Arc<dyn Observer>,
    handler: H,
    updates: &'a mpsc::Sender<U>,
    objects: std::marker::PhantomData<fn(K)>,
    state: State,
}

impl<K: Decode, H: Handler<K>, U: From<Update>> Follower<'_, K, H, U> {
    async fn run(&mut self) -> Result<(), Closed> {
        loop {
            let ended = match self.state.next(Instant::now()) {
                (Attempt::Watch, version) => self.watch(&version).await,
                (Attempt::StreamedList, _) => self.streamed_list().await,
                (Attempt::PlainList, _) => self.plain_list().await,
            };
            let failure = match ended {
                Ok(()) => {
                    self.state.succeeded();
                    continue;
                }
                Err(Stop::Closed) => return Err(Closed),
                Err(Stop::Failed(failure)) => failure,
            };
            let random = RandomState::new().hash_one(());
            match self.state.failed(&failure, Instant::now()) {
                Remedy::Absent => {
                    info!(error = %failure, "API server does not serve this watch");
                    let update = self.handler.absent();
                    self.send(update).await?;
                    tokio::time::sleep(ABSENT_INTERVAL).await;
                }
                Remedy::AtOnce => {}
                Remedy::AfterPause => {
                    let pause = self.state.pause(&failure, random);
                    self.state.log(&failure, pause, Instant::now());
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    async fn send(&self, update: Option<Update>) -> Result<(), Closed> {
        match update {
            Some(update) => send(self.updates, update).await,
            None => Ok(()),
        }
    }

    async fn handle(&mut self, event: Event<Object<K>>) -> Result<(), Closed> {
        let update = self.handler.handle(event);
        self.send(update).await
    }

    async fn get(&mut self, uri: String, silence: Duration) -> Result<Incoming, Failure> {
        self.connection.begins();
        let encoding = self.state.encoding();
        let answer = get(&self.connection.client, uri, encoding, silence).await?;
        self.state.opened();
        Ok(answer)
    }

    /// Goes on with what was listed.
    async fn watch(&mut self, version: &str) -> Result<(), Stop> {
        let uri = self.watched.selection.watch(version);
        let mut events = self.get(uri, WATCH_SILENCE).await?;
        // A server that answers is alive, whether it has something to tell or not.
        self.observer.heard(self.watched.kind);
        self.changes(&mut events).await
    }

    /// A list whose objects come as events, and the changes that follow.
    async fn streamed_list(&mut self) -> Result<(), Stop> {
        let uri = self
            .watched
            .selection
            .streamed_list(&self.state.freshness());
        let until = Instant::now() + STREAMED_LIST;
        let mut events = self.get(uri, LIST_SILENCE).await?;
        events.limit(LIST_SILENCE, Some(until));
        self.handle(Event::Init).await?;
        // What is deleted before the list is complete.
        let mut gone: Vec<Object<K>> = Vec::new();
        loop {
            let Some(change) = self.next(&mut events).await? else {
                return Err(Failure::Broken("the list ended too early".to_owned()).into());
            };
            match change {
                Change::Applied(object) => {
                    gone.retain(|other| !is_same(other, &object));
                    self.handle(Event::InitApply(object)).await?;
                }
                Change::Deleted(object) => gone.push(object),
                Change::Bookmark { version, ends_list } => {
                    if ends_list {
                        self.listed(version).await?;
                        break;
                    }
                }
            }
        }
        for object in gone {
            self.handle(Event::Delete(object)).await?;
        }
        events.limit(WATCH_SILENCE, None);
        self.changes(&mut events).await
    }

    /// A list by pages.
    async fn plain_list(&mut self) -> Result<(), Stop> {
        let listing = self.pages();
        match tokio::time::timeout(PLAIN_LIST, listing).await {
            Ok(version) => Ok(self.listed(version?).await?),
            Err(_elapsed) => Err(Failure::Endless.into()),
        }
    }

    /// Reads all pages; returns the version of the list.
    async fn pages(&mut self) -> Result<String, Stop> {
        let mut uri = self.watched.selection.list(&self.state.freshness());
        self.handle(Event::Init).await?;
        loop {
            let mut items = Items::new(self.get(uri, LIST_SILENCE).await?);
            while let Some(item) = items.next().await? {
                let object = decode_item::<K>(items.encoding(), item);
                self.handle(Event::InitApply(object)).await?;
            }
            let meta = items.meta()?;
            match meta.token.filter(|token| !token.is_empty()) {
                Some(token) => uri = self.watched.selection.page(&token),
                None => return Ok(meta.resource_version.unwrap_or_default()),
            }
        }
    }

    /// A list is complete.
    async fn listed(&mut self, version: String) -> Result<(), Stop> {
        self.state.listed(version)?;
        self.observer.heard(self.watched.kind);
        Ok(self.handle(Event::InitDone).await?)
    }

    /// The next event of a watch, unless our credentials change before.
    async fn next(&mut self, events: &mut Incoming) -> Result<Option<Change<K>>, Failure> {
        let bytes = tokio::select! {
            biased;
            () = self.connection.renewed() => return Err(Failure::Renewed),
            bytes = events.event() => bytes?,
        };
        bytes
            .map(|bytes| event::<K>(events.encoding(), bytes))
            .transpose()
    }

    /// Takes in changes until the server ends the watch.
    async fn changes(&mut self, events: &mut Incoming) -> Result<(), Stop> {
        while let Some(change) = self.next(events).await? {
            self.observer.heard(self.watched.kind);
            self.state.succeeded();
            match change {
                Change::Applied(object) => {
                    self.state.at(metadata(&object).resource_version.as_deref());
                    self.handle(Event::Apply(object)).await?;
                }
                Change::Deleted(object) => {
                    self.state.at(metadata(&object).resource_version.as_deref());
                    self.handle(Event::Delete(object)).await?;
                }
                Change::Bookmark { version, .. } => self.state.bookmarked(&version),
            }
        }
        Ok(())
    }
}

/// Whether two objects have the same name.
fn is_same<K: Decode>(one: &Object<K>, other: &Object<K>) -> bool {
    let (one, other) = (metadata(one), metadata(other));
    one.name == other.name && one.namespace == other.namespace
}
