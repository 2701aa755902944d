// SPDX-License-Identifier: Apache-2.0
//! Node ports on 127.0.0.1 and `::1` where kernel rules cannot serve them: this process listens
//! there and forwards to the node's own address, so that the kernel applies policies and affinity
//! and chooses the endpoint.
//!
//! (A loopback source never leaves the node: IPVS refuses it, and IPv6 has no `route_localnet`.)

mod tcp;
#[cfg(test)]
mod tests;
mod udp;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tracing::warn;

use crate::descriptors::{self, Cause};
use crate::task::{Task, end_some};
use kpr_core::model::{IpFamily, Protocol, ServiceName};

/// Most TCP connections and most UDP clients at once, of all node ports: each holds a socket or
/// two.
const MOST: usize = 1024;

/// A UDP client without traffic for this long is forgotten. As the kernel does
/// with flows (`nf_conntrack_udp_timeout_stream`).
const IDLE: Duration = Duration::from_mins(2);

/// Pause after a listening socket failed, for want of file descriptors or memory.
const PAUSE: Duration = Duration::from_millis(100);

/// A protocol that can be forwarded; SCTP has no sockets in the library, and hosts often lack it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    /// The one of a Service port.
    pub const fn of(protocol: Protocol) -> Option<Self> {
        match protocol {
            Protocol::Tcp => Some(Self::Tcp),
            Protocol::Udp => Some(Self::Udp),
            Protocol::Sctp => None,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => Protocol::Tcp.as_str(),
            Self::Udp => Protocol::Udp.as_str(),
        }
    }
}

/// A node port that could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} ({}) for a node port of Service {service}", .transport.as_str())]
pub struct NodePortError {
    /// The Service.
    pub service: ServiceName,
    /// The protocol.
    pub transport: Transport,
    /// Where.
    pub address: SocketAddr,
    /// The cause.
    #[source]
    pub source: io::Error,
}

/// One listening socket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    service: ServiceName,
    transport: Transport,
    address: SocketAddr,
}

/// The node port that a socket forwards to; the node's address may change meanwhile.
#[derive(Clone, Debug)]
struct Target {
    ip: watch::Receiver<IpAddr>,
    port: u16,
}

impl Target {
    fn address(&self) -> SocketAddr {
        SocketAddr::new(*self.ip.borrow(), self.port)
    }
}

/// A bound on what may be open at once.
#[derive(Debug)]
struct Places {
    of: &'static str,
    most: usize,
    free: Arc<Semaphore>,
    /// The limit was reached and logged; not logged again for each client.
    reported: AtomicBool,
}

impl Places {
    fn new(of: &'static str, most: usize) -> Self {
        Self {
            of,
            most,
            free: Arc::new(Semaphore::new(most)),
            reported: AtomicBool::new(false),
        }
    }

    /// A place until it is dropped; none if all are taken.
    fn take(&self) -> Option<OwnedSemaphorePermit> {
        let place = self.free.clone().try_acquire_owned().ok();
        if place.is_none() {
            if !self.reported.swap(true, Ordering::Relaxed) {
                warn!(
                    of = self.of,
                    most = self.most,
                    "too many clients of localhost node ports, rejecting new ones"
                );
            }
        } else if self.free.available_permits() > self.most / 2 {
            self.reported.store(false, Ordering::Relaxed);
        }
        place
    }
}

/// All node ports that are forwarded. Dropping it closes them and their connections.
#[derive(Debug)]
pub struct Forwarder {
    connections: Arc<Places>,
    clients: Arc<Places>,
    /// How long a UDP client may be silent.
    idle: Duration,
    targets: BTreeMap<IpFamily, watch::Sender<IpAddr>>,
    open: BTreeMap<Key, Task>,
}

impl Default for Forwarder {
    fn default() -> Self {
        Self::with_limits(MOST, IDLE)
    }
}

impl Forwarder {
    fn with_limits(most: usize, idle: Duration) -> Self {
        Self {
            idle,
            connections: Arc::new(Places::new("TCP connections", most)),
            clients: Arc::new(Places::new("UDP clients", most)),
            targets: BTreeMap::new(),
            open: BTreeMap::new(),
        }
    }

    /// Opens and closes ports of one family so that exactly `wanted` are forwarded to `target`.
    /// Ports that stay keep their connections. Must be called within a tokio runtime.
    pub async fn sync(
        &mut self,
        family: IpFamily,
        target: IpAddr,
        wanted: &BTreeMap<(Transport, u16), ServiceName>,
    ) -> Vec<NodePortError> {
        let sender = self
            .targets
            .entry(family)
            .or_insert_with(|| watch::Sender::new(target));
        sender.send_replace(target);
        let ip = sender.subscribe();
        let keys = wanted.iter().map(|(&(transport, port), service)| Key {
            service: service.clone(),
            transport,
            address: SocketAddr::new(family.loopback(), port),
        });
        let keys: BTreeSet<Key> = keys.collect();
        // One that a bug ended is opened again.
        self.open.retain(|_, task| !task.is_finished());
        self.close(family, |key| !keys.contains(key)).await;
        let mut failures = Vec::new();
        for key in keys {
            if self.open.contains_key(&key) {
                continue;
            }
            let target = Target {
                ip: ip.clone(),
                port: key.address.port(),
            };
            match self.serve(key.transport, key.address, target).await {
                Ok(task) => {
                    self.open.insert(key, task);
                }
                Err(source) => failures.push(NodePortError {
                    service: key.service,
                    transport: key.transport,
                    address: key.address,
                    source,
                }),
            }
        }
        failures
    }

    /// Closes all ports of a family.
    pub async fn stop(&mut self, family: IpFamily) {
        self.close(family, |_| true).await;
    }

    /// How many ports are open.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    async fn close(&mut self, family: IpFamily, is_unwanted: impl Fn(&Key) -> bool) {
        let is_unwanted = |key: &Key| IpFamily::of(key.address.ip()) == family && is_unwanted(key);
        end_some(&mut self.open, is_unwanted).await;
    }

    async fn serve(
        &self,
        transport: Transport,
        address: SocketAddr,
        target: Target,
    ) -> io::Result<Task> {
        Ok(match transport {
            Transport::Tcp => {
                let listener = TcpListener::bind(address).await?;
                descriptors::spare(&listener, Cause::Service)?;
                Task::spawn(tcp::forward(listener, target, self.connections.clone()))
            }
            Transport::Udp => {
                let socket = UdpSocket::bind(address).await?;
                descriptors::spare(&socket, Cause::Service)?;
                Task::spawn(udp::forward(
                    socket,
                    target,
                    self.idle,
                    self.clients.clone(),
                ))
            }
        })
    }
}

/// A listening socket cannot take what comes.
async fn wait_after(error: &io::Error, target: &Target) {
    warn!(port = target.port, %error, "localhost node port socket failed");
    tokio::time::sleep(PAUSE).await;
}
