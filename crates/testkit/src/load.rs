// SPDX-License-Identifier: Apache-2.0
//! Pods that come and go, and clients that never stop asking. A client sends a line and wants one
//! back; anything else is a failure. A pod that is told to go answers what it has been asked, says
//! that it goes, and closes. Datagrams it answers to its end, as `traffic::ask_again` wants it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle as Task;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::namespace::Namespace;

/// An answer takes no longer, unless something is lost.
const PATIENCE: Duration = Duration::from_secs(15);
/// Between two requests on a connection that stays.
const PAUSE: Duration = Duration::from_millis(50);

/// What a pod and those who look at it share.
#[derive(Debug, Default)]
struct PodState {
    accepted: AtomicUsize,
    open: AtomicUsize,
    is_leaving: AtomicBool,
}

/// A server at some addresses.
#[derive(Debug)]
pub struct Pod {
    state: Arc<PodState>,
    listeners: Vec<Task<()>>,
    datagrams: Vec<Task<()>>,
}

impl Pod {
    /// Serves at these addresses of a namespace, by this name.
    pub fn start(
        runtime: &Runtime,
        name: &str,
        at: &Namespace,
        addresses: &[SocketAddr],
    ) -> Result<Self> {
        let state = Arc::new(PodState::default());
        let (mut listeners, mut datagrams) = (Vec::new(), Vec::new());
        for address in addresses {
            let socket = at
                .enter(|| std::net::UdpSocket::bind(address))?
                .with_context(|| format!("cannot serve at {address}"))?;
            socket.set_nonblocking(true)?;
            let listener = at
                .enter(|| std::net::TcpListener::bind(address))?
                .with_context(|| format!("cannot serve at {address}"))?;
            listener.set_nonblocking(true)?;
            let _context = runtime.enter();
            let listener = TcpListener::from_std(listener)?;
            listeners.push(runtime.spawn(accept(listener, state.clone())));
            let socket = UdpSocket::from_std(socket)?;
            datagrams.push(runtime.spawn(reply(socket, format!("{name} {}", address.port()))));
        }
        Ok(Self {
            state,
            listeners,
            datagrams,
        })
    }

    /// Connections that it has accepted so far.
    pub fn accepted(&self) -> usize {
        self.state.accepted.load(Ordering::SeqCst)
    }

    /// No new connections; those that are open are closed after their next answer.
    pub fn leave(&self) {
        self.state.is_leaving.store(true, Ordering::SeqCst);
        self.listeners.iter().for_each(Task::abort);
    }

    /// Nobody is connected any more.
    pub fn is_alone(&self) -> Result<()> {
        let open = self.state.open.load(Ordering::SeqCst);
        ensure!(open == 0, "{open} connections are open");
        Ok(())
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.listeners.iter().for_each(Task::abort);
        self.datagrams.iter().for_each(Task::abort);
    }
}

async fn reply(socket: UdpSocket, name: String) {
    let mut buffer = [0; 64];
    loop {
        if let Ok((_, peer)) = socket.recv_from(&mut buffer).await {
            // That none comes is for the client to say.
            let line = format!("{name} {}\n", peer.ip());
            drop(socket.send_to(line.as_bytes(), peer).await);
        }
    }
}

async fn accept(listener: TcpListener, state: Arc<PodState>) {
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            state.accepted.fetch_add(1, Ordering::SeqCst);
            state.open.fetch_add(1, Ordering::SeqCst);
            let state = state.clone();
            tokio::spawn(async move {
                // How it ended is for the client to say.
                drop(serve(stream, &state).await);
                state.open.fetch_sub(1, Ordering::SeqCst);
            });
        }
    }
}

async fn serve(stream: TcpStream, state: &PodState) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    loop {
        line.clear();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let is_leaving = state.is_leaving.load(Ordering::SeqCst);
        let answer: &[u8] = if is_leaving { b"close\n" } else { b"keep\n" };
        stream.get_mut().write_all(answer).await?;
        if is_leaving {
            return Ok(());
        }
    }
}

/// What the clients met.
#[derive(Debug, Default)]
struct Tally {
    is_over: AtomicBool,
    connections: AtomicUsize,
    requests: AtomicUsize,
    reconnects: AtomicUsize,
    /// Failures and how often each was met.
    failures: Mutex<BTreeMap<String, usize>>,
}

impl Tally {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }

    fn failed(&self, what: &str, error: &anyhow::Error) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        *failures.entry(format!("{what}: {error:#}")).or_default() += 1;
    }
}

/// Numbers of a load that has ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// Connections with one request.
    pub connections: usize,
    /// Requests on connections that stayed.
    pub requests: usize,
    /// How often a pod said that it goes.
    pub reconnects: usize,
}

/// Clients in one namespace, on a thread of their own.
#[derive(Debug)]
pub struct Load {
    tally: Arc<Tally>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Load {
    /// Begins to make new connections, so many each second, and to ask on a number of connections
    /// that stay. All targets take turns.
    pub fn start(
        from: &Namespace,
        targets: Vec<SocketAddr>,
        per_second: u32,
        held: usize,
    ) -> Result<Self> {
        let tally = Arc::new(Tally::default());
        let thread = {
            let (tally, from) = (tally.clone(), from.try_clone()?);
            std::thread::spawn(move || from.enter(|| run(&tally, &targets, per_second, held))?)
        };
        Ok(Self {
            tally,
            thread: Some(thread),
        })
    }

    /// New connections that were answered so far.
    pub fn connections(&self) -> usize {
        self.tally.connections.load(Ordering::SeqCst)
    }

    /// Fails as soon as a client has failed.
    pub fn is_unharmed(&self) -> Result<()> {
        let failures = &self.tally.failures;
        let failures = failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.is_empty() {
            return Ok(());
        }
        let lines = failures
            .iter()
            .map(|(what, count)| format!("{count} x {what}"));
        bail!("clients failed:\n{}", lines.collect::<Vec<_>>().join("\n"))
    }

    /// Ends it. Fails if any client ever failed.
    pub fn finish(mut self) -> Result<Totals> {
        self.tally.is_over.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread
                .join()
                .map_err(|_panic| anyhow!("the load panicked"))??;
        }
        self.is_unharmed()?;
        let read = |number: &AtomicUsize| number.load(Ordering::SeqCst);
        Ok(Totals {
            connections: read(&self.tally.connections),
            requests: read(&self.tally.requests),
            reconnects: read(&self.tally.reconnects),
        })
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.tally.is_over.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// All sockets are opened by this thread, which is in the clients' namespace.
fn run(tally: &Arc<Tally>, targets: &[SocketAddr], per_second: u32, held: usize) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut tasks = Vec::new();
        let mut turns = targets.iter().copied().cycle();
        for to in turns.by_ref().take(held) {
            tasks.push(tokio::spawn(stay(tally.clone(), to)));
        }
        let mut ticks = interval(Duration::from_secs(1) / per_second);
        // A slow machine makes fewer, not a crowd afterwards.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        for to in turns {
            ticks.tick().await;
            if tally.is_over() {
                break;
            }
            tasks.retain(|task| !task.is_finished());
            tasks.push(tokio::spawn(once(tally.clone(), to)));
        }
        for task in tasks {
            task.await?;
        }
        Ok(())
    })
}

/// One request on a connection of its own.
async fn once(tally: Arc<Tally>, to: SocketAddr) {
    let asked = async {
        let mut stream = connect(to).await?;
        ask(&mut stream).await
    };
    match asked.await {
        Ok(_) => {
            tally.connections.fetch_add(1, Ordering::SeqCst);
        }
        Err(error) => tally.failed(&format!("a new connection to {to}"), &error),
    }
}

/// Requests on one connection until the pod says that it goes, then on another.
async fn stay(tally: Arc<Tally>, to: SocketAddr) {
    while !tally.is_over() {
        let stayed = async {
            let mut stream = connect(to).await?;
            while !tally.is_over() {
                let goes = ask(&mut stream).await?;
                tally.requests.fetch_add(1, Ordering::SeqCst);
                if goes {
                    tally.reconnects.fetch_add(1, Ordering::SeqCst);
                    break;
                }
                tokio::time::sleep(PAUSE).await;
            }
            anyhow::Ok(())
        };
        if let Err(error) = stayed.await {
            tally.failed(&format!("a connection to {to} that stays"), &error);
        }
    }
}

async fn connect(to: SocketAddr) -> Result<BufReader<TcpStream>> {
    let socket = if to.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    let connected = timeout(PATIENCE, socket.connect(to)).await;
    let stream = connected.context("no connection in time")?;
    Ok(BufReader::new(stream.context("not connected")?))
}

/// Says whether the pod goes.
async fn ask(stream: &mut BufReader<TcpStream>) -> Result<bool> {
    stream
        .get_mut()
        .write_all(b"hello\n")
        .await
        .context("not sent")?;
    let mut line = String::new();
    let read = timeout(PATIENCE, stream.read_line(&mut line)).await;
    read.context("no answer in time")?.context("not answered")?;
    match line.as_str() {
        "keep\n" => Ok(false),
        "close\n" => Ok(true),
        "" => bail!("closed without an answer"),
        other => bail!("answered {other:?}"),
    }
}
