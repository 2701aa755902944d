// SPDX-License-Identifier: Apache-2.0
//! The HTTP client for the API server. It reports each request to the observer and detects that the
//! server's host is gone. It never retries: the watches do.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{HeaderValue, USER_AGENT};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use tower::{BoxError, Layer, Service, ServiceBuilder};
use tracing::warn;

use super::super::{Observer, Request};
use super::pace::Pace;
use super::{Config, Error};

/// Longer does not help: the next attempt may find another server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A server whose host vanished is detected after `KEEPALIVE + PROBES * PROBE_INTERVAL`. Silence of
/// a watch proves nothing: it may last for minutes.
const KEEPALIVE: Duration = Duration::from_secs(15);
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
const PROBES: u32 = 3;
/// The same for data that was sent and never acknowledged.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

const AGENT: &str = concat!("kube-proxy-rs/", env!("CARGO_PKG_VERSION"));

/// Makes a client. Does not connect yet.
pub(super) async fn new(
    config: &Config,
    observer: Arc<dyn Observer>,
) -> Result<kube::Client, Error> {
    let mut settings = settings(config).await?;
    settings
        .headers
        .push((USER_AGENT, HeaderValue::from_static(AGENT)));
    if let Some(proxy) = &settings.proxy_url {
        warn!(%proxy, "HTTP proxies are not supported, connecting to the API server directly");
    }
    let url = settings.cluster_url.to_string();
    with_settings(&settings, observer).map_err(|source| Error::Client {
        url,
        source: Box::new(source),
    })
}

/// See [`super::server_address`].
pub(super) async fn server_address(config: &Config) -> Result<Option<IpAddr>, Error> {
    let url = settings(config).await?.cluster_url;
    let host = url.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Ok(host.parse().ok())
}

/// Where the server is and who we are.
async fn settings(config: &Config) -> Result<kube::Config, Error> {
    let master = config.master.as_deref().map(parse_master).transpose()?;
    let Some(path) = &config.kubeconfig else {
        return match master {
            Some(url) => Ok(kube::Config::new(url)),
            None => kube::Config::incluster().map_err(|source| Error::InCluster(Box::new(source))),
        };
    };
    let failed = |source| Error::Kubeconfig {
        path: path.clone(),
        source: Box::new(source),
    };
    let file = Kubeconfig::read_from(path).map_err(failed)?;
    let mut settings = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .map_err(failed)?;
    if let Some(url) = master {
        settings.cluster_url = url;
    }
    Ok(settings)
}

/// As client-go reads it, a URL without a scheme is a plain HTTP one.
fn parse_master(url: &str) -> Result<http::Uri, Error> {
    let full = if url.contains("://") {
        url.to_owned()
    } else {
        format!("http://{url}")
    };
    full.parse().map_err(|source| Error::Master {
        url: url.to_owned(),
        source,
    })
}

fn with_settings(
    settings: &kube::Config,
    observer: Arc<dyn Observer>,
) -> Result<kube::Client, kube::Error> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_keepalive_interval(Some(PROBE_INTERVAL));
    tcp.set_keepalive_retries(Some(PROBES));
    tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    let connector = settings.rustls_https_connector_with_connector(tcp)?;
    let http: HttpClient<_, Body> = HttpClient::builder(TokioExecutor::new()).build(connector);
    let host = settings.cluster_url.authority();
    let observe = ObserveLayer {
        observer,
        host: host
            .map(http::uri::Authority::as_str)
            .unwrap_or_default()
            .into(),
        pace: Pace::default(),
    };
    let service = ServiceBuilder::new()
        .layer(settings.base_uri_layer())
        .option_layer(settings.auth_layer()?)
        .layer(settings.extra_headers_layer()?)
        .layer(observe)
        .map_err(BoxError::from)
        .service(http);
    Ok(kube::Client::new(
        service,
        settings.default_namespace.clone(),
    ))
}

/// Wraps a client so that its requests are paced and observed.
#[derive(Clone, Debug)]
struct ObserveLayer {
    observer: Arc<dyn Observer>,
    host: Arc<str>,
    pace: Pace,
}

impl<S> Layer<S> for ObserveLayer {
    type Service = Observe<S>;

    fn layer(&self, inner: S) -> Observe<S> {
        Observe {
            inner,
            with: self.clone(),
        }
    }
}

#[derive(Clone, Debug)]
struct Observe<S> {
    inner: S,
    with: ObserveLayer,
}

impl<S, R> Service<http::Request<Body>> for Observe<S>
where
    S: Service<http::Request<Body>, Response = http::Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    R: Send,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        // The clone that stays behind has not been polled for readiness; the original has.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let with = self.with.clone();
        Box::pin(async move {
            with.pace.wait(request.uri().path()).await;
            let method = request.method().clone();
            let started = tokio::time::Instant::now();
            let result = inner.call(request).await;
            with.observer.request(&Request {
                method: method.as_str(),
                host: &with.host,
                code: result.as_ref().ok().map(|answer| answer.status().as_u16()),
                duration: started.elapsed(),
            });
            result
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn kubeconfig(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    const GOOD: &str = "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
        clusters: [{name: k, cluster: {server: 'https://192.0.2.1:6443'}}]\n\
        contexts: [{name: c, context: {cluster: k, user: u}}]\n\
        users: [{name: u, user: {token: secret}}]\n";

    #[tokio::test]
    async fn the_master_flag_overrides_the_server_of_the_kubeconfig() {
        let file = kubeconfig(GOOD);
        let mut config = Config {
            kubeconfig: Some(file.path().to_owned()),
            master: None,
        };
        let url = settings(&config).await.unwrap().cluster_url;
        assert_eq!(url, "https://192.0.2.1:6443/");
        config.master = Some("192.0.2.2:8080".to_owned());
        let overridden = settings(&config).await.unwrap();
        assert_eq!(overridden.cluster_url, "http://192.0.2.2:8080/");
        assert!(overridden.auth_info.token.is_some());
    }

    #[tokio::test]
    async fn a_kubeconfig_that_cannot_be_used_is_named() {
        let broken = kubeconfig("clusters: [");
        let missing = PathBuf::from("/nonexistent/kubeconfig");
        for path in [broken.path().to_owned(), missing] {
            let config = Config {
                kubeconfig: Some(path.clone()),
                master: None,
            };
            let error = settings(&config).await.unwrap_err();
            let expected = format!("cannot use the kubeconfig file {}", path.display());
            assert_eq!(error.to_string(), expected);
        }
    }

    #[tokio::test]
    async fn a_master_that_is_no_url_is_named() {
        let config = Config {
            kubeconfig: None,
            master: Some("http://a b".to_owned()),
        };
        let error = settings(&config).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "\"http://a b\" is not the URL of an API server"
        );
    }
}
