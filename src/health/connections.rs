// SPDX-License-Identifier: Apache-2.0
//! Serves the connections of an HTTP server, of which there are few at once.
//!
//! A new connection always gets a place. One peer may have most of them, as the monitors and probes
//! of a node all come from one address; a reserve is kept for others. When what a peer may have is
//! taken, it gets the place of the connection that has been silent for longest, of the peer with
//! the most: who holds connections open loses them, and a probe is answered meanwhile.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use hyper::Request;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tower::ServiceExt as _;
use tracing::{error, trace, warn};

use crate::descriptors::{self, Cause};

/// What the connections of a server may have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Connections at once.
    pub(super) most: usize,
    /// As many of these are left free by the peer that has the most.
    pub(super) reserve: usize,
    /// How long the head of a request may take, and how long a connection may be idle before it.
    pub(super) head: Duration,
    /// How long a connection may live; one that is being answered then may finish.
    pub(super) life: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            most: 64,
            reserve: 16,
            head: Duration::from_secs(5),
            life: Duration::from_mins(1),
        }
    }
}

/// How long the last answer of a connection may take.
const LAST_ANSWER: Duration = Duration::from_secs(10);

/// The longest head of a request, in bytes. Those of probes have some hundred.
const HEAD: usize = 16 * 1024;

/// Pause after a connection could not be accepted, for want of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(100);

/// The places of a server, or of several. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Places {
    limits: Limits,
    table: Arc<Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    /// Counts what happens: each entry and each request.
    time: u64,
    /// The connections, by the time of their entry.
    taken: BTreeMap<u64, Taken>,
}

#[derive(Debug)]
struct Taken {
    peer: IpAddr,
    /// When it came or last asked.
    active: u64,
    is_answered: bool,
    lost: Arc<Notify>,
}

impl Table {
    fn tick(&mut self) -> u64 {
        self.time += 1;
        self.time
    }

    /// Who loses its place to a connection of `peer`, if anybody must.
    fn victim(&self, peer: IpAddr, limits: &Limits) -> Option<u64> {
        let mut counts: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for taken in self.taken.values() {
            *counts.entry(taken.peer).or_default() += 1;
        }
        let largest = counts.values().copied().max().unwrap_or_default();
        let is_largest = |peer| counts.get(&peer) == Some(&largest);
        let is_own = is_largest(peer);
        let reserve = if is_own { limits.reserve } else { 0 };
        if self.taken.len() < limits.most.saturating_sub(reserve) {
            return None;
        }
        let theirs = self.taken.iter().filter(|(_, taken)| {
            if is_own {
                taken.peer == peer
            } else {
                is_largest(taken.peer)
            }
        });
        // One that is being answered is the last to go.
        theirs
            .min_by_key(|(_, taken)| (taken.is_answered, taken.active))
            .map(|(id, _)| *id)
    }
}

impl Places {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            table: Arc::default(),
        }
    }

    /// A place until it is dropped or lost.
    fn take(&self, peer: IpAddr) -> Place {
        let peer = network(peer);
        let mut table = self.lock();
        if let Some(victim) = table.victim(peer, &self.limits)
            && let Some(victim) = table.taken.remove(&victim)
        {
            trace!(peer = %victim.peer, "closing a silent connection for a new one");
            victim.lost.notify_one();
        }
        let (id, lost) = (table.tick(), Arc::new(Notify::new()));
        let taken = Taken {
            peer,
            active: id,
            is_answered: false,
            lost: lost.clone(),
        };
        table.taken.insert(id, taken);
        Place {
            places: self.clone(),
            id,
            lost,
        }
    }

    /// A request came, or has its answer.
    fn note(&self, id: u64, is_answered: bool) {
        let mut table = self.lock();
        let now = table.tick();
        if let Some(taken) = table.taken.get_mut(&id) {
            (taken.active, taken.is_answered) = (now, is_answered);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Whole after every statement.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one connection.
#[derive(Debug)]
struct Place {
    places: Places,
    id: u64,
    lost: Arc<Notify>,
}

impl Place {
    /// The peer has sent a request, which is answered until the result is dropped.
    fn answering(&self) -> Answering {
        self.places.note(self.id, true);
        Answering {
            places: self.places.clone(),
            id: self.id,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().taken.remove(&self.id);
    }
}

/// A request until all of its answer is on its way.
#[derive(Debug)]
struct Answering {
    places: Places,
    id: u64,
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.places.note(self.id, false);
    }
}

/// The body of an answer.
#[derive(Debug)]
struct Answer {
    body: Body,
    _answering: Answering,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// One peer: a host may have a whole /64 of IPv6.
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
        ip @ IpAddr::V4(_) => ip,
    }
}

/// Answers what arrives until it is dropped, which closes all connections.
pub(super) async fn serve(listener: TcpListener, routes: Router, places: Places) -> Infallible {
    let mut connections = JoinSet::new();
    let mut is_failing = false;
    loop {
        tokio::select! {
            accepted = accept(&listener) => match accepted {
                Ok((stream, peer)) => {
                    is_failing = false;
                    let place = places.take(peer.ip());
                    connections.spawn(carry(stream, place, routes.clone()));
                    // What has been asked is answered before others push it out.
                    tokio::task::yield_now().await;
                }
                Err(error) if is_of_one_peer(&error) => {}
                Err(error) => {
                    if !std::mem::replace(&mut is_failing, true) {
                        warn!(%error, "cannot accept connections, retrying");
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            },
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    error!(%error, "a connection ended by a bug");
                }
            }
        }
    }
}

async fn accept(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let (stream, peer) = listener.accept().await?;
    descriptors::spare(&stream, Cause::Client)?;
    Ok((stream, peer))
}

/// The next connection may be better.
fn is_of_one_peer(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset
    )
}

/// Answers the requests of one connection.
async fn carry(stream: TcpStream, place: Place, routes: Router) {
    let limits = place.places.limits;
    let service = service_fn(|request: Request<Incoming>| {
        let answering = place.answering();
        let answer = routes.clone().oneshot(request);
        async move {
            let answer = answer.await?;
            Ok::<_, Infallible>(answer.map(|body| Answer {
                body,
                _answering: answering,
            }))
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let answering = async {
        let ended = tokio::time::timeout(limits.life, connection.as_mut()).await;
        let ended = match ended {
            Ok(ended) => ended,
            Err(_elapsed) => {
                connection.as_mut().graceful_shutdown();
                match tokio::time::timeout(LAST_ANSWER, connection).await {
                    Ok(ended) => ended,
                    Err(_elapsed) => return,
                }
            }
        };
        if let Err(error) = ended {
            trace!(%error, "connection failed");
        }
    };
    tokio::select! {
        () = answering => {}
        () = place.lost.notified() => {}
    }
}

#[cfg(test)]
mod tests;
