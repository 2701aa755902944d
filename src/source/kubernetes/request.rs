// SPDX-License-Identifier: Apache-2.0
//! The requests of a source: lists and watches of one kind.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::header::{ACCEPT, ACCEPT_ENCODING};
use kube::client::Body;

use super::encoding::Encoding;
use super::failure::Failure;
use super::pieces::Incoming;

/// How long the server is to keep a watch, in seconds.
const WATCH_SECONDS: &str = "290";
/// Objects on a page of a list.
const PAGE: &str = "500";
/// Of a refusal, no more is read.
const MAX_REFUSAL: usize = 16 << 10;
/// Longest wait for more of a refusal.
const REFUSAL_SILENCE: Duration = Duration::from_secs(5);

/// Which objects.
#[derive(Clone, Debug, Default)]
pub(super) struct Selection {
    pub(super) path: String,
    pub(super) labels: Option<String>,
    pub(super) fields: Option<String>,
}

/// How new a list must be, as client-go asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Freshness {
    /// Whatever the server has in its cache: nothing was seen yet.
    Any,
    /// Not older than this version.
    NotOlderThan(String),
    /// The newest, read from the server's storage: dear, for when its cache makes no sense.
    Newest,
}

impl Selection {
    fn uri(&self, parameters: &[(&str, &str)]) -> String {
        let mut query = form_urlencoded::Serializer::new(format!("{}?", self.path));
        query.extend_pairs(self.labels.iter().map(|labels| ("labelSelector", labels)));
        query.extend_pairs(self.fields.iter().map(|fields| ("fieldSelector", fields)));
        query.extend_pairs(parameters);
        query.finish()
    }

    /// A watch from a version on.
    pub(super) fn watch(&self, version: &str) -> String {
        self.uri(&[
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("timeoutSeconds", WATCH_SECONDS),
            ("resourceVersion", version),
        ])
    }

    /// A watch that begins with a list.
    pub(super) fn streamed_list(&self, freshness: &Freshness) -> String {
        let version = match freshness {
            Freshness::Any => "0",
            Freshness::NotOlderThan(version) => version,
            Freshness::Newest => "",
        };
        let mut parameters = vec![
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("sendInitialEvents", "true"),
            ("resourceVersionMatch", "NotOlderThan"),
            ("timeoutSeconds", WATCH_SECONDS),
        ];
        if !version.is_empty() {
            parameters.push(("resourceVersion", version));
        }
        self.uri(&parameters)
    }

    /// The first page of a list. A server answers from its cache only if it is asked for a version,
    /// and then with one page.
    pub(super) fn list(&self, freshness: &Freshness) -> String {
        match freshness {
            Freshness::Any => self.uri(&[("limit", PAGE), ("resourceVersion", "0")]),
            Freshness::NotOlderThan(version) => self.uri(&[
                ("resourceVersion", version),
                ("resourceVersionMatch", "NotOlderThan"),
            ]),
            Freshness::Newest => self.uri(&[("limit", PAGE)]),
        }
    }

    /// Another page.
    pub(super) fn page(&self, token: &str) -> String {
        self.uri(&[("limit", PAGE), ("continue", token)])
    }
}

/// Asks, and returns the body of an answer that is no refusal.
pub(super) async fn get(
    client: &kube::Client,
    uri: String,
    encoding: Encoding,
    silence: Duration,
) -> Result<Incoming, Failure> {
    let request = Request::get(uri)
        .header(ACCEPT, encoding.accept())
        // A server compresses lists, streamed or not, but no other watch.
        .header(ACCEPT_ENCODING, "gzip")
        .body(Body::empty());
    let request = request.map_err(|error| Failure::broken(&error))?;
    let answer = client.send(request).await.map_err(|error| match error {
        kube::Error::Service(error) => Failure::broken(&*error),
        error => Failure::broken(&error),
    })?;
    let (head, body) = answer.into_parts();
    if head.status.is_success() {
        return Incoming::new(&head.headers, body, silence);
    }
    let body = match Incoming::new(&head.headers, body, REFUSAL_SILENCE) {
        Ok(body) => body.rest(MAX_REFUSAL).await,
        Err(_unreadable) => Bytes::new(),
    };
    Err(Failure::refused(head.status.as_u16(), &head.headers, &body))
}
