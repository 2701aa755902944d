// SPDX-License-Identifier: Apache-2.0
//! Peers that hold connections open, and a probe between them.

use std::net::{IpAddr, Ipv4Addr};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;

use super::*;

/// How long a condition may take to come true before a test fails.
const LIMIT: Duration = Duration::from_mins(1);

/// None of them by itself.
const PATIENT: Limits = Limits {
    most: 6,
    reserve: 2,
    head: LIMIT,
    life: LIMIT,
};

async fn server(limits: Limits) -> (SocketAddr, Places) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let places = Places::new(limits);
    tokio::spawn(serve(listener, routes(), places.clone()));
    (address, places)
}

fn routes() -> Router {
    Router::new().fallback(async || "good")
}

/// Connects as another host, 127.0.0.`host`.
async fn connect(address: SocketAddr, host: u8) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    let source = SocketAddr::new(Ipv4Addr::new(127, 0, 0, host).into(), 0);
    socket.bind(source).unwrap();
    socket.connect(address).await.unwrap()
}

async fn is_answered(stream: &mut TcpStream) -> bool {
    let asked = stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let mut answer = Vec::new();
    while asked.is_ok() && !answer.ends_with(b"good") {
        let read = tokio::time::timeout(LIMIT, stream.read_buf(&mut answer));
        if !matches!(read.await.unwrap(), Ok(bytes) if bytes > 0) {
            return false;
        }
    }
    answer.starts_with(b"HTTP/1.1 200 OK")
}

/// Waits until the server closes it.
async fn is_closed(mut stream: TcpStream) {
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(LIMIT, stream.read_to_end(&mut rest));
    // Either an end or a reset.
    drop(closed.await.unwrap());
}

#[tokio::test]
async fn a_probe_is_answered_while_its_own_host_holds_connections_open() {
    let (address, places) = server(PATIENT).await;
    let mut held = Vec::new();
    for index in 0..40 {
        let mut stream = connect(address, 1).await;
        if index % 2 == 0 {
            stream
                .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n")
                .await
                .unwrap();
        }
        held.push(stream);
    }
    assert!(is_answered(&mut connect(address, 1).await).await);
    assert!(places.lock().taken.len() <= PATIENT.most - PATIENT.reserve);
    for stream in held.drain(..36) {
        is_closed(stream).await;
    }
}

#[tokio::test]
async fn a_greedy_peer_loses_its_own_places_only() {
    let (address, places) = server(PATIENT).await;
    let mut modest = connect(address, 2).await;
    assert!(is_answered(&mut modest).await);
    let mut greedy = Vec::new();
    for host in [3, 3, 3, 3, 4, 5, 6] {
        let mut stream = connect(address, host).await;
        assert!(is_answered(&mut stream).await);
        greedy.push(stream);
    }
    assert_eq!(places.lock().taken.len(), PATIENT.most);
    is_closed(greedy.swap_remove(0)).await;
    assert!(is_answered(&mut modest).await, "it did nothing wrong");
}

#[tokio::test]
async fn the_monitors_of_a_node_keep_their_connections() {
    // Probes, scrapes and five windows that people look at, all from one address.
    let (address, places) = server(Limits::default()).await;
    let mut monitors = Vec::new();
    for _ in 0..40 {
        monitors.push(connect(address, 1).await);
    }
    for _ in 0..3 {
        for stream in &mut monitors {
            assert!(is_answered(stream).await);
        }
    }
    assert_eq!(places.lock().taken.len(), monitors.len());
}

#[tokio::test]
async fn what_is_being_answered_is_not_cut() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (asked, goes_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let slow = {
        let (asked, goes_on) = (asked.clone(), goes_on.clone());
        async move || {
            asked.notify_one();
            goes_on.notified().await;
            "good"
        }
    };
    let routes = routes().route("/slow", axum::routing::get(slow));
    tokio::spawn(serve(listener, routes, Places::new(PATIENT)));
    let mut first = connect(address, 1).await;
    let request = b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n";
    first.write_all(request).await.unwrap();
    asked.notified().await;
    for _ in 0..3 * PATIENT.most {
        assert!(is_answered(&mut connect(address, 1).await).await);
    }
    goes_on.notify_one();
    let mut answer = Vec::new();
    while !answer.ends_with(b"good") {
        let read = tokio::time::timeout(LIMIT, first.read_buf(&mut answer));
        assert!(read.await.unwrap().unwrap() > 0, "{answer:?}");
    }
}

#[tokio::test]
async fn a_probe_amid_a_crowd_of_its_own_host_is_answered() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // All are there before the first is accepted, as many as the kernel keeps.
    let mut crowd = Vec::new();
    for _ in 0..20 {
        crowd.push(connect(address, 1).await);
    }
    let mut probe = connect(address, 1).await;
    let request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    probe.write_all(request).await.unwrap();
    for _ in 0..100 {
        crowd.push(connect(address, 1).await);
    }
    tokio::spawn(serve(listener, routes(), Places::new(Limits::default())));
    let mut answer = Vec::new();
    while !answer.ends_with(b"good") {
        let read = tokio::time::timeout(LIMIT, probe.read_buf(&mut answer));
        assert!(read.await.unwrap().unwrap() > 0, "{answer:?}");
    }
}

#[tokio::test]
async fn half_a_head_and_an_idle_connection_end_after_a_while() {
    let limits = Limits {
        head: Duration::from_millis(20),
        ..PATIENT
    };
    let (address, _) = server(limits).await;
    let mut half = connect(address, 1).await;
    half.write_all(b"GET / HTTP/1.1\r\nHos").await.unwrap();
    is_closed(half).await;
    is_closed(connect(address, 1).await).await;
    let mut idle = connect(address, 1).await;
    assert!(is_answered(&mut idle).await);
    is_closed(idle).await;
}

#[tokio::test]
async fn no_connection_lives_for_ever() {
    let limits = Limits {
        life: Duration::from_millis(20),
        ..PATIENT
    };
    let (address, places) = server(limits).await;
    is_closed(connect(address, 1).await).await;
    assert!(places.lock().taken.is_empty());
}

#[tokio::test]
async fn a_long_head_is_refused() {
    let (address, _) = server(PATIENT).await;
    let mut stream = connect(address, 1).await;
    let line = format!("X-Filler: {}\r\n", "x".repeat(1_000));
    stream.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    for _ in 0..60 {
        // It may be closed by now.
        drop(stream.write_all(line.as_bytes()).await);
    }
    is_closed(stream).await;
}

#[test]
fn a_host_is_one_peer_with_all_its_addresses() {
    let peer = |text: &str| network(text.parse::<IpAddr>().unwrap());
    assert_eq!(peer("2001:db8:0:1::1"), peer("2001:db8:0:1:ffff::2"));
    assert_ne!(peer("2001:db8:0:1::1"), peer("2001:db8:0:2::1"));
    assert_eq!(peer("::ffff:192.0.2.1"), peer("192.0.2.1"));
    assert_ne!(peer("192.0.2.1"), peer("192.0.2.2"));
}
