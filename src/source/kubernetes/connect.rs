// SPDX-License-Identifier: Apache-2.0
//! Connections to the API server: TCP, a proxy where there is one, TLS, and HTTP/2 where the server
//! speaks it, so that all watches of a node share one connection.

use std::fmt;
use std::time::Duration;

use hyper::body::Incoming;
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::client::legacy::connect::{Connect, HttpConnector};
use hyper_util::client::proxy::matcher::Intercept;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::Body;
use rustls::pki_types::ServerName;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, ServiceExt as _};
use tracing::info;

use super::proxy;
use super::settings::{Settings, Unusable};
use super::tls::{Identity, client_config};

/// Longer does not help: the next attempt may find another server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A server whose host vanished is detected after `KEEPALIVE + PROBES * PROBE_INTERVAL`; a balancer
/// in between answers for it.
const KEEPALIVE: Duration = Duration::from_secs(15);
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
const PROBES: u32 = 3;
/// The same for data that was sent and never acknowledged.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);
/// The server itself must answer these (HTTP/2 only), as client-go has them.
const PING: Duration = Duration::from_secs(30);
const PING_ANSWER: Duration = Duration::from_secs(15);
/// What may be on its way to one watch, and to all: one whose objects are not taken yet must not
/// hold up the others.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// Sends requests over pooled connections.
pub(super) type Http = BoxCloneSyncService<http::Request<Body>, http::Response<Incoming>, BoxError>;

/// The way to the server, which does not change.
#[derive(Clone)]
pub(super) struct Route {
    proxy: Option<Intercept>,
    server_name: Option<ServerName<'static>>,
    insecure: bool,
    http2: bool,
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the proxy's password.
        f.debug_struct("Route")
            .field("server_name", &self.server_name)
            .finish_non_exhaustive()
    }
}

impl Route {
    pub(super) fn of(settings: &Settings) -> Result<Self, Unusable> {
        let environment = |name: &str| std::env::var(name).ok();
        let server = &settings.server;
        let proxy = proxy::choose(&server.cluster_url, settings.proxy.as_deref(), environment)?;
        if let Some(proxy) = &proxy {
            info!(proxy = %proxy.uri(), "connecting to the API server through a proxy");
        }
        let server_name = server.tls_server_name.clone().map(|name| {
            ServerName::try_from(name.clone())
                .map_err(|error| Unusable::other(format!("tls-server-name {name:?}: {error}")))
        });
        Ok(Self {
            proxy,
            server_name: server_name.transpose()?,
            insecure: server.accept_invalid_certs,
            // client-go's switch.
            http2: environment("DISABLE_HTTP2").is_none_or(|value| value.is_empty()),
        })
    }
}

/// Makes new connections possible; connects when a request needs one.
pub(super) fn http(route: &Route, identity: &Identity) -> Result<Http, Unusable> {
    let tls = client_config(identity, route.insecure)?;
    let tcp = tcp();
    let Some(proxy) = &route.proxy else {
        return Ok(client(https(tcp, tls, route)));
    };
    if let Some("socks5" | "socks5h") = proxy.uri().scheme_str() {
        let mut socks = SocksV5::new(with_port(proxy.uri())?, tcp);
        if let Some((user, password)) = proxy.raw_auth() {
            socks = socks.with_auth(user.to_owned(), password.to_owned());
        }
        return Ok(client(https(socks, tls, route)));
    }
    // A proxy may be asked with TLS; it is trusted as the server is.
    let to_proxy = HttpsConnectorBuilder::new()
        .with_tls_config(tls.clone())
        .https_or_http()
        .enable_http1()
        .wrap_connector(tcp);
    let mut tunnel = Tunnel::new(proxy.uri().clone(), to_proxy);
    if let Some(password) = proxy.basic_auth() {
        tunnel = tunnel.with_auth(password.clone());
    }
    Ok(client(https(tunnel, tls, route)))
}

/// SOCKS has a port of its own, of which URLs know nothing.
fn with_port(proxy: &http::Uri) -> Result<http::Uri, Unusable> {
    if proxy.port().is_some() {
        return Ok(proxy.clone());
    }
    let host = proxy.host().unwrap_or_default();
    format!("socks5://{host}:1080")
        .parse()
        .map_err(|error| Unusable::other(format!("proxy-url: {error}")))
}

fn tcp() -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_keepalive_interval(Some(PROBE_INTERVAL));
    tcp.set_keepalive_retries(Some(PROBES));
    tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    tcp
}

fn https<C>(inner: C, tls: rustls::ClientConfig, route: &Route) -> HttpsConnector<C> {
    let mut builder = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http();
    if let Some(name) = &route.server_name {
        builder = builder.with_server_name_resolver(FixedServerNameResolver::new(name.clone()));
    }
    if route.http2 {
        builder.enable_all_versions().wrap_connector(inner)
    } else {
        builder.enable_http1().wrap_connector(inner)
    }
}

fn client<C: Connect + Clone + Send + Sync + 'static>(connector: C) -> Http {
    let client: Client<C, Body> = Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .http2_keep_alive_interval(PING)
        .http2_keep_alive_timeout(PING_ANSWER)
        .http2_keep_alive_while_idle(true)
        .http2_initial_stream_window_size(STREAM_WINDOW)
        .http2_initial_connection_window_size(CONNECTION_WINDOW)
        .build(connector);
    BoxCloneSyncService::new(client.map_err(BoxError::from))
}
