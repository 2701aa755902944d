// SPDX-License-Identifier: Apache-2.0
//! An API server whose objects change as the caller says.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use futures::StreamExt as _;
use futures::channel::mpsc::{UnboundedSender, unbounded};
use futures::stream;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// The kinds that are served: path, version, name.
const KINDS: [(&str, &str, &str); 4] = [
    ("/api/v1/services", "v1", "Service"),
    (
        "/apis/discovery.k8s.io/v1/endpointslices",
        "discovery.k8s.io/v1",
        "EndpointSlice",
    ),
    ("/api/v1/nodes", "v1", "Node"),
    (
        "/apis/networking.k8s.io/v1/servicecidrs",
        "networking.k8s.io/v1",
        "ServiceCIDR",
    ),
];

#[derive(Debug, Default)]
struct State {
    version: u64,
    /// By kind, namespace and name.
    objects: BTreeMap<(String, String), Value>,
    watches: Vec<(String, UnboundedSender<String>)>,
    /// Reasons of the Events that were written, with the Service that each is about.
    events: Vec<(String, String)>,
}

/// A server on the loopback address. Clones are the same server.
#[derive(Clone, Debug)]
pub(super) struct Server {
    port: u16,
    state: Arc<Mutex<State>>,
    _runtime: Arc<Runtime>,
}

fn locked(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A line of a watch, in JSON: servers need not have anything else.
fn event(kind: &str, object: &Value) -> String {
    let event = json!({"type": kind, "object": object});
    format!("{event}\n")
}

fn text(object: &Value, path: &str) -> String {
    let value = object.pointer(path).and_then(Value::as_str);
    value.unwrap_or_default().to_owned()
}

fn key(object: &Value) -> (String, String) {
    let meta = |name| text(object, &format!("/metadata/{name}"));
    let name = format!("{}/{}", meta("namespace"), meta("name"));
    (text(object, "/kind"), name)
}

impl Server {
    pub(super) fn start() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let state = Arc::<Mutex<State>>::default();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listener = runtime.block_on(tokio::net::TcpListener::bind(address))?;
        let port = listener.local_addr()?.port();
        let shared = state.clone();
        let handler = move |request: Request| {
            let state = shared.clone();
            async move { Ok::<_, Infallible>(answer(request, &state).await) }
        };
        let router = axum::Router::new().fallback(handler);
        runtime.spawn(async move { axum::serve(listener, router).await });
        Ok(Self {
            port,
            state,
            _runtime: Arc::new(runtime),
        })
    }

    pub(super) const fn port(&self) -> u16 {
        self.port
    }

    /// Creates or replaces an object.
    pub(super) fn apply(&self, object: &Value) {
        let mut state = locked(&self.state);
        let mut object = object.clone();
        let (key, version) = (key(&object), state.next());
        set_version(&mut object, version);
        let is_new = state.objects.insert(key.clone(), object.clone()).is_none();
        let what = if is_new { "ADDED" } else { "MODIFIED" };
        state.send(&key.0, &event(what, &object));
    }

    pub(super) fn delete(&self, object: &Value) {
        let mut state = locked(&self.state);
        let (key, version) = (key(object), state.next());
        if let Some(mut object) = state.objects.remove(&key) {
            set_version(&mut object, version);
            state.send(&key.0, &event("DELETED", &object));
        }
    }

    /// Number of Events with this reason about a Service.
    pub(super) fn events(&self, service: &str, reason: &str) -> usize {
        let state = locked(&self.state);
        let events = state.events.iter();
        events
            .filter(|(of, why)| of == service && why == reason)
            .count()
    }
}

impl State {
    fn next(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    fn send(&mut self, kind: &str, line: &str) {
        self.watches
            .retain(|(of, watch)| of != kind || watch.unbounded_send(line.to_owned()).is_ok());
    }
}

async fn answer(request: Request, state: &Mutex<State>) -> Response {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    if request.method() == Method::POST {
        let body = to_bytes(request.into_body(), 1 << 20).await;
        let body = body.unwrap_or_default();
        let event: Value = serde_json::from_slice(&body).unwrap_or_default();
        let service = text(&event, "/regarding/name");
        let reason = text(&event, "/reason");
        locked(state).events.push((service, reason));
        return reply(StatusCode::CREATED, Body::from(body));
    }
    let found = KINDS.iter().find(|(at, ..)| *at == path);
    let Some((_, version, kind)) = found else {
        return reply(StatusCode::OK, Body::from(metadata(&path, &query, state)));
    };
    if !query.contains("watch=") {
        // Only streaming lists, which the proxy tries first.
        let refusal = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "code": 400, "message": "not served here",
        });
        return reply(StatusCode::BAD_REQUEST, Body::from(refusal.to_string()));
    }
    let (sender, news) = unbounded();
    let mut list = Vec::new();
    {
        let mut state = locked(state);
        if query.contains("sendInitialEvents=true") {
            let objects = state.objects.iter().filter(|((of, _), _)| of == kind);
            list.extend(objects.map(|(_, object)| event("ADDED", object)));
        }
        let end = json!({
            "apiVersion": version, "kind": kind,
            "metadata": {
                "resourceVersion": state.version.max(1).to_string(),
                "annotations": {"k8s.io/initial-events-end": "true"},
            },
        });
        list.push(event("BOOKMARK", &end));
        state.watches.push(((*kind).to_owned(), sender));
    }
    let lines = stream::iter(list).chain(news);
    let lines = lines.map(|line| Ok::<_, Infallible>(Bytes::from(line)));
    Response::new(Body::from_stream(lines))
}

fn reply(code: StatusCode, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response
}

/// The list that the writer of Events asks for: the metadata of one Service.
fn metadata(path: &str, query: &str, state: &Mutex<State>) -> String {
    let namespace = path.split('/').nth(4).unwrap_or_default();
    let (_, name) = query.split_once("metadata.name%3D").unwrap_or_default();
    let name = name.split('&').next().unwrap_or_default();
    let key = ("Service".to_owned(), format!("{namespace}/{name}"));
    let state = locked(state);
    let metadata = state.objects.get(&key).map(|object| {
        json!({
            "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
            "metadata": object["metadata"],
        })
    });
    let items: Vec<Value> = metadata.into_iter().collect();
    json!({
        "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": "1"}, "items": items,
    })
    .to_string()
}

fn set_version(object: &mut Value, version: u64) {
    if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
        metadata.insert("resourceVersion".to_owned(), json!(version.to_string()));
    }
}
