// SPDX-License-Identifier: Apache-2.0
//! Forwards datagrams of one node port. Each client has its own socket towards the kernel, so that
//! the kernel sees one flow per client.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::debug;

use super::{Places, Target, wait_after};
use crate::descriptors::{self, Cause};

/// Datagrams of one client that may wait; more are lost, as in any queue of datagrams.
const QUEUED: usize = 16;

/// Longer than any datagram.
const LONGEST: usize = 0x1_0000;

/// Until it is dropped, which forgets the clients too.
pub(super) async fn forward(
    socket: UdpSocket,
    target: Target,
    idle: Duration,
    places: Arc<Places>,
) {
    let socket = Arc::new(socket);
    let mut clients: BTreeMap<SocketAddr, mpsc::Sender<Vec<u8>>> = BTreeMap::new();
    let mut carried = JoinSet::new();
    loop {
        tokio::select! {
            received = receive(&socket) => match received {
                Ok((datagram, client)) => {
                    let known = clients.get(&client).filter(|queue| !queue.is_closed());
                    if let Some(queue) = known {
                        drop(queue.try_send(datagram));
                        continue;
                    }
                    let Some(place) = places.take() else {
                        continue;
                    };
                    let (queue, datagrams) = mpsc::channel(QUEUED);
                    drop(queue.try_send(datagram));
                    clients.insert(client, queue);
                    let (socket, target) = (socket.clone(), target.clone());
                    carried.spawn(async move {
                        let _place = place;
                        if let Err(error) = carry(&socket, client, &target, datagrams, idle).await {
                            debug!(port = target.port, %client, %error, "dropped UDP client of localhost node port");
                        }
                        client
                    });
                }
                Err(error) => wait_after(&error, &target).await,
            },
            Some(Ok(client)) = carried.join_next() => {
                // It may have come again meanwhile.
                if clients.get(&client).is_some_and(mpsc::Sender::is_closed) {
                    clients.remove(&client);
                }
            }
        }
    }
}

/// Carries the datagrams of one client and the answers until there are none for a while.
async fn carry(
    socket: &UdpSocket,
    client: SocketAddr,
    target: &Target,
    mut datagrams: mpsc::Receiver<Vec<u8>>,
    idle: Duration,
) -> io::Result<()> {
    let address = target.address();
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let server = UdpSocket::bind((any, 0)).await?;
    descriptors::spare(&server, Cause::Service)?;
    server.connect(address).await?;
    loop {
        let carried = tokio::select! {
            datagram = datagrams.recv() => match datagram {
                Some(datagram) => server.send(&datagram).await,
                None => return Ok(()),
            },
            answer = receive(&server) => match answer {
                Ok((answer, _)) => socket.send_to(&answer, client).await,
                Err(error) => Err(error),
            },
            () = tokio::time::sleep(idle) => return Ok(()),
        };
        match carried {
            Ok(_) => {}
            // An earlier datagram found no listener; the next one may.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error),
        }
    }
}

/// Waits without a buffer: there may be thousands of sockets.
async fn receive(socket: &UdpSocket) -> io::Result<(Vec<u8>, SocketAddr)> {
    loop {
        socket.readable().await?;
        let mut datagram = Vec::with_capacity(LONGEST);
        match socket.try_recv_buf_from(&mut datagram) {
            Ok((_, from)) => {
                datagram.shrink_to_fit();
                return Ok((datagram, from));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}
