// SPDX-License-Identifier: Apache-2.0
//! The API server: streamed lists and watches of generated objects.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use kube_proxy_rs::source::kubernetes::Encoding;
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::objects;

/// Changes per second, and their total.
type Changes = (u32, u32);

#[derive(Debug, Default)]
struct Counts {
    /// Bytes sent in total and in lists.
    bytes: AtomicU64,
    listed: AtomicU64,
    changes: AtomicU64,
    /// The slices, which come last, have been listed.
    is_listed: AtomicBool,
}

/// A server on the loopback address.
#[derive(Debug)]
pub(crate) struct Stream {
    port: u16,
    counts: Arc<Counts>,
    changes: watch::Sender<Changes>,
    _runtime: Runtime,
}

impl Stream {
    pub(crate) fn start(services: u32) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let counts = Arc::<Counts>::default();
        let (changes, wanted) = watch::channel((0, 0));
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
        let port = listener.local_addr()?.port();
        let counted = counts.clone();
        let handler = move |request: Request| {
            let (counts, wanted) = (counted.clone(), wanted.clone());
            async move { Ok::<_, Infallible>(answer(&request, services, counts, wanted)) }
        };
        let router = axum::Router::new().fallback(handler);
        runtime.spawn(async move { axum::serve(listener, router).await });
        Ok(Self {
            port,
            counts,
            changes,
            _runtime: runtime,
        })
    }

    pub(crate) const fn port(&self) -> u16 {
        self.port
    }

    /// Starts to change slices, `rate` times per second for `seconds`.
    pub(crate) fn change(&self, rate: u32, seconds: u32) {
        self.changes.send_replace((rate, rate * seconds));
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.counts.bytes.load(Ordering::SeqCst)
    }

    pub(crate) fn list_bytes(&self) -> u64 {
        self.counts.listed.load(Ordering::SeqCst)
    }

    pub(crate) fn sent(&self) -> u64 {
        self.counts.changes.load(Ordering::SeqCst)
    }

    pub(crate) fn is_listed(&self) -> bool {
        self.counts.is_listed.load(Ordering::SeqCst)
    }
}

/// Stands in the event that ends a list.
const END: &[u8] = b"initial-events-end";

/// The kubeconfig of a server at a port of the loopback address.
pub(crate) fn kubeconfig(port: u16) -> String {
    let cluster =
        json!({"name": "scale", "cluster": {"server": format!("http://127.0.0.1:{port}")}});
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "scale", "clusters": [cluster],
        "contexts": [{"name": "scale", "context": {"cluster": "scale", "user": "scale"}}],
        "users": [{"name": "scale", "user": {}}],
    })
    .to_string()
}

/// Events written at once, as by a server under load.
const TOGETHER: usize = 64;

fn answer(
    request: &Request,
    services: u32,
    counts: Arc<Counts>,
    wanted: watch::Receiver<Changes>,
) -> Response {
    let path = request.uri().path();
    let query = request.uri().query().unwrap_or_default();
    let (version, kind) = match path {
        "/api/v1/services" => ("v1", "Service"),
        "/apis/discovery.k8s.io/v1/endpointslices" => ("discovery.k8s.io/v1", "EndpointSlice"),
        "/api/v1/nodes" => ("v1", "Node"),
        "/apis/networking.k8s.io/v1/servicecidrs" => ("networking.k8s.io/v1", "ServiceCIDR"),
        // Events are accepted and dropped.
        _ => return status(StatusCode::CREATED),
    };
    if !query.contains("watch=") {
        // Only streaming lists, which the proxy tries first.
        return status(StatusCode::BAD_REQUEST);
    }
    let accept = request.headers().get(ACCEPT);
    let accept = accept.and_then(|value| value.to_str().ok());
    let form = accept.and_then(Encoding::first_of);
    let form = form.unwrap_or(Encoding::Json);
    let first: BoxStream<'static, Vec<u8>> = match kind {
        _ if !query.contains("sendInitialEvents=true") => stream::empty().boxed(),
        "Service" => stream::iter(
            (0..services).map(move |n| objects::event(form, "ADDED", &objects::service(n))),
        )
        .boxed(),
        "EndpointSlice" => stream::iter(
            (0..services).map(move |n| objects::event(form, "ADDED", &objects::slice(n, 1, 0))),
        )
        .boxed(),
        "Node" => stream::iter([objects::event(form, "ADDED", &objects::node())]).boxed(),
        _ => stream::empty().boxed(),
    };
    let end = objects::event(
        form,
        "BOOKMARK",
        &json!({
            "apiVersion": version, "kind": kind,
            "metadata": {"resourceVersion": "1", "annotations": {"k8s.io/initial-events-end": "true"}},
        }),
    );
    let is_slices = kind == "EndpointSlice";
    let listed = counts.clone();
    let list = first
        .chain(stream::iter([end]))
        .ready_chunks(TOGETHER)
        .map(move |lines| {
            let bytes = lines.concat();
            let length = bytes.len() as u64;
            listed.bytes.fetch_add(length, Ordering::SeqCst);
            listed.listed.fetch_add(length, Ordering::SeqCst);
            let ends = bytes.windows(END.len()).any(|part| part == END);
            if is_slices && ends {
                listed.is_listed.store(true, Ordering::SeqCst);
            }
            bytes
        });
    let changes = if is_slices {
        changes(form, services, counts, wanted).boxed()
    } else {
        stream::pending().boxed()
    };
    let lines = list
        .chain(changes)
        .map(|bytes| Ok::<_, Infallible>(Bytes::from(bytes)));
    let mut response = Response::new(Body::from_stream(lines));
    let media_type = HeaderValue::from_static(objects::media_type(form));
    response.headers_mut().insert(CONTENT_TYPE, media_type);
    response
}

fn status(code: StatusCode) -> Response {
    let text = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "code": code.as_u16(), "message": "not served here",
        "status": if code.is_success() { "Success" } else { "Failure" },
    });
    let mut response = Response::new(Body::from(text.to_string()));
    *response.status_mut() = code;
    response
}

/// Waits for [`Stream::change`], then changes one slice after another at that rate.
fn changes(
    form: Encoding,
    services: u32,
    counts: Arc<Counts>,
    mut wanted: watch::Receiver<Changes>,
) -> impl futures::Stream<Item = Vec<u8>> + Send + 'static {
    let begin = async move {
        // The sender outlives the server.
        let wanted = wanted
            .wait_for(|(rate, _)| *rate > 0)
            .await
            .map(|wanted| *wanted);
        wanted.unwrap_or((1, 0))
    };
    stream::once(begin).flat_map(move |(rate, count)| {
        let counts = counts.clone();
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
        stream::unfold((0, ticks), move |(n, mut ticks)| {
            let counts = counts.clone();
            async move {
                if n == count {
                    std::future::pending::<()>().await;
                }
                ticks.tick().await;
                // Coprime to most sizes, so that consecutive changes hit distant Services.
                let service = n.wrapping_mul(7_919) % services;
                let slice = objects::slice(service, u64::from(n) + 2, n / services + 1);
                let event = objects::event(form, "MODIFIED", &slice);
                counts.bytes.fetch_add(event.len() as u64, Ordering::SeqCst);
                counts.changes.fetch_add(1, Ordering::SeqCst);
                Some((event, (n + 1, ticks)))
            }
        })
    })
}
