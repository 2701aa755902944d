// SPDX-License-Identifier: Apache-2.0
//! `/proc/net/ip_vs_conn`: one that a kernel showed, and any bytes.

use proptest::prelude::*;

use crate::{Connections, ListedConnection, ListingError, Protocol};

/// Linux 6.1, `cat /proc/net/ip_vs_conn`: IPv4, IPv6, UDP, and a template of persistence.
const SHOWN: &str = "\
Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData
TCP C0000201 A821 0A600001 0050 0A010002 1F90 SYN_RECV         59
TCP fd00:0010:0000:0000:0000:0000:0000:0007 D079 fd00:0096:0000:0000:0000:0000:0000:0001 0050 fd00:0244:0000:0000:0000:0000:0000:0009 1F90 SYN_RECV         60
UDP C0000201 A16F 0A60000A 0035 0A010003 14E9 UDP             300
TCP C0000201 0000 0A600001 0050 0A010002 1F90 NONE             29
";

fn read(text: &[u8]) -> Result<Vec<ListedConnection>, ListingError> {
    Connections::new(text)?.collect()
}

fn at(text: &str) -> (std::net::IpAddr, u16) {
    let socket: std::net::SocketAddr = text.parse().unwrap();
    (socket.ip(), socket.port())
}

#[test]
fn connections_are_read_as_the_kernel_shows_them() {
    let connection = |protocol, client, service, destination, state: &str, seconds_left| {
        let state = state.to_owned();
        ListedConnection {
            protocol: Some(protocol),
            client: at(client),
            service: at(service),
            destination: at(destination),
            state,
            seconds_left,
        }
    };
    let (vip, web) = ("10.96.0.1:80", "10.1.0.2:8080");
    assert_eq!(
        read(SHOWN.as_bytes()).unwrap(),
        [
            connection(Protocol::Tcp, "192.0.2.1:43041", vip, web, "SYN_RECV", 59),
            connection(
                Protocol::Tcp,
                "[fd00:10::7]:53369",
                "[fd00:96::1]:80",
                "[fd00:244::9]:8080",
                "SYN_RECV",
                60
            ),
            connection(
                Protocol::Udp,
                "192.0.2.1:41327",
                "10.96.0.10:53",
                "10.1.0.3:5353",
                "UDP",
                300
            ),
            connection(Protocol::Tcp, "192.0.2.1:0", vip, web, "NONE", 29),
        ]
    );
}

#[test]
fn another_file_is_an_error_and_the_end_of_the_list() {
    assert!(read(b"").is_err());
    assert!(read(b"IP Virtual Server version 1.2.1 (size=4096)\n").is_err());
    let damaged = SHOWN.replace("0A600001", "0A60001");
    let mut connections = Connections::new(damaged.as_bytes()).unwrap();
    assert!(matches!(
        connections.next(),
        Some(Err(ListingError::Line(_)))
    ));
    assert!(connections.next().is_none());
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_a_panic(
        rest in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut text = SHOWN.lines().next().unwrap().as_bytes().to_vec();
        text.push(b'\n');
        text.extend(rest);
        drop(read(&text));
    }
}
