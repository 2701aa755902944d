// SPDX-License-Identifier: Apache-2.0
//! What is peculiar to protobuf, and to compressed answers.

use std::io::Write as _;

use axum::body::Body;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::HeaderMap;
use http::header::CONTENT_ENCODING;
use kpr_testkit::protobuf::{bare, envelope, event_with, field, frame, number, wrapped};

use super::*;

const WATCH: &str = "application/vnd.kubernetes.protobuf";

/// One field of a service, behind those that are there: the last one counts.
fn service_with(name: &str, ip: &str, more: &[u8]) -> Vec<u8> {
    let message = [&bare(&service(name, ip, 3)), more].concat();
    envelope("v1", "Service", &message)
}

#[tokio::test]
async fn protobuf_is_asked_for_unless_the_operator_wishes_json() {
    let mut fixture = Fixture::new(SERVICES).await;
    let asked = fixture.asked().await;
    let both = "application/vnd.kubernetes.protobuf,application/json";
    assert_eq!(asked.header("accept"), both);
    assert_eq!(asked.header("accept-encoding"), "gzip");
    let mut fixture = Fixture::asking(SERVICES, Encoding::Json).await;
    let asked = fixture.asked().await;
    assert_eq!(asked.header("accept"), "application/json");
}

#[tokio::test]
async fn a_server_may_answer_in_json() {
    let mut fixture = Fixture::new(SERVICES).await;
    let asked = fixture.asked().await;
    let watch = asked.stream_in(Encoding::Json, HeaderMap::new());
    watch.send(&event("ADDED", &service("a", "10.96.0.1", 1)));
    watch.send(&end_of_services(2));
    assert_eq!(fixture.services().await, replaced(["ns/a 10.96.0.1"]));
    drop(watch);
    let asked = fixture.asked().await;
    assert_eq!(asked.encoding(), Encoding::Protobuf, "it may next time");
}

#[tokio::test]
async fn a_server_that_will_not_is_asked_for_json_for_a_while() {
    for code in [406, 415] {
        let mut fixture = Fixture::new(SERVICES).await;
        let message = "only the following media types are accepted: application/json";
        let no = status(code, "NotAcceptable", message);
        fixture.asked().await.answer(Answer::json(code, &no));
        let asked = fixture.asked().await;
        assert_eq!(asked.header("accept"), "application/json");
        assert_eq!(query(&asked, "sendInitialEvents"), Some("true".to_owned()));
        let watch = asked.stream();
        watch.send(&event("ADDED", &service("a", "10.96.0.1", 1)));
        watch.send(&end_of_services(2));
        assert_eq!(fixture.services().await, replaced(["ns/a 10.96.0.1"]));
        drop(watch);
        let asked = fixture.asked().await;
        assert_eq!(asked.encoding(), Encoding::Json);
        let watch = asked.stream();
        pass(31 * 60).await;
        drop(watch);
        // The watch may have been given up once more in that time.
        loop {
            let asked = fixture.asked().await;
            if asked.encoding() == Encoding::Protobuf {
                break;
            }
            asked.hang_up();
        }
    }
}

#[tokio::test]
async fn nonsense_is_asked_for_in_json_in_the_end() {
    let mut fixture = Fixture::new(SERVICES).await;
    let mut watch = listed(&mut fixture).await;
    for garbage in [&b"<html>\n"[..], &frame(b"\x0f\xff"), &frame(b"")] {
        watch.send_bytes(garbage);
        let asked = fixture.asked().await;
        if query(&asked, "sendInitialEvents").is_some() {
            assert_eq!(query(&asked, "resourceVersion"), None, "the newest");
            assert_eq!(asked.encoding(), Encoding::Json);
            return;
        }
        assert_eq!(query(&asked, "resourceVersion"), Some("5".to_owned()));
        assert_eq!(asked.encoding(), Encoding::Protobuf);
        watch = asked.stream();
    }
    panic!("it is never listed");
}

#[tokio::test]
async fn an_event_may_have_16_mib_and_no_more() {
    const LIMIT: usize = 16 << 20;
    let mut fixture = Fixture::new(SERVICES).await;
    let watch = listed(&mut fixture).await;
    // Field 100 is unknown.
    let large = |size: usize| {
        let object = service_with("a", "10.96.0.9", &field(100, &vec![b'x'; size]));
        event_with("MODIFIED", &object)
    };
    let overhead = large(LIMIT / 2).len() - LIMIT / 2;
    let largest = large(LIMIT + 4 - overhead);
    assert_eq!(largest.len(), LIMIT + 4);
    for part in largest.chunks(1 << 20) {
        watch.send_bytes(part);
    }
    let applied = Seen::Applied("ns/a 10.96.0.9".to_owned());
    assert_eq!(fixture.services().await, applied);
    // Its begin is enough.
    watch.send_bytes(&large(LIMIT + 5 - overhead)[..4]);
    let asked = fixture.asked().await;
    assert_eq!(query(&asked, "resourceVersion"), Some("3".to_owned()));
    assert_eq!(query(&asked, "sendInitialEvents"), None);
}

#[tokio::test]
async fn an_event_that_does_not_end_is_given_up() {
    let mut fixture = Fixture::new(SERVICES).await;
    let watch = listed(&mut fixture).await;
    watch.send_bytes(&[0, 1, 0, 0]);
    let mut watch = Some(watch);
    // A byte every second: it is not silent.
    let trickle = |_| watch.as_ref().unwrap().trickle(b"x".to_vec());
    let (asked, seconds) = asked_after(&mut fixture.asked, trickle).await;
    assert!((140..170).contains(&seconds), "{seconds}");
    assert_eq!(query(&asked, "resourceVersion"), Some("5".to_owned()));
    watch.take();
}

/// A service with a port that has a text for a number.
fn unreadable() -> Vec<u8> {
    let port = field(1, &field(3, b"http"));
    service_with("b", "10.96.0.2", &field(2, &port))
}

const UNREADABLE: &str = "Service ns/b: spec.ports.port: invalid wire type: LengthDelimited \
     (expected Varint); the object is ignored";

#[tokio::test]
async fn an_object_that_cannot_be_read_is_named_and_the_others_go_on() {
    let mut fixture = Fixture::new(SERVICES).await;
    let watch = listed(&mut fixture).await;
    watch.send_bytes(&event_with("MODIFIED", &unreadable()));
    assert_eq!(fixture.services().await, Seen::Deleted("ns/b".to_owned()));
    assert_eq!(fixture.problems(), [UNREADABLE]);
    let problem = fixture.recorder.problems.lock().unwrap()[0].clone();
    assert_eq!(problem.service, Some(ServiceName::new("ns", "b")));
    // What is no object at all, or one in a form that nobody knows.
    let encoded = [&b"k8s\0"[..], &field(3, b"gzip")].concat();
    for object in [&b""[..], b"{}", b"k8s\0\xff", &encoded] {
        watch.send_bytes(&event_with("MODIFIED", object));
        assert!(matches!(fixture.services().await, Seen::Deleted(_)));
    }
    watch.send(&event("MODIFIED", &service("a", "10.96.0.11", 8)));
    let applied = Seen::Applied("ns/a 10.96.0.11".to_owned());
    assert_eq!(fixture.services().await, applied);
    drop(watch);
    let asked = fixture.asked().await;
    assert_eq!(query(&asked, "resourceVersion"), Some("8".to_owned()));
    assert_eq!(query(&asked, "sendInitialEvents"), None);
}

#[tokio::test]
async fn an_object_that_cannot_be_read_is_left_out_of_both_kinds_of_lists() {
    for is_streamed in [true, false] {
        let mut fixture = Fixture::new(SERVICES).await;
        let asked = fixture.asked().await;
        let good = service("a", "10.96.0.1", 2);
        if is_streamed {
            let watch = asked.stream();
            watch.send_bytes(&event_with("ADDED", &unreadable()));
            watch.send(&event("ADDED", &good));
            watch.send(&end_of_services(2));
            assert_eq!(fixture.services().await, replaced(["ns/a 10.96.0.1"]));
        } else {
            asked.answer(Answer::json(422, &status(422, "Invalid", "no")));
            let port = field(2, &field(1, &field(3, b"http")));
            let bad = [bare(&service("b", "10.96.0.2", 1)), port].concat();
            let items = [field(2, &bad), field(2, &bare(&good))].concat();
            let list = [&field(1, &field(2, b"7")), &items[..]].concat();
            let body = Body::from(envelope("v1", "ServiceList", &list));
            let asked = fixture.asked().await;
            asked.answer_with(200, WATCH, HeaderMap::new(), body);
            assert_eq!(fixture.services().await, replaced(["ns/a 10.96.0.1"]));
            let asked = fixture.asked().await;
            assert_eq!(query(&asked, "resourceVersion"), Some("7".to_owned()));
        }
        assert_eq!(fixture.problems(), [UNREADABLE]);
    }
}

#[tokio::test]
async fn fields_that_are_not_used_may_hold_anything() {
    let mut fixture = Fixture::new(SERVICES).await;
    let watch = fixture.asked().await.stream();
    let end_of_time = number(1, 253_402_300_799);
    let condition = [field(1, b"\xff"), field(4, &end_of_time)].concat();
    let managed = [field(1, b"\xfe\xff"), field(4, &number(1, i64::MAX))].concat();
    let annotation = [field(1, b"a"), field(2, b"\xff")].concat();
    let meta = [
        field(17, &managed),
        field(12, &annotation),
        field(13, b"\xff\xff\xff"),
        field(8, &number(1, i64::MIN)),
    ];
    let spec = [
        field(23, b"of a later version"),
        field(24, b"\xff"),
        number(25, -1),
        field(2, b"\x0a\x01\xff"),
        // The policy is one of a later version too.
        field(22, b"Sometimes"),
    ];
    let odd = [
        field(1, &meta.concat()),
        field(2, &spec.concat()),
        field(3, &field(2, &condition)),
        field(99, b"\xff\xff"),
    ];
    let odd = service_with("odd", "10.96.0.1", &odd.concat());
    watch.send_bytes(&event_with("ADDED", &odd));
    watch.send(&event("ADDED", &service("b", "10.96.0.2", 2)));
    watch.send(&end_of_services(2));
    let all = ["ns/odd 10.96.0.1", "ns/b 10.96.0.2"];
    assert_eq!(fixture.services().await, replaced(all));
    assert_eq!(
        fixture.problems(),
        [
            "Service ns/odd: spec.internalTrafficPolicy: \"Sometimes\" must be Cluster or Local; \
          Cluster is used"
        ]
    );
}

#[tokio::test]
async fn a_node_with_odd_values_is_seen() {
    let mut fixture = Fixture::new(NODES).await;
    let watch = fixture.asked().await.stream();
    let end_of_time = "9999-12-31T23:59:59Z";
    let node = json!({
        "kind": "Node", "apiVersion": "v1",
        "metadata": {
            "name": "here", "resourceVersion": "1", "creationTimestamp": end_of_time,
            "deletionTimestamp": end_of_time,
        },
        "spec": {"taints": [{"key": "a", "timeAdded": end_of_time}], "podCIDR": "10.1.0.0/24"},
        "status": {
            "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}],
            "capacity": {"cpu": "1e18", "example.com/a": "900P", "bad": "no quantity"},
            "conditions": [{"type": "Ready", "lastHeartbeatTime": end_of_time}],
        },
    });
    watch.send(&event("ADDED", &node));
    watch.send(&end_of_list("v1", "Node", 1));
    let node = fixture.node().await.unwrap();
    assert!(node.being_deleted);
    assert_eq!(node.pod_cidrs.len(), 1);
}

#[tokio::test]
async fn an_empty_list_is_one_in_both_forms() {
    let mut fixture = Fixture::new(SERVICES).await;
    fixture.asked().await.stream().send(&end_of_services(5));
    assert_eq!(fixture.services().await, replaced([]));
    let mut fixture = Fixture::new(SERVICES).await;
    let no = status(400, "BadRequest", "no");
    fixture.asked().await.answer(Answer::json(400, &no));
    let list = json!({"kind": "ServiceList", "metadata": {"resourceVersion": "7"}, "items": null});
    fixture.asked().await.answer(Answer::json(200, &list));
    assert_eq!(fixture.services().await, replaced([]));
    let asked = fixture.asked().await;
    assert_eq!(query(&asked, "resourceVersion"), Some("7".to_owned()));
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn is_gzip() -> HeaderMap {
    [(CONTENT_ENCODING, "gzip".parse().unwrap())]
        .into_iter()
        .collect()
}

#[tokio::test]
async fn a_compressed_stream_is_read_as_it_arrives() {
    for encoding in [Encoding::Protobuf, Encoding::Json] {
        let mut fixture = Fixture::asking(SERVICES, encoding).await;
        let watch = fixture.asked().await.stream_in(encoding, is_gzip());
        // As API servers do: the list is one piece, each later event another.
        let list = [
            watch.encoded(&event("ADDED", &service("a", "10.96.0.1", 1))),
            watch.encoded(&event("ADDED", &service("b", "10.96.0.2", 2))),
            watch.encoded(&end_of_services(2)),
        ];
        for byte in gzip(&list.concat()) {
            watch.send_bytes(&[byte]);
        }
        let all = ["ns/a 10.96.0.1", "ns/b 10.96.0.2"];
        assert_eq!(fixture.services().await, replaced(all));
        for version in 3..6 {
            let ip = format!("10.96.0.{version}");
            let change = watch.encoded(&event("MODIFIED", &service("a", &ip, version)));
            watch.send_bytes(&gzip(&change));
            let applied = Seen::Applied(format!("ns/a {ip}"));
            assert_eq!(fixture.services().await, applied);
        }
        watch.send_bytes(b"this is not gzip");
        let asked = fixture.asked().await;
        assert_eq!(query(&asked, "resourceVersion"), Some("5".to_owned()));
    }
}

#[tokio::test]
async fn a_compressed_list_is_read_and_another_coding_is_refused() {
    let mut fixture = Fixture::new(SERVICES).await;
    let no = status(400, "BadRequest", "no");
    fixture.asked().await.answer(Answer::json(400, &no));
    let items: Vec<Value> = (1..200)
        .map(|n| service(&format!("s{n}"), &format!("10.96.0.{n}"), n))
        .collect();
    let list = json!({
        "kind": "ServiceList", "metadata": {"resourceVersion": "7"}, "items": items,
    });
    let body = gzip(&wrapped(&list));
    let asked = fixture.asked().await;
    let headers = [(CONTENT_ENCODING, "br".parse().unwrap())];
    asked.answer_with(
        200,
        WATCH,
        headers.into_iter().collect(),
        Body::from(body.clone()),
    );
    let asked = fixture.asked().await;
    asked.answer_with(200, WATCH, is_gzip(), Body::from(body));
    let Seen::Replaced(services) = fixture.services().await else {
        panic!("a list comes first");
    };
    assert_eq!(services.len(), 199);
}
