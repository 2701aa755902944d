// SPDX-License-Identifier: Apache-2.0
//! Forwards connections of one node port.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tracing::debug;

use super::{Places, Target, wait_after};
use crate::descriptors::{self, Cause};

/// How long an endpoint may take to accept a connection.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

/// An idle connection is probed so often: an endpoint that went without a word is noticed.
const KEEPALIVE: Duration = Duration::from_mins(1);

/// Until it is dropped, which closes the connections too.
pub(super) async fn forward(listener: TcpListener, target: Target, places: Arc<Places>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => match places.take().filter(|_| is_spare(&client)) {
                    Some(place) => {
                        let target = target.clone();
                        connections.spawn(async move {
                            let _place = place;
                            carry(client, &target).await;
                        });
                    }
                    None => reset(&client),
                },
                Err(error) => wait_after(&error, &target).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Carries both directions until both have ended; each side sees how the other one closed.
async fn carry(mut client: TcpStream, target: &Target) {
    let carried = async {
        let connecting = TcpStream::connect(target.address());
        let mut server = tokio::time::timeout(CONNECT_PATIENCE, connecting)
            .await
            .map_err(|_elapsed| io::Error::from(io::ErrorKind::TimedOut))??;
        descriptors::spare(&server, Cause::Service)?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        SockRef::from(&server).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
        let copied = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        if copied.is_err() {
            reset(&server);
        }
        copied
    };
    if let Err(error) = carried.await {
        debug!(port = target.port, %error, "connection to localhost node port failed");
        reset(&client);
    }
}

fn is_spare(stream: &TcpStream) -> bool {
    descriptors::spare(stream, Cause::Service).is_ok()
}

/// Closing it will say that something went wrong.
fn reset(stream: &TcpStream) {
    // One that is closed already needs none.
    drop(SockRef::from(stream).set_linger(Some(Duration::ZERO)));
}
