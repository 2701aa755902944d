// SPDX-License-Identifier: Apache-2.0
//! A balancer whose backend dies without a word: the connection to the balancer stays, and its
//! kernel acknowledges whatever is sent.

use std::future::pending;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::ways::{Fields, PLAIN, Way, shown};
use super::*;

/// Passes bytes on to the backend that it has when a connection is made. Another backend freezes
/// the connections to the former one.
struct Balancer {
    port: u16,
    backend: watch::Sender<Option<SocketAddr>>,
}

impl Balancer {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (backend, changes) = watch::channel(None);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut backend = changes.clone();
                tokio::spawn(async move {
                    let now = *backend.wait_for(Option::is_some).await.unwrap();
                    let mut server = TcpStream::connect(now.unwrap()).await.unwrap();
                    tokio::select! {
                        _ended = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                        _ = backend.changed() => pending().await,
                    }
                });
            }
        });
        Self { port, backend }
    }
}

/// Seconds until a watch that had its list is asked for at the second backend.
async fn noticed_after(server: Arc<rustls::ServerConfig>) -> u64 {
    let balancer = Balancer::start().await;
    let url = format!("https://127.0.0.1:{}", balancer.port);
    let fields = Fields {
        server: &url,
        ..PLAIN
    };
    let mut way = Way::new(server, fields).await;
    let tls = Some(way.tls.clone());
    let (second, mut asked) = Server::start_at("127.0.0.1:0", SERVICES, tls).await;
    let first = way.fixture.server.address();
    balancer.backend.send_replace(Some(first));
    let _watch = listed(&mut way.fixture).await;
    balancer.backend.send_replace(Some(second.address()));
    let (again, seconds) = asked_after(&mut asked, |_| {}).await;
    assert_eq!(query(&again, "resourceVersion"), Some("5".to_owned()));
    seconds
}

#[tokio::test]
async fn it_is_noticed_by_pings_with_http_2() {
    let seconds = noticed_after(shown("server", false)).await;
    assert!((15..=60).contains(&seconds), "{seconds}");
}

#[tokio::test]
async fn it_is_noticed_by_silence_without() {
    let mut config = Arc::unwrap_or_clone(shown("server", false));
    config.alpn_protocols = Vec::new();
    let seconds = noticed_after(Arc::new(config)).await;
    assert!((140..=180).contains(&seconds), "{seconds}");
}
