// SPDX-License-Identifier: Apache-2.0
//! An API server that does what the test says: each request for the scripted path waits for its
//! answer. Other paths have empty lists.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;

use axum::body::{Body, Bytes};
use axum::extract::{Query, Request};
use axum::response::Response;
use futures::StreamExt;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::end_of_list;

pub(super) struct Server {
    address: SocketAddr,
    path: &'static str,
    task: JoinHandle<()>,
}

/// A request that waits for its answer.
pub(super) struct Asked {
    pub(super) query: BTreeMap<String, String>,
    pub(super) user_agent: String,
    respond: oneshot::Sender<Response>,
}

pub(super) struct Answer(Response);

/// The body of a watch. It ends when this is dropped.
pub(super) struct Stream {
    lines: mpsc::UnboundedSender<io::Result<Bytes>>,
}

impl Server {
    pub(super) async fn start(path: &'static str) -> (Self, mpsc::Receiver<Asked>) {
        let (sender, asked) = mpsc::channel(16);
        let handler = move |request: Request| answer(path, sender.clone(), request);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = axum::Router::new().fallback(handler);
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let server = Self {
            address,
            path,
            task,
        };
        (server, asked)
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(super) fn path(&self) -> &'static str {
        self.path
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(
    scripted: &'static str,
    asked: mpsc::Sender<Asked>,
    request: Request,
) -> Result<Response, Infallible> {
    let path = request.uri().path().to_owned();
    if path != scripted {
        return Ok(empty(&path));
    }
    let query = Query::<BTreeMap<String, String>>::try_from_uri(request.uri()).unwrap();
    let agent = request.headers().get("user-agent").unwrap();
    let (respond, response) = oneshot::channel();
    let request = Asked {
        query: query.0,
        user_agent: agent.to_str().unwrap().to_owned(),
        respond,
    };
    // The test is over, or hangs up.
    let hang_up = || {
        let failed = futures::stream::iter([Err::<Bytes, _>(io::Error::other("hang up"))]);
        Response::builder()
            .header("content-length", "1000")
            .body(Body::from_stream(failed))
            .unwrap()
    };
    if asked.send(request).await.is_err() {
        return Ok(hang_up());
    }
    Ok(response.await.unwrap_or_else(|_| hang_up()))
}

/// A watch that has nothing to say.
fn empty(path: &str) -> Response {
    let (group, kind) = match path {
        super::SLICES => ("discovery.k8s.io/v1", "EndpointSlice"),
        super::NODES => ("v1", "Node"),
        super::CIDRS => ("networking.k8s.io/v1", "ServiceCIDR"),
        super::SERVICES => ("v1", "Service"),
        other => panic!("nobody may ask for {other}"),
    };
    let end = format!("{}\n", end_of_list(group, kind, 1));
    let lines = futures::stream::iter([Ok::<_, Infallible>(Bytes::from(end))]);
    Response::new(Body::from_stream(lines.chain(futures::stream::pending())))
}

impl Asked {
    pub(super) fn answer(self, answer: Answer) {
        self.respond.send(answer.0).expect("the client waits");
    }

    /// Answers with a watch.
    pub(super) fn stream(self) -> Stream {
        let (lines, receiver) = mpsc::unbounded_channel();
        let body = futures::stream::unfold(receiver, |mut receiver| async {
            receiver.recv().await.map(|line| (line, receiver))
        });
        self.answer(Answer(Response::new(Body::from_stream(body))));
        Stream { lines }
    }

    /// Closes the connection without an answer.
    pub(super) fn hang_up(self) {
        drop(self);
    }
}

impl Answer {
    pub(super) fn json(code: u16, value: &Value) -> Self {
        let response = Response::builder()
            .status(code)
            .header("content-type", "application/json");
        Self(response.body(Body::from(value.to_string())).unwrap())
    }
}

impl Stream {
    pub(super) fn send(&self, value: &Value) {
        self.send_text(&format!("{value}\n"));
    }

    pub(super) fn send_text(&self, text: &str) {
        let bytes = Bytes::copy_from_slice(text.as_bytes());
        self.lines.send(Ok(bytes)).expect("the client reads");
    }

    /// Breaks the connection off in the middle of the body.
    pub(super) fn abort(self) {
        let broken = io::Error::other("broken");
        self.lines.send(Err(broken)).expect("the client reads");
    }
}
