// SPDX-License-Identifier: Apache-2.0
//! The source against a scripted API server: what is asked, and what becomes of each answer. It
//! answers in the form that is asked for, protobuf unless a test says otherwise.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc::Receiver;
use tokio::task::JoinHandle;

use super::super::{Problem, Request};
use super::*;
use forms::{ENCODING, also_in_json};
use kpr_core::model::{self, Event, NodeInfo, ServiceName};
use server::{Answer, Asked, Server};

mod balancer;
mod forms;
mod objects;
mod p521;
mod protobuf;
mod server;
mod silence;
mod ways;

/// Nothing that is waited for takes this long, on any machine that works or on the tests' clock.
const LIMIT: Duration = Duration::from_mins(1);

pub(super) const SERVICES: &str = "/api/v1/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
const NODES: &str = "/api/v1/nodes";
const CIDRS: &str = "/apis/networking.k8s.io/v1/servicecidrs";

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, what).await.expect("it happens")
}

/// Lets time pass at once. It does not run faster than the connections of a test by itself.
async fn pass(seconds: u64) {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(seconds)).await;
    tokio::time::resume();
}

/// The next request, and about how many seconds passed before it; `each` is called for each second.
async fn asked_after(asked: &mut Receiver<Asked>, mut each: impl FnMut(u64)) -> (Asked, u64) {
    // What is on its way gets this long to arrive.
    let on_its_way = Duration::from_millis(10);
    for second in 0..1_000 {
        if let Ok(asked) = tokio::time::timeout(on_its_way, asked.recv()).await {
            return (asked.expect("the server runs"), second);
        }
        each(second);
        pass(1).await;
    }
    panic!("nothing is asked for");
}

#[derive(Debug, Default)]
struct Recorder {
    problems: Mutex<Vec<Problem>>,
    requests: Mutex<Vec<(String, String, Option<u16>)>>,
    heard: Mutex<Vec<&'static str>>,
}

impl Observer for Recorder {
    fn problem(&self, problem: &Problem) {
        self.problems.lock().unwrap().push(problem.clone());
    }

    fn heard(&self, kind: &'static str) {
        self.heard.lock().unwrap().push(kind);
    }

    fn request(&self, request: &Request<'_>) {
        self.requests.lock().unwrap().push((
            request.method.to_owned(),
            request.host.to_owned(),
            request.code,
        ));
    }
}

also_in_json! {
    a_streamed_list_is_one_update_and_its_changes_follow
    an_unfinished_list_is_not_sent
    a_server_that_streams_no_lists_is_listed_by_pages
    a_watch_that_ends_goes_on_where_it_was
    a_broken_connection_goes_on_where_it_was
    a_watch_that_expired_is_listed_again
    a_watch_that_expired_while_away_is_listed_again
    a_version_that_the_server_does_not_know_is_given_up
    a_service_that_becomes_headless_is_gone
    slices_are_asked_for_without_headless_ones
    only_changes_of_our_node_that_matter_are_sent
    a_node_that_is_not_there_is_said_to_be_missing
    service_cidrs_are_sent_together
    a_server_without_service_cidrs_has_none
}

/// The source, with one kind scripted; the lists of the other kinds are empty.
struct Fixture {
    server: Server,
    asked: Receiver<Asked>,
    updates: Receiver<Update>,
    recorder: Arc<Recorder>,
    task: JoinHandle<Result<(), Error>>,
}

impl Fixture {
    async fn new(path: &'static str) -> Self {
        Self::asking(path, ENCODING.get()).await
    }

    async fn asking(path: &'static str, encoding: Encoding) -> Self {
        let (server, asked) = Server::start(path).await;
        let config = Config {
            master: Some(server.url()),
            encoding,
            ..Config::default()
        };
        Self::with((server, asked), config)
    }

    fn with((server, asked): (Server, Receiver<Asked>), config: Config) -> Self {
        let (sender, updates) = mpsc::channel(16);
        let recorder = Arc::new(Recorder::default());
        let options = Options {
            node_name: "here".into(),
            allow_external_ips: true,
            annotations: crate::source::Annotations::default(),
            cluster: crate::source::ClusterSize::default(),
        };
        let task = tokio::spawn(run(config, options, recorder.clone(), sender));
        Self {
            server,
            asked,
            updates,
            recorder,
            task,
        }
    }

    async fn asked(&mut self) -> Asked {
        within(self.asked.recv()).await.expect("the server runs")
    }

    /// The next update that is about the scripted kind.
    async fn update(&mut self) -> Update {
        let path = self.server.path();
        loop {
            let update = within(self.updates.recv()).await.expect("the source runs");
            let about = match &update {
                Update::Model(
                    Event::ServiceApplied(_)
                    | Event::ServiceDeleted(_)
                    | Event::ServicesReplaced(_),
                ) => SERVICES,
                Update::Model(_) => SLICES,
                Update::Node(_) => NODES,
                Update::ServiceCidrs(_) => CIDRS,
                Update::Nodes(_) | Update::ApiServers(_) => continue,
            };
            if about == path {
                return update;
            }
        }
    }

    /// The names of a replaced list of Services, or of the single one that changed.
    async fn services(&mut self) -> Seen {
        match self.update().await {
            Update::Model(Event::ServicesReplaced(services)) => {
                Seen::Replaced(services.iter().map(shown).collect())
            }
            Update::Model(Event::ServiceApplied(service)) => Seen::Applied(shown(&service)),
            Update::Model(Event::ServiceDeleted(name)) => Seen::Deleted(name.to_string()),
            other => panic!("no Services: {other:?}"),
        }
    }

    async fn node(&mut self) -> Option<NodeInfo> {
        match self.update().await {
            Update::Node(node) => node,
            other => panic!("no Node: {other:?}"),
        }
    }

    async fn cidrs(&mut self) -> Vec<String> {
        match self.update().await {
            Update::ServiceCidrs(cidrs) => cidrs.iter().map(ToString::to_string).collect(),
            other => panic!("no ServiceCIDRs: {other:?}"),
        }
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Replaced(Vec<String>),
    Applied(String),
    Deleted(String),
}

fn shown(service: &model::Service) -> String {
    format!("{} {}", service.name, service.cluster_ips[0])
}

fn replaced<const N: usize>(services: [&str; N]) -> Seen {
    Seen::Replaced(services.map(str::to_owned).to_vec())
}

fn service(name: &str, ip: &str, version: u64) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": name, "namespace": "ns", "uid": format!("uid-{name}"),
            "resourceVersion": version.to_string(),
            "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:spec": {}}}],
        },
        "spec": {"clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"], "ports": [{"port": 80}]},
    })
}

fn event(kind: &str, object: &Value) -> Value {
    json!({"type": kind, "object": object})
}

/// The bookmark that ends a streamed list.
fn end_of_list(api_version: &str, kind: &str, version: u64) -> Value {
    event(
        "BOOKMARK",
        &json!({
            "apiVersion": api_version, "kind": kind,
            "metadata": {
                "resourceVersion": version.to_string(),
                "annotations": {"k8s.io/initial-events-end": "true"},
            },
        }),
    )
}

fn end_of_services(version: u64) -> Value {
    end_of_list("v1", "Service", version)
}

fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure",
        "code": code, "reason": reason, "message": message,
    })
}

fn expired() -> Value {
    event(
        "ERROR",
        &status(410, "Expired", "too old resource version: 1 (9)"),
    )
}

/// What distinguishes a request from others for the same kind.
fn query(asked: &Asked, key: &str) -> Option<String> {
    asked.query.get(key).cloned()
}

#[tokio::test]
async fn a_streamed_list_is_one_update_and_its_changes_follow() {
    let mut fixture = Fixture::new(SERVICES).await;
    let asked = fixture.asked().await;
    let expected: BTreeMap<String, String> = [
        ("allowWatchBookmarks", "true"),
        ("fieldSelector", "spec.clusterIP!=None"),
        ("labelSelector", "!service.kubernetes.io/service-proxy-name"),
        ("resourceVersion", "0"),
        ("resourceVersionMatch", "NotOlderThan"),
        ("sendInitialEvents", "true"),
        ("timeoutSeconds", "290"),
        ("watch", "true"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    assert_eq!(asked.query, expected);
    assert_eq!(
        asked.header("user-agent"),
        concat!("kube-proxy-rs/", env!("CARGO_PKG_VERSION"))
    );

    let watch = asked.stream();
    watch.send(&event("ADDED", &service("a", "10.96.0.1", 1)));
    watch.send(&event("ADDED", &service("b", "10.96.0.2", 2)));
    watch.send(&end_of_services(2));
    assert_eq!(
        fixture.services().await,
        replaced(["ns/a 10.96.0.1", "ns/b 10.96.0.2"])
    );
    watch.send(&event("MODIFIED", &service("a", "10.96.0.11", 3)));
    assert_eq!(
        fixture.services().await,
        Seen::Applied("ns/a 10.96.0.11".to_owned())
    );
    watch.send(&event("DELETED", &service("b", "10.96.0.2", 4)));
    assert_eq!(fixture.services().await, Seen::Deleted("ns/b".to_owned()));
}

#[tokio::test]
async fn an_unfinished_list_is_not_sent() {
    let mut fixture = Fixture::new(SERVICES).await;
    let watch = fixture.asked().await.stream();
    watch.send(&event("ADDED", &service("half", "10.96.0.1", 1)));
    drop(watch);
    let watch = fixture.asked().await.stream();
    watch.send(&event("ADDED", &service("whole", "10.96.0.2", 2)));
    watch.send(&end_of_services(2));
    assert_eq!(fixture.services().await, replaced(["ns/whole 10.96.0.2"]));
}

#[tokio::test]
async fn a_server_that_streams_no_lists_is_listed_by_pages() {
    let mut fixture = Fixture::new(SERVICES).await;
    let message = "sendInitialEvents is forbidden for watch unless the WatchList feature is on";
    let asked = fixture.asked().await;
    asked.answer(Answer::json(422, &status(422, "Invalid", message)));

    let asked = fixture.asked().await;
    assert_eq!(query(&asked, "watch"), None);
    assert_eq!(query(&asked, "limit"), Some("500".to_owned()));
    assert_eq!(query(&asked, "continue"), None);
    asked.answer(Answer::json(
        200,
        &json!({
            "apiVersion": "v1", "kind": "ServiceList",
            "metadata": {"resourceVersion": "7", "continue": "more"},
            "items": [service("a", "10.96.0.1", 1)],
        }),
    ));
    let asked = fixture.asked().await;
    assert_eq!(query(&asked, "continue"), Some("more".to_owned()));
    asked.answer(Answer::json(
        200,
        &json!({
            "apiVersion": "v1", "kind": "ServiceList", "metadata": {"resourceVersion": "7"},
            "items": [service("b", "10.96.0.2", 2)],
        }),
    ));
    assert_eq!(
        fixture.services().await,
        replaced(["ns/a 10.96.0.1", "ns/b 10.96.0.2"])
    );
    let asked = fixture.asked().await;
    assert_eq!(query(&asked, "watch"), Some("true".to_owned()));
    assert_eq!(query(&asked, "resourceVersion"), Some("7".to_owned()));
    assert_eq!(query(&asked, "sendInitialEvents"), None);
}

/// A watch that has its list, at version 5.
async fn listed(fixture: &mut Fixture) -> server::Stream {
    let watch = fixture.asked().await.stream();
    watch.send(&event("ADDED", &service("a", "10.96.0.1", 1)));
    watch.send(&event("ADDED", &service("b", "10.96.0.2", 5)));
    watch.send(&end_of_services(5));
    assert_eq!(
        fixture.services().await,
        replaced(["ns/a 10.96.0.1", "ns/b 10.96.0.2"])
    );
    watch
}

/// Answers a list without `b`, and checks that it replaces what was there.
async fn relisted_without_b(fixture: &mut Fixture) {
    let asked = fixture.asked().await;
    assert_eq!(query(&asked, "sendInitialEvents"), Some("true".to_owned()));
    let watch = asked.stream();
    watch.send(&event("ADDED", &service("a", "10.96.0.1", 1)));
    watch.send(&end_of_services(9));
    assert_eq!(fixture.services().await, replaced(["ns/a 10.96.0.1"]));
}

#[tokio::test]
async fn a_watch_that_ends_goes_on_where_it_was() {
    let mut fixture = Fixture::new(SERVICES).await;
    let watch = listed(&mut fixture).await;
    watch.send(&event("MODIFIED", &service("a", "10.96.0.11", 6)));
    fixture.services().await;
    drop(watch);
    let asked = fixture.asked().await;
    assert_eq!(query(&asked, "resourceVersion"), Some("6".to_owned()));
    assert_eq!(query(&asked, "sendInitialEvents"), None);
    let watch = asked.stream();
    watch.send(&event("DELETED", &service("b", "10.96.0.2", 7)));
    assert_eq!(fixture.services().await, Seen::Deleted("ns/b".to_owned()));
}

#[tokio::test]
async fn a_broken_connection_goes_on_where_it_was() {
    let mut fixture = Fixture::new(SERVICES).await;
    let watch = listed(&mut fixture).await;
    let whole = watch.encoded(&event("ADDED", &service("c", "10.96.0.3", 6)));
    watch.send_bytes(&whole[..whole.len() / 2]);
    watch.abort();
    let asked = fixture.asked().await;
    assert_eq!(query(&asked, "resourceVersion"), Some("5".to_owned()));
}

#[tokio::test]
async fn a_watch_that_expired_is_listed_again() {
    let mut fixture = Fixture::new(SERVICES).await;
    let watch = listed(&mut fixture).await;
    watch.send(&expired());
    relisted_without_b(&mut fixture).await;
}

#[tokio::test]
async fn a_watch_that_expired_while_away_is_listed_again() {
    let mut fixture = Fixture::new(SERVICES).await;
    drop(listed(&mut fixture).await);
    let gone = status(410, "Expired", "too old resource version");
    fixture.asked().await.answer(Answer::json(410, &gone));
    relisted_without_b(&mut fixture).await;
}

#[tokio::test]
async fn a_version_that_the_server_does_not_know_is_given_up() {
    let mut fixture = Fixture::new(SERVICES).await;
    drop(listed(&mut fixture).await);
    let unknown = status(504, "Timeout", "Too large resource version: 5, current: 2");
    for _ in 0..3 {
        let asked = fixture.asked().await;
        assert_eq!(query(&asked, "resourceVersion"), Some("5".to_owned()));
        asked.answer(Answer::json(504, &unknown));
    }
    relisted_without_b(&mut fixture).await;
}

#[tokio::test]
async fn a_service_that_becomes_headless_is_gone() {
    let mut fixture = Fixture::new(SERVICES).await;
    let watch = listed(&mut fixture).await;
    watch.send(&event("MODIFIED", &service("a", "None", 6)));
    assert_eq!(fixture.services().await, Seen::Deleted("ns/a".to_owned()));
}

#[tokio::test]
async fn slices_are_asked_for_without_headless_ones() {
    let mut fixture = Fixture::new(SLICES).await;
    let asked = fixture.asked().await;
    let selector = "!service.kubernetes.io/headless".to_owned();
    assert_eq!(query(&asked, "labelSelector"), Some(selector));
    assert_eq!(query(&asked, "fieldSelector"), None);
    let watch = asked.stream();
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": "web-1", "namespace": "ns", "resourceVersion": "1",
            "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": "IPv4", "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["10.0.0.1"], "nodeName": "here"}],
    });
    watch.send(&event("ADDED", &slice));
    watch.send(&end_of_list("discovery.k8s.io/v1", "EndpointSlice", 1));
    let Update::Model(Event::SlicesReplaced(slices)) = fixture.update().await else {
        panic!("a list of slices comes first");
    };
    assert_eq!(slices.len(), 1);
    assert_eq!(slices[0].service, ServiceName::new("ns", "web"));
    watch.send(&event("DELETED", &slice));
    let Update::Model(Event::SliceDeleted(name)) = fixture.update().await else {
        panic!("the slice is gone");
    };
    assert_eq!(name.to_string(), "ns/web-1");
}

#[tokio::test]
async fn only_changes_of_our_node_that_matter_are_sent() {
    let mut fixture = Fixture::new(NODES).await;
    let asked = fixture.asked().await;
    let selector = "metadata.name=here".to_owned();
    assert_eq!(query(&asked, "fieldSelector"), Some(selector));
    let node = |version: u64, heartbeat: &str, zone: &str| {
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {
                "name": "here", "resourceVersion": version.to_string(),
                "labels": {"topology.kubernetes.io/zone": zone},
            },
            "status": {
                "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}],
                "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": heartbeat}],
            },
        })
    };
    let watch = asked.stream();
    watch.send(&event("ADDED", &node(1, "2026-01-01T00:00:00Z", "a")));
    watch.send(&end_of_list("v1", "Node", 1));
    assert_eq!(fixture.node().await.unwrap().zone.as_deref(), Some("a"));
    watch.send(&event("MODIFIED", &node(2, "2026-01-01T00:00:10Z", "a")));
    watch.send(&event("MODIFIED", &node(3, "2026-01-01T00:00:20Z", "b")));
    assert_eq!(fixture.node().await.unwrap().zone.as_deref(), Some("b"));
    watch.send(&event("DELETED", &node(4, "2026-01-01T00:00:20Z", "b")));
    assert_eq!(fixture.node().await, None);
}

#[tokio::test]
async fn a_node_that_is_not_there_is_said_to_be_missing() {
    let mut fixture = Fixture::new(NODES).await;
    fixture
        .asked()
        .await
        .stream()
        .send(&end_of_list("v1", "Node", 1));
    assert_eq!(fixture.node().await, None);
}

#[tokio::test]
async fn service_cidrs_are_sent_together() {
    let mut fixture = Fixture::new(CIDRS).await;
    let watch = fixture.asked().await.stream();
    let cidr = |name: &str, cidrs: &[&str], version: u64| {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
            "metadata": {"name": name, "resourceVersion": version.to_string()},
            "spec": {"cidrs": cidrs},
        })
    };
    watch.send(&event(
        "ADDED",
        &cidr("kubernetes", &["10.96.0.0/16", "fd00:96::/108"], 1),
    ));
    watch.send(&end_of_list("networking.k8s.io/v1", "ServiceCIDR", 1));
    assert_eq!(fixture.cidrs().await, ["10.96.0.0/16", "fd00:96::/108"]);
    watch.send(&event("ADDED", &cidr("more", &["10.97.0.0/16"], 2)));
    let more = ["10.96.0.0/16", "10.97.0.0/16", "fd00:96::/108"];
    assert_eq!(fixture.cidrs().await, more);
    watch.send(&event("DELETED", &cidr("kubernetes", &["10.96.0.0/16"], 3)));
    assert_eq!(fixture.cidrs().await, ["10.97.0.0/16"]);
}

#[tokio::test]
async fn a_server_without_service_cidrs_has_none() {
    for (code, reason) in [(404, "NotFound"), (403, "Forbidden")] {
        let mut fixture = Fixture::new(CIDRS).await;
        for _ in 0..5 {
            let answer = Answer::json(code, &status(code, reason, "no"));
            fixture.asked().await.answer(answer);
        }
        assert_eq!(fixture.cidrs().await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_server_that_starts_and_knows_no_roles_yet_takes_no_service_cidrs_away() {
    let mut fixture = Fixture::new(CIDRS).await;
    let list = |asked: Asked, cidr: &str| {
        let watch = asked.stream();
        let object = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
            "metadata": {"name": "kubernetes", "resourceVersion": "1"}, "spec": {"cidrs": [cidr]},
        });
        watch.send(&event("ADDED", &object));
        watch.send(&end_of_list("networking.k8s.io/v1", "ServiceCIDR", 1));
        watch
    };
    drop(list(fixture.asked().await, "10.96.0.0/16"));
    assert_eq!(fixture.cidrs().await, ["10.96.0.0/16"]);
    // More often than a server may refuse what it never had.
    for _ in 0..6 {
        let answer = Answer::json(403, &status(403, "Forbidden", "no"));
        fixture.asked().await.answer(answer);
    }
    let _watch = list(fixture.asked().await, "10.97.0.0/16");
    assert_eq!(fixture.cidrs().await, ["10.97.0.0/16"]);
}

#[tokio::test]
async fn requests_are_observed() {
    let mut fixture = Fixture::new(SERVICES).await;
    let refused = status(403, "Forbidden", "no");
    fixture.asked().await.answer(Answer::json(403, &refused));
    fixture.asked().await.hang_up();
    listed(&mut fixture).await;
    let host = fixture.server.url().replace("http://", "");
    let requests = fixture.recorder.requests.lock().unwrap();
    for code in [Some(403), None, Some(200)] {
        let request = ("GET".to_owned(), host.clone(), code);
        assert!(requests.contains(&request), "{request:?} in {requests:?}");
    }
}
