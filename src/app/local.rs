// SPDX-License-Identifier: Apache-2.0
//! The admin routes on an abstract Unix socket of the network namespace, so that `status` finds the
//! running proxy whatever its ports are. Answers root and the proxy's own user only.

use std::os::linux::fs::MetadataExt as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener as StdListener, UnixStream as StdStream};
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use axum::serve::Listener;
use hyper_util::rt::TokioIo;
use tokio::net::unix::SocketAddr as PeerAddress;
use tokio::net::{UnixListener, UnixStream};
use tracing::warn;

/// The socket's name.
const NAME: &str = "kube-proxy-rs/admin";
/// How long the command waits for the answer; the proxy waits for its loop for less.
const PATIENCE: Duration = Duration::from_secs(10);
/// Largest answer that is taken, in bytes.
const MAX_ANSWER: usize = 64 << 20;
/// Pause after a failed accept (out of descriptors).
const PAUSE: Duration = Duration::from_secs(1);

fn address() -> std::io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(NAME)
}

/// Serves until the future is dropped. Without the socket only `status` is missing.
pub(super) async fn serve(routes: Router) {
    match bind() {
        Ok(listener) => {
            let served = axum::serve(Local(listener), routes).await;
            if let Err(error) = served {
                warn!(%error, "admin socket failed");
            }
        }
        Err(error) => warn!(%error, socket = NAME, "cannot open the admin socket"),
    }
    std::future::pending::<()>().await;
}

fn bind() -> std::io::Result<UnixListener> {
    let listener = StdListener::bind_addr(&address()?)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// Takes connections of users who may ask.
struct Local(UnixListener);

impl Listener for Local {
    type Io = UnixStream;
    type Addr = PeerAddress;

    async fn accept(&mut self) -> (UnixStream, PeerAddress) {
        loop {
            match self.0.accept().await {
                Ok((stream, address)) if may_ask(&stream) => return (stream, address),
                Ok(_) => {}
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<PeerAddress> {
        self.0.local_addr()
    }
}

fn may_ask(stream: &UnixStream) -> bool {
    // Our own directory in /proc belongs to our user.
    let ours = std::fs::metadata("/proc/self").map(|own| own.st_uid());
    let peer = stream.peer_cred().map(|peer| peer.uid());
    peer.is_ok_and(|peer| peer == 0 || ours.is_ok_and(|ours| ours == peer))
}

/// Asks the proxy of this network namespace.
pub(super) async fn ask(path: &str) -> anyhow::Result<String> {
    tokio::time::timeout(PATIENCE, get(path))
        .await
        .context("the proxy did not answer in time")?
}

async fn get(path: &str) -> anyhow::Result<String> {
    let stream = StdStream::connect_addr(&address()?)
        .context("no kube-proxy-rs runs in this network namespace")?;
    stream.set_nonblocking(true)?;
    let stream = TokioIo::new(UnixStream::from_std(stream)?);
    let (mut requests, connection) = hyper::client::conn::http1::handshake(stream).await?;
    let request = Request::get(path)
        .header("host", "localhost")
        .body(Body::empty())?;
    let answering = async {
        let answer = requests.send_request(request).await?;
        let status = answer.status();
        let body = to_bytes(Body::new(answer.into_body()), MAX_ANSWER).await?;
        let text = String::from_utf8_lossy(&body).into_owned();
        anyhow::ensure!(status == StatusCode::OK, "{}", text.trim_end());
        Ok(text)
    };
    tokio::pin!(answering, connection);
    tokio::select! {
        answer = &mut answering => answer,
        // Closed after the answer, which may still have to be read.
        ended = &mut connection => {
            ended?;
            answering.await
        }
    }
}
