// SPDX-License-Identifier: Apache-2.0
//! Connections in sequence, to see when a change takes effect.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use kpr_tools::pause;
use kube_proxy_rs::clock::Clock;
use socket2::{Domain, SockRef, Socket, Type};

use crate::cluster;
use crate::world::World;
use kpr_testkit::namespace::Namespace;

/// Time-out of a connection.
const PATIENCE: Duration = Duration::from_millis(100);

/// Between two connections; about the precision of the result.
const LOOK: Duration = Duration::from_micros(300);

/// An endpoint that answers none of this many connections in a row, of which a tenth would be its
/// share, is gone: the chance of an error is 1 in 300,000.
const ABSENT: u32 = 120;

/// The pods' server: it answers with the address that was connected to. Stops when dropped.
pub(crate) struct Pods<'a> {
    world: &'a World,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl<'a> Pods<'a> {
    pub(crate) fn new(world: &'a World) -> anyhow::Result<Self> {
        let all = SocketAddr::from((Ipv4Addr::UNSPECIFIED, cluster::TARGET_PORT));
        let listener = world.pods.enter(|| TcpListener::bind(all))??;
        let is_over = Arc::new(AtomicBool::new(false));
        let over = is_over.clone();
        let serve = move || {
            for stream in listener.incoming().flatten() {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                if let (Ok(SocketAddr::V4(address)), mut stream) = (stream.local_addr(), stream) {
                    // The client may be gone.
                    drop(stream.write_all(&address.ip().octets()));
                }
            }
        };
        let thread = std::thread::Builder::new().spawn(serve)?;
        Ok(Self {
            world,
            is_over,
            thread: Some(thread),
        })
    }
}

impl Drop for Pods<'_> {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        // Wakes the thread.
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, cluster::TARGET_PORT));
        drop(self.world.pods.enter(|| TcpStream::connect(to)));
        drop(self.thread.take().map(JoinHandle::join));
    }
}

/// The address that answers a connection.
fn ask(to: SocketAddr) -> std::io::Result<Ipv4Addr> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // No TIME_WAIT, so that a new connection cannot reuse the state of an old one.
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer)?;
    Ok(answer.into())
}

/// Connects from a network namespace, on a separate thread.
pub(crate) struct Probe<'a> {
    pub(crate) clock: &'a Clock,
    pub(crate) from: &'a Namespace,
    pub(crate) service: IpAddr,
    /// When to give up, on the monotonic clock.
    pub(crate) deadline: Duration,
}

/// The expected change did not happen in time.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct TooLate(pub(crate) String);

impl Probe<'_> {
    fn to(&self) -> SocketAddr {
        SocketAddr::new(self.service, cluster::PORT)
    }

    /// Runs `change`; returns when the first connection was answered, on the monotonic clock.
    pub(crate) fn until_answered(
        &self,
        change: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<Duration> {
        self.until(change, std::io::Result::is_ok)
    }

    /// Runs `change`; returns when the first connection began that was not answered.
    pub(crate) fn until_refused(
        &self,
        change: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<Duration> {
        self.until(change, std::io::Result::is_err)
    }

    fn until(
        &self,
        change: impl FnOnce() -> anyhow::Result<()>,
        is_it: fn(&std::io::Result<Ipv4Addr>) -> bool,
    ) -> anyhow::Result<Duration> {
        self.beside(change, |give_up| {
            loop {
                let begin = self.clock.monotonic();
                let result = ask(self.to());
                if is_it(&result) {
                    let now = self.clock.monotonic();
                    return Ok(if result.is_ok() { now } else { begin });
                }
                if begin > self.deadline || give_up.load(Ordering::Relaxed) {
                    let to = self.to();
                    return Err(TooLate(format!("{to} did not change: {result:?}")).into());
                }
                pause(LOOK);
            }
        })
    }

    /// Runs `change`; returns when `endpoint` answered its last connection.
    pub(crate) fn until_gone(
        &self,
        endpoint: Ipv4Addr,
        change: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<Duration> {
        let begun = AtomicBool::new(false);
        let change = || {
            begun.store(true, Ordering::Release);
            change()
        };
        self.beside(change, |give_up| {
            let mut last = self.clock.monotonic();
            let mut others = 0;
            while others < ABSENT {
                if ask(self.to())? == endpoint {
                    last = self.clock.monotonic();
                    others = 0;
                } else if begun.load(Ordering::Acquire) {
                    others += 1;
                }
                if self.clock.monotonic() > self.deadline || give_up.load(Ordering::Relaxed) {
                    return Err(TooLate(format!("{endpoint} still answers")).into());
                }
                pause(LOOK);
            }
            Ok(last)
        })
    }

    /// Runs `look` on another thread in the namespace while this one runs `change`.
    fn beside<T: Send>(
        &self,
        change: impl FnOnce() -> anyhow::Result<()>,
        look: impl FnOnce(&AtomicBool) -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        let give_up = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let looking = scope.spawn(|| self.from.enter(|| look(&give_up))?);
            let changed = change();
            if changed.is_err() {
                give_up.store(true, Ordering::Relaxed);
            }
            let found = looking.join();
            changed?;
            found.map_err(|_panic| anyhow::anyhow!("probe thread panicked"))?
        })
    }
}

/// A TCP socket in this thread's namespace that closes without `TIME_WAIT`.
pub(crate) fn socket(address: Ipv4Addr) -> anyhow::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_linger(Some(Duration::ZERO))?;
    if !address.is_unspecified() {
        socket.bind(&SocketAddr::from((address, 0)).into())?;
    }
    Ok(socket)
}
