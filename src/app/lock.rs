// SPDX-License-Identifier: Apache-2.0
//! One proxy in a network namespace: two would write each other's rules away for ever.
//!
//! The lock is an abstract Unix socket: it belongs to the network namespace, needs no file that
//! both containers see, and goes with its process, however that ends. Who has it says so to those
//! who connect. One that waits serves nothing and changes nothing. A restart in place keeps it: the
//! socket is the standard input of the program that takes our place.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener as StdListener};
use std::time::Duration;

use nix::unistd::{dup2_stdin, geteuid};
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tracing::{info, warn};

use crate::task::Task;

/// The name of the socket, without the zero byte that makes it abstract.
pub(super) const NAME: &str = "kube-proxy-rs";

/// How often one that waits tries again.
const RETRY: Duration = Duration::from_millis(100);

/// How long the holder may take to introduce itself.
const PATIENCE: Duration = Duration::from_secs(1);

/// The longest introduction that is read, in bytes.
const LONGEST: u64 = 4096;

/// Who has the lock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Holder {
    /// In its own PID namespace; 0 if unknown.
    pub(super) pid: i32,
    /// When it took the lock, RFC 3339.
    pub(super) since: String,
    /// What it does: its proxy mode, or `cleanup`.
    pub(super) mode: String,
    pub(super) version: String,
    /// Where it answers probes, or is about to.
    pub(super) health: Option<std::net::SocketAddr>,
}

impl Holder {
    /// This process.
    pub(super) fn here(mode: &str, now: jiff::Timestamp) -> Self {
        Self {
            pid: i32::try_from(std::process::id()).unwrap_or_default(),
            since: now.to_string(),
            mode: mode.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            health: None,
        }
    }
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let or_unknown = |text: &str| if text.is_empty() { "?" } else { text }.to_owned();
        let (mode, since) = (or_unknown(&self.mode), or_unknown(&self.since));
        write!(f, "process {}, mode {mode}, since {since}", self.pid)
    }
}

/// The lock, until it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    /// None: the lock cannot be had here, or whoever has it may not have it.
    held: Option<Held>,
}

#[derive(Debug)]
struct Held {
    introducing: Task,
    /// The socket once more, for the program that takes our place.
    socket: OwnedFd,
}

impl Held {
    fn new(listener: StdListener, holder: Holder) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let socket = listener.as_fd().try_clone_to_owned()?;
        let listener = UnixListener::from_std(listener)?;
        Ok(Self {
            introducing: Task::spawn(introduce(listener, holder)),
            socket,
        })
    }
}

impl Lock {
    /// Takes the lock of this network namespace, when it is free. `says` hears once who has it.
    pub(super) async fn take(name: &str, holder: Holder, says: impl Fn(&Holder)) -> Self {
        if let Some(listener) = inherited(name, &io::stdin()) {
            // Programs that we start must not have it.
            if let Ok(nothing) = File::open("/dev/null") {
                dup2_stdin(nothing).ok();
            }
            if let Ok(held) = Held::new(listener, holder.clone()) {
                return Self { held: Some(held) };
            }
        }
        let mut is_known = false;
        loop {
            match Self::attempt(name, &holder, is_known).await {
                Ok(lock) => {
                    if is_known {
                        info!("the other proxy has ended, starting");
                    }
                    return lock;
                }
                Err(other) => {
                    if let Some(other) = other {
                        says(&other);
                        is_known = true;
                    }
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// The same without waiting: fails with who has it.
    pub(super) async fn try_take(name: &str, holder: Holder) -> Result<Self, Holder> {
        loop {
            match Self::attempt(name, &holder, false).await {
                Ok(lock) => return Ok(lock),
                Err(Some(other)) => return Err(other),
                Err(None) => tokio::time::sleep(RETRY).await,
            }
        }
    }

    /// Fails with who has it, which is not asked if `is_known`.
    async fn attempt(name: &str, holder: &Holder, is_known: bool) -> Result<Self, Option<Holder>> {
        let nobodys = Self { held: None };
        match listen(name).and_then(|listener| Held::new(listener, holder.clone())) {
            Ok(held) => Ok(Self { held: Some(held) }),
            Err(error) if error.kind() != ErrorKind::AddrInUse => {
                warn!(%error, "cannot tell whether another proxy serves this network namespace");
                Ok(nobodys)
            }
            Err(_) if is_known => Err(None),
            Err(_) => match ask(name).await {
                Ok(Asked::Holder(other)) => Err(Some(other)),
                Ok(Asked::Nobody(user)) => {
                    warn!(user, "ignoring the lock of an unprivileged process");
                    Ok(nobodys)
                }
                // It has ended meanwhile.
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => Err(None),
                // It does not accept: it is there nevertheless.
                Err(_) => Err(Some(Holder::default())),
            },
        }
    }

    /// The next one may have it at once.
    pub(super) async fn release(self) {
        drop(self.hand_over().await);
    }

    /// The lock as the standard input of the program that takes our place. Those who ask meanwhile
    /// hear from that one.
    pub(super) async fn hand_over(self) -> Option<OwnedFd> {
        let held = self.held?;
        held.introducing.end().await;
        Some(held.socket)
    }
}

fn listen(name: &str) -> io::Result<StdListener> {
    StdListener::bind_addr(&SocketAddr::from_abstract_name(name)?)
}

/// The lock, if this is its socket.
fn inherited(name: &str, descriptor: &impl AsFd) -> Option<StdListener> {
    let copy = descriptor.as_fd().try_clone_to_owned().ok()?;
    let listener = StdListener::from(copy);
    // Fails for what is no socket.
    let address = listener.local_addr().ok()?;
    (address.as_abstract_name() == Some(name.as_bytes())).then_some(listener)
}

/// Who listens.
enum Asked {
    Holder(Holder),
    /// A user that cannot change rules: a joke, or an attack.
    Nobody(u32),
}

/// Asks who has the lock.
async fn ask(name: &str) -> io::Result<Asked> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(format!("\0{name}"))?)?;
    let stream = std::os::unix::net::UnixStream::from(OwnedFd::from(socket));
    let stream = UnixStream::from_std(stream)?;
    let peer = stream.peer_cred()?;
    if peer.uid() != 0 && peer.uid() != geteuid().as_raw() {
        return Ok(Asked::Nobody(peer.uid()));
    }
    let mut text = Vec::new();
    let mut limited = stream.take(LONGEST);
    let read = tokio::time::timeout(PATIENCE, limited.read_to_end(&mut text));
    // One that hangs cannot introduce itself.
    drop(read.await);
    let mut holder: Holder = serde_json::from_slice(&text).unwrap_or_default();
    if holder.pid == 0 {
        holder.pid = peer.pid().unwrap_or_default();
    }
    Ok(Asked::Holder(holder))
}

/// Tells everybody who connects.
async fn introduce(listener: UnixListener, holder: Holder) {
    let text = serde_json::to_vec(&holder).unwrap_or_default();
    loop {
        match listener.accept().await {
            // A new socket has room for so little.
            Ok((mut stream, _)) => {
                drop(tokio::time::timeout(PATIENCE, stream.write_all(&text)).await);
            }
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// One for each test: all share a network namespace.
    fn name(of: &str) -> String {
        format!("kube-proxy-rs-test-{of}-{}", std::process::id())
    }

    fn here() -> Holder {
        Holder::here("ipvs", "2026-01-01T00:00:00Z".parse().unwrap())
    }

    #[tokio::test]
    async fn the_second_one_waits_and_knows_whom_for() {
        let name = name("second");
        let first = Lock::take(&name, here(), |_| panic!("nobody has it")).await;
        let other = Lock::try_take(&name, here()).await.unwrap_err();
        assert_eq!(other, here());
        assert_eq!(
            other.to_string(),
            format!(
                "process {}, mode ipvs, since 2026-01-01T00:00:00Z",
                std::process::id()
            )
        );
        let said = Mutex::new(Vec::new());
        let mut waiting = Box::pin(Lock::take(&name, here(), |holder| {
            said.lock().unwrap().push(holder.clone());
        }));
        while said.lock().unwrap().is_empty() {
            let turn = tokio::time::sleep(Duration::from_millis(1));
            assert!(
                tokio::time::timeout(Duration::ZERO, &mut waiting)
                    .await
                    .is_err()
            );
            turn.await;
        }
        first.release().await;
        drop(waiting.await);
        assert_eq!(said.into_inner().unwrap(), [here()]);
    }

    #[tokio::test]
    async fn a_restart_in_place_keeps_it_and_says_what_is_new() {
        let name = name("restart");
        let first = Lock::take(&name, here(), |_| panic!("nobody has it")).await;
        let socket = first.hand_over().await.unwrap();
        // Nobody introduces itself, and nobody else gets it.
        let asking = tokio::spawn({
            let name = name.clone();
            async move { Lock::try_take(&name, here()).await.unwrap_err() }
        });
        assert!(inherited("another", &socket).is_none());
        let listener = inherited(&name, &socket).unwrap();
        drop(socket);
        let new = Holder::here("iptables", "2026-01-02T00:00:00Z".parse().unwrap());
        let again = Held::new(listener, new.clone()).unwrap();
        assert_eq!(asking.await.unwrap(), new);
        Lock { held: Some(again) }.release().await;
        Lock::try_take(&name, here()).await.unwrap();
    }

    #[test]
    fn what_is_no_socket_is_no_lock() {
        let file = File::open("/dev/null").unwrap();
        assert!(inherited(NAME, &file).is_none());
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(inherited(NAME, &one).is_none());
    }

    #[tokio::test]
    async fn one_that_does_not_answer_has_it_all_the_same() {
        let name = name("silent");
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let _silent = StdListener::bind_addr(&address).unwrap();
        let holder = Lock::try_take(&name, here()).await.unwrap_err();
        let pid = i32::try_from(std::process::id()).unwrap();
        assert_eq!(
            holder,
            Holder {
                pid,
                ..Holder::default()
            }
        );
        assert_eq!(
            holder.to_string(),
            format!("process {pid}, mode ?, since ?")
        );
    }
}
