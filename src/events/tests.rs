// SPDX-License-Identifier: Apache-2.0
//! Events, written to a server that records requests.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{Method, StatusCode, Uri};
use prometheus::Registry;
use serde_json::{Value, json};

use super::*;
use crate::clock::Clock;
use crate::source::{Unobserved, kubernetes};

/// Requests so far: method, path with query, body.
type Requests = Arc<Mutex<Vec<(String, String, Value)>>>;

struct Server {
    requests: Requests,
    client: kube::Client,
}

/// Knows one Service, `default/web`, and takes events, unless it is to refuse them.
async fn server(refuses: bool) -> Server {
    let requests = Requests::default();
    let record = requests.clone();
    let answer = move |method: Method, uri: Uri, body: Bytes| {
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        record
            .lock()
            .unwrap()
            .push((method.to_string(), uri.to_string(), body.clone()));
        let is_event = uri.path().contains("/events");
        let answer = if is_event && refuses {
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "status": "Failure",
                "message": "no", "reason": "Forbidden", "code": 403,
            });
            (StatusCode::FORBIDDEN, status)
        } else if is_event {
            (StatusCode::OK, body)
        } else {
            let is_web = uri
                .query()
                .is_some_and(|query| query.contains("name%3Dweb"));
            let web =
                json!({"metadata": {"name": "web", "namespace": "default", "uid": "uid-of-web"}});
            let items = if is_web { vec![web] } else { vec![] };
            let list = json!({
                "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
                "metadata": {}, "items": items,
            });
            (StatusCode::OK, list)
        };
        async move { (answer.0, axum::Json(answer.1)) }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = kubernetes::Config {
        master: Some(format!("http://{}", listener.local_addr().unwrap())),
        ..kubernetes::Config::default()
    };
    let routes = axum::Router::new().fallback(answer);
    tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
    let client = kubernetes::client(&config, Arc::new(Unobserved)).unwrap();
    Server { requests, client }
}

/// Writes events until all are done; returns the metrics.
async fn write(server: &Server, events: Vec<Event>) -> String {
    let registry = Registry::new();
    let metrics = EventMetrics::register(&registry).unwrap();
    let (sender, queue) = Events::queue(metrics.clone());
    let reporter = Reporter {
        node: "worker".into(),
        host: "host-1".into(),
    };
    for event in events {
        sender.send(event);
    }
    drop(sender);
    let (clock, _) = Clock::manual("2026-01-01T00:00:00Z".parse().unwrap());
    let writing = publish::run(server.client.clone(), reporter, clock, metrics, queue);
    tokio::time::timeout(Duration::from_mins(1), writing)
        .await
        .unwrap();
    prometheus::TextEncoder::new()
        .encode_to_string(&registry.gather())
        .unwrap()
}

fn conflict(service: &str, note: &str) -> Event {
    Event::service(
        ServiceName::new("default", service),
        reason::ADDRESS_CONFLICT,
        action::PROGRAM,
        note,
    )
}

#[tokio::test]
async fn an_event_of_the_node_is_kube_proxys() {
    let server = server(false).await;
    write(&server, vec![Event::starting()]).await;
    let requests = server.requests.lock().unwrap();
    let [(method, path, body)] = requests.as_slice() else {
        panic!("{requests:?}")
    };
    assert_eq!(method, "POST");
    assert!(
        path.starts_with("/apis/events.k8s.io/v1/namespaces/default/events"),
        "{path}"
    );
    assert_eq!(body["type"], "Normal");
    assert_eq!(body["reason"], "Starting");
    assert_eq!(body["action"], "StartKubeProxy");
    assert_eq!(body["reportingController"], "kube-proxy");
    assert_eq!(body["reportingInstance"], "kube-proxy-host-1");
    let regarding = json!({"apiVersion": "v1", "kind": "Node", "name": "worker", "uid": "worker"});
    assert_eq!(body["regarding"], regarding);
    let name = body["metadata"]["name"].as_str().unwrap();
    let (node, nanoseconds) = name.split_once('.').unwrap();
    assert_eq!(node, "worker");
    assert!(u64::from_str_radix(nanoseconds, 16).is_ok(), "{name}");
}

#[tokio::test]
async fn an_event_of_a_service_has_its_uid_and_a_repeated_one_is_a_series() {
    let server = server(false).await;
    let twice = vec![conflict("web", "first"), conflict("web", "again")];
    let metrics = write(&server, twice).await;
    let requests = server.requests.lock().unwrap();
    let events: Vec<_> = requests
        .iter()
        .filter(|(_, path, _)| path.contains("/events"))
        .collect();
    let [(_, _, created), (method, path, second)] = events.as_slice() else {
        panic!("{events:?}")
    };
    assert_eq!(created["regarding"]["uid"], "uid-of-web");
    assert_eq!(created["regarding"]["namespace"], "default");
    assert_eq!(created["note"], "first");
    assert_eq!(method, "PATCH");
    let name = created["metadata"]["name"].as_str().unwrap();
    assert!(path.contains(name), "{path}");
    assert_eq!(second["series"]["count"], 2);
    let line = "kube_proxy_rs_events_total{result=\"written\"} 2";
    assert!(metrics.lines().any(|l| l == line), "{metrics}");
}

#[tokio::test]
async fn a_service_that_is_gone_gets_none() {
    let server = server(false).await;
    write(&server, vec![conflict("gone", "too late")]).await;
    let requests = server.requests.lock().unwrap();
    assert!(
        requests
            .iter()
            .all(|(_, path, _)| !path.contains("/events")),
        "{requests:?}"
    );
}

#[tokio::test]
async fn a_refused_event_is_not_tried_again() {
    let server = server(true).await;
    let metrics = write(&server, vec![Event::starting()]).await;
    assert_eq!(server.requests.lock().unwrap().len(), 1);
    let line = "kube_proxy_rs_events_total{result=\"failed\"} 1";
    assert!(metrics.lines().any(|l| l == line), "{metrics}");
}

#[tokio::test]
async fn too_many_events_are_dropped_and_nobody_waits() {
    let server = server(false).await;
    let many = (0..1_000).map(|_| conflict("web", "x")).collect();
    let metrics = write(&server, many).await;
    // Of those that fit into the queue, a burst is written.
    for line in [
        "kube_proxy_rs_events_total{result=\"written\"} 5",
        "kube_proxy_rs_events_total{result=\"dropped\"} 995",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{metrics}");
    }
}

#[tokio::test]
async fn without_an_api_server_events_are_nothing() {
    let registry = Registry::new();
    let events = Events::nowhere(EventMetrics::register(&registry).unwrap());
    events.send(Event::starting());
    assert_eq!(registry.gather().len(), 0);
}
