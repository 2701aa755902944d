// SPDX-License-Identifier: Apache-2.0
//! A TCP balancer as stands before API servers: it keeps connections open, answers their
//! keep-alives, and knows nothing of what they carry. A backend can fall silent, as a machine does
//! that loses its power: nobody is told.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// How often a connection on which nothing happens looks whether all is over.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Debug)]
struct Backend {
    address: SocketAddr,
    is_silent: AtomicBool,
    connections: AtomicUsize,
}

/// The balancer, until it is dropped.
#[derive(Debug)]
pub struct Balancer {
    address: SocketAddr,
    backends: Arc<Vec<Backend>>,
    is_over: Arc<AtomicBool>,
}

impl Balancer {
    /// Listens at an address. New connections go to the first backend that is not silent.
    pub fn start(address: SocketAddr, backends: &[SocketAddr]) -> Result<Self> {
        let listener = TcpListener::bind(address).with_context(|| address.to_string())?;
        let address = listener.local_addr()?;
        let backend = |address: &SocketAddr| Backend {
            address: *address,
            is_silent: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
        };
        let backends = Arc::new(backends.iter().map(backend).collect::<Vec<_>>());
        let is_over = Arc::new(AtomicBool::new(false));
        let (taken, end) = (backends.clone(), is_over.clone());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if end.load(Ordering::SeqCst) {
                    return;
                }
                // One that cannot be carried is closed.
                drop(carry(client, &taken, &end));
            }
        });
        Ok(Self {
            address,
            backends,
            is_over,
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From here on a backend gives no answer and takes no new connection. Those that it has stay
    /// open.
    pub fn silence(&self, backend: usize) {
        self.backends[backend]
            .is_silent
            .store(true, Ordering::SeqCst);
    }

    /// Connections that a backend was given so far.
    pub fn connections(&self, backend: usize) -> usize {
        self.backends[backend].connections.load(Ordering::SeqCst)
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        // Wakes the listener.
        drop(TcpStream::connect(self.address));
    }
}

fn carry(
    client: TcpStream,
    backends: &Arc<Vec<Backend>>,
    is_over: &Arc<AtomicBool>,
) -> io::Result<()> {
    let chosen = backends
        .iter()
        .position(|backend| !backend.is_silent.load(Ordering::SeqCst));
    let chosen = chosen.ok_or(ErrorKind::ConnectionRefused)?;
    let server = TcpStream::connect(backends[chosen].address)?;
    backends[chosen].connections.fetch_add(1, Ordering::SeqCst);
    for (from, to) in [(client.try_clone()?, server.try_clone()?), (server, client)] {
        from.set_read_timeout(Some(LOOK))?;
        let (backends, is_over) = (backends.clone(), is_over.clone());
        thread::spawn(move || pump(from, to, &backends[chosen], &is_over));
    }
    Ok(())
}

/// Passes on what arrives until one of the two has ended.
fn pump(mut from: TcpStream, mut to: TcpStream, backend: &Backend, is_over: &AtomicBool) {
    let mut buffer = vec![0; 1 << 16];
    while !is_over.load(Ordering::SeqCst) {
        let read = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                continue;
            }
            Err(_) => break,
        };
        // What is sent to a silent backend is taken, and lost.
        let is_lost = backend.is_silent.load(Ordering::SeqCst);
        if !is_lost && to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    // The other one may not be told of the end by a silent backend.
    if !backend.is_silent.load(Ordering::SeqCst) {
        drop(to.shutdown(Shutdown::Both));
    }
}
