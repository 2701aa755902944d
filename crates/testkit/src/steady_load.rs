// SPDX-License-Identifier: Apache-2.0
//! Steady load: new connections at a steady rate and long-lived ones beside them, counted and
//! timed, while something happens to the proxy.
//!
//! It runs on a thread of its own in a namespace. Nothing is tried twice: a connection that is
//! refused, reset or silent is a failure, and its time and cause are kept.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::namespace::Namespace;
use crate::traffic::{any, family_of};
use crate::wait;

/// A client gives up after this time. The kernel repeats a lost first packet after one second.
const PATIENCE: Duration = Duration::from_secs(15);
/// Between two echoes on a long-lived connection.
const ECHO_PERIOD: Duration = Duration::from_millis(200);

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Taken in turn.
    pub targets: Vec<SocketAddr>,
    /// New connections per second.
    pub rate: u32,
    /// Long-lived connections.
    pub held: usize,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// New connections that got their answer.
    pub answered: u64,
    /// Echoes on long-lived connections.
    pub echoes: u64,
    pub failures: Vec<String>,
    /// The longest time from the first packet to the answer.
    pub slowest: Duration,
    pub took: Duration,
}

#[derive(Debug)]
enum Event {
    Answered(Duration),
    Echoed,
    Failed(String),
}

/// Load that runs. It ends when this is dropped.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    /// Answers and failures so far.
    settled: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<Tally>>>,
}

impl Load {
    /// Starts and waits until all long-lived connections are open.
    pub fn start(from: &Namespace, plan: Plan) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let settled = Arc::new(AtomicU64::new(0));
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = {
            let (from, stop, settled) = (from.try_clone()?, stop.clone(), settled.clone());
            std::thread::spawn(move || from.enter(|| run(&plan, &stop, &settled, &ready))?)
        };
        let load = Self {
            stop,
            settled,
            thread: Some(thread),
        };
        match is_ready.recv_timeout(wait::LIMIT) {
            Ok(()) => Ok(load),
            Err(_) => match load.finish() {
                Ok(tally) => bail!("the load did not start: {tally:?}"),
                Err(error) => Err(error),
            },
        }
    }

    /// Waits for so many more connections.
    pub fn goes_on_for(&self, connections: u64) -> Result<()> {
        let wanted = self.settled.load(Ordering::Relaxed) + connections;
        wait::until("more connections were opened", || {
            let settled = self.settled.load(Ordering::Relaxed);
            ensure!(settled >= wanted, "{settled} of {wanted} were");
            Ok(())
        })
    }

    /// Ends it, long-lived connections with an echo each, and says what came of it.
    pub fn finish(mut self) -> Result<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("it runs")?;
        thread.join().map_err(|_panic| anyhow!("the load died"))?
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl Tally {
    /// All connections were served, and there were enough of them to say so.
    pub fn is_flawless(&self, at_least: u64) -> Result<()> {
        let first: Vec<_> = self.failures.iter().take(10).collect();
        ensure!(
            self.failures.is_empty(),
            "{} failures among {} answers and {} echoes: {first:#?}",
            self.failures.len(),
            self.answered,
            self.echoes
        );
        ensure!(
            self.answered >= at_least && self.echoes > 0,
            "too little happened: {self:?}"
        );
        Ok(())
    }

    /// One line for the log.
    pub fn line(&self) -> String {
        format!(
            "{} connections in {:.1} s ({:.0} per second), slowest {:?}, {} echoes, {} failures",
            self.answered,
            self.took.as_secs_f64(),
            self.rate(),
            self.slowest,
            self.echoes,
            self.failures.len()
        )
    }

    #[expect(clippy::cast_precision_loss, reason = "a figure to read")]
    fn rate(&self) -> f64 {
        self.answered as f64 / self.took.as_secs_f64().max(0.001)
    }
}

fn run(
    plan: &Plan,
    stop: &Arc<AtomicBool>,
    settled: &AtomicU64,
    ready: &std::sync::mpsc::Sender<()>,
) -> Result<Tally> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(drive(plan, stop, settled, ready))
}

async fn drive(
    plan: &Plan,
    stop: &Arc<AtomicBool>,
    settled: &AtomicU64,
    ready: &std::sync::mpsc::Sender<()>,
) -> Result<Tally> {
    let (events, mut happened) = mpsc::unbounded_channel();
    let mut targets = plan.targets.iter().copied().cycle();
    let mut next = || targets.next().context("there is no target");
    for _ in 0..plan.held {
        let to = next()?;
        let socket = from_a_port_of_its_own(to).with_context(|| format!("to {to}"))?;
        let stream = open(socket, to).await.with_context(|| format!("to {to}"))?;
        tokio::spawn(hold(stream, to, stop.clone(), events.clone()));
    }
    ready.send(()).context("nobody waits")?;
    let start = wait::now();
    let mut tally = Tally::default();
    let mut pace = interval(Duration::from_secs(1) / plan.rate.max(1));
    // After a pause of the machine the rate is not made up for.
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !stop.load(Ordering::Relaxed) {
        tokio::select! {
            _ = pace.tick() => {
                tokio::spawn(ask(next()?, start, events.clone()));
            }
            Some(event) = happened.recv() => tally.count(event, settled),
        }
    }
    tally.took = start.elapsed();
    drop(events);
    while let Some(event) = happened.recv().await {
        tally.count(event, settled);
    }
    Ok(tally)
}

impl Tally {
    fn count(&mut self, event: Event, settled: &AtomicU64) {
        match event {
            Event::Echoed => {
                self.echoes += 1;
                return;
            }
            Event::Answered(after) => {
                self.answered += 1;
                self.slowest = self.slowest.max(after);
            }
            Event::Failed(why) => self.failures.push(why),
        }
        settled.fetch_add(1, Ordering::Relaxed);
    }
}

/// A socket whose port no new connection gets, for they come from the ephemeral range.
///
/// IPVS knows an answer by the addresses and ports of the real server and the client alone: where a
/// client uses one port for two virtual servers and meets one real server, its older connection
/// hangs.
fn from_a_port_of_its_own(to: SocketAddr) -> Result<TcpSocket> {
    let any = any(family_of(to));
    for port in 20_000..30_000 {
        let socket = socket_for(to)?;
        if socket.bind(SocketAddr::new(any, port)).is_ok() {
            return Ok(socket);
        }
    }
    bail!("no port is free")
}

fn socket_for(to: SocketAddr) -> io::Result<TcpSocket> {
    match to {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }
}

/// Connects and reads the server's line.
async fn open(socket: TcpSocket, to: SocketAddr) -> Result<TcpStream> {
    let connected = timeout(PATIENCE, socket.connect(to)).await;
    let mut stream = connected.context("no connection in time")??;
    let mut byte = [0];
    while byte != *b"\n" {
        let read = timeout(PATIENCE, stream.read(&mut byte)).await;
        ensure!(read.context("no answer in time")?? > 0, "closed");
    }
    Ok(stream)
}

async fn ask(to: SocketAddr, start: Instant, events: mpsc::UnboundedSender<Event>) {
    let begin = wait::now();
    let opened = async { open(socket_for(to)?, to).await };
    let event = match opened.await {
        Ok(stream) => {
            // Ends with a reset, so that no table remembers it for minutes.
            let linger = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            match linger {
                Ok(()) => Event::Answered(begin.elapsed()),
                Err(error) => Event::Failed(format!("{to}: {error}")),
            }
        }
        Err(error) => {
            let at = begin.duration_since(start);
            Event::Failed(format!(
                "{to} at {at:?}, after {:?}: {error:#}",
                begin.elapsed()
            ))
        }
    };
    drop(events.send(event));
}

async fn hold(
    mut stream: TcpStream,
    to: SocketAddr,
    stop: Arc<AtomicBool>,
    events: mpsc::UnboundedSender<Event>,
) {
    let mut pace = interval(ECHO_PERIOD);
    loop {
        pace.tick().await;
        let is_last = stop.load(Ordering::Relaxed);
        let event = match echo(&mut stream).await {
            Ok(()) => Event::Echoed,
            Err(error) => Event::Failed(format!("long-lived connection to {to}: {error:#}")),
        };
        let is_broken = matches!(event, Event::Failed(_));
        if events.send(event).is_err() || is_broken || is_last {
            break;
        }
    }
    drop(socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)));
}

async fn echo(stream: &mut TcpStream) -> Result<()> {
    let text = b"still there?\n";
    let mut back = [0; 13];
    let exchange = async {
        stream.write_all(text).await?;
        stream.read_exact(&mut back).await
    };
    timeout(PATIENCE, exchange)
        .await
        .context("no echo in time")??;
    ensure!(&back == text, "the echo came back as {back:?}");
    Ok(())
}
