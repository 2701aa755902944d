// SPDX-License-Identifier: Apache-2.0
//! Flows in a real kernel, with `conntrack` as the independent reader.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use kpr_core::model::{
    Event, IpFamily, PortSpec, Protocol, Service, ServiceName, ServiceView, Tracker,
};
use kpr_core::plan::conntrack::flows::{Cleanup, Flows};
use kube_proxy_rs::dataplane::conntrack::Client;
use kube_proxy_rs::dataplane::flows::delete_stale;

use kpr_testkit::isolated::{Need, Test, run};

pub(crate) const TESTS: &[Test] = &[
    (
        "stale_flows_are_deleted_and_no_others",
        &[Need::Namespaces, Need::Legacy],
        deleted,
    ),
    (
        "kernel_lists_only_the_port_that_is_asked_for",
        &[Need::Namespaces, Need::Legacy],
        filtered,
    ),
];

/// Tests for kernels with conntrack zones.
pub(crate) const ZONES: &[Test] = &[(
    "stale_flows_of_another_zone_are_deleted",
    &[Need::Namespaces, Need::Legacy],
    zoned,
)];

/// A UDP Service without endpoints, so that all its flows are stale.
fn cleanup(family: IpFamily, address: &str, ports: &[u16]) -> Cleanup {
    let name = ServiceName::new("ns", "dns");
    let service = Service {
        name: name.clone(),
        uid: "".into(),
        created: 0,
        cluster_ips: vec![address.parse().unwrap()],
        ports: ports
            .iter()
            .map(|port| PortSpec {
                name: port.to_string().into(),
                protocol: Protocol::Udp,
                port: *port,
                node_port: None,
            })
            .collect(),
        client_ip_affinity: None,
        external_ips: Vec::new(),
        load_balancer_vips: Vec::new(),
        load_balancer_source_ranges: Vec::new(),
        external_policy_local: false,
        internal_policy_local: false,
        health_check_node_port: None,
        ipvs: None,
    };
    let mut tracker = Tracker::default();
    tracker.apply(Event::ServicesReplaced(vec![service]));
    let mut flows = Flows::new(family, BTreeSet::new());
    flows.update(&ServiceView::of(&tracker, &name, family));
    flows.due().unwrap()
}

/// Sets up loopback addresses of both families and connection tracking.
fn prepare() {
    run("ip", &["link", "set", "lo", "up"]);
    run(
        "ip",
        &["address", "add", "fd00::1/128", "dev", "lo", "nodad"],
    );
    run(
        "ip",
        &["address", "add", "fd00::2/128", "dev", "lo", "nodad"],
    );
    for program in ["iptables-legacy", "ip6tables-legacy"] {
        let track = ["-A", "OUTPUT", "-m", "conntrack", "--ctstate", "NEW"];
        run(program, &track);
    }
}

/// Clients that each send to an address and port from a different source port.
fn send(count: usize, to: &str) -> Vec<UdpSocket> {
    let to: SocketAddr = to.parse().unwrap();
    let from = match to.ip() {
        IpAddr::V4(_) => "127.0.0.1:0",
        IpAddr::V6(_) => "[fd00::1]:0",
    };
    let sockets: Vec<_> = (0..count).map(|_| UdpSocket::bind(from).unwrap()).collect();
    // The first datagrams to a new IPv6 address may be lost.
    for _ in 0..1000 {
        for socket in &sockets {
            socket.send_to(b"x", to).unwrap();
        }
        let family = IpFamily::of(to.ip());
        if flows_to(family, &to.ip().to_string(), to.port()) >= count {
            return sockets;
        }
    }
    panic!("no flows to {to}");
}

/// Number of flows to an address and port.
fn flows_to(family: IpFamily, address: &str, port: u16) -> usize {
    let family = match family {
        IpFamily::V4 => "ipv4",
        IpFamily::V6 => "ipv6",
    };
    let all = run("conntrack", &["-L", "-f", family]);
    let (to, port) = (format!(" dst={address} "), format!(" dport={port} "));
    let original = |line: &&str| {
        let begin = line.split(" src=").nth(1).unwrap_or_default();
        let begin = format!("{begin} ");
        begin.contains(&to) && begin.contains(&port)
    };
    all.lines().filter(original).count()
}

fn deleted() {
    prepare();
    let mut client = Client::open().unwrap();
    let mut clients = send(3, "127.0.0.2:53");
    for other in ["127.0.0.2:54", "127.0.0.3:53"] {
        clients.extend(send(2, other));
    }
    for to in ["[fd00::2]:53", "[fd00::2]:54", "[fd00::1]:53"] {
        clients.extend(send(2, to));
    }
    let listener = std::net::TcpListener::bind("127.0.0.2:53").unwrap();
    let stream = std::net::TcpStream::connect("127.0.0.2:53").unwrap();
    let v4 = |address, port| flows_to(IpFamily::V4, address, port);
    let v6 = |address, port| flows_to(IpFamily::V6, address, port);
    // Including the TCP connection.
    assert_eq!(v4("127.0.0.2", 53), 4);

    let one = cleanup(IpFamily::V4, "127.0.0.2", &[53]);
    assert_eq!(delete_stale(&mut client, &one).unwrap(), 3);
    assert_eq!(delete_stale(&mut client, &one).unwrap(), 0, "they are gone");
    assert_eq!(v4("127.0.0.2", 53), 1, "the TCP connection");
    assert_eq!((v4("127.0.0.2", 54), v4("127.0.0.3", 53)), (2, 2));

    // Filtered by address, the kernel would list every IPv6 flow except these.
    let one = cleanup(IpFamily::V6, "fd00::2", &[53]);
    assert_eq!(delete_stale(&mut client, &one).unwrap(), 2);
    assert_eq!(
        (v6("fd00::2", 53), v6("fd00::2", 54), v6("fd00::1", 53)),
        (0, 2, 2)
    );

    // With this many ports, all flows are listed instead of one port after another.
    let all = cleanup(IpFamily::V4, "127.0.0.2", &[50, 51, 52, 53, 54, 55]);
    assert_eq!(delete_stale(&mut client, &all).unwrap(), 2);
    assert_eq!((v4("127.0.0.2", 54), v4("127.0.0.2", 53)), (0, 1));
    drop((listener, stream, clients));
}

fn zoned() {
    prepare();
    let zone = "-t raw -A OUTPUT -p udp --dport 99 -j CT --zone 7";
    run("iptables-legacy", &zone.split(' ').collect::<Vec<_>>());
    let _clients = send(2, "127.0.0.2:99");
    let listed = run("conntrack", &["-L"]);
    assert_eq!(listed.matches("zone=7").count(), 2, "{listed}");
    let mut client = Client::open().unwrap();
    let zoned = cleanup(IpFamily::V4, "127.0.0.2", &[99]);
    assert_eq!(delete_stale(&mut client, &zoned).unwrap(), 2);
    assert_eq!(flows_to(IpFamily::V4, "127.0.0.2", 99), 0);
}

fn filtered() {
    prepare();
    let _clients = (send(200, "127.0.0.3:54"), send(2, "127.0.0.2:53"));
    let mut client = Client::open().unwrap();
    let before = client.stats();
    let one = cleanup(IpFamily::V4, "127.0.0.2", &[53]);
    assert_eq!(delete_stale(&mut client, &one).unwrap(), 2);
    let received = client.stats().messages_received - before.messages_received;
    // Two flows, the end of the list, two acknowledgements.
    assert_eq!(received, 5);
}
