// SPDX-License-Identifier: Apache-2.0
//! A server that says nothing, or nothing of use.

use super::*;

/// Whether a time is the expected one, on a machine that may be busy.
fn about(expected: u64, seconds: u64) -> bool {
    (expected - 3..expected + 12).contains(&seconds)
}

#[tokio::test]
async fn a_request_without_an_answer_is_given_up() {
    let mut fixture = Fixture::new(SERVICES).await;
    let unanswered = fixture.asked().await;
    let (again, seconds) = asked_after(&mut fixture.asked, |_| {}).await;
    assert!(about(30, seconds), "{seconds}");
    drop(unanswered);
    // So it is with a watch that goes on.
    let watch = again.stream();
    watch.send(&end_of_services(5));
    fixture.services().await;
    drop(watch);
    let unanswered = fixture.asked().await;
    let (again, seconds) = asked_after(&mut fixture.asked, |_| {}).await;
    assert!(about(30, seconds), "{seconds}");
    assert_eq!(query(&again, "resourceVersion"), Some("5".to_owned()));
    drop(unanswered);
}

#[tokio::test]
async fn a_streamed_list_without_an_end_is_asked_for_plainly() {
    let mut fixture = Fixture::new(SERVICES).await;
    let watch = fixture.asked().await.stream();
    let talk = |second| watch.talk(&event("ADDED", &service("a", "10.96.0.1", second + 1)));
    let (asked, seconds) = asked_after(&mut fixture.asked, talk).await;
    assert!(about(60, seconds), "{seconds}");
    assert_eq!(query(&asked, "watch"), None);
    assert_eq!(query(&asked, "resourceVersion"), Some("0".to_owned()));
    let list = json!({
        "kind": "ServiceList", "metadata": {"resourceVersion": "7"},
        "items": [service("a", "10.96.0.1", 1)],
    });
    asked.answer(Answer::json(200, &list));
    assert_eq!(fixture.services().await, replaced(["ns/a 10.96.0.1"]));

    // Listed again, it is not streamed for a while.
    fixture.asked().await.stream().send(&expired());
    let asked = fixture.asked().await;
    assert_eq!(query(&asked, "watch"), None);
    assert_eq!(query(&asked, "resourceVersion"), Some("7".to_owned()));
    let match_ = query(&asked, "resourceVersionMatch");
    assert_eq!(match_, Some("NotOlderThan".to_owned()));
}

#[tokio::test]
async fn a_list_of_which_nothing_arrives_is_given_up() {
    let mut fixture = Fixture::new(SERVICES).await;
    let silent = fixture.asked().await.stream();
    silent.send(&event("ADDED", &service("a", "10.96.0.1", 1)));
    let (asked, seconds) = asked_after(&mut fixture.asked, |_| {}).await;
    assert_eq!(query(&asked, "limit"), Some("500".to_owned()));
    assert!(about(30, seconds), "{seconds}");
    let list = asked.stream();
    list.send_bytes(match ENCODING.get() {
        Encoding::Json => b"{\"items\": [",
        Encoding::Protobuf => b"k8s\0\x0a",
    });
    let (again, seconds) = asked_after(&mut fixture.asked, |_| {}).await;
    assert_eq!(query(&again, "limit"), Some("500".to_owned()));
    assert!(about(30, seconds), "{seconds}");
}

#[tokio::test]
async fn a_silent_watch_is_asked_for_again() {
    let mut fixture = Fixture::new(SERVICES).await;
    let watch = listed(&mut fixture).await;
    // A bookmark is a word.
    let bookmark = event("BOOKMARK", &json!({"metadata": {"resourceVersion": "8"}}));
    let speak = |second| {
        if second == 100 {
            watch.send(&bookmark);
        }
    };
    let (asked, seconds) = asked_after(&mut fixture.asked, speak).await;
    assert!(about(250, seconds), "{seconds}");
    assert_eq!(query(&asked, "resourceVersion"), Some("8".to_owned()));
    let heard = fixture.recorder.heard.lock().unwrap().clone();
    assert!(heard.contains(&"Service"), "{heard:?}");
}

#[tokio::test]
async fn a_server_that_says_later_is_asked_later() {
    let mut fixture = Fixture::new(SERVICES).await;
    let mut asked = fixture.asked().await;
    for _ in 0..5 {
        let later = status(429, "TooManyRequests", "later");
        asked.answer(Answer::json(429, &later).with_header("retry-after", "30"));
        let seconds;
        (asked, seconds) = asked_after(&mut fixture.asked, |_| {}).await;
        assert!(about(30, seconds), "{seconds}");
    }
}

#[tokio::test]
async fn pauses_grow_while_the_server_refuses() {
    let mut fixture = Fixture::new(SERVICES).await;
    let mut asked = fixture.asked().await;
    let (mut requests, mut passed) = (0, 0);
    while passed < 300 {
        asked.answer(Answer::json(503, &status(503, "ServiceUnavailable", "no")));
        let seconds;
        (asked, seconds) = asked_after(&mut fixture.asked, |_| {}).await;
        passed += seconds;
        requests += 1;
    }
    // Seven until the pause is half a minute at most, then one in 15 to 30 s.
    assert!((10..=30).contains(&requests), "{requests}");
}

#[tokio::test]
async fn a_list_from_before_what_was_seen_is_not_taken() {
    let mut fixture = Fixture::new(SERVICES).await;
    let watch = listed(&mut fixture).await;
    watch.send(&expired());
    let mut watches = Vec::new();
    for _ in 0..3 {
        let asked = fixture.asked().await;
        assert_eq!(query(&asked, "resourceVersion"), Some("5".to_owned()));
        let watch = asked.stream();
        watch.send(&event("ADDED", &service("old", "10.96.0.9", 1)));
        watch.send(&end_of_services(3));
        watches.push(watch);
    }
    // The newest is taken: the server was restored.
    let asked = fixture.asked().await;
    assert_eq!(query(&asked, "resourceVersion"), None);
    let watch = asked.stream();
    watch.send(&event("ADDED", &service("restored", "10.96.0.9", 1)));
    watch.send(&end_of_services(3));
    let restored = replaced(["ns/restored 10.96.0.9"]);
    assert_eq!(fixture.services().await, restored);
}

#[tokio::test]
async fn a_handshake_without_an_answer_is_given_up() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (sender, _updates) = mpsc::channel::<Update>(16);
    let config = Config {
        master: Some(format!("https://{}", listener.local_addr().unwrap())),
        ..Config::default()
    };
    let options = Options {
        node_name: "here".into(),
        allow_external_ips: true,
        annotations: crate::source::Annotations::default(),
        cluster: crate::source::ClusterSize::default(),
    };
    let recorder = Arc::new(Recorder::default());
    let task = tokio::spawn(run(config, options, recorder.clone(), sender));
    // The kernel takes each connection; nobody ever answers.
    let mut seconds = 0;
    while recorder.requests.lock().unwrap().len() < 8 {
        pass(1).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
        seconds += 1;
    }
    assert!(about(60, seconds), "{seconds}");
    task.abort();
}
