// SPDX-License-Identifier: Apache-2.0
//! What becomes of objects that are not as they should be: they cost nobody else.

use super::*;

also_in_json! {
    a_problem_is_reported_once_over_relists
    what_is_deleted_while_the_list_is_streamed_is_gone
}

impl Fixture {
    pub(super) fn problems(&self) -> Vec<String> {
        let problems = self.recorder.problems.lock().unwrap();
        problems.iter().map(ToString::to_string).collect()
    }
}

#[tokio::test]
async fn a_problem_is_reported_once_over_relists() {
    let mut fixture = Fixture::new(SERVICES).await;
    let watch = fixture.asked().await.stream();
    let mut bad = service("bad", "10.96.0.1", 1);
    bad["spec"]["ports"] = json!([{"port": 80}, {"name": "x", "port": 99999}]);
    for _ in 0..2 {
        watch.send(&event("ADDED", &bad));
    }
    watch.send(&end_of_services(5));
    fixture.services().await;
    watch.send(&expired());
    let watch = fixture.asked().await.stream();
    watch.send(&event("ADDED", &bad));
    watch.send(&end_of_services(9));
    fixture.services().await;
    let reported = |fixture: &Fixture| {
        let problems = fixture.recorder.problems.lock().unwrap();
        problems.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let expected =
        "Service ns/bad: spec.ports[1].port: 99999 must be 1 to 65535; the port is ignored";
    assert_eq!(reported(&fixture), [expected]);

    // Repaired and broken again: that is news.
    watch.send(&event("MODIFIED", &service("bad", "10.96.0.1", 10)));
    watch.send(&event("MODIFIED", &bad));
    fixture.services().await;
    fixture.services().await;
    assert_eq!(reported(&fixture), [expected, expected]);
}

/// What an API server takes and the types of client libraries refuse.
fn odd_service(name: &str, ip: &str, version: u64) -> Value {
    let mut odd = service(name, ip, version);
    odd["metadata"]["managedFields"] = json!([{"time": "9999-12-31T23:59:59Z", "fieldsV1": 7}]);
    odd["metadata"]["ownerReferences"] = json!([{"controller": "maybe"}]);
    odd["spec"]["ports"] = json!([{"port": 80, "targetPort": 1.5, "appProtocol": 7}]);
    odd["spec"]["trafficDistribution"] = json!({"of": "a later version"});
    odd["spec"]["selector"] = json!([]);
    odd["status"] = json!({
        "conditions": [{"lastTransitionTime": "9999-12-31T23:59:59Z", "type": 1}],
        "loadBalancer": {"ingress": [{"ip": "192.0.2.1", "ports": "none"}]},
    });
    odd
}

#[tokio::test]
async fn fields_that_are_not_used_may_hold_anything() {
    let mut fixture = Fixture::asking(SERVICES, Encoding::Json).await;
    let watch = fixture.asked().await.stream();
    watch.send(&event("ADDED", &odd_service("odd", "10.96.0.1", 1)));
    watch.send(&event("ADDED", &service("b", "10.96.0.2", 2)));
    watch.send(&end_of_services(2));
    let all = ["ns/odd 10.96.0.1", "ns/b 10.96.0.2"];
    assert_eq!(fixture.services().await, replaced(all));
    watch.send(&event("MODIFIED", &odd_service("odd", "10.96.0.3", 3)));
    let applied = Seen::Applied("ns/odd 10.96.0.3".to_owned());
    assert_eq!(fixture.services().await, applied);
    assert_eq!(fixture.problems(), Vec::<String>::new());
}

#[tokio::test]
async fn a_node_with_odd_times_is_seen() {
    let mut fixture = Fixture::asking(NODES, Encoding::Json).await;
    let watch = fixture.asked().await.stream();
    let end_of_time = "9999-12-31T23:59:59Z";
    let node = json!({
        "metadata": {
            "name": "here", "resourceVersion": "1", "creationTimestamp": end_of_time,
            "deletionTimestamp": end_of_time,
        },
        "spec": {"taints": [{"key": "a", "timeAdded": end_of_time}], "podCIDR": "10.1.0.0/24"},
        "status": {
            "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}],
            "capacity": {"cpu": {}}, "conditions": [{"lastHeartbeatTime": end_of_time}],
            "images": 5, "volumesAttached": "none",
        },
    });
    watch.send(&event("ADDED", &node));
    watch.send(&end_of_list("v1", "Node", 1));
    let node = fixture.node().await.unwrap();
    assert!(node.being_deleted);
    assert_eq!(node.pod_cidrs.len(), 1);
}

/// An object with a field that is needed and cannot be read.
fn unreadable_service(version: u64) -> Value {
    let mut broken = service("b", "10.96.0.2", version);
    broken["spec"]["ports"] = json!([{"port": 80}, {"port": "http"}]);
    broken
}

const UNREADABLE: &str = "Service ns/b: spec.ports[1].port: invalid type: string \"http\", \
     expected i32; the object is ignored";

#[tokio::test]
async fn an_object_that_cannot_be_read_is_named_and_nothing_is_listed_again() {
    let mut fixture = Fixture::asking(SERVICES, Encoding::Json).await;
    let watch = listed(&mut fixture).await;
    watch.send(&event("MODIFIED", &unreadable_service(6)));
    // What it was is not what it is; a list would not have it either.
    assert_eq!(fixture.services().await, Seen::Deleted("ns/b".to_owned()));
    assert_eq!(fixture.problems(), [UNREADABLE]);
    let problem = fixture.recorder.problems.lock().unwrap()[0].clone();
    assert_eq!(problem.service, Some(ServiceName::new("ns", "b")));

    // The same once more says nothing new; others go on, and so does the watch.
    watch.send(&event("MODIFIED", &unreadable_service(7)));
    watch.send(&event("MODIFIED", &json!({"metadata": {"name": 5}})));
    watch.send(&event("MODIFIED", &service("a", "10.96.0.11", 8)));
    fixture.services().await;
    fixture.services().await;
    let applied = Seen::Applied("ns/a 10.96.0.11".to_owned());
    assert_eq!(fixture.services().await, applied);
    assert_eq!(fixture.problems()[0], UNREADABLE);
    assert_eq!(fixture.problems().len(), 2, "{:?}", fixture.problems());
    drop(watch);
    let asked = fixture.asked().await;
    assert_eq!(query(&asked, "resourceVersion"), Some("8".to_owned()));
    let watch = asked.stream();
    watch.send(&event("MODIFIED", &service("b", "10.96.0.2", 9)));
    let applied = Seen::Applied("ns/b 10.96.0.2".to_owned());
    assert_eq!(fixture.services().await, applied);
}

#[tokio::test]
async fn an_object_that_cannot_be_read_is_left_out_of_both_kinds_of_lists() {
    for is_streamed in [true, false] {
        let mut fixture = Fixture::asking(SERVICES, Encoding::Json).await;
        let mut asked = fixture.asked().await;
        if is_streamed {
            let watch = asked.stream();
            watch.send(&event("ADDED", &unreadable_service(1)));
            watch.send(&event("ADDED", &odd_service("a", "10.96.0.1", 2)));
            watch.send(&end_of_services(2));
            assert_eq!(fixture.services().await, replaced(["ns/a 10.96.0.1"]));
        } else {
            asked.answer(Answer::json(422, &status(422, "Invalid", "no")));
            asked = fixture.asked().await;
            asked.answer(Answer::json(
                200,
                &json!({
                    "kind": "ServiceList", "apiVersion": "v1",
                    "items": [unreadable_service(1), odd_service("a", "10.96.0.1", 2)],
                    "metadata": {"resourceVersion": "7"},
                }),
            ));
            assert_eq!(fixture.services().await, replaced(["ns/a 10.96.0.1"]));
            let asked = fixture.asked().await;
            assert_eq!(query(&asked, "resourceVersion"), Some("7".to_owned()));
        }
        assert_eq!(fixture.problems(), [UNREADABLE]);
    }
}

#[tokio::test]
async fn what_is_deleted_while_the_list_is_streamed_is_gone() {
    let mut fixture = Fixture::new(SERVICES).await;
    let watch = fixture.asked().await.stream();
    watch.send(&event("ADDED", &service("a", "10.96.0.1", 1)));
    watch.send(&event("ADDED", &service("b", "10.96.0.2", 2)));
    watch.send(&event("DELETED", &service("a", "10.96.0.1", 3)));
    watch.send(&event("DELETED", &service("b", "10.96.0.2", 4)));
    watch.send(&event("ADDED", &service("b", "10.96.0.3", 5)));
    watch.send(&end_of_services(5));
    assert!(matches!(fixture.services().await, Seen::Replaced(_)));
    assert_eq!(fixture.services().await, Seen::Deleted("ns/a".to_owned()));
    watch.send(&event("MODIFIED", &service("c", "10.96.0.4", 6)));
    let applied = Seen::Applied("ns/c 10.96.0.4".to_owned());
    assert_eq!(fixture.services().await, applied);
}

#[tokio::test]
async fn what_is_no_event_is_asked_for_again_before_it_is_listed() {
    let mut fixture = Fixture::asking(SERVICES, Encoding::Json).await;
    let mut watch = listed(&mut fixture).await;
    for _ in 0..3 {
        watch.send_text("<html>\n");
        let asked = fixture.asked().await;
        if query(&asked, "sendInitialEvents").is_some() {
            // The newest, whatever its version.
            assert_eq!(query(&asked, "resourceVersion"), None);
            return;
        }
        assert_eq!(query(&asked, "resourceVersion"), Some("5".to_owned()));
        watch = asked.stream();
    }
    panic!("it is never listed");
}
