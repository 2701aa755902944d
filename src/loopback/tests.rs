// SPDX-License-Identifier: Apache-2.0
//! The "kernel" is a server on another loopback address, with the port of the node port.

use std::net::Ipv4Addr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn wanted(transport: Transport, port: u16) -> BTreeMap<(Transport, u16), ServiceName> {
    [((transport, port), ServiceName::new("ns", "web"))].into()
}

/// Listens on a port that nobody has at the loopback address.
async fn listener() -> TcpListener {
    loop {
        let free = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
        let port = free.local_addr().unwrap().port();
        if let Ok(listener) = TcpListener::bind((NODE, port)).await {
            return listener;
        }
    }
}

/// Reads all of a request, then answers it with its length.
async fn server() -> (u16, Task) {
    let listener = listener().await;
    let port = listener.local_addr().unwrap().port();
    let serving = async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = Vec::new();
                stream.read_to_end(&mut request).await?;
                stream.write_all(&request.len().to_be_bytes()).await
            });
        }
    };
    (port, Task::spawn(serving))
}

async fn sync(forwarder: &mut Forwarder, wanted: &BTreeMap<(Transport, u16), ServiceName>) {
    let failures = forwarder.sync(IpFamily::V4, NODE, wanted).await;
    assert!(failures.is_empty(), "{failures:?}");
}

/// The reset may come before the client looks at its connection, or after.
async fn is_reset(port: u16) {
    let meeting = async {
        let mut client = TcpStream::connect((LOOPBACK, port)).await?;
        client.read(&mut [0]).await
    };
    let error = meeting.await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_connection_may_be_closed_in_one_direction() {
    let (port, _server) = server().await;
    let mut forwarder = Forwarder::default();
    sync(&mut forwarder, &wanted(Transport::Tcp, port)).await;
    let mut client = TcpStream::connect((LOOPBACK, port)).await.unwrap();
    let request = vec![7; 1_000_000];
    client.write_all(&request).await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(client.read_u64().await.unwrap(), 1_000_000);
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn connections_end_with_their_node_port_only() {
    let (port, _server) = server().await;
    let (other, _other_server) = server().await;
    let mut forwarder = Forwarder::default();
    let mut both = wanted(Transport::Tcp, port);
    both.extend(wanted(Transport::Tcp, other));
    sync(&mut forwarder, &both).await;
    let mut going = TcpStream::connect((LOOPBACK, port)).await.unwrap();
    let mut staying = TcpStream::connect((LOOPBACK, other)).await.unwrap();
    for client in [&mut going, &mut staying] {
        client.write_all(b"abc").await.unwrap();
    }
    sync(&mut forwarder, &wanted(Transport::Tcp, other)).await;
    // The end of the stream or a reset, according to what was on its way.
    assert!(matches!(going.read(&mut [0]).await, Ok(0) | Err(_)));
    assert!(TcpStream::connect((LOOPBACK, port)).await.is_err());
    staying.shutdown().await.unwrap();
    assert_eq!(staying.read_u64().await.unwrap(), 3);
    forwarder.stop(IpFamily::V4).await;
    assert!(forwarder.is_empty());
}

#[tokio::test]
async fn without_a_server_or_a_place_the_client_is_reset() {
    let (port, server) = server().await;
    let mut forwarder = Forwarder::with_limits(1, IDLE);
    sync(&mut forwarder, &wanted(Transport::Tcp, port)).await;
    let mut first = TcpStream::connect((LOOPBACK, port)).await.unwrap();
    first.write_all(b"abc").await.unwrap();
    is_reset(port).await;
    first.shutdown().await.unwrap();
    assert_eq!(first.read_u64().await.unwrap(), 3);
    assert_eq!(first.read(&mut [0]).await.unwrap(), 0);

    server.end().await;
    is_reset(port).await;
}

#[tokio::test]
async fn each_udp_client_is_a_flow_and_gets_its_own_answers() {
    let server = UdpSocket::bind((NODE, 0)).await.unwrap();
    let port = server.local_addr().unwrap().port();
    let mut forwarder = Forwarder::with_limits(2, IDLE);
    sync(&mut forwarder, &wanted(Transport::Udp, port)).await;
    let mut clients = Vec::new();
    let mut seen = BTreeSet::new();
    let mut buffer = [0; 16];
    for text in ["one", "two"] {
        let client = UdpSocket::bind((LOOPBACK, 0)).await.unwrap();
        client.connect((LOOPBACK, port)).await.unwrap();
        client.send(text.as_bytes()).await.unwrap();
        let (length, from) = server.recv_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..length], text.as_bytes());
        seen.insert(from);
        clients.push((client, from));
    }
    assert_eq!(seen.len(), 2);
    // In the other order.
    for (client, flow) in clients.iter().rev() {
        server
            .send_to(flow.to_string().as_bytes(), flow)
            .await
            .unwrap();
        let mut buffer = [0; 64];
        let length = client.recv(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..length], flow.to_string().as_bytes());
    }
    // A third one has no place: the next that arrives is of a client that has one.
    let third = UdpSocket::bind((LOOPBACK, 0)).await.unwrap();
    third.send_to(b"three", (LOOPBACK, port)).await.unwrap();
    clients[0].0.send(b"again").await.unwrap();
    let (length, from) = server.recv_from(&mut buffer).await.unwrap();
    assert_eq!((&buffer[..length], from), (&b"again"[..], clients[0].1));
}

#[tokio::test]
async fn a_udp_server_that_is_away_for_a_while_is_found_again() {
    let server = UdpSocket::bind((NODE, 0)).await.unwrap();
    let port = server.local_addr().unwrap().port();
    let mut forwarder = Forwarder::default();
    sync(&mut forwarder, &wanted(Transport::Udp, port)).await;
    let client = UdpSocket::bind((LOOPBACK, 0)).await.unwrap();
    client.connect((LOOPBACK, port)).await.unwrap();
    drop(server);
    client.send(b"lost").await.unwrap();
    let server = UdpSocket::bind((NODE, port)).await.unwrap();
    // One of the first may meet the refusal of the lost one.
    let mut buffer = [0; 16];
    loop {
        client.send(b"found").await.unwrap();
        let receiving = server.recv_from(&mut buffer);
        if tokio::time::timeout(Duration::from_millis(100), receiving)
            .await
            .is_ok()
        {
            break;
        }
    }
}

#[tokio::test]
async fn a_silent_udp_client_gives_up_its_place() {
    let server = UdpSocket::bind((NODE, 0)).await.unwrap();
    let port = server.local_addr().unwrap().port();
    let mut forwarder = Forwarder::with_limits(1, Duration::from_millis(50));
    sync(&mut forwarder, &wanted(Transport::Udp, port)).await;
    let client = UdpSocket::bind((LOOPBACK, 0)).await.unwrap();
    client.connect((LOOPBACK, port)).await.unwrap();
    let mut buffer = [0; 16];
    client.send(b"one").await.unwrap();
    let (_, first) = server.recv_from(&mut buffer).await.unwrap();
    let places = forwarder.clients.clone();
    while places.free.available_permits() == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    client.send(b"two").await.unwrap();
    let (_, second) = server.recv_from(&mut buffer).await.unwrap();
    assert_ne!(first, second, "it is a new flow");
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut forwarder = Forwarder::default();
    let wanted = wanted(Transport::Tcp, port);
    let failures = forwarder.sync(IpFamily::V4, NODE, &wanted).await;
    let texts: Vec<String> = failures.iter().map(ToString::to_string).collect();
    let expected =
        format!("cannot listen on 127.0.0.1:{port} (TCP) for a node port of Service ns/web");
    assert_eq!(texts, [expected]);
    drop(taken);
    sync(&mut forwarder, &wanted).await;
    assert_eq!(forwarder.len(), 1);
}
