// SPDX-License-Identifier: Apache-2.0
//! The client of the API server: a base of requests that reports each to the observer, gives up
//! where nothing answers, and follows credentials that change. It never retries: the watches do.

use std::fmt;
use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::AUTHORIZATION;
use hyper::body::Incoming;
use kube::client::{Body, ConfigExt};
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, sleep, timeout};
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt as _};
use tracing::{info, warn};

use super::super::{Observer, Request};
use super::connect::{self, Http, Route};
use super::credentials::Credentials;
use super::pace::Pace;
use super::proxy::host;
use super::settings::Settings;
use super::tls::{hint, tls_error};
use super::{Config, Error};
use crate::telemetry::ErrorChain;

/// From the begin of a request (with connection, TLS and all) to the head of its answer. An API
/// server answers a watch at once, and others within its own limit of a minute or much less.
const ANSWER: Duration = Duration::from_secs(30);
/// Files with credentials are read again before a request after this time.
const RECHECK: Duration = Duration::from_secs(10);
/// The same without a request: watches last longer than certificates may be valid.
const RECHECK_IDLE: Duration = Duration::from_secs(30);
/// After the server has refused our credentials, they are read again not more often than this.
const RECHECK_REFUSED: Duration = Duration::from_secs(1);

/// A client, and the news when its connections are made anew.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) client: kube::Client,
    generation: watch::Receiver<u64>,
}

impl Connection {
    /// What begins now has the newest credentials.
    pub(super) fn begins(&mut self) {
        self.generation.mark_unchanged();
    }

    /// Waits until what began must end: its credentials have changed.
    pub(super) async fn renewed(&mut self) {
        if self.generation.changed().await.is_err() {
            pending::<()>().await;
        }
    }
}

/// Keeps the credentials of a connection new while no requests are made.
#[derive(Debug)]
pub(super) struct Upkeep(Arc<Transport>);

impl Upkeep {
    /// Never ends.
    pub(super) async fn run(self) {
        loop {
            sleep(RECHECK_IDLE).await;
            // Its error is that of the next request.
            drop(self.0.ready().await);
        }
    }
}

/// Makes a client. Does not connect yet.
pub(super) fn new(
    config: &Config,
    observer: Arc<dyn Observer>,
) -> Result<(Connection, Upkeep), Error> {
    let settings = Settings::load(config)?;
    let server = settings.server.clone();
    let url = server.cluster_url.to_string();
    let failed = |source: BoxError| Error::Client {
        url: url.clone(),
        source,
    };
    let route = Route::of(&settings).map_err(|error| failed(error.into()))?;
    let credentials = Credentials::new(config.clone(), settings);
    let identity = credentials
        .identity()
        .map_err(|error| failed(error.into()))?;
    let http = connect::http(&route, &identity).map_err(|error| failed(error.into()))?;
    let (generation, changes) = watch::channel(0);
    let transport = Arc::new(Transport {
        current: Mutex::new(Current {
            http,
            credentials,
            identity,
            checked: Instant::now(),
            is_stale: false,
        }),
        route,
        generation,
        is_refused: AtomicBool::new(false),
    });
    let authority = server.cluster_url.authority();
    let observe = ObserveLayer {
        observer,
        host: authority
            .map(http::uri::Authority::as_str)
            .unwrap_or_default()
            .into(),
        pace: Pace::default(),
    };
    let headers = server.extra_headers_layer();
    let service = ServiceBuilder::new()
        .layer(server.base_uri_layer())
        .layer(headers.map_err(|error| failed(error.into()))?)
        .layer(observe)
        .service(Shared(transport.clone()));
    let connection = Connection {
        client: kube::Client::new(service, server.default_namespace),
        generation: changes,
    };
    Ok((connection, Upkeep(transport)))
}

/// The host of the API server's URL: a name or an address.
pub(super) fn server(config: &Config) -> Result<String, Error> {
    let url = Settings::load(config)?.server.cluster_url;
    Ok(host(&url).to_owned())
}

/// What requests go through.
#[derive(Debug)]
struct Transport {
    current: Mutex<Current>,
    route: Route,
    /// Counts the changes of the identity.
    generation: watch::Sender<u64>,
    /// The server did not take our credentials.
    is_refused: AtomicBool,
}

struct Current {
    http: Http,
    credentials: Credentials,
    /// What `http` was made with.
    identity: super::tls::Identity,
    checked: Instant,
    /// The files could not be used when they were last read.
    is_stale: bool,
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Current")
            .field("credentials", &self.credentials)
            .finish_non_exhaustive()
    }
}

/// Nothing answers.
#[derive(Debug, thiserror::Error)]
#[error("no answer within {} s", ANSWER.as_secs())]
struct NoAnswer;

/// A TLS error with what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{hint}: {source}")]
struct Hinted {
    hint: &'static str,
    source: BoxError,
}

impl Transport {
    /// The connections and the header that requests need now.
    async fn ready(&self) -> Result<(Http, Option<http::HeaderValue>), BoxError> {
        let mut current = self.current.lock().await;
        let age = current.checked.elapsed();
        let is_refused = age >= RECHECK_REFUSED && self.is_refused.swap(false, Ordering::Relaxed);
        if age >= RECHECK || is_refused || current.credentials.is_due() {
            current.checked = Instant::now();
            self.renew(&mut current, is_refused).await?;
        }
        let authorization = current.credentials.authorization()?;
        Ok((current.http.clone(), authorization))
    }

    /// Reads credentials again. What cannot be used (half written, not there for a moment) leaves
    /// those in use that we have.
    async fn renew(&self, current: &mut Current, is_refused: bool) -> Result<(), BoxError> {
        current.credentials.renew(is_refused).await?;
        let identity = current.credentials.identity();
        let changed = identity.and_then(|identity| {
            if identity == current.identity {
                return Ok(None);
            }
            let http = connect::http(&self.route, &identity)?;
            Ok(Some((http, identity)))
        });
        match changed {
            Ok(None) => current.is_stale = false,
            Ok(Some((http, identity))) => {
                current.http = http;
                current.identity = identity;
                current.is_stale = false;
                self.generation.send_modify(|generation| *generation += 1);
                info!("credentials for the API server changed, connecting anew");
            }
            Err(error) => {
                if !current.is_stale {
                    let error = ErrorChain(&error);
                    warn!(%error, "credentials for the API server cannot be read, using the old ones");
                }
                current.is_stale = true;
            }
        }
        Ok(())
    }

    async fn send(
        &self,
        mut request: http::Request<Body>,
    ) -> Result<http::Response<Incoming>, BoxError> {
        let answer = async {
            let (http, authorization) = self.ready().await?;
            if let Some(authorization) = authorization {
                request.headers_mut().insert(AUTHORIZATION, authorization);
            }
            http.oneshot(request).await
        };
        let answer = match timeout(ANSWER, answer).await {
            Ok(answer) => answer,
            Err(_elapsed) => return Err(NoAnswer.into()),
        };
        match answer {
            Ok(answer) => {
                let is_refused = answer.status() == http::StatusCode::UNAUTHORIZED;
                self.is_refused.fetch_or(is_refused, Ordering::Relaxed);
                Ok(answer)
            }
            Err(error) => {
                let Some(tls) = tls_error(&*error) else {
                    return Err(error);
                };
                self.is_refused.store(true, Ordering::Relaxed);
                Err(match hint(tls) {
                    Some(hint) => Hinted {
                        hint,
                        source: error,
                    }
                    .into(),
                    None => error,
                })
            }
        }
    }
}

/// A transport as a service.
#[derive(Clone, Debug)]
struct Shared(Arc<Transport>);

/// The answer to a request.
type Answering<B> = Pin<Box<dyn Future<Output = Result<http::Response<B>, BoxError>> + Send>>;

impl Service<http::Request<Body>> for Shared {
    type Response = http::Response<Incoming>;
    type Error = BoxError;
    type Future = Answering<Incoming>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let transport = self.0.clone();
        Box::pin(async move { transport.send(request).await })
    }
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
            let started = Instant::now();
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
