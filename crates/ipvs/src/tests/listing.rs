// SPDX-License-Identifier: Apache-2.0
//! `/proc/net/ip_vs`: one that a kernel showed, and any that it could show.

use std::fmt::Write as _;
use std::io::{BufReader, Read};
use std::net::IpAddr;

use proptest::prelude::*;

use crate::{
    DestinationKey, ListedDestination, ListedForwarding, ListedKey, ListedService, Listing,
    ListingError, Protocol,
};

/// What `tests/wire/capture-listing.sh` recorded on Linux 6.1.
const CAPTURED: &str = include_str!("../wire/listing.txt");

fn heading() -> String {
    let lines: Vec<&str> = CAPTURED.lines().take(3).collect();
    lines.join("\n") + "\n"
}

fn read(text: &[u8]) -> Result<Vec<ListedService>, ListingError> {
    Listing::new(text)?.collect()
}

fn place(text: &str) -> (IpAddr, u16) {
    let address: std::net::SocketAddr = text.parse().unwrap();
    (address.ip(), address.port())
}

fn service(
    protocol: Protocol,
    at: &str,
    destinations: &[(&str, ListedForwarding, u32)],
) -> ListedService {
    let (address, port) = place(at);
    let key = ListedKey::Address {
        protocol,
        address,
        port,
    };
    with(key, destinations)
}

fn with(key: ListedKey, destinations: &[(&str, ListedForwarding, u32)]) -> ListedService {
    let destinations = destinations.iter().map(|&(at, forwarding, weight)| {
        let (address, port) = place(at);
        ListedDestination {
            key: DestinationKey { address, port },
            forwarding,
            weight,
            active_connections: 0,
            inactive_connections: 0,
        }
    });
    ListedService {
        key,
        destinations: destinations.collect(),
    }
}

#[test]
fn what_a_kernel_showed_is_what_was_set_up() {
    use ListedForwarding::{DirectRoute, Masquerade, Tunnel};
    let wanted = [
        service(
            Protocol::Tcp,
            "10.96.0.10:53",
            &[
                ("[fd00:1::9]:53", Tunnel, 5),
                ("10.1.255.254:65535", Masquerade, 65535),
                ("10.1.0.3:53", Masquerade, 1),
                ("10.1.0.2:53", Masquerade, 0),
            ],
        ),
        service(
            Protocol::Udp,
            "10.96.0.10:53",
            &[
                ("10.1.0.3:53", Tunnel, 7),
                ("10.1.0.2:53", DirectRoute, 100),
            ],
        ),
        service(
            Protocol::Sctp,
            "255.255.255.254:1",
            &[("192.0.2.1:3868", Masquerade, 2_147_483_647)],
        ),
        service(Protocol::Tcp, "10.96.0.11:80", &[]),
        service(
            Protocol::Tcp,
            "[fd00:96::a]:65535",
            &[
                ("[fd00:1::3]:65535", DirectRoute, 4),
                ("[fd00:1::2]:8080", Masquerade, 3),
            ],
        ),
        service(Protocol::Udp, "[fd00:96::a]:53", &[]),
        with(ListedKey::Mark(8193), &[("[fd00:1::2]:80", Masquerade, 1)]),
        with(ListedKey::Mark(8193), &[("10.1.0.2:80", Masquerade, 1)]),
        with(ListedKey::Mark(u32::MAX), &[]),
    ];
    let found = read(CAPTURED.as_bytes()).unwrap();
    for service in &wanted {
        assert!(found.contains(service), "{service:?} is not in {found:#?}");
    }
    assert_eq!(found.len(), wanted.len());
}

#[test]
fn no_service_is_no_error_and_no_heading_is_one() {
    assert_eq!(read(heading().as_bytes()).unwrap(), []);
    for text in ["", "IP Virtual Server version 1.2.1 (size=4096)\n", "abc\n"] {
        assert!(read(text.as_bytes()).is_err(), "{text:?}");
    }
}

#[test]
fn other_protocols_are_no_error_and_other_lines_are_one() {
    let read_after = |text: &str| read((heading() + text).as_bytes());
    let icmp = read_after("ICMP  0A60000A:0000 rr  \nTCP  0A60000A:0035 rr  \n").unwrap();
    assert_eq!(icmp[0], with(ListedKey::Unknown, &[]));
    assert_eq!(icmp[1], service(Protocol::Tcp, "10.96.0.10:53", &[]));
    for line in [
        "TCP  10.96.0.10:53 rr",
        "TCP  0A60000A:35 rr",
        "TCP  0A60000A:+035 rr",
        "FWM  2001 rr",
        "something else",
        "",
        "  -> 0A010002:0035      Masq    1      0          0",
        "TCP  0A60000A:0035 rr  \n  -> 0A010002:0035      Bypass  1      0          0",
        "TCP  0A60000A:0035 rr  \n  -> 0A010002:0035      Masq    -1     0          0",
        "TCP  0A60000A:0035 rr  \n  -> [0A010002:0035      Masq    1      0          0",
        "TCP  0A60000A:0035 rr  \n  -> 0A010002:0035",
    ] {
        assert!(read_after(&format!("{line}\n")).is_err(), "{line:?}");
    }
    // A last line without an end is one that was cut.
    assert!(read_after("TCP  0A60000A:0035 rr").is_err());
}

#[test]
fn a_line_without_end_is_not_read_to_its_end() {
    let text = heading();
    let endless = text.as_bytes().chain(std::io::repeat(b'x'));
    assert!(Listing::new(BufReader::new(endless)).is_err());
}

#[test]
fn services_before_an_unknown_line_are_read_and_none_after_it() {
    let text = heading()
        + "TCP  0A60000A:0035 rr  \nTCP  0A60000B:0035 rr  \n???\nTCP  0A60000C:0035 rr  \n";
    let found: Vec<_> = Listing::new(text.as_bytes()).unwrap().collect();
    assert_eq!(found.len(), 2);
    assert!(found[0].is_ok() && found[1].is_err(), "{found:?}");
}

/// As the kernel prints it.
fn shown(services: &[ListedService]) -> String {
    let mut text = heading();
    let place = |address: IpAddr, port: u16| match address {
        IpAddr::V4(address) => format!("{:08X}:{port:04X}", address.to_bits()),
        IpAddr::V6(address) => {
            let groups = address.segments().map(|group| format!("{group:04x}"));
            format!("[{}]:{port:04X}", groups.join(":"))
        }
    };
    for service in services {
        match service.key {
            ListedKey::Address {
                protocol,
                address,
                port,
            } => writeln!(text, "{protocol}  {} rr  ", place(address, port)),
            ListedKey::Mark(mark) => writeln!(text, "FWM  {mark:08X} rr persistent 30000 40000000"),
            ListedKey::Unknown => writeln!(text, "IP_47  {} rr ops ", place([0; 4].into(), 0)),
        }
        .unwrap();
        for found in &service.destinations {
            let method = match found.forwarding {
                ListedForwarding::Masquerade => "Masq",
                ListedForwarding::Local => "Local",
                ListedForwarding::Tunnel => "Tunnel",
                ListedForwarding::DirectRoute => "Route",
            };
            let at = place(found.key.address, found.key.port);
            let weight = found.weight;
            let (active, inactive) = (found.active_connections, found.inactive_connections);
            writeln!(
                text,
                "  -> {at}      {method:<7} {weight:<6} {active:<10} {inactive:<10}",
            )
            .unwrap();
        }
    }
    text
}

fn listed_key() -> impl Strategy<Value = ListedKey> {
    let protocol = prop_oneof![
        Just(Protocol::Tcp),
        Just(Protocol::Udp),
        Just(Protocol::Sctp)
    ];
    prop_oneof![
        (protocol, any::<IpAddr>(), any::<u16>()).prop_map(|(protocol, address, port)| {
            ListedKey::Address {
                protocol,
                address,
                port,
            }
        }),
        any::<u32>().prop_map(ListedKey::Mark),
        Just(ListedKey::Unknown),
    ]
}

fn listed_destination() -> impl Strategy<Value = ListedDestination> {
    let forwarding = prop_oneof![
        Just(ListedForwarding::Masquerade),
        Just(ListedForwarding::Local),
        Just(ListedForwarding::Tunnel),
        Just(ListedForwarding::DirectRoute),
    ];
    (
        any::<IpAddr>(),
        any::<u16>(),
        forwarding,
        [
            0..=i32::MAX as u32,
            0..=i32::MAX as u32,
            0..=i32::MAX as u32,
        ],
    )
        .prop_map(|(address, port, forwarding, [weight, active, inactive])| {
            ListedDestination {
                key: DestinationKey { address, port },
                forwarding,
                weight,
                active_connections: active,
                inactive_connections: inactive,
            }
        })
}

fn listed_services() -> impl Strategy<Value = Vec<ListedService>> {
    let destinations = prop::collection::vec(listed_destination(), 0..5);
    let service = (listed_key(), destinations)
        .prop_map(|(key, destinations)| ListedService { key, destinations });
    prop::collection::vec(service, 0..5)
}

proptest! {
    #[test]
    fn a_listing_is_read_as_it_is_shown(services in listed_services(), piece in 1_usize..100) {
        let text = shown(&services);
        prop_assert_eq!(&read(text.as_bytes()).unwrap(), &services);
        let in_pieces = BufReader::with_capacity(piece, text.as_bytes());
        let found: Result<Vec<_>, _> = Listing::new(in_pieces).unwrap().collect();
        prop_assert_eq!(found.unwrap(), services);
    }

    #[test]
    fn reading_survives_any_bytes(bytes: Vec<u8>) {
        drop(read(&bytes));
        drop(read(&[heading().as_bytes(), &bytes].concat()));
    }

    #[test]
    fn reading_survives_broken_listings(
        services in listed_services(),
        changes in prop::collection::vec(any::<(prop::sample::Index, u8)>(), 0..8),
        length: prop::sample::Index,
    ) {
        let mut bytes = shown(&services).into_bytes();
        for (index, value) in changes {
            let index = index.index(bytes.len());
            bytes[index] = value;
        }
        bytes.truncate(length.index(bytes.len() + 1));
        drop(read(&bytes));
    }
}
