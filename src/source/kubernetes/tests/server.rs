// SPDX-License-Identifier: Apache-2.0
//! An API server that does what the test says: each request for the scripted path waits for its
//! answer. Other paths have empty lists. With TLS or without.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes};
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Query, Request};
use axum::response::Response;
use axum::serve::{IncomingStream, Listener};
use futures::StreamExt;
use http::header::CONTENT_TYPE;
use kpr_testkit::protobuf;
use rustls::pki_types::CertificateDer;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::end_of_list;
use crate::source::kubernetes::{Encoding, PROTOBUF};

pub(super) struct Server {
    address: SocketAddr,
    path: &'static str,
    task: JoinHandle<()>,
}

/// A request that waits for its answer.
pub(super) struct Asked {
    pub(super) query: BTreeMap<String, String>,
    pub(super) headers: http::HeaderMap,
    /// As it was asked for, with the prefix of the URL.
    pub(super) path: String,
    pub(super) version: http::Version,
    pub(super) peer: Peer,
    respond: oneshot::Sender<Response>,
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Peer {
    /// Counts the connections.
    pub(super) connection: usize,
    pub(super) certificate: Option<CertificateDer<'static>>,
}

/// What a server shows; exchangeable while it runs.
pub(super) type Shown = Arc<Mutex<Arc<rustls::ServerConfig>>>;

/// Accepts connections, with a TLS handshake where there is a configuration for it.
struct Door {
    listener: TcpListener,
    tls: Option<Shown>,
    connections: usize,
}

/// A connection with TLS or without.
trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

impl Listener for Door {
    type Io = Box<dyn Io>;
    type Addr = Peer;

    async fn accept(&mut self) -> (Self::Io, Peer) {
        loop {
            let (stream, _) = self.listener.accept().await.unwrap();
            self.connections += 1;
            let mut peer = Peer {
                connection: self.connections,
                certificate: None,
            };
            let Some(tls) = &self.tls else {
                return (Box::new(stream), peer);
            };
            let acceptor = TlsAcceptor::from(tls.lock().unwrap().clone());
            // One that fails is the test's affair.
            if let Ok(stream) = acceptor.accept(stream).await {
                let certificates = stream.get_ref().1.peer_certificates();
                peer.certificate = certificates.and_then(|all| all.first().cloned());
                peer.certificate = peer.certificate.map(CertificateDer::into_owned);
                return (Box::new(stream), peer);
            }
        }
    }

    fn local_addr(&self) -> io::Result<Peer> {
        Ok(Peer::default())
    }
}

impl Connected<IncomingStream<'_, Door>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Door>) -> Self {
        stream.remote_addr().clone()
    }
}

/// An answer, in the form that was asked for.
pub(super) struct Answer {
    code: u16,
    value: Value,
    headers: http::HeaderMap,
}

/// The body of a watch. It ends when this is dropped.
pub(super) struct Stream {
    lines: mpsc::UnboundedSender<io::Result<Bytes>>,
    encoding: Encoding,
}

impl Server {
    pub(super) async fn start(path: &'static str) -> (Self, mpsc::Receiver<Asked>) {
        Self::start_at("127.0.0.1:0", path, None).await
    }

    pub(super) async fn start_at(
        address: &str,
        path: &'static str,
        tls: Option<Shown>,
    ) -> (Self, mpsc::Receiver<Asked>) {
        let (sender, asked) = mpsc::channel(16);
        let handler = move |ConnectInfo(peer): ConnectInfo<Peer>, request: Request| {
            answer(path, sender.clone(), peer, request)
        };
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = axum::Router::new().fallback(handler);
        let door = Door {
            listener,
            tls,
            connections: 0,
        };
        let task = tokio::spawn(async move {
            let service = router.into_make_service_with_connect_info::<Peer>();
            axum::serve(door, service).await.unwrap();
        });
        let server = Self {
            address,
            path,
            task,
        };
        (server, asked)
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
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
    peer: Peer,
    request: Request,
) -> Result<Response, Infallible> {
    let path = request.uri().path().to_owned();
    if !path.ends_with(scripted) {
        return Ok(empty(&path));
    }
    let query = Query::<BTreeMap<String, String>>::try_from_uri(request.uri()).unwrap();
    let (respond, response) = oneshot::channel();
    let request = Asked {
        query: query.0,
        headers: request.headers().clone(),
        path,
        version: request.version(),
        peer,
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
    let kinds = [
        (super::SLICES, "discovery.k8s.io/v1", "EndpointSlice"),
        (super::NODES, "v1", "Node"),
        (super::CIDRS, "networking.k8s.io/v1", "ServiceCIDR"),
        (super::SERVICES, "v1", "Service"),
    ];
    let kind = kinds.iter().find(|(known, ..)| path.ends_with(known));
    let (_, group, kind) = kind.unwrap_or_else(|| panic!("nobody may ask for {path}"));
    let end = format!("{}\n", end_of_list(group, kind, 1));
    let lines = futures::stream::iter([Ok::<_, Infallible>(Bytes::from(end))]);
    Response::new(Body::from_stream(lines.chain(futures::stream::pending())))
}

impl Asked {
    pub(super) fn answer(self, answer: Answer) {
        let (media_type, body) = match self.encoding() {
            Encoding::Json => ("application/json", answer.value.to_string().into_bytes()),
            Encoding::Protobuf => (PROTOBUF, protobuf::wrapped(&answer.value)),
        };
        self.answer_with(answer.code, media_type, answer.headers, Body::from(body));
    }

    /// Answers with such a body.
    pub(super) fn answer_with(
        self,
        code: u16,
        media_type: &'static str,
        headers: http::HeaderMap,
        body: Body,
    ) {
        let mut response = Response::new(body);
        *response.status_mut() = code.try_into().unwrap();
        *response.headers_mut() = headers;
        let media_type = http::HeaderValue::from_static(media_type);
        response.headers_mut().insert(CONTENT_TYPE, media_type);
        self.respond.send(response).expect("the client waits");
    }

    /// The form that is asked for first.
    pub(super) fn encoding(&self) -> Encoding {
        Encoding::first_of(self.header("accept")).expect("a form that is known")
    }

    /// Answers with a watch.
    pub(super) fn stream(self) -> Stream {
        let encoding = self.encoding();
        self.stream_in(encoding, http::HeaderMap::new())
    }

    /// Answers with a watch in that form, whatever is asked for.
    pub(super) fn stream_in(self, encoding: Encoding, headers: http::HeaderMap) -> Stream {
        let (lines, receiver) = mpsc::unbounded_channel();
        let body = futures::stream::unfold(receiver, |mut receiver| async {
            receiver.recv().await.map(|line| (line, receiver))
        });
        let media_type = match encoding {
            Encoding::Json => "application/json",
            Encoding::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        };
        self.answer_with(200, media_type, headers, Body::from_stream(body));
        Stream { lines, encoding }
    }

    /// Closes the connection without an answer.
    pub(super) fn hang_up(self) {
        drop(self);
    }
}

impl Asked {
    pub(super) fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.map_or("", |value| value.to_str().unwrap())
    }
}

impl Answer {
    pub(super) fn with_header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.insert(name, value.parse().unwrap());
        self
    }

    /// What is `value` in JSON.
    pub(super) fn json(code: u16, value: &Value) -> Self {
        Self {
            code,
            value: value.clone(),
            headers: http::HeaderMap::new(),
        }
    }
}

impl Stream {
    pub(super) fn send(&self, event: &Value) {
        self.send_bytes(&self.encoded(event));
    }

    /// An event as it is sent.
    pub(super) fn encoded(&self, event: &Value) -> Vec<u8> {
        match self.encoding {
            Encoding::Json => format!("{event}\n").into_bytes(),
            Encoding::Protobuf => protobuf::event(event),
        }
    }

    /// Sends to a client that may have gone.
    pub(super) fn talk(&self, event: &Value) {
        self.trickle(self.encoded(event));
    }

    /// The same with a part of an event.
    pub(super) fn trickle(&self, bytes: Vec<u8>) {
        self.lines.send(Ok(bytes.into())).ok();
    }

    pub(super) fn send_text(&self, text: &str) {
        self.send_bytes(text.as_bytes());
    }

    pub(super) fn send_bytes(&self, bytes: &[u8]) {
        let bytes = Bytes::copy_from_slice(bytes);
        self.lines.send(Ok(bytes)).expect("the client reads");
    }

    /// Breaks the connection off in the middle of the body.
    pub(super) fn abort(self) {
        let broken = io::Error::other("broken");
        self.lines.send(Err(broken)).expect("the client reads");
    }
}
